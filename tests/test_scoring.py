"""The score of what was generated is the score that it had; given texts and lists from elsewhere are scored."""

import json
import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pytest
import torch

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.inference.model import EnsembleModel, Seq2SeqModel
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import (
    ConditionalGRUDecoder,
    CopyOutput,
    GeneralAttention,
    HardMonotonicDecoder,
    InputFeedingDecoder,
    NoSource,
    ParallelDecoder,
    TransducerDecoder,
    ZeroBridge,
)
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import UserError
from tests.nn.cases import disturb
from tests.tiny import SIZES, make_data, make_model, make_trainer, needs_bfloat16, pairs, rows

SENTENCES = pairs(9, seed=4)["source"]
MODELS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "input feeding": {"decoder": partial(InputFeedingDecoder, **SIZES, attention=GeneralAttention)},
    "conditional": {"decoder": partial(ConditionalGRUDecoder, **SIZES)},
    "hard monotonic": {"decoder": partial(HardMonotonicDecoder, **SIZES)},
    "transducer": {"decoder": partial(TransducerDecoder, **SIZES)},
    "copying": {"output": CopyOutput},
}


def attached(seed: int = 0, **options: Any) -> Seq2SeqModel:
    """Make a model that has learnt to end outputs."""
    copy = {"copy": True, "shared_vocabulary": True} if options.get("output") is CopyOutput else {}
    data = make_data(rows(60), seed=seed, **copy)
    model = make_model(optimizer=partial(torch.optim.Adam, lr=0.03), **options)
    with TemporaryDirectory() as place:
        make_trainer(Path(place), max_epochs=2).fit(model, datamodule=data)
    return model.eval().model


def outputs_of(predictor: Predictor, sources: list[Any], config: GenerationConfig) -> list[tuple[Any, Any]]:
    """Return all outputs that ended, each with its source; an unknown symbol in a text is another when it is read."""
    found = zip(sources, predictor.stream(sources, config), strict=True)
    kept = [(source, one) for source, row in found for one in row if one.tokens[-1:] == ("<eos>",)]
    return [(source, one) for source, one in kept if "<unk>" not in one.tokens and "<pad>" not in one.tokens]


@pytest.mark.parametrize("name", [*MODELS, "ensemble"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.6}], ids=["greedy", "beam"]
)
def test_the_score_of_what_was_generated_is_the_score_that_it_had(name: str, options: dict[str, Any]) -> None:
    model = EnsembleModel([attached(0), attached(1)]) if name == "ensemble" else attached(**MODELS[name])
    predictor = Predictor(model, max_tokens=40)
    config = GenerationConfig(max_new_tokens=12, details="tokens", min_new_tokens=1, **options)
    found = outputs_of(predictor, SENTENCES, config)
    assert len(found) > 3
    again = list(predictor.score([(source, one.text) for source, one in found], config))
    assert [one.tokens for one in again] == [one.tokens for _, one in found]
    assert [one.score for one in again] == pytest.approx([one.score for _, one in found], abs=1e-4)
    for one, (_, other) in zip(again, found, strict=True):
        assert one.token_scores == pytest.approx(other.token_scores, abs=1e-4)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_bfloat16), torch.int8])
def test_other_types_score_as_they_generate(dtype: torch.dtype) -> None:
    predictor = Predictor(attached(), dtype=dtype)
    config = GenerationConfig(max_new_tokens=12, min_new_tokens=1)
    found = outputs_of(predictor, SENTENCES[:1], config)
    again = list(predictor.score([(source, one.text) for source, one in found], config))
    assert [one.score for one in again] == pytest.approx([one.score for _, one in found], abs=1e-3)


def test_coverage_and_alignments_of_given_targets() -> None:
    predictor = Predictor(attached())
    config = GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=12, coverage_penalty=0.5)
    config = config.changed({"details": "alignment", "min_new_tokens": 1})
    found = outputs_of(predictor, SENTENCES, config)
    again = list(predictor.score([(source, one.text) for source, one in found], config))
    assert [one.score for one in again] == pytest.approx([one.score for _, one in found], abs=1e-4)
    assert [one.alignment for one in again] == [one.alignment for _, one in found]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = datasets.DatasetDict({split: data.remove_columns("source") for split, data in rows().items()})
    data = Seq2SeqDataModule(texts, columns={"source": None, "target": "target"}, target_tokenizer=Tokenizer("word"))
    data.prepare_data()
    model = make_model(encoder=NoSource, decoder=partial(ParallelDecoder, **SIZES, bridge=ZeroBridge))
    model.attach(data.processor)
    disturb(model.net, 0)
    place = tmp_path_factory.mktemp("language")
    model.save_pretrained(place / "model")
    return place / "model"


def test_a_language_model_scores_texts_with_and_without_prompts(language_model: Path, tmp_path: Path) -> None:
    predictor = Predictor(LitSeq2Seq.from_pretrained(language_model))
    config = GenerationConfig(max_new_tokens=12, num_beams=3, num_return_sequences=3)
    found = outputs_of(predictor, ["", "one two", "five"], config)
    again = list(predictor.score([(source, one.text) for source, one in found], config))
    assert [one.score for one in again] == pytest.approx([one.score for _, one in found], abs=1e-4)
    with pytest.raises(UserError, match="the target 'two one' does not begin with its prompt"):
        list(predictor.score([("one", "two one")]))


def run(folder: Path, tmp_path: Path, *options: str) -> list[Any]:
    out = tmp_path / "scored.jsonl"
    assert main(["score", "--model", str(folder), "--output", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = make_data()
    data.prepare_data()
    model = make_model()
    model.attach(data.processor)
    disturb(model.net, 0)
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place / "model")
    return place / "model"


def test_the_command_scores_tables_and_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [("eins zwei", "one two"), ("drei", "three"), ("vier, ja", "four")]
    expected = pipeline("translation", str(folder)).score(given, details="tokens")
    (tmp_path / "pairs.csv").write_text(
        "target,source\n" + "".join(f'{target},"{source}"\n' for source, target in given), encoding="utf-8"
    )
    (tmp_path / "pairs.tsv").write_text(
        "german\tenglish\n" + "".join(f"{source}\t{target}\n" for source, target in given), encoding="utf-8"
    )
    lines = [json.dumps({"source": source, "target": [target]}) for source, target in given]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for side, texts in zip(("de", "en"), zip(*given, strict=True), strict=True):
        (tmp_path / side).write_text("\n".join(texts) + "\n", encoding="utf-8")
    columns = ["--source_column", "german", "--target_column", "english"]
    for options in (
        ["--input", str(tmp_path / "pairs.csv")],
        ["--input", str(tmp_path / "pairs.tsv"), *columns],
        ["--input", str(tmp_path / "pairs.jsonl")],
        ["--sources", str(tmp_path / "de"), "--targets", str(tmp_path / "en")],
    ):
        found = run(folder, tmp_path, *options, "--details", "tokens")
        assert [one["text"] for [one] in found] == [one["translation_text"] for one in expected]
        for [one], other in zip(found, expected, strict=True):
            assert one["token_scores"] == pytest.approx(other["token_scores"], abs=1e-5)
    total, symbols = sum(one["log_prob"] for one in expected), sum(len(one["tokens"]) for one in expected)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"3 texts, {symbols} symbols: log-probability {total:.2f}"[:-1])
    assert float(said.split()[-1]) == pytest.approx(math.exp(-total / symbols), rel=1e-3)


def test_the_symbols_of_a_prompt_do_not_count_in_the_perplexity(
    language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("source,target\none two,one two three\n,four\n", encoding="utf-8")
    [[first], [second]] = run(language_model, tmp_path, "--input", str(table), "--details", "tokens")
    assert first["token_scores"][:2] == [0, 0]
    total = math.fsum([*first["token_scores"][2:], *second["token_scores"]])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("2 texts, 4 symbols: ")
    assert float(said.split()[-1]) == pytest.approx(math.exp(-total / 4), rel=1e-4)


def test_a_table_for_a_language_model_may_lack_sources_but_not_those_asked_for(
    language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("target,prompt\none two,one\n", encoding="utf-8")
    [[free]] = run(language_model, tmp_path, "--input", str(table), "--details", "tokens")
    [[begun]] = run(language_model, tmp_path, "--input", str(table), "--details", "tokens", "--source_column", "prompt")
    assert free["token_scores"][0] < begun["token_scores"][0] == 0
    assert main(["score", "--model", str(language_model), "--input", str(table), "--source_column", "prmpt"]) == 1
    assert "texts.csv has no column 'prmpt', but target, prompt: name it by --source_column" in capsys.readouterr().err


def test_sources_that_are_cut_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "de").write_text("eins zwei drei\neins\n", encoding="utf-8")
    (tmp_path / "en").write_text("one\none\n", encoding="utf-8")
    files = ["--sources", str(tmp_path / "de"), "--targets", str(tmp_path / "en")]
    run(folder, tmp_path, *files, "--max_source_length", "2")
    assert "1 input cut to 2 positions" in capsys.readouterr().err.splitlines()


def test_a_list_from_elsewhere_is_reranked(folder: Path, tmp_path: Path) -> None:
    texts, scores = ["one two", "two one", "three"], [-0.5, -0.1, -9.0]
    plain = pipeline("translation", str(folder)).score([("eins zwei", text) for text in texts])
    nbest = [{"text": text, "score": score} for text, score in zip(texts, scores, strict=True)]
    (tmp_path / "nbest.jsonl").write_text(json.dumps(nbest) + "\n" + json.dumps(texts) + "\n", encoding="utf-8")
    (tmp_path / "sources").write_text("eins zwei\neins zwei\n", encoding="utf-8")
    files = ["--sources", str(tmp_path / "sources"), "--targets", str(tmp_path / "nbest.jsonl"), "--weight", "0.25"]
    first, second = run(folder, tmp_path, *files)
    joint = {text: given + 0.25 * one["score"] for text, given, one in zip(texts, scores, plain, strict=True)}
    assert [one["text"] for one in first] == sorted(joint, key=lambda text: -joint[text])
    assert {one["text"]: one["score"] for one in first} == pytest.approx(joint, abs=1e-5)
    alone = {one["translation_text"]: one["score"] for one in plain}
    assert [one["text"] for one in second] == sorted(alone, key=lambda text: -alone[text])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give the pairs either as one table by --input, or as --sources and --targets"),
        (["--targets", "one"], "--targets alone is for language models: give --sources, one line for each target"),
        (["--input", "nowhere.csv"], "there is no file nowhere.csv: check --input"),
        (["--input", "odd.csv"], "odd.csv has no column 'target', but source, english: name it by --target_column"),
        (["--sources", "two", "--targets", "one"], "two has 2 lines, but one has 1: align them"),
        (["--sources", "one", "--targets", "four"], "one has 1 line, but four has 4: align them"),
        (["--sources", "blank", "--targets", "one"], "pair 0 has no source: every target needs a source, which may"),
        (
            ["--input", "odd.csv", "--target_column", "english", "--source_column", "x"],
            "odd.csv has no column 'x', but s",
        ),
        (["--input", "gap.jsonl"], "row 2 of gap.jsonl has no column 'source', but target: name it by --source_column"),
        (["--sources", "one", "--targets", "mixed.jsonl"], "line 1 of mixed.jsonl: some of the texts have scores, and"),
        (
            ["--sources", "one", "--targets", "huge.jsonl"],
            "line 1 of huge.jsonl: expected a text, or a list of texts or",
        ),
        (["--sources", "one", "--targets", "one", "--format", "jsonl", "--details", "met"], "details: met is known of"),
        (["--sources", "one", "--targets", "one", "--output", "."], "cannot write .: it is a folder: choose another"),
        (["--sources", "one", "--targets", "bad.jsonl"], "line 1 of bad.jsonl: expected a text, or a list of texts or"),
        (["--sources", "one", "--targets", "no.jsonl"], "line 1 of no.jsonl is not JSON"),
    ],
)
def test_bad_input_gets_one_line(
    options: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "one": "eins\n",
        "two": "eins\nzwei\n",
        "four": "one\n" * 4,
        "blank": " \n",
        "odd.csv": "source,english\neins,one\n",
    }
    files |= {"gap.jsonl": '{"source": "eins", "target": "one"}\n{"target": "one"}\n'}
    files |= {"mixed.jsonl": '[{"text": "one", "score": -1}, "two"]\n'}
    files |= {"huge.jsonl": f'[{{"text": "one", "score": 1{"0" * 400}}}]\n'}
    files |= {"bad.jsonl": '[{"text": 3}]\n', "no.jsonl": "{one\n"}
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    assert main(["score", "--model", str(folder), *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
