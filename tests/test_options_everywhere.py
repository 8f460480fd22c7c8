"""An option of search does the same from YAML, Python, the command line, a pipeline and the server."""

import contextlib
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, arrays, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.export import export_model
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import CTC, NoSource, ParallelDecoder, ZeroBridge
from lit_seq2seq.runtime import command
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.search import (
    BadWords,
    Constraint,
    ConstraintState,
    ForceWords,
    GenerationConfig,
    JointCTC,
    JointModels,
    LanguageModel,
    Lexicon,
    Pattern,
    Terminology,
)
from lit_seq2seq.search.task import Task
from lit_seq2seq.serve import api, make_app
from lit_seq2seq.serve.schema import RequestLimits
from lit_seq2seq.types import Returning, UserError
from tests.nn.cases import disturb
from tests.tiny import DIGITS, SIZES, make_data, make_model, make_trainer, rows

TEXTS = ["eins zwei", "drei", "fünf vier eins"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = make_model(optimizer=partial(torch.optim.Adam, lr=0.03))
    place = tmp_path_factory.mktemp("model")
    make_trainer(place, max_epochs=3).fit(found, datamodule=make_data(rows(120), batch_size=16))
    found.save_pretrained(place / "model")
    return place / "model"


def near(value: Any) -> Any:
    """Let the numbers of what JSON can hold differ a little."""
    if isinstance(value, dict):
        return {name: near(one) for name, one in value.items()}
    return (
        [near(one) for one in value]
        if isinstance(value, list)
        else value
        if not isinstance(value, float)
        else pytest.approx(value, abs=1e-4)
    )


OPTIONS = {
    "prefix": {"prefix": "four two"},
    "bad words": {"bad_words": ["one", "three four"]},
    "forced words": {"force_words": ["five four", "two"], "num_beams": 4},
    "penalty": {"repetition_penalty": 3.0},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
}


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    export_model(LitSeq2Seq.from_pretrained(folder), folder.parent / "exported", ["fp32"])
    return folder.parent / "exported"


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_does_the_same_everywhere(name: str, folder: Path, exported: Path, tmp_path: Path) -> None:
    options = OPTIONS[name]
    model = LitSeq2Seq.from_pretrained(folder)
    config = GenerationConfig(**{"max_new_tokens": 6, **options})
    rows = list(Predictor(model).stream(TEXTS, config))
    expected = [[one.text for one in row] for row in rows]
    assert expected != [[one.text for one in row] for row in Predictor(model).stream(TEXTS)]

    found = pipeline("translation", str(folder))(TEXTS, **options)
    several = len(expected[0]) > 1
    given = [[one["translation_text"] for one in (row if several else [row])] for row in found]
    assert given == expected

    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    given = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["generate", "--model", str(folder), *files, *given]) == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [[one["text"] for one in row] for row in written] == expected

    found = Model(exported)(TEXTS, max_new_tokens=6, **options)
    assert [[one.text for one in row] for row in found] == expected

    with TestClient(make_app(str(folder), RequestLimits()), base_url="http://localhost") as client:
        answers = [client.post("/predict", json={"text": text, **options}).json() for text in TEXTS]
    assert [[one["text"] for one in answer["outputs"]] for answer in answers] == expected


def test_parts_go_from_python_and_yaml_to_folder_and_back(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text("zwei,four\n", encoding="utf-8")
    (tmp_path / "words.txt").write_text("one\nfour\nfour five\n", encoding="utf-8")
    parts = [Terminology(str(tmp_path / "terms.csv")), Lexicon(str(tmp_path / "words.txt"), several=True)]
    described = [
        {"class_path": "lit_seq2seq.search.Terminology", "init_args": {"file": str(tmp_path / "terms.csv")}},
        {"class_path": "lit_seq2seq.search.Lexicon", "init_args": {"file": parts[1].file, "several": True}},
    ]
    config = GenerationConfig(num_beams=4, max_new_tokens=6, constraints=parts)
    assert GenerationConfig(num_beams=4, max_new_tokens=6, constraints=described) == config
    assert hash(config) == hash(GenerationConfig(num_beams=4, max_new_tokens=6, constraints=described))
    model = LitSeq2Seq.from_pretrained(folder, changes={"generation": config})
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    files = [part["init_args"]["file"] for part in saved["model"]["generation"]["constraints"]]
    assert files == ["search/0-terms.csv", "search/1-words.txt"]
    (tmp_path / "terms.csv").unlink()  # the folder carries what it needs
    (tmp_path / "words.txt").unlink()
    (tmp_path / "model").rename(tmp_path / "moved")
    again = LitSeq2Seq.from_pretrained(tmp_path / "moved")
    again.save_pretrained(tmp_path / "moved")  # in place
    again = LitSeq2Seq.from_pretrained(tmp_path / "moved")
    [[one], [other]] = Predictor(again).stream(["eins zwei", "eins"])
    assert "four" in one.text.split()
    assert set(other.text.split()) <= {"one", "four", "five"}
    saved["model"]["generation"]["constraints"][0]["init_args"]["file"] = "/etc/hostname"
    (tmp_path / "moved" / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(UserError, match="names '/etc/hostname' for its search, which it does not carry"):
        LitSeq2Seq.from_pretrained(tmp_path / "moved")
    argument = json.dumps([{"class_path": "Pattern", "init_args": {"expression": "(one|five ){2,3}four"}}])
    (tmp_path / "in.txt").write_text("eins\n", encoding="utf-8")
    out = tmp_path / "out.txt"
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(out)]
    assert main(["generate", "--model", str(folder), *files, "--constraints", argument]) == 0
    assert out.read_text(encoding="utf-8").strip() in ("five five four", "five five five four", "one five four")


def test_a_pattern_goes_by_the_text_of_words(folder: Path) -> None:
    config = GenerationConfig(constraints=[Pattern("(one |five ){2,3}four")], num_beams=3, max_new_tokens=8)
    [[one]] = Predictor(LitSeq2Seq.from_pretrained(folder)).stream(["drei"], config)
    assert one.text.split()[-1] == "four"
    assert set(one.text.split()[:-1]) <= {"one", "five"}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("language")
    texts = datasets.DatasetDict({split: data.remove_columns("source") for split, data in rows(120).items()})
    data = Seq2SeqDataModule(
        texts, columns={"source": None, "target": "target"}, target_tokenizer=Tokenizer("word"), batch_size=16
    )
    model = make_model(encoder=NoSource, decoder=partial(ParallelDecoder, **SIZES, bridge=ZeroBridge), metrics=[])
    make_trainer(place, max_epochs=2).fit(model, datamodule=data)
    model.save_pretrained(place / "model")
    return place / "model"


def test_a_language_model_helps_everywhere(folder: Path, language_model: Path, tmp_path: Path) -> None:
    scorer = {"class_path": "LanguageModel", "init_args": {"weight": 1.5, "internal_weight": 0.4}}
    model = LitSeq2Seq.from_pretrained(folder)
    plain = list(Predictor(model).stream(TEXTS))
    torch_part = LanguageModel(str(language_model), 1.5, 0.4)
    config = GenerationConfig(num_beams=3, max_new_tokens=6, scorers=[torch_part])
    found = list(Predictor(model).stream(TEXTS, config))
    assert [row[0].score for row in found] != pytest.approx([row[0].score for row in plain], abs=1e-2)

    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    scorer["init_args"]["model"] = str(language_model)  # type: ignore[index]
    out = tmp_path / "out.jsonl"
    given = ["--num_beams=3", "--max_new_tokens=6", "--scorers", json.dumps([scorer])]
    assert (
        main(["generate", "--model", str(folder), "--input", str(tmp_path / "in.txt"), "--output", str(out), *given])
        == 0
    )
    written = [json.loads(line)[0] for line in out.read_text(encoding="utf-8").splitlines()]
    assert [one["text"] for one in written] == [row[0].text for row in found]
    assert [one["score"] for one in written] == pytest.approx([row[0].score for row in found], abs=1e-4)

    changed = LitSeq2Seq.from_pretrained(folder, changes={"generation": config})
    changed.save_pretrained(tmp_path / "both")
    again = list(Predictor(LitSeq2Seq.from_pretrained(tmp_path / "both")).stream(TEXTS))
    assert [row[0].score for row in again] == pytest.approx([row[0].score for row in found], abs=1e-4)
    export_model(changed, tmp_path / "exported", ["fp32"])
    told = Model(tmp_path / "exported")(TEXTS)
    assert [row[0].text for row in told] == [row[0].text for row in found]
    assert [row[0].score for row in told] == pytest.approx([row[0].score for row in found], abs=1e-3)


def test_models_join_as_scorers_as_they_do_in_an_ensemble(folder: Path) -> None:
    other = LitSeq2Seq.from_pretrained(folder)
    config = GenerationConfig(num_beams=2, max_new_tokens=6, scorers=[JointModels([str(folder)])])
    both = list(Predictor(other).stream(TEXTS, config))
    alone = list(Predictor(other).stream(TEXTS, GenerationConfig(num_beams=2, max_new_tokens=6)))
    assert [row[0].text for row in both] == [row[0].text for row in alone]
    assert [row[0].score for row in both] == pytest.approx([row[0].score for row in alone], abs=1e-4)


def test_details_are_the_same_on_every_road(folder: Path, exported: Path, tmp_path: Path) -> None:
    kinds = ["score", "tokens", "alignment", "attention", "met"]
    (plain,) = next(Predictor(LitSeq2Seq.from_pretrained(folder)).stream(TEXTS, return_attention=True))
    (whole,) = pipeline("translation", str(folder))([TEXTS[0]], details=kinds)
    assert whole.pop("translation_text") == plain.text
    assert (whole["score"], whole["met"]) == (plain.score, True)
    assert whole["tokens"][:-1] == plain.text.split()
    assert sum(whole["token_scores"]) / len(whole["tokens"]) == pytest.approx(whole["score"], abs=1e-5)
    assert whole["source_tokens"] == ["eins", "zwei", "<eos>"]
    weights = torch.tensor(whole["attention"])
    assert weights.shape == (len(whole["tokens"]), 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)), atol=1e-5, rtol=0)
    best = weights[:-1, :2].argmax(1).tolist()
    assert whole["alignment"] == " ".join(f"{source}-{place}" for place, source in enumerate(best))

    (tmp_path / "in.txt").write_text("\n".join([*TEXTS, ""]) + "\n", encoding="utf-8")
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["generate", "--model", str(folder), *files, "--details", json.dumps(kinds)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == [{"text": plain.text, **whole}]
    empty = {"text": "", "score": 0.0, "tokens": [], "token_scores": [], "alignment": "", "met": True}
    assert lines[3] == [{**empty, "source_tokens": [], "attention": []}]

    with TestClient(make_app(str(folder), RequestLimits()), base_url="http://localhost") as client:
        answers = [client.post("/predict", json={"text": text, "details": kinds}).json() for text in TEXTS]
        short = client.post("/predict", json={"text": TEXTS[0], "details": "alignment"}).json()["outputs"][0]
    assert [answer["outputs"] for answer in answers] == [near(line) for line in lines[:3]]
    assert short.keys() == {"text", "score", "alignment"}

    found = [[one.told(kinds) for one in row] for row in Model(exported)([*TEXTS, ""], details=kinds)]
    assert found == [near(line) for line in lines]


def test_details_that_cannot_be_told_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    bare = make_model(decoder=partial(ParallelDecoder, **SIZES))
    data = make_data()
    data.prepare_data()
    bare.model.attach(data.processor)
    for details in ("alignment", ["attention", "tokens"]):
        with pytest.raises(UserError, match="this model has none"):
            pipeline("translation", bare)("eins", details=details)
    assert pipeline("translation", bare)("eins", details="met")[0]["met"] is True
    with pytest.raises(UserError, match=r"details=\('colour',\).*one or a list of score, tokens"):
        GenerationConfig(details=("colour",))
    assert GenerationConfig(details="met") == GenerationConfig(details=["met"])


def test_the_command_refuses_details_in_a_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model", str(folder), "--details", "tokens"]) == 1
    assert capsys.readouterr().err == "error: details: texts have no place for them: set --format jsonl\n"


def test_predictions_tell_details_too(folder: Path, tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=6, details=("tokens", "alignment"))
    model = LitSeq2Seq.from_pretrained(folder, changes={"generation": config})
    batches = make_trainer(tmp_path).predict(model, make_data(rows(), processor=model.processor))
    first = next(one for batch in batches or [] for one in batch if one["row"] == 0)
    (expected,) = next(Predictor(model).stream([first["source"]]))
    assert first["hypotheses"] == [near(expected.told(["score", "tokens", "alignment"]))]


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that copies digits in their order, and knows three of five words on either side."""
    place = tmp_path_factory.mktemp("forgetful")
    words = {"source_tokenizer": Tokenizer("word", vocab_size=7), "target_tokenizer": Tokenizer("word", vocab_size=7)}
    model = make_model(optimizer=partial(torch.optim.Adam, lr=0.03), generation=GenerationConfig(max_new_tokens=6))
    make_trainer(place, max_epochs=3).fit(model, datamodule=make_data(rows(160), batch_size=16, **words))
    model.save_pretrained(place / "model")
    return place / "model"


def test_unknown_words_are_replaced_everywhere(forgetful: Path, tmp_path: Path) -> None:
    model = LitSeq2Seq.from_pretrained(forgetful)
    missing = [word for word in DIGITS if word not in model.processor.source_feature.symbols]
    assert len(missing) == 2
    known = next(word for word in DIGITS if word not in missing)
    texts = [f"{missing[0].title()} {known}", f"{known} {missing[1]} {missing[0]}"]
    plain = [row[0] for row in Predictor(model).stream(texts, model.model.generation.changed({"details": "alignment"}))]
    assert all("<unk>" in one.text for one in plain)
    terms = tmp_path / "words.csv"
    terms.write_text(f"{missing[0].upper()},forty two\n", encoding="utf-8")
    for translated in ({}, {missing[0]: "forty two"}):
        expected = []
        for text, one in zip(texts, plain, strict=True):
            words, best = text.split(), {output: source for source, output in one.alignment}
            said = [words[best[at]] if word == "<unk>" else word for at, word in enumerate(one.text.split())]
            expected.append(" ".join(translated.get(word.lower(), word) for word in said))
        assert not any("<unk>" in text for text in expected)
        options: dict[str, Any] = {"replace_unknown": True, **({"unknown_words": str(terms)} if translated else {})}
        translate = pipeline("translation", str(forgetful))
        assert [one["translation_text"] for one in translate(texts, **options)] == expected
        assert ["".join(translate.stream(text, **options)) for text in texts] == expected
        assert [row[0].text for row in model.model.generate(texts, model.model.generation.changed(options))] == expected
        export_model(model, tmp_path / "exported", ["fp32"])
        assert [row[0].text for row in Model(tmp_path / "exported")(texts, **options)] == expected
    with TestClient(make_app(str(forgetful), RequestLimits()), base_url="http://localhost") as client:
        answer = client.post("/predict", json={"text": texts[0], "replace_unknown": True}).json()
        refused = client.post("/predict", json={"text": texts[0], "unknown_words": str(terms)})
    assert missing[0].title() in answer["outputs"][0]["text"]
    assert refused.status_code == 422  # a file of the server's


def test_unknown_words_that_cannot_be_replaced_are_explained(forgetful: Path, tmp_path: Path) -> None:
    bare = make_model(decoder=partial(ParallelDecoder, **SIZES))
    bare.model.attach(LitSeq2Seq.from_pretrained(forgetful).processor)
    translate = pipeline("translation", bare)
    with pytest.raises(UserError, match=r"this model has none.*leave out replace_unknown"):
        translate("eins", replace_unknown=True)
    with pytest.raises(UserError, match=r"this model has none.*leave out replace_unknown"):
        list(translate.stream("eins", replace_unknown=True))
    with pytest.raises(UserError, match=r"terms in nowhere.csv cannot be read"):
        pipeline("translation", str(forgetful))("eins", replace_unknown=True, unknown_words="nowhere.csv")
    with pytest.warns(UserWarning, match="unknown_words='a.csv' has no effect without replace_unknown=True"):
        pipeline("translation", str(forgetful))("eins", unknown_words="a.csv")


@pytest.mark.parametrize("kind", ["word", "bpe", "char", "unigram"])
def test_punctuation_is_banned_and_forced_where_it_touches_words(kind: str) -> None:
    tokenizer = Tokenizer(kind, vocab_size=60)
    tokenizer.train(["we meet at noon.", "a dog!", "no, we meet.", "meet, dog.", "ab"] * 5)
    task = Task(1, tokenizer.specials, arrays.NUMPY, tokenizer)
    for text in ("meet.", "a dog!", "no, we"):
        [ids] = tokenizer.encode_batch([text])
        state = ForceWords([next(mark for mark in ".,!" if mark in text)]).start(task)
        for index in ids:
            state = state.update(np.array([index]))
        assert state.met.all()  # type: ignore[union-attr]
        for mark in ".,!":
            state, allowed = BadWords([mark]).start(task), True
            for index in ids:
                log_probs = state.allow(np.zeros((1, len(tokenizer)), np.float32))
                allowed = allowed and log_probs[0, index] == 0
                state = state.update(np.array([index]))
            assert allowed == (mark not in text)


def test_models_that_search_has_opened_are_not_pickled(folder: Path) -> None:
    predictor = Predictor(LitSeq2Seq.from_pretrained(folder))
    size = len(pickle.dumps(predictor))
    config = GenerationConfig(
        max_new_tokens=4, scorers=[{"class_path": "JointModels", "init_args": {"models": [str(folder)]}}]
    )
    expected = [row[0].text for row in predictor.stream(TEXTS, config)]
    copied = pickle.loads(pickle.dumps(predictor))
    assert len(pickle.dumps(predictor)) < 1.1 * size
    assert [row[0].text for row in copied.stream(TEXTS, config)] == expected
    assert hash(GenerationConfig(constraints=[BadWords(["one"])])) == hash(
        GenerationConfig(constraints=[BadWords(["one"])])
    )


def test_a_server_answers_when_options_cannot_be_told_apart_by_a_hash(folder: Path) -> None:
    @dataclass(frozen=True)
    class Listed(Constraint):
        words: list[str]  # a stranger's mistake

        def start(self, task: Task) -> ConstraintState:
            return BadWords(self.words).start(task)

    model = LitSeq2Seq.from_pretrained(folder)
    parts = [Listed(["one"]), BadWords(["two"])]
    model.model.generation = GenerationConfig(constraints=parts, max_new_tokens=6)
    with TestClient(
        api.make_app(api.Service(Predictor(model), RequestLimits()), "m", 4, 0.01), base_url="http://localhost"
    ) as client:
        answers = [client.post("/predict", json={"text": text}) for text in TEXTS]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert not any(word in answer.json()["outputs"][0]["text"] for answer in answers for word in ("one", "two"))


def test_options_that_need_a_beam_train_without_one(folder: Path) -> None:
    for options in (
        {"force_words": ["one"]},
        {"num_beam_groups": 2},
        {"constraints": [ForceWords(["one"]), BadWords(["two"])]},
    ):
        config = GenerationConfig(num_beams=4, **options)
        model = LitSeq2Seq.from_pretrained(folder, changes={"generation": config})
        assert model.model.generation == config
        assert (model.fit_generation.num_beams, model.fit_generation.num_beam_groups) == (1, 1)
        assert not model.fit_generation.force_words
        assert all(isinstance(one, BadWords) for one in model.fit_generation.constraints)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": [Lexicon("nowhere.txt")]}, "there is no lexicon nowhere.txt"),
        ({"scorers": [LanguageModel("nowhere/at/all")]}, "there is no folder nowhere/at/all"),
        ({"force_words": ["xyzzy"], "num_beams": 2}, "the model's outputs have no symbols for 'xyzzy'"),
    ],
)
def test_what_search_lacks_is_said_before_training(options: dict, message: str, tmp_path: Path) -> None:
    model = make_model(generation=GenerationConfig(**options))
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path, max_epochs=1).fit(model, datamodule=make_data())
    assert model.trainer.global_step == 0


@pytest.fixture
def runtime(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command of an exported model; returns what it said."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["runtime", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXTS[0].encode())))
        done, said = command.main(exported), capsys.readouterr()
        return said.err if done else said.out

    return run


def test_a_prefix_of_digits_is_a_text(runtime: Callable[..., str]) -> None:
    assert runtime("--prefix", "12").startswith("error: prefix: the model's outputs have no symbols for '12'")


def test_the_command_of_an_exported_model_reads_lists(runtime: Callable[..., str]) -> None:
    assert runtime("--bad_words", "[one, two]") == runtime("--bad_words", '["one", "two"]') != runtime()
    assert json.loads(runtime("--details", "[tokens, met]"))[0].keys() == {
        "text",
        "score",
        "tokens",
        "token_scores",
        "met",
    }
    assert """bad_words='one': must be a list of texts, such as ["one", "15"]""" in runtime("--bad_words", "one")
    for option in ("constraints", "scorers", "reranker"):
        said = runtime(f"--{option}", "[{class_path: Lexicon, init_args: {file: words.txt, several: true}}]")
        assert "'[{class_path: Lexicon, init_args: {file: words.txt, seve...: must be a" in said
        assert said.endswith(
            ', each {"class_path": "NAME", "init_args": {...}}\n' if option != "reranker" else "...}}\n"
        )


def test_a_reranker_may_be_named_plainly(folder: Path, tmp_path: Path, runtime: Callable[..., str]) -> None:
    described = {"class_path": "MinimumBayesRisk", "init_args": {"metric": "WER"}}
    options: dict[str, Any] = {"num_beams": 3, "reranker": described, "details": "score"}
    (tmp_path / "in.txt").write_text(TEXTS[0], encoding="utf-8")
    call = ["generate", "--model", str(folder), "--input", str(tmp_path / "in.txt"), "--format", "jsonl"]
    given = ["--num_beams", "3", "--reranker", json.dumps(described), "--details", "score"]
    code = f"from lit_seq2seq.cli import main\nmain({[*call, *given]!r})"  # where no part has been imported yet
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [near(pipeline("translation", str(folder))(TEXTS[0], **options)[0])]
    for said in (done.stdout, runtime(*given)):
        assert [{"translation_text": one.pop("text"), **one} for one in json.loads(said)] == expected


def test_a_request_that_names_files_or_parts_is_told_that_they_come_with_the_model(folder: Path) -> None:
    with TestClient(make_app(str(folder), RequestLimits()), base_url="http://localhost") as client:
        for name in ("constraints", "scorers", "policy", "reranker", "unknown_words"):
            answer = client.post("/predict", json={"text": "eins", name: [{"class_path": "Lexicon"}]})
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"] == ["body", name]
            assert answer.json()["detail"][0]["msg"].endswith("which a request may not: save the model with it")


def test_a_stream_leaves_out_what_needs_a_beam(folder: Path) -> None:
    generation = GenerationConfig(num_beams=4, force_words=["one"], bad_words=["two"], max_new_tokens=6)
    model = LitSeq2Seq.from_pretrained(folder, changes={"generation": generation})
    plain = GenerationConfig(bad_words=["two"], max_new_tokens=6)
    [[expected]] = Predictor(model).stream(["drei zwei"], plain)
    assert "".join(model.stream("drei zwei")) == expected.text
    assert "".join(pipeline("translation", model).stream("drei zwei")) == expected.text
    with TestClient(
        api.make_app(api.Service(Predictor(model), RequestLimits()), "m", 4, 0.01), base_url="http://localhost"
    ) as client:
        pieces = [json.loads(line) for line in client.post("/stream", json={"text": "drei zwei"}).text.splitlines()]
        assert "".join(piece.get("text", "") for piece in pieces) == expected.text
        long = client.post("/predict", json={"text": "drei", "prefix": "one " * 1000})
        assert (long.status_code, "have 4006 characters: at most 2000" in str(long.json())) == (413, True), long.json()


def test_a_stream_says_that_it_does_not_meet_the_constraints(folder: Path) -> None:
    config = GenerationConfig(max_new_tokens=4, constraints=[Pattern("(one |five ){6,9}four")])
    model = LitSeq2Seq.from_pretrained(folder, changes={"generation": config})
    for text, words in (("drei", 4), ("", 0)):
        expected = contextlib.nullcontext() if not words else pytest.warns(UserWarning, match="1 output not as the")
        for stream in (model.stream, pipeline("translation", model).stream):
            pieces = Returning(stream(text))
            with expected:
                assert len("".join(pieces).split()) == words
            assert pieces.value is not bool(words)
    with TestClient(
        api.make_app(api.Service(Predictor(model), RequestLimits()), "m", 4, 0.01), base_url="http://localhost"
    ) as client:
        last = [
            json.loads(client.post("/stream", json={"text": "drei", **more}).text.splitlines()[-1])
            for more in ({}, {"max_new_tokens": 9})
        ]
    assert last == [{"done": True, "met": False}, {"done": True}]


def test_a_model_is_not_saved_without_a_file_that_it_needs(folder: Path, tmp_path: Path) -> None:
    config = GenerationConfig(constraints=[Lexicon(str(tmp_path / "words.txt"))])
    model = LitSeq2Seq.from_pretrained(folder, changes={"generation": config})
    with pytest.raises(UserError, match=r"words\.txt, which is gone: put it back before you save"):
        model.save_pretrained(tmp_path / "model")
    (tmp_path / "words.txt").write_text("one\n", encoding="utf-8")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "search").rename(tmp_path / "elsewhere")
    (tmp_path / "model" / "search").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="which it does not carry"):
        LitSeq2Seq.from_pretrained(tmp_path / "model")


def test_ctc_can_be_named_as_a_scorer() -> None:
    model = make_model(auxiliary=partial(CTC, weight=0.3))
    model.attach(make_data().processor)
    disturb(model.net).eval()
    option, part = ({"ctc_weight": 0.4}, {"scorers": [JointCTC(0.4)]})
    first, second = (
        [
            [one.text for one in row]
            for row in model.generate(TEXTS, GenerationConfig(max_new_tokens=6, num_beams=2, **one))
        ]
        for one in (option, part)
    )
    assert first == second


@pytest.mark.parametrize(
    "constraints", ["abc", 5, [5], [None], [{"init_args": {}}], [{"class_path": "Pattern", "init_args": 3}]]
)
def test_damaged_options_are_told(constraints: object, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    config["model"]["generation"]["constraints"] = constraints
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError):
        LitSeq2Seq.from_pretrained(tmp_path / "model")


def test_the_option_prefix_stands_before_prompts(language_model: Path, tmp_path: Path) -> None:
    model = LitSeq2Seq.from_pretrained(language_model)
    export_model(model, tmp_path / "exported", ["fp32"])
    for options, prompts in (({"prefix": "one two"}, ["", "three"]), ({}, ["one two", "one two three"])):
        config = GenerationConfig(max_new_tokens=4, **options)
        found = [row[0].text for row in Predictor(model).stream(prompts, config)]
        assert [text.startswith(start) for text, start in zip(found, ("one two", "one two three"), strict=True)] == [
            True
        ] * 2
        told = Model(tmp_path / "exported")(prompts, max_new_tokens=4, do_sample=False, **options)
        assert [row[0].text for row in told] == found
