"""Minimum Bayes risk: the choice equals enumeration, and every road makes it."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.export import export_model
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import BLEU, CER, PER, WER, ChrF, CIDErD, ExactMatch, SequenceErrorRate, TextMetric
from lit_seq2seq.reranking import MinimumBayesRisk, Utility
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Hypothesis, UserError
from tests.tiny import make_data, make_model, make_trainer, rows

TEXTS = ["eins zwei", "drei", "fünf vier eins"]


class Shared(Utility):
    """Share of common characters: a utility of one's own, which needs no torch."""

    higher_is_better = True

    def each(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] = ()
    ) -> list[float]:
        pairs = zip(hypotheses, references, strict=True)
        return [100 * len(set(one) & set(other)) / max(len(set(one) | set(other)), 1) for one, [other] in pairs]


def found(scores: dict[str, float]) -> list[Hypothesis]:
    return [Hypothesis(torch.tensor([4]), score, score, torch.zeros(1), text=text) for text, score in scores.items()]


LIST = {"the dog": -0.9, "a big dog ran": -1.0, "a big dog": -1.2, "a big dog runs": -1.4, "no": -3.0}


@pytest.mark.parametrize("metric", [ChrF, BLEU, WER, CER, ExactMatch, Shared])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 3.0])
def test_the_choice_of_a_beam_is_that_of_enumeration(metric: type[TextMetric], sharpness: float) -> None:
    total = sum(math.exp(sharpness * score) for score in LIST.values())
    expected = {}
    for text in LIST:
        expected[text] = 0.0
        for other, score in LIST.items():
            (gain,) = metric().each([text], [[other]])
            gain = gain / 100 if metric.higher_is_better else 1 - gain / 100
            expected[text] += math.exp(sharpness * score) / total * gain
    ranked = MinimumBayesRisk(metric, sharpness=sharpness).order(found(LIST), "", GenerationConfig(num_beams=5))
    assert {one.text: one.score for one in ranked} == pytest.approx(expected)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert ranked[0].text == max(expected, key=lambda text: expected[text])


def test_draws_count_alike_and_as_often_as_they_come() -> None:
    draws = [found({text: score})[0] for text, score in [("aa", -9.0), ("b", -0.1), ("aa", -9.0), ("ab", -5.0)]]
    ranked = MinimumBayesRisk(ExactMatch).order(draws, "", GenerationConfig(do_sample=True))
    assert [(one.text, one.score) for one in ranked] == [("aa", 0.5), ("aa", 0.5), ("b", 0.25), ("ab", 0.25)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(optimizer=partial(torch.optim.Adam, lr=0.03))
    place = tmp_path_factory.mktemp("model")
    make_trainer(place, max_epochs=2).fit(model, datamodule=make_data(rows(80), batch_size=16))
    model.save_pretrained(place / "model")
    return place / "model"


def test_every_road_makes_the_choice(folder: Path, tmp_path: Path) -> None:
    rerank = MinimumBayesRisk(Shared)
    beam = GenerationConfig(num_beams=6, max_new_tokens=6, length_normalization="none")
    expected = []
    for row in Predictor(LitSeq2Seq.from_pretrained(folder)).stream(
        TEXTS, beam.changed({"num_return_sequences": 6, "details": "tokens"})
    ):
        ranked = rerank.order(found({one.text: one.score for one in row}), "", beam)
        expected.append(ranked[0].text)
    options = {"num_beams": 6, "max_new_tokens": 6, "length_normalization": "none"}
    translate = pipeline("translation", str(folder))
    given = [one["translation_text"] for one in translate(TEXTS, **options, reranker=rerank)]
    assert given == expected
    assert given != [one["translation_text"] for one in translate(TEXTS, **options)]

    described = {"class_path": "lit_seq2seq.reranking.MinimumBayesRisk", "init_args": {"metric": f"{__name__}.Shared"}}
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.txt")]
    words = [f"--{name}={value}" for name, value in options.items()]
    assert main(["generate", "--model", str(folder), *files, *words, "--reranker", json.dumps(described)]) == 0
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines() == expected

    changed = LitSeq2Seq.from_pretrained(folder, changes={"generation": beam.changed({"reranker": rerank})})
    changed.save_pretrained(tmp_path / "model")
    again = LitSeq2Seq.from_pretrained(tmp_path / "model", trust=__name__)
    assert [row[0].text for row in Predictor(again).stream(TEXTS)] == expected
    export_model(changed, tmp_path / "exported", ["fp32"])
    assert [row[0].text for row in Model(tmp_path / "exported", trust=__name__)(TEXTS)] == expected


def test_draws_are_made_for_it_alone(folder: Path) -> None:
    options = {"do_sample": True, "seed": 3, "max_new_tokens": 6}
    translate = pipeline("translation", str(folder))
    draws = translate(TEXTS[0], num_return_sequences=12, **options)
    (best,) = translate(TEXTS[0], reranker=MinimumBayesRisk(ChrF, samples=12), details="score", **options)
    texts = [one["translation_text"] for one in draws]
    mean = {text: sum(ChrF().each([text] * 12, [[other] for other in texts])) / 1200 for text in texts}
    assert best["score"] == pytest.approx(max(mean.values()))
    assert mean[best["translation_text"]] == pytest.approx(best["score"])


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GenerationConfig(num_beams=4, max_new_tokens=6, reranker=MinimumBayesRisk(ChrF))
    place = tmp_path_factory.mktemp("exported")
    export_model(LitSeq2Seq.from_pretrained(folder, changes={"generation": config}), place, ["fp32"])
    return place


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    start = """
import importlib.metadata, sys
importlib.metadata.version = lambda name: "0.0"  # so that the copy in the folder runs
sys.path.insert(0, ".")
"""
    return subprocess.run(
        [sys.executable, "-P", "-c", start + program], cwd=folder, capture_output=True, text=True, check=False
    )


def test_an_exported_model_makes_the_choice_without_torch(folder: Path, exported: Path) -> None:
    predictor = Predictor(LitSeq2Seq.from_pretrained(folder))
    config, texts = GenerationConfig(num_beams=4, max_new_tokens=6), {}
    for metric in (None, ChrF, BLEU, WER, PER, CER, ExactMatch, SequenceErrorRate):
        reranker = None if metric is None else MinimumBayesRisk(metric)
        outputs = predictor.stream(TEXTS, config.changed({"reranker": reranker}))
        texts[metric.__name__ if metric else ""] = {row[0].text: row[0].score for row in outputs}
    done = run(
        exported,
        f"""
import json
sys.modules |= dict.fromkeys(("torch", "torchmetrics", "lightning"))
from runtime.model import Model
from lit_seq2seq import metrics
from lit_seq2seq.reranking import MinimumBayesRisk
model, inputs = Model("."), {TEXTS!r}
found = {{"own": {{row[0].text: row[0].score for row in model(inputs)}}}}
for name in {list(texts)!r}[1:]:
    rerank = MinimumBayesRisk(getattr(metrics, name))
    found[name] = {{row[0].text: row[0].score for row in model(inputs, reranker=rerank)}}
print(json.dumps(found))
""",
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    plain = texts.pop("")
    assert found.pop("own") == found["ChrF"]
    assert list(texts["ChrF"]) != list(plain)
    for name, expected in texts.items():
        assert found[name] == pytest.approx(expected, abs=1e-4), name


def test_an_exported_model_says_which_package_a_metric_needs(exported: Path) -> None:
    done = run(exported, "sys.modules['sacrebleu'] = None\nfrom runtime.__main__ import main")
    assert done.stderr == "error: ChrF needs sacrebleu, which is not installed: pip install sacrebleu\n"


def test_wrong_settings_are_explained() -> None:
    with pytest.raises(UserError, match="MinimumBayesRisk: samples=1: must be an integer of at least 2"):
        MinimumBayesRisk(ChrF, samples=1)
    with pytest.raises(UserError, match="MinimumBayesRisk: sharpness=-1: must be a number of at least 0"):
        MinimumBayesRisk(ChrF, sharpness=-1)
    with pytest.raises(UserError, match="CIDErD does not score an output by itself"):
        MinimumBayesRisk(CIDErD)
    with pytest.raises(UserError, match=r"reranker=.*must be a part of kind Reranker"):
        GenerationConfig(reranker=ChrF)
