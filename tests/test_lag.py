"""How far outputs lag behind their sources: as OmniSTEval counts, and the same however a corpus is cut."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lit_seq2seq.callbacks import Checkpoint
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import Lag
from lit_seq2seq.metrics.lag import (
    average_lagging,
    average_proportion,
    differentiable_average_lagging,
    lag_row,
    length_adaptive_average_lagging,
    unit_delays,
)
from lit_seq2seq.nn import InputFeedingDecoder, TextEncoder, ZeroBridge
from lit_seq2seq.search import GenerationConfig, WaitK
from lit_seq2seq.training import WaitK as WaitKObjective
from lit_seq2seq.types import UserError
from tests.tiny import SIZES, make_data, make_model, make_trainer, pairs

# delays, source length, reference length; AL, LAAL, DAL and AP by OmniSTEval 0.1.10
CASES = [
    ([3, 4, 5, 6, 6], 6, 5, (2.7, 2.7, 3.0, 0.8)),
    ([1, 2, 3, 4], 4, 4, (1.0, 1.0, 1.0, 0.625)),
    ([5, 5, 5], 5, 3, (5.0, 5.0, 5.0, 1.0)),
    ([2, 2, 4, 7, 7, 7, 7, 7], 7, 4, (1.125, 2.4375, 3.515625, 1.535714286)),
    ([3], 7, 4, (3.0, 3.0, 3.0, 0.107142857)),
    ([9, 9], 7, 2, (9, 9, 9.0, 1.285714286)),
    ([1, 6, 6], 6, 9, (3.166666667, 3.166666667, 3.0, 0.240740741)),
    ([800.0, 1600.0, 1600.0, 2200.0, 2345.5], 2345.5, 7, (1038.957142857, 1038.957142857, 1064.72, 0.520479946)),
    ([812.5, 1711.0, 1745.25, 2301.0, 2600.75], 2345.5, 7, (1163.957142857, 1163.957142857, 1156.02, 0.558546761)),
]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("delays", "source", "reference", "expected"), CASES)
def test_lags_are_those_of_omnisteval(delays, source, reference, expected):
    assert average_lagging(delays, source, reference) == pytest.approx(expected[0])
    assert length_adaptive_average_lagging(delays, source, reference) == pytest.approx(expected[1])
    assert differentiable_average_lagging(delays, source) == pytest.approx(expected[2])
    assert average_proportion(delays, source, reference) == pytest.approx(expected[3])


@pytest.mark.parametrize("k", [1, 3, 7])
def test_wait_k_lags_by_k(k):
    delays = WaitK(k).reach(np.arange(12)).clip(max=12).tolist()
    assert average_lagging(delays, 12, 12) == length_adaptive_average_lagging(delays, 12, 12) == k
    assert differentiable_average_lagging(delays, 12) == pytest.approx(k)


def corpus(size, unit=1.0):
    sources = RNG.integers(1, 30, size) * unit
    delays = [np.sort(RNG.uniform(0, 1.1 * source, RNG.integers(0, 12))).tolist() for source in sources]
    elapsed = [[delay + 0.3 * unit * place for place, delay in enumerate(row)] for row in delays]
    return delays, sources.tolist(), RNG.integers(1, 15, size).tolist(), elapsed


def test_a_corpus_has_the_same_lag_however_it_is_cut_and_ordered():
    columns = corpus(60, unit=137.5)
    whole, parts = Lag(), [Lag(), Lag()]
    whole.update(*columns)
    for place in RNG.permutation(60):
        parts[place % 2].update(*[column[place : place + 1] for column in columns])
    joined = parts[0]
    joined.totals, joined.outputs = joined.totals + parts[1].totals, joined.outputs + parts[1].outputs
    assert whole.compute() == joined.compute()
    assert set(whole.compute()) == {*Lag.names, *(f"{name}_ca" for name in Lag.names)}
    kept = [place for place, row in enumerate(columns[0]) if row]
    expected = np.mean([average_lagging(*[column[place] for column in columns[:3]]) for place in kept])
    assert whole.compute()["al"].item() == pytest.approx(expected, rel=1e-6)
    assert all(whole.compute()[f"{name}_ca"] > whole.compute()[name] for name in Lag.names)


def test_what_was_not_given_has_no_lag():
    lag = Lag()
    lag.update([[]], [3], [2])
    lag.update([[1]], [0], [2])
    assert lag.compute() == {}
    lag.update([[1, 2]], [2], [0])
    assert {name: value.item() for name, value in lag.compute().items()} == {
        "al": 0.5,
        "laal": 1.0,
        "dal": 1,
        "ap": 1.5,
    }
    with pytest.raises(UserError, match="for each of 2 outputs, but there are more or fewer"):
        lag.update([[1], [2]], [3, 3], [1])
    with pytest.raises(UserError, match="expected 1 elapsed times beside as many delays, but got 2"):
        lag.update([[1]], [3], [1], [[1, 2]])


def test_words_and_characters_have_the_delay_of_the_token_that_completes_them():
    written = ["Tw", "Two", "Two do", "Two dogs", "Two dogs.", "Two dogs.", "Two dogs. So it"]
    delays = [1, 2, 3, 5, 6, 7, 9]
    assert unit_delays(delays, written) == [2, 6, 9, 9]
    assert unit_delays(delays, written, list) == [1, 1, 2, 3, 3, 3, 5, 5, 6, *[9] * 6]
    assert unit_delays([], []) == []


@pytest.mark.parametrize("char_level", [False, True])
def test_omnisteval_reads_the_rows_and_finds_the_same(char_level, tmp_path: Path):
    loading, scoring = (pytest.importorskip(f"omnisteval.{name}") for name in ("io", "scoring"))
    delays, sources, references, elapsed = corpus(40, unit=80.0)
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row, source, length, late in zip(delays, sources, references, elapsed, strict=True):
            reference = ("w" if char_level else "w ") * length
            line = lag_row("w " * len(row), row, source, elapsed=late, reference=reference.strip())
            file.write(json.dumps(line) + "\n")
    instances = loading.load_shortform_instances(
        str(tmp_path / "rows.jsonl"), None, "delays", "elapsed", char_level=char_level
    )
    found, *_ = scoring.evaluate_instances(instances, compute_quality=False, is_longform=False)
    lag = Lag()
    lag.update(delays, sources, references, elapsed)
    for name in Lag.names:
        assert lag.compute()[name].item() == pytest.approx(found[name], rel=1e-6)
        assert lag.compute()[f"{name}_ca"].item() == pytest.approx(found[f"ca_{name}"], rel=1e-6)


def test_an_evaluation_under_a_policy_logs_the_lag(tmp_path: Path):
    model = make_model(
        encoder=partial(TextEncoder, **SIZES, bidirectional=False),
        decoder=partial(InputFeedingDecoder, **SIZES, bridge=ZeroBridge),
        objective=partial(WaitKObjective, k=2),
        generation=GenerationConfig(max_new_tokens=6, policy=WaitK(2)),
    )
    checkpoint = Checkpoint(dirpath=tmp_path, monitor="val_laal", mode="min")
    data, trainer = make_data(batch_size=7), make_trainer(tmp_path, checkpoint, enable_checkpointing=True)
    trainer.fit(model, datamodule=data)
    (scores,) = trainer.validate(model, datamodule=data)
    sources, targets = (pairs(12, seed=1)[column] for column in ("source", "target"))
    lag = Lag()
    for source, target, (one,) in zip(sources, targets, Predictor(model).stream(sources), strict=True):
        length, words = len(source.split()), [name for name in one.tokens if name != "<eos>"]
        lag.update([[min(delay, length) for delay in one.delays[: len(words)]]], [length], [len(target.split())])
    for name, value in lag.compute().items():
        assert scores[f"val_{name}"] == pytest.approx(value.item())


def test_an_evaluation_without_a_policy_has_no_lag(tmp_path: Path):
    model, data = make_model(), make_data()
    make_trainer(tmp_path).fit(model, datamodule=data)
    assert not {"val_al", "val_ap"} & set(make_trainer(tmp_path).validate(model, datamodule=data)[0])
    checkpoint = Checkpoint(dirpath=tmp_path, monitor="val_al", mode="min")
    with pytest.raises(UserError, match="watches val_al, which is not logged"):
        make_trainer(tmp_path, checkpoint, enable_checkpointing=True).fit(model, datamodule=data)
