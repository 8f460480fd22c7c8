"""Networks that score some symbols of each source only."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_seq2seq import shortlist
from lit_seq2seq.nn import Ensemble
from lit_seq2seq.nn.kernels.packed import prepare
from lit_seq2seq.search import GenerationConfig, including, search
from lit_seq2seq.shortlist import Shortlist
from lit_seq2seq.types import Padded, UserError
from tests.nn.cases import MAIN, SOURCE, SPECIALS, TARGET_SIZE, EncoderDecoder, assert_close, network
from tests.nn.kernels.test_packed import ROUNDING, TYPES

LISTED = Padded(
    torch.tensor([[0, 1, 2, 3, 5, 7], [0, 1, 2, 3, 6, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 0]]),
    torch.tensor([6, 5, 6, 4]),
)
PLACES = torch.tensor([[2, 4, 5, 1], [2, 4, 4, 1], [2, 5, 4, 5], [2, 1, 1, 1]])  # BOS first


def stepped(model: EncoderDecoder, index: list[int], short: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probabilities of each source's candidates at each step, `(B, T, C)`."""
    rows = torch.tensor(index)
    source, listed, fast = SOURCE.select(rows), LISTED.select(rows), prepare(model, dtype)
    encoded, found = fast.encode(source), []
    state = fast.start(encoded, listed if short else None)
    ids = listed.values.gather(1, PLACES[rows])
    for time in range(ids.shape[1]):
        output = fast.step((PLACES[rows] if short else ids)[:, time], state)
        state = output.state
        found.append(output.log_probs if short else output.log_probs.gather(1, listed.values))
    return torch.stack(found, dim=1).masked_fill(~listed.mask[:, None], -torch.inf)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("decoder", MAIN)
def test_with_all_other_symbols_as_the_sample_probabilities_are_those_of_the_network(
    decoder: str, dtype: torch.dtype
) -> None:
    model = network(decoder)
    short, whole = (stepped(model, [0, 1, 2, 3], short, dtype).exp() for short in (True, False))
    assert (short - whole).abs().max() < ROUNDING[dtype]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sample", [2, 128])
def test_batch_mates_and_their_candidates_change_nothing(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, sample: int
) -> None:
    monkeypatch.setattr(shortlist, "SAMPLE", sample)
    model = network("parallel general")
    whole = stepped(model, [0, 1, 2, 3], True, dtype).exp()
    for row in range(4):
        alone = stepped(model, [row], True, dtype).exp()[0]
        assert (whole[row, :, : alone.shape[1]] - alone).abs().max() < ROUNDING[dtype]


@torch.inference_mode()
def test_the_sample_stands_for_what_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "SAMPLE", 2)  # ids 0 and 4 of 8
    model = network("parallel general")
    short, whole = (stepped(model, [0, 2], short) for short in (True, False))
    state = model.start(model.encode(SOURCE))
    first = model.step(torch.full((4,), SPECIALS.bos), state).log_probs.exp()  # (B, V)
    of_first = first[0, LISTED.values[0]].sum() + 2 * first[0, 4]  # ids 4 and 6 are not listed, 4 stands for both
    assert_close(short[0, 0].exp(), whole[0, 0].exp() / of_first)
    listed = first[2, LISTED.values[2]]  # with 4: nothing is left to stand for the rest
    assert_close(short[1, 0].exp(), listed / listed.sum())


@torch.inference_mode()
@pytest.mark.parametrize("beams", [1, 3])
def test_search_finds_what_a_search_with_other_symbols_forbidden_does(beams: int) -> None:
    model = network("feeding general")
    allowed = torch.zeros(len(SOURCE.lengths), TARGET_SIZE, dtype=torch.bool)
    allowed.scatter_(1, LISTED.values, True)
    config, encoded = GenerationConfig(num_beams=beams, max_new_tokens=4), model.encode(SOURCE)
    options = {"batch_size": 4, "specials": SPECIALS, "config": config}
    found = search(model.step, model.start(encoded, LISTED), candidates=LISTED, **options)
    for row, hypotheses in enumerate(found):
        alone = model.encode(SOURCE.select(torch.tensor([row])))
        (expected,) = search(forbidding(model, allowed[row]), model.start(alone), **{**options, "batch_size": 1})
        assert hypotheses[0].tokens.tolist() == expected[0].tokens.tolist()
        assert hypotheses[0].score == pytest.approx(expected[0].score, abs=1e-5)


def forbidding(model: EncoderDecoder, allowed: Tensor) -> Callable[..., object]:
    def step(tokens: Tensor, state: object) -> object:
        output = model.step(tokens, state)
        output.log_probs[:, ~allowed] = -torch.inf
        return output

    return step


@torch.inference_mode()
def test_an_ensemble_averages_over_the_same_candidates() -> None:
    model = network("parallel general")
    ensemble = Ensemble([model, network("feeding location")]).eval()
    state = ensemble.start(ensemble.encode(SOURCE), LISTED)
    found = ensemble.step(PLACES[:, 0], state).log_probs.exp()
    whole = ensemble.step(torch.full((4,), SPECIALS.bos), ensemble.start(ensemble.encode(SOURCE))).log_probs.exp()
    assert_close(found[LISTED.mask], whole.gather(1, LISTED.values)[LISTED.mask])


def test_candidates_are_listed_once_with_the_special_ones_first() -> None:
    make = Shortlist(np.array([6, 4]), np.array([[7, 7], [4, -1], [1, 5]]), TARGET_SIZE, SPECIALS)
    listed = make(np.array([[1, 2, 2], [0, 1, 1], [1, 0, 0]]), np.array([3, 2, 1]))
    assert listed.values.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 6, 7], [0, 1, 2, 3, 4, 6, 0]]
    assert listed.lengths.tolist() == [7, 7, 6]


def test_tokens_of_a_prefix_join_the_candidates() -> None:
    listed = including(LISTED, torch.tensor([[6, 6], [6, 0], [0, 0], [7, 4]]), SPECIALS)
    assert [sorted(row[:length].tolist()) for row, length in zip(listed.values, listed.lengths, strict=True)] == [
        [0, 1, 2, 3, 5, 6, 7],
        [0, 1, 2, 3, 6],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 7],
    ]
    with pytest.raises(UserError, match=r"prefix has shape \(4,\): must be \(4, P\)"):
        including(LISTED, torch.tensor([6, 6, 6, 6]), SPECIALS)
