"""What is equal bit for bit from run to run, and what is only nearly equal; docs/reliability.md tells it."""

import time
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import GeneralAttention, InputFeedingDecoder, ParallelDecoder, TextEncoder
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import GenerationConfig
from tests.tiny import SIZES, make_data, make_model, make_trainer, needs_bfloat16, pairs, rows

DECODERS = {
    "parallel": partial(ParallelDecoder, **SIZES, dropout=0.3),
    "input feeding": partial(InputFeedingDecoder, **SIZES, dropout=0.3, attention=GeneralAttention),
}


def fitted(folder: Path, decoder: str = "parallel", workers: int = 0, **options: object) -> LitSeq2Seq:
    """Train on 24 rows with dropout; time and the state of the generators before have no say."""
    torch.manual_seed(time.time_ns() % 2**32)
    seed_everything(3, verbose=False)
    encoder = partial(TextEncoder, **SIZES, dropout=0.3)
    model = make_model(encoder=encoder, decoder=DECODERS[decoder])
    make_trainer(folder, max_epochs=2, **options).fit(model, datamodule=make_data(rows(24), num_workers=workers))
    return model


def weights(model: LitSeq2Seq) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"precision": "bf16-mixed"}, marks=needs_bfloat16), {"deterministic": True}], ids=str
)
def test_a_run_is_repeated_bit_for_bit(tmp_path: Path, decoder: str, options: dict[str, object]) -> None:
    first = weights(fitted(tmp_path, decoder, **options))
    assert torch.equal(weights(fitted(tmp_path, decoder, **options)), first)


def test_looking_for_16_bit_kernels_draws_no_random_number() -> None:
    computes_in.cache_clear()
    before = torch.get_rng_state()
    computes_in(torch.bfloat16, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    assert torch.equal(weights(fitted(tmp_path, workers=2)), weights(fitted(tmp_path)))


@pytest.mark.slow
def test_another_number_of_threads_rounds_otherwise(tmp_path: Path) -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(weights(fitted(tmp_path)))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "seed": 5}], ids=str)
def test_outputs_are_repeated_bit_for_bit(tmp_path: Path, options: dict[str, object]) -> None:
    model = fitted(tmp_path)
    texts, config = pairs(12, seed=4)["source"], GenerationConfig(max_new_tokens=6, **options)
    first = list(Predictor(model).stream(texts, config))
    torch.rand(7)  # the state of the generators has no say
    again = list(Predictor(model).stream(texts, config))
    assert [[(one.text, one.score) for one in found] for found in again] == [
        [(one.text, one.score) for one in found] for found in first
    ]
