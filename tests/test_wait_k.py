"""Writing while reading: a trained model writes by a policy what it would write if it had read no further."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.export import export_model, reach_of
from lit_seq2seq.inference.model import EnsembleModel
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import (
    ConditionalGRUDecoder,
    EncoderDecoder,
    GeneralAttention,
    HardMonotonicDecoder,
    InputFeedingDecoder,
    LearnedBridge,
    Looked,
    MoChA,
    MonotonicAttention,
    ParallelDecoder,
    TextEncoder,
    ZeroBridge,
)
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.search import Monotonic as MonotonicPolicy
from lit_seq2seq.search import WaitK as WaitKPolicy
from lit_seq2seq.serve import make_app
from lit_seq2seq.serve.schema import RequestLimits
from lit_seq2seq.training import CrossEntropy, WaitK
from lit_seq2seq.types import Padded, UserError
from tests.nn.cases import SIZES as SMALL
from tests.nn.cases import SOURCE, SOURCE_SIZE, TARGET, TARGET_SIZE, assert_close, disturb, row
from tests.tiny import SIZES, make_data, make_model, make_trainer, rows

FORWARD = partial(TextEncoder, **SMALL, bidirectional=False)
SOFT = partial(MonotonicAttention, noise=0.0)
EARLY = {
    "parallel": partial(ParallelDecoder, **SMALL, attention=GeneralAttention, bridge=ZeroBridge),
    "parallel first": partial(
        ParallelDecoder, **SMALL, num_layers=2, attention=SOFT, attention_after="first", bridge=ZeroBridge
    ),
    "feeding": partial(InputFeedingDecoder, **SMALL, bridge=LearnedBridge),
    "conditional": partial(ConditionalGRUDecoder, **SMALL, bridge=ZeroBridge),
    "hard monotonic": partial(HardMonotonicDecoder, **SMALL, bridge=ZeroBridge),
}


def network(name: str, encoder: Any = FORWARD) -> EncoderDecoder:
    torch.manual_seed(0)
    made = disturb(EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, encoder, EARLY[name]), scale=0.5).eval()
    if isinstance(attention := made.decoder.attention_module, MonotonicAttention):
        attention.train()  # weighs all places where it may stop, so that a mask makes a difference
    return made


def live(model: EncoderDecoder, source: Padded, target: Padded, reach: Iterator[int]) -> float:
    """Score one target, encoding again before each of its tokens no more of the source than has been read."""
    total, state = 0.0, None
    for token, wanted, count in zip(model.shift(target)[0], target.values[0], reach, strict=False):
        size = min(count, int(source.lengths))
        start = model.start(model.encode(Padded(source.values[:, :size], torch.tensor([size]))))
        if state is None:
            state = start
        state = replace(state, memory=start.memory, attention=_longer(start.attention, state.attention))
        output = model.step(token[None], state)
        total, state = total + float(output.log_probs[0, wanted]), output.state
    return total


def _longer(start: Any, before: Any) -> Any:
    """Give what attention remembers of fewer positions the size that it has for more: it has not been at those."""
    if before is None:
        return None
    known = iter(())

    def grown(new: torch.Tensor) -> torch.Tensor:
        old = next(known)
        padding = torch.zeros_like(new) if new.dim() == 3 or isinstance(start, Looked) else torch.full_like(new, -1e4)
        padding[:, : old.shape[1]] = old
        return padding

    found: list[torch.Tensor] = []
    before.map(lambda tensor: found.append(tensor) or tensor)
    known = iter(found)
    return start.map(grown)


@pytest.mark.parametrize("catchup", [0.0, 0.5])
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("name", EARLY)
@torch.no_grad()
def test_the_objective_is_the_likelihood_of_a_decoder_that_has_read_no_further(
    name: str, k: int, catchup: float
) -> None:
    model = network(name)
    loss = WaitK(k=k, catchup=catchup).of(model, SOURCE, TARGET)
    reach = WaitKPolicy(k, catchup).reach(np.arange(6)).tolist()
    every = [live(model, row(SOURCE, index), row(TARGET, index), iter(reach)) for index in range(4)]
    assert float(loss.nll) == pytest.approx(-sum(every), abs=1e-4)
    assert_close(loss.total, loss.nll)
    assert_close(model.nll(SOURCE, TARGET, torch.tensor(reach)), loss.nll)
    whole = CrossEntropy().of(model, SOURCE, TARGET).nll
    assert torch.isclose(loss.nll, whole) == (k == 9)


def test_a_range_draws_a_k_for_each_batch() -> None:
    model = network("parallel")
    single = [float(WaitK(k=k).of(model, SOURCE, TARGET).nll) for k in (1, 2, 3)]
    drawn = {round(float(WaitK(k=[1, 3]).of(model, SOURCE, TARGET).nll), 3) for _ in range(40)}
    assert drawn == {round(value, 3) for value in single}
    for wrong in ([3, 1], [1, 2, 3], [0, 2], 0):
        with pytest.raises(UserError, match="WaitK: k="):
            WaitK(k=wrong)


MESSAGES = {
    "the objective WaitK writes before the source has ended, but TextEncoder needs the whole source": {
        "encoder": partial(TextEncoder, **SIZES)
    },
    "but LastState reads its end: set bridge to ZeroBridge or LearnedBridge": {
        "decoder": partial(ParallelDecoder, **SIZES, attention=GeneralAttention)
    },
    "but the decoder looks at its end: give it attention, and set use_summary to false": {
        "decoder": partial(ParallelDecoder, **SIZES, bridge=ZeroBridge)
    },
}
NETWORK = {
    "encoder": partial(TextEncoder, **SIZES, bidirectional=False),
    "decoder": partial(ParallelDecoder, **SIZES, attention=GeneralAttention, bridge=ZeroBridge),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_networks_that_cannot_write_early_are_refused(message: str, tmp_path: Path) -> None:
    model = make_model(objective=partial(WaitK, k=2), **{**NETWORK, **MESSAGES[message]})
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path).fit(model, datamodule=make_data())
    model = make_model(generation=GenerationConfig(policy=WaitKPolicy(2)), **{**NETWORK, **MESSAGES[message]})
    with pytest.raises(UserError, match=message.replace("the objective WaitK", "generation.policy")):
        make_trainer(tmp_path).fit(model, datamodule=make_data())
    with pytest.raises(UserError, match=message.replace("the objective WaitK", "generation.policy")):
        model.generate(["eins"], GenerationConfig(policy=WaitKPolicy(2)))


# ---------------------------------------------------------------------------------------------- a trained model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    model = make_model(
        objective=partial(WaitK, k=1),
        generation=GenerationConfig(max_new_tokens=6, policy=WaitKPolicy(1)),
        optimizer=partial(torch.optim.Adam, lr=0.03),
        **NETWORK,
    )
    make_trainer(place, max_epochs=3).fit(model, datamodule=make_data(rows(160), batch_size=16))
    model.save_pretrained(place / "model")
    export_model(model, place / "exported", ["fp32"])
    return place / "model"


TEXTS = ["eins zwei drei", "fünf", "vier drei eins zwei"]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("policy", [WaitKPolicy(1), WaitKPolicy(2, 0.3), WaitKPolicy(9)])
def test_a_policy_does_the_same_everywhere(policy: WaitKPolicy, beams: int, folder: Path, tmp_path: Path) -> None:
    kinds = ["score", "tokens", "delays"]
    described = {"class_path": "WaitK", "init_args": {"k": policy.k, "catchup": policy.catchup}}
    config = GenerationConfig(max_new_tokens=6, num_beams=beams, policy=policy, details=kinds)
    expected = [
        [one.told(kinds) for one in row] for row in Predictor(LitSeq2Seq.from_pretrained(folder)).stream(TEXTS, config)
    ]
    for text, (one,) in zip(TEXTS, expected, strict=True):
        reach = policy.reach(np.arange(9)).clip(max=len(text.split()) + 1).tolist()
        assert one["delays"] == reach[: len(one["tokens"])]
        assert one["source_length"] == len(text.split()) + 1
    options: dict[str, Any] = {"num_beams": beams, "policy": described, "details": kinds}

    def near(row: Any) -> Any:
        return [
            {
                **one,
                "score": pytest.approx(one["score"], abs=1e-4),
                "token_scores": pytest.approx(one["token_scores"], abs=1e-4),
            }
            for one in row
        ]

    found = pipeline("translation", str(folder))(TEXTS, **options)
    assert [one["translation_text"] for one in found] == [row[0]["text"] for row in expected]
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]
    given = [f"--{name}={json.dumps(value)}" for name, value in options.items()]
    assert main(["generate", "--model", str(folder), *files, *given]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == list(map(near, expected))
    run = Model(folder.parent / "exported")(TEXTS, max_new_tokens=6, **options)
    assert [[one.told(kinds) for one in row] for row in run] == list(map(near, expected))
    model = LitSeq2Seq.from_pretrained(folder, changes={"generation": config})
    model.save_pretrained(tmp_path / "model")
    with TestClient(make_app(str(tmp_path / "model"), RequestLimits()), base_url="http://localhost") as client:
        answers = [client.post("/predict", json={"text": text, "details": kinds}).json() for text in TEXTS]
    assert [answer["outputs"] for answer in answers] == list(map(near, expected))
    pair = EnsembleModel([model.model, LitSeq2Seq.from_pretrained(folder).model])
    assert [[one.text for one in row] for row in pair.generate(TEXTS, config)] == [
        [one["text"] for one in row] for row in expected
    ]
    if beams == 1:
        assert ["".join(model.stream(text)) for text in TEXTS] == [row[0]["text"] for row in expected]


@pytest.mark.parametrize("policy", [WaitKPolicy(1), WaitKPolicy(3)])
def test_an_output_is_scored_as_it_was_written(policy: WaitKPolicy, folder: Path) -> None:
    predictor = Predictor(LitSeq2Seq.from_pretrained(folder))
    config = GenerationConfig(max_new_tokens=9, policy=policy)
    found = [row[0] for row in predictor.stream(TEXTS, config)]
    for one, again in zip(
        found, predictor.score(zip(TEXTS, (one.text for one in found), strict=True), config), strict=True
    ):
        assert again.score == pytest.approx(one.score, abs=1e-4)
        assert again.delays == one.delays


def test_no_word_changes_when_the_source_goes_on(folder: Path) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    words = ["eins", "drei", "fünf", "vier", "zwei"]
    for beams in (1, 3):
        config = GenerationConfig(max_new_tokens=6, num_beams=beams, policy=WaitKPolicy(2))
        found = [model.generate([" ".join(words[:count])], config)[0][0] for count in range(1, 6)]
        for count, (shorter, longer) in enumerate(pairwise(found), start=1):
            early = int((longer.delays <= count).sum())  # before the word that is new, or EOS in its place
            assert shorter.tokens[:early].tolist() == longer.tokens[:early].tolist()
            assert count == 1 or early


def test_validation_measures_the_loss_under_the_policy(folder: Path, tmp_path: Path) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    data = make_data(rows(160), processor=model.processor)
    trainer = make_trainer(tmp_path)
    losses = []
    for policy in (WaitKPolicy(1), WaitKPolicy(3), None):
        model.model.generation = GenerationConfig(max_new_tokens=6, policy=policy)
        losses.append(trainer.validate(model, datamodule=data, verbose=False)[0]["val_loss"])
    data.setup("validate")
    reach = torch.arange(1, 20)
    batches = list(data.val_dataloader())
    total = sum(float(model.net.nll(one.source, one.target, reach[: one.target.values.shape[1]])) for one in batches)
    assert losses[0] == pytest.approx(total / sum(int(one.target.total) for one in batches), rel=1e-5)
    assert len({round(loss, 4) for loss in losses}) == 3


def test_an_exported_model_that_needs_the_whole_source_is_no_early_writer(folder: Path, tmp_path: Path) -> None:
    whole = make_model()
    whole.attach(make_data().processor)
    assert reach_of(whole.net) is None
    shutil.copytree(folder.parent / "exported", tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    assert settings["reach"] == [1, 1]
    (tmp_path / "export.json").write_text(json.dumps({**settings, "reach": None}), encoding="utf-8")
    with pytest.raises(UserError, match="policy: this model needs its whole source before it writes: set it to null"):
        Model(tmp_path)(TEXTS, policy=WaitKPolicy(2))


def test_delays_need_a_policy(folder: Path) -> None:
    with pytest.raises(UserError, match="details: delays are those of a policy: set one, or leave them out"):
        pipeline("translation", str(folder))("eins", policy=None, details="delays")


@pytest.mark.parametrize("attention", [MonotonicAttention, partial(MoChA, chunk_size=2)])
def test_monotonic_attention_tells_how_far_it_has_read(attention: Any, tmp_path: Path) -> None:
    decoder = partial(ParallelDecoder, **SIZES, attention=attention, bridge=ZeroBridge)
    model = make_model(**{**NETWORK, "decoder": decoder})
    model.attach(make_data().processor)
    disturb(model.net, scale=0.5).eval()
    exported = attention is MonotonicAttention and export_model(model, tmp_path, ["fp32"])
    for beams in (1, 3):
        options = {"num_beams": beams, "policy": MonotonicPolicy(), "max_new_tokens": 6, "details": ["delays"]}
        found = list(Predictor(model).stream(TEXTS, GenerationConfig(**options)))
        if exported:
            same = [[one.delays for one in row] for row in Model(tmp_path)(TEXTS, **options)]
            assert same == [[one.delays for one in row] for row in found]
        for (one,) in found:
            assert one.attention is not None
            last = [
                max((at + 1 for at, weight in enumerate(row) if weight), default=one.source_length)
                for row in one.attention
            ]
            assert list(one.delays) == last
            assert last == sorted(last)
    words = ["eins", "drei", "fünf", "vier", "zwei"]
    config = GenerationConfig(max_new_tokens=6, policy=MonotonicPolicy())
    whole = model.generate([" ".join(words)], config)[0][0]
    shorter = model.generate([" ".join(words[:3])], config)[0][0]
    early = int((whole.delays <= 3).sum())
    assert whole.tokens[:early].tolist() == shorter.tokens[:early].tolist()
