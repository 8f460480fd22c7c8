"""Shortlists: learnt, saved beside a model, and used."""

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.hub.folder import SHORTLIST
from lit_seq2seq.inference.lexicon import learn_shortlist, learn_translations
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import CopyOutput
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Generated, Padded, UserError
from tests.tiny import make_data, make_model, make_trainer, pairs, rows

INPUTS = pairs(40, seed=9)["source"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = make_model(optimizer=partial(torch.optim.Adam, lr=0.03)), tmp_path_factory.mktemp("run")
    data = make_data(rows(120), batch_size=16)
    make_trainer(folder, max_epochs=3).fit(model, datamodule=data)
    model.model.shortlist = learn_shortlist(data, frequent=1, translations=1)
    model.save_pretrained(folder / "model")
    return folder / "model"


def outputs(model: LitSeq2Seq, inputs: list[str] = INPUTS, **options: Any) -> list[Generated]:
    config = GenerationConfig(**{"max_new_tokens": 6, "shortlist": True, **options})
    return [row[0] for row in Predictor(model, max_tokens=60).stream(inputs, config)]


def test_words_find_their_translations() -> None:
    rng, count = random.Random(0), 30
    source = [rng.sample(range(1, 10), rng.randint(2, 5)) for _ in range(count)]
    target = [rng.sample([10 + word for word in row], len(row)) for row in source]
    batches = [tuple(padded(side[place : place + 7]) for side in (source, target)) for place in range(0, count, 7)]
    ids, chances = learn_translations(batches, (11, 20), best=2)
    assert ids[1:10, 0].tolist() == list(range(11, 20))
    assert (chances[1:10, 0] > 0.9).all()
    assert ids[0].tolist() == ids[10].tolist() == [-1, -1]


def padded(rows: list[list[int]]) -> Padded:
    lengths = torch.tensor([len(row) for row in rows])
    return Padded(torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in rows]), lengths)


def test_expectation_maximisation_is_that_of_two_words_by_hand() -> None:
    """Pairs "a b" - "x y" and "a" - "x", two rounds of Model 1 from equal chances."""
    pair, single = (padded([[1, 2]]), padded([[3, 4]])), (padded([[1]]), padded([[3]]))
    ids, chances = learn_translations([pair, single], (3, 5), best=2, iterations=2)
    # after one round t(x|a) = 3/4, t(y|a) = 1/4, t(x|b) = t(y|b) = 1/2
    of_a, of_b = 0.75 / 1.25, 0.25 / 0.75  # shares of a in x and in y of the pair
    expected = (1 + of_a) / (1 + of_a + of_b)
    assert ids[1].tolist() == [3, 4]
    assert chances[1].tolist() == pytest.approx([expected, 1 - expected], abs=1e-6)
    assert ids[2].tolist() == [4, 3]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 4}])
def test_outputs_are_made_of_candidates_and_do_not_depend_on_company(folder: Path, options: dict[str, Any]) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    assert model.model.shortlist is not None
    found = outputs(model, **options)
    if not options.get("do_sample"):  # whose random numbers go by the place in the batch
        alone = [outputs(model, [text], **options)[0] for text in INPUTS[:8]]
        assert [one.text for one in found[:8]] == [one.text for one in alone]
        assert [one.score for one in found[:8]] == pytest.approx([one.score for one in alone], abs=1e-4)
    for text, output in zip(INPUTS, found, strict=True):
        candidates = model.encode(model.processor.source([text])).candidates
        assert set(output.tokens) <= set(model.processor.target.tokens(candidates.values[0].tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 4, "top_p": 0.9}])
def test_a_list_of_the_whole_vocabulary_changes_nothing(
    folder: Path, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    model.model.shortlist = learn_shortlist(whole_data(model), frequent=1000, translations=1)
    config = GenerationConfig(max_new_tokens=6, **options)
    predictor = Predictor(model, dtype=dtype)
    plain, short = (
        [row[0] for row in predictor.stream(INPUTS, one)]
        for one in (config, GenerationConfig(max_new_tokens=6, shortlist=True, **options))
    )
    assert [one.tokens for one in plain] == [one.tokens for one in short]
    assert [one.score for one in plain] == pytest.approx([one.score for one in short], abs=1e-4)


def whole_data(model: LitSeq2Seq) -> Any:
    return make_data(rows(120), processor=model.processor, source_tokenizer=None)


def test_streaming_gives_what_greedy_search_does(folder: Path) -> None:
    translate = pipeline("translation", folder)
    for text in INPUTS[:6]:
        expected = translate(text, shortlist=True)[0]["translation_text"]
        assert "".join(translate.stream(text, shortlist=True)) == expected


def test_a_forced_beginning_becomes_a_candidate(folder: Path) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    target, source = model.processor.target, model.processor.source(["eins", "zwei"])
    five, two = (int(target.encode_batch([text])[0][0]) for text in ("five", "two"))
    config = GenerationConfig(max_new_tokens=4, shortlist=True)
    found = model.generate(source, config, prefix=torch.tensor([[five, five], [two, target.specials.pad]]))
    assert found[0][0].tokens[:2].tolist() == [five, five]
    assert found[1][0].tokens[0] == two


def test_an_ensemble_uses_it(folder: Path) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    joined = LitSeq2Seq.ensemble([model, LitSeq2Seq.from_pretrained(folder)])
    assert [one.text for one in outputs(joined)] == [one.text for one in outputs(model)]


def test_saving_keeps_it_and_another_vocabulary_drops_it(folder: Path, tmp_path: Path) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    assert [one.text for one in outputs(LitSeq2Seq.from_pretrained(tmp_path))] == [one.text for one in outputs(model)]
    grown = make_data(rows(120), processor=model.processor, source_tokenizer=None, extend_vocabulary=3).processor
    model.adapt(grown)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / SHORTLIST).exists()
    with pytest.raises(UserError, match=r"shortlist=True: the model has none: learn one with lit-seq2seq shortlist"):
        outputs(LitSeq2Seq.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda tables: {**tables, "frequent": tables["frequent"] * 0 + 1_000_000},
        lambda tables: {**tables, "frequent": tables["frequent"] * 0 - 1},
        lambda tables: {**tables, "translations": tables["translations"] * 0 - 2},
        lambda tables: {**tables, "translations": tables["translations"] * 0 + 99},
        lambda tables: {**tables, "translations": tables["translations"][1:].clone()},
        lambda tables: {**tables, "translations": tables["translations"].float()},
        lambda tables: {**tables, "frequent": tables["frequent"][None]},
        lambda tables: {"frequent": tables["frequent"]},
        lambda tables: {**tables, "more": tables["frequent"].clone()},
    ],
)
def test_a_hostile_or_foreign_file_is_refused(folder: Path, tmp_path: Path, change: Any) -> None:
    LitSeq2Seq.from_pretrained(folder).save_pretrained(tmp_path)
    save_file(change(load_file(folder / SHORTLIST)), tmp_path / SHORTLIST)
    with pytest.raises(UserError, match=r"does not fit the vocabularies beside it: learn it again"):
        LitSeq2Seq.from_pretrained(tmp_path)


def test_the_file_of_another_model_is_refused_and_can_be_learnt_again(folder: Path, tmp_path: Path) -> None:
    backwards = {side: [text[::-1] for text in texts] for side, texts in pairs(60).items()}
    model = make_model()
    model.attach(make_data(DatasetDict(train=Dataset.from_dict(backwards))).processor)
    model.save_pretrained(tmp_path / "model")
    shutil.copy(folder / SHORTLIST, tmp_path / "model")
    with pytest.raises(UserError, match=r"does not fit the vocabularies beside it: learn it again"):
        LitSeq2Seq.from_pretrained(tmp_path / "model")
    Dataset.from_dict(backwards).to_json(tmp_path / "train.jsonl")
    command = ["shortlist", "--model", str(tmp_path / "model"), "--data.dataset", str(tmp_path / "train.jsonl")]
    assert main([*command, "--data.validation_size", "0", "--data.test_size", "0", "--frequent", "1"]) == 0
    assert LitSeq2Seq.from_pretrained(tmp_path / "model").model.shortlist is not None


def test_a_file_that_does_not_name_its_vocabularies_is_of_version_0_1(folder: Path, tmp_path: Path) -> None:
    LitSeq2Seq.from_pretrained(folder).save_pretrained(tmp_path)
    save_file(load_file(folder / SHORTLIST), tmp_path / SHORTLIST)
    assert LitSeq2Seq.from_pretrained(tmp_path).model.shortlist is not None


def test_the_command_adds_one_to_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    expected, model.model.shortlist = [one.text for one in outputs(model)], None
    model.save_pretrained(tmp_path / "model")
    rows(120)["train"].to_json(tmp_path / "train.jsonl")
    command = ["shortlist", "--model", str(tmp_path / "model"), "--data.dataset", str(tmp_path / "train.jsonl")]
    options = ["--data.validation_size", "0", "--data.test_size", "0", "--frequent", "1", "--translations", "1"]
    assert main([*command, *options]) == 0
    assert "use it with --shortlist true" in capsys.readouterr().out
    assert [one.text for one in outputs(LitSeq2Seq.from_pretrained(tmp_path / "model"))] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "there is no folder nowhere: check --model"),
        (["--model", ".", "--frequent", "0"], "frequent must be at least 1, got 0"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shortlist", *arguments, "--data.dataset", "nothing.jsonl"]) == 1
    assert message in capsys.readouterr().err


def test_models_that_copy_have_none() -> None:
    texts = Dataset.from_dict(pairs(20))
    data = make_data(DatasetDict(train=texts), source_tokenizer=Tokenizer("word"), copy=True, validation_size=0)
    with pytest.raises(UserError, match="a shortlist needs sources of symbols, and outputs that copy none"):
        learn_shortlist(data, 1, 1)
    model = make_model(output=CopyOutput)
    model.attach(data.processor)
    batch = next(iter(data.train_dataloader()))
    candidates = Padded(torch.arange(5)[None], torch.tensor([5]))
    with pytest.raises(UserError, match=r"shortlist: CopyOutput scores all symbols or none: set shortlist to false"):
        model.net.start(model.encode(batch.source), candidates)


def test_it_is_not_joined_with_ctc() -> None:
    with pytest.raises(UserError, match=r"shortlist=True: must be False with ctc_weight above 0"):
        GenerationConfig(shortlist=True, ctc_weight=0.3)
