"""Splits that are carved or given, and what they have in common."""

import random

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.data.grouping import source_keys
from lit_seq2seq.data.rows import RowMapper
from lit_seq2seq.data.splits import overlaps
from lit_seq2seq.features import Frames, MultiSource, Records, Tokenizer
from lit_seq2seq.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def said(monkeypatch):
    lines = []
    for place in ("splits", "grouping", "module"):
        monkeypatch.setattr(f"lit_seq2seq.data.{place}.rank_zero_info", lines.append)
    return lines


def module(dataset, **options):
    options = {"source_tokenizer": Tokenizer("char"), "batch_size": 8, **options}
    return Seq2SeqDataModule(dataset, **options)


def lexicon(words=200, most=4, seed=0):
    """Words with one to `most` pronunciations, in any order."""
    rng = random.Random(seed)
    rows = [(f"word{w}", f"w {w} {n}") for w in range(words) for n in range(rng.randint(1, most))]
    rng.shuffle(rows)
    return {"source": [word for word, _ in rows], "target": [spoken for _, spoken in rows]}


def references(loader):
    return {t: set(refs) for batch in loader for t, refs in zip(batch.texts, batch.references, strict=True)}


def test_a_word_with_several_pronunciations_is_in_one_split_with_all_of_them(said):
    rows = lexicon()
    data = module(Dataset.from_dict(rows), validation_size=0.1, test_size=0.1)
    data.setup("fit")
    data.setup("test")
    found = {name: set(split["source"]) for name, split in data._opened().items()}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 200
    total = len(rows["source"])
    assert 0.09 * total <= len(data._opened()["test"]) <= 0.1 * total + 1
    whole = {
        word: {t for s, t in zip(rows["source"], rows["target"], strict=True) if s == word} for word in found["test"]
    }
    assert references(data.test_dataloader()) == whole
    shared = sum(rows["source"].count(word) > 1 for word in rows["source"])
    assert any(f"{total} training rows have 200 different sources: the {shared} rows" in line for line in said)
    assert f"test: {len(data._opened()['test'])} rows with {len(found['test'])} different sources" in said


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (float("nan"), "validation_size: expected an integer or a number, got nan"),
        *((size, r"expected splits.validation_size to be a number of rows, or a share below 1") for size in (-1, 1.5)),
    ],
)
def test_a_size_that_is_none_is_refused(size, told):
    with pytest.raises(UserError, match=told):
        module(Dataset.from_dict(lexicon()), validation_size=size)._opened()


def test_rows_can_be_kept_apart_in_a_carved_split():
    data = module(Dataset.from_dict(lexicon()), validation_size=0.1, test_size=0, group_references=False)
    data.setup("fit")
    assert len(data._encoded("validation")) == len(data._opened()["validation"])


def test_other_forms_of_a_source_stay_with_it():
    """Case, white space, Unicode forms and unseen characters: what a reader, or a tokenizer, takes for the same."""
    forms = [
        "{} café",
        "{}  CAFÉ ",
        "{} cafe\u0301",
        "\u00a0{}\u00a0café",
        "{} \uff43\uff41\uff46é",
        "{} ca\xadfé\u200b",
    ]
    rows = [form.format(n) for n in range(60) for form in forms]
    splits = module(Dataset.from_dict({"source": rows, "target": rows}), validation_size=30, test_size=30)._opened()
    numbers = {name: {text.split()[0] for text in split["source"]} for name, split in splits.items()}
    assert {name: len(split) for name, split in splits.items()} == {"train": 300, "validation": 30, "test": 30}
    assert sum(map(len, numbers.values())) == 60


def test_without_shared_sources_the_rows_are_those_of_version_0_1():
    rows = {"source": [f"row {n}" for n in range(50)], "target": ["x"] * 50}
    splits = module(Dataset.from_dict(rows), validation_size=4, test_size=0.1, seed=3)._opened()
    order = np.random.default_rng(3).permutation(50)
    assert splits["validation"]["source"][:] == [f"row {n}" for n in sorted(order[:4])]
    assert splits["test"]["source"][:] == [f"row {n}" for n in sorted(order[4:9])]


def test_generated_pairs_do_not_leak():
    rng = np.random.default_rng(0)
    sources = [f"say {n}" for n in rng.integers(0, 1500, 5_000)]
    splits = module(Dataset.from_dict({"source": sources, "target": sources}))._opened()
    found = [set(split["source"]) for split in splits.values()]
    assert len(splits["validation"]) == len(splits["test"]) == 500
    assert sum(map(len, found)) == len(set.union(*found))


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ({"feature_columns": "tags"}, {"source": ["go", "go", "see"] * 20, "tags": ["V;PST", "V", "V"] * 20}),
        (
            {"source_tokenizer": None, "source_feature": Records()},
            {"source": [{"name": "A", "food": None}, {"name": "B", "food": "Thai"}, {"name": "a ", "food": None}] * 20},
        ),
        (
            {"source_tokenizer": None, "source_feature": Frames(2)},
            {"source": [[[0.5, 1.0]], [[0.5, 1.0], [2.0, 3.0]], [[0.5, 1.5]]] * 20},
        ),
        (
            {
                "source_tokenizer": None,
                "source_feature": MultiSource({"text": Tokenizer("char"), "frames": Frames(1)}),
                "source_column": {"text": "t", "frames": "f"},
            },
            {"t": ["a", "a", "b"] * 20, "f": [[[1.0]], [[2.0]], [[1.0]]] * 20},
        ),
    ],
    ids=["tags", "records", "frames", "several"],
)
def test_every_kind_of_source_is_carved_whole(options, column):
    rows = Dataset.from_dict({**column, "target": [str(n) for n in range(60)]})
    data = module(rows, validation_size=0.34, test_size=0, **options)
    keys = source_keys(rows, data.mapper.only_sources(rows.features))
    kinds = len(set(keys.tolist()))
    assert kinds == (2 if isinstance(options.get("source_feature"), Records) else 3)
    splits = data._opened()
    found = [{keys[int(text)] for text in split["target"]} for split in splits.values()]
    assert sum(map(len, found)) == kinds
    assert len(found) == 2


def test_rows_without_a_source_are_left_to_the_training_split(said):
    rows = Dataset.from_dict({"source": [*[None, "", " "] * 20, *"abcdefghij"], "target": ["x"] * 70})
    keys = source_keys(rows, RowMapper())
    assert not keys[:60].any()
    assert len(set(keys[60:].tolist())) == 10
    splits = module(rows, validation_size=3, test_size=2)._opened()
    assert {name: len(split) for name, split in splits.items()} == {"train": 65, "validation": 3, "test": 2}
    assert all(text in "abcdefghij" for name in ("validation", "test") for text in splits[name]["source"])
    assert not any("share" in line for line in said)
    assert overlaps({"train": rows, "test": rows.select(range(60))}, RowMapper()) == ""


@pytest.mark.parametrize("sources", [["same"], ["one", "two", "three"]])
def test_a_few_sources_that_recur_are_not_carved(said, sources):
    """As in a first try of three pairs, many times over: a tenth of the rows holds none of them whole."""
    rows = Dataset.from_dict({"source": sources * 50, "target": [f"t {n}" for n in range(50 * len(sources))]})
    assert set(module(rows)._opened()) == {"train"}
    assert sum("none is carved" in line for line in said) == 2


def test_a_stream_leaves_out_what_it_has_carved(tmp_path, said):
    rows = {"source": [f"{n % 30}" for n in range(100)], "target": [f"t {n}" for n in range(100)]}
    Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")
    data = module(str(tmp_path / "rows.jsonl"), streaming=True, validation_size=5, test_size=28)
    data.setup("fit")
    data.setup("test")
    found = [set(references(data.val_dataloader())), set(references(data.test_dataloader()))]
    found.append({text for split in [data._opened()["train"]] for text in (row["source"] for row in split)})
    assert [len(sources) for sources in found] == [5, 25, 0]
    again = module(str(tmp_path / "rows.jsonl"), streaming=True, validation_size=5, test_size=5)
    again.setup("fit")
    decode = again.processor.source_feature.decode
    left = [decode(ids) for batch in again.train_dataloader() for ids in batch.source.values.tolist()]
    assert sorted(left) == sorted(text for text in rows["source"][10:] if int(text) >= 10)


@pytest.mark.parametrize("streaming", [False, True])
def test_given_splits_that_overlap_get_one_line(said, streaming):
    texts = {
        "train": [f"row {n}" for n in range(40)],
        "validation": ["row 1", "Row  2", "new 1"],
        "test": ["row 3", "new 1", "new 2", "new 3"],
    }
    splits = DatasetDict({name: Dataset.from_dict({"source": t, "target": t}) for name, t in texts.items()})
    data = module(splits, streaming=streaming)
    for _ in range(2):
        data.prepare_data()
        data.setup("fit")
    (line,) = [line for line in said if "overlap" in line]
    train, validation = (
        ("the first 40 rows of train", "the first 3 rows of validation") if streaming else ("train", "validation")
    )
    assert line == (
        f"the splits overlap: 2 of the 3 validation rows share their source with {train}, 1 of the 4 test rows shares "
        f"its source with {train}, 1 of the 4 test rows shares its source with {validation}"
    )


def test_a_record_is_one_source_in_each_of_its_forms():
    forms = {
        "mapping": [{"name": "Aromi", "food": "Thai", "seats": 7}, {"name": "Bibi", "food": "Thai", "seats": 7}],
        "text": ["name[Aromi], food[Thai], seats[7]", "seats[7],  food[thai], name[Bibi]"],
        "JSON": [
            '{"food": "Thai", "seats": 7.0, "name": "Aromi", "near": null}',
            '{"name": "BIBI", "food": "Thai", "seats": 7}',
        ],
    }
    keys = {
        name: source_keys(Dataset.from_dict({"source": rows}), RowMapper()).tolist() for name, rows in forms.items()
    }
    assert keys["mapping"] == keys["text"] == keys["JSON"]
    assert keys["mapping"][0] != keys["mapping"][1]
    triples = [[["Oslo", "capital of", "Norway"]]], ['[["Oslo", "capital of", "Norway"]]']
    first, second = (source_keys(Dataset.from_dict({"source": rows}), RowMapper()).tolist() for rows in triples)
    assert first == second
    texts = ["[noise] yes", "a[b] c[d]", "{ja}", "[1, 2", "1", "2]", '[["[', "name[", "]"]
    assert len({*source_keys(Dataset.from_dict({"source": texts}), RowMapper()).tolist()}) == len(texts)


def test_splits_of_other_columns_are_not_compared():
    splits = {"train": Dataset.from_dict({"source": ["a"]}), "test": Dataset.from_dict({"other": ["a"]})}
    assert overlaps(splits, RowMapper()) == ""


def test_an_absent_column_is_named_before_carving():
    with pytest.raises(UserError, match=r"expected a column 'source', but the columns are de, target: set columns.so"):
        module(Dataset.from_dict({"de": ["a"] * 20, "target": ["b"] * 20}))._opened()


def test_keys_are_made_once(monkeypatch):
    rows = Dataset.from_dict({"source": [str(n) for n in range(1000)], "target": ["x"] * 1000})
    before = source_keys(rows, RowMapper())
    monkeypatch.setattr(RowMapper, "sources", lambda *_: pytest.fail("read again"))
    assert source_keys(rows, RowMapper()).tolist() == before.tolist()
