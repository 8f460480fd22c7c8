import datasets
import pytest
from datasets import Dataset, DatasetDict

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.data.grouping import group_references
from lit_seq2seq.data.rows import RowMapper
from lit_seq2seq.features import Records, Tokenizer

ROWS = {
    "source": ["b", "a", "b", None, "c", "a", None],
    "target": ["b one", "a one", "b two", "lost", "", "a two", "lost too"],
    "more": [["b extra"], [], ["b extra two"], [], [], [], []],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def module(rows, **options):
    splits = DatasetDict({split: Dataset.from_dict(rows) for split in ("train", "validation", "test")})
    options = {"source_tokenizer": Tokenizer("word"), "batch_size": 2, **options}
    return Seq2SeqDataModule(splits, group_references=True, **options)


def evaluated(data, split):
    data.setup({"validation": "validate"}.get(split, split))
    loader = data.val_dataloader() if split == "validation" else data.test_dataloader()
    return {
        text: references for batch in loader for text, references in zip(batch.texts, batch.references, strict=True)
    }


def test_equal_sources_become_one_row_in_the_order_of_the_split():
    mapper = RowMapper("source", ["target"], ["more"])
    grouped, mapper = group_references(Dataset.from_dict(ROWS), mapper, "test", at_once=2)
    assert mapper.sources(grouped[:]) == ["b", "a", None, "c", None]
    assert mapper.targets(grouped[:]) == [["b one"], ["a one"], ["lost"], [], ["lost too"]]
    assert mapper.all_references(grouped[:]) == [
        ("b one", "b extra", "b two", "b extra two"),
        ("a one", "a two"),
        ("lost",),
        ("",),
        ("lost too",),
    ]


def test_a_row_without_target_gives_way_to_one_that_has_it():
    rows = Dataset.from_dict({"source": ["a", "a", "b"], "target": [None, "x", "y"]})
    grouped, mapper = group_references(rows, RowMapper("source", ["target"]), "test")
    assert mapper.targets(grouped[:]) == [["x"], ["y"]]
    assert mapper.all_references(grouped[:]) == [("x",), ("y",)]


def test_tags_tell_sources_apart():
    rows = Dataset.from_dict({"source": ["a", "a", "a"], "tag": ["x", "y", "x"], "target": ["1", "2", "3"]})
    grouped, mapper = group_references(rows, RowMapper("source", ["target"], tags=["tag"]), "test")
    assert mapper.all_references(grouped[:]) == [("1", "3"), ("2",)]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_each_source_is_decoded_once_against_all_its_targets(split):
    found = evaluated(module(ROWS), split)
    assert found == {"b": ("b one", "b two"), "a": ("a one", "a two")}


def test_training_and_prediction_keep_every_row():
    data = module(ROWS)
    data.setup("fit")
    assert sorted(row for batch in data.train_dataloader() for row in batch.rows.tolist()) == [0, 1, 2, 5]
    data.setup("predict")
    assert sorted(row for batch in data.predict_dataloader() for row in batch.rows.tolist()) == [*range(7)]


def test_records_are_grouped_by_what_they_hold():
    records = [{"name": "Blue Spice", "food": None}, {"name": "Cocum", "food": "French"}]
    rows = {"source": [records[0], records[1], records[0]], "target": ["one", "two", "three"]}
    found = evaluated(module(rows, source_tokenizer=None, source_feature=Records()), "test")
    assert set(found.values()) == {("one", "three"), ("two",)}


def test_a_second_start_encodes_nothing(monkeypatch):
    expected = evaluated(module(ROWS), "test")
    monkeypatch.setattr(Tokenizer, "encode", lambda *_, **__: pytest.fail("encoded again"))
    assert evaluated(module(ROWS), "test") == expected


def test_the_report_counts_rows_and_sources(monkeypatch):
    said = []
    monkeypatch.setattr("lit_seq2seq.data.grouping.rank_zero_info", said.append)
    evaluated(module(ROWS), "test")
    assert said == ["test: 7 rows with 5 different sources"]
