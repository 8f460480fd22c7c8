import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value

from lit_seq2seq.data import open_dataset
from lit_seq2seq.features import Processor, Records, Tokenizer
from lit_seq2seq.features.records import read_record
from lit_seq2seq.types import UserError

TEXT = "name[Blue Spice], eatType[coffee shop], customer rating[5 out of 5]"
SLOTS = {"name": "Blue Spice", "eatType": "coffee shop", "customer rating": "5 out of 5"}
LINE = "⟨name⟩ Blue Spice ⟨eatType⟩ coffee shop ⟨customer_rating⟩ 5 out of 5"


@pytest.mark.parametrize("raw", [TEXT, TEXT.replace(", ", " ,"), f" {TEXT} ", SLOTS, json.dumps(SLOTS)])
def test_every_form_of_a_record_is_the_same_symbols(raw):
    assert Records().linearize(raw) == LINE


@pytest.mark.parametrize(
    "raw",
    [
        [["Oslo", "capital of", "Norway"], ["Oslo", "mayor", "Anne_Lindboe"]],
        ["Oslo | capital of | Norway", "Oslo | mayor | Anne_Lindboe"],
        '[["Oslo", "capital of", "Norway"], ["Oslo", "mayor", "Anne Lindboe"]]',
    ],
)
def test_triples(raw):
    assert Records().linearize(raw) == "Oslo ⟨capital_of⟩ Norway Oslo ⟨mayor⟩ Anne Lindboe"
    assert Records(sort=True).linearize(raw) == Records().linearize(raw)


def test_options_of_the_linearisation():
    assert (
        Records(values="symbols").linearize(TEXT)
        == "⟨name⟩ Blue_Spice ⟨eatType⟩ coffee_shop ⟨customer_rating⟩ 5_out_of_5"
    )
    swapped = dict(reversed(SLOTS.items()))
    assert Records(sort=True).linearize(SLOTS) == Records(sort=True).linearize(swapped)
    assert Records().linearize(SLOTS) != Records().linearize(swapped)


def test_absent_values_several_values_and_numbers():
    raw = {"name": None, "food": ["Thai", "Lao"], "area": "", "stars": 0, "near": []}
    assert read_record(raw) == [("food", "Thai"), ("food", "Lao"), ("stars", "0")]


@pytest.mark.parametrize("raw", [None, "", " ", {}, {"a": None, "b": ""}, []])
def test_nothing_is_missing(raw):
    assert Records().is_missing(raw)


@pytest.mark.parametrize("raw", [TEXT, {"stars": 0}, [["a", "b", "c"]]])
def test_something_is_not(raw):
    assert not Records().is_missing(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a plain sentence", r"expected a record such as name\[Blue Spice\].*but got 'a plain sentence'"),
        ("name[Blue Spice", "but got 'name"),
        ("name[a] food[b]", "but got 'name"),
        ('{"name": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"name": ' + "9" * 5000 + "}", "is not JSON"),
        ([["Oslo", "Norway"]], "one triple is"),
        (3, "but it is of type int"),
    ],
)
def test_mistakes_are_explained(raw, message):
    with pytest.raises(UserError, match=message):
        Records().linearize(raw)


def test_columns_and_inputs():
    columns = Features(
        {
            "text": Value("string"),
            "slots": {"a": Value("string")},
            "triples": List(List(Value("string"))),
            "n": Value("int64"),
        }
    )
    records = Records()
    assert [records.accepts_column(column) for column in columns.values()] == [True, True, True, False]
    assert all(records.accepts(raw) for raw in (TEXT, SLOTS, [["a", "b", "c"]]))
    assert not any(records.accepts(raw) for raw in ([TEXT, TEXT], [SLOTS], [[["a", "b", "c"]]], 3))


def trained(**options):
    records = Records(**options)
    records.train([[TEXT, SLOTS], [["Oslo | mayor | Anne"]]])
    return records


def test_slots_and_words_are_symbols():
    records = trained()
    (array,) = records.encode([TEXT])
    assert records.tokens(array.tolist()) == [*LINE.split(), "<eos>"]
    padded = records.collate([array, records.nothing()])
    assert padded.lengths.tolist() == [len(LINE.split()) + 1, 1]
    assert (padded.values[1, 1:] == records.tokenizer.specials.pad).all()
    assert records.truncate(array, 3).tolist() == [*array[:2].tolist(), array[-1]]


def test_case_is_folded_on_demand():
    (upper,), (lower,) = (trained(lowercase=True).encode([text]) for text in (TEXT, TEXT.lower()))
    assert upper.tolist() == lower.tolist()


def test_a_saved_processor_encodes_alike(tmp_path):
    target = Tokenizer("word")
    target.train(["a coffee shop"])
    processor = Processor(trained(sort=True, values="symbols"), target)
    processor.save(tmp_path)
    loaded = Processor.load(tmp_path)
    assert loaded.identity() == processor.identity()
    assert torch.equal(loaded.source([TEXT, SLOTS]).values, processor.source([TEXT, SLOTS]).values)


def test_rows_of_a_data_set_read_back_alike():
    rows = Dataset.from_list([{"record": SLOTS}, {"record": {"name": "Cocum"}}])
    assert [Records().linearize(row["record"]) for row in rows] == [LINE, "⟨name⟩ Cocum"]


def test_whole_numbers_beside_decimals_are_whole_numbers():
    rows = Dataset.from_list([{"record": {"stars": 7}}, {"record": {"stars": 4.5}}, {"record": {"stars": None}}])
    assert [read_record(row["record"]) for row in rows] == [[("stars", "7")], [("stars", "4.5")], []]
    assert read_record({"a": [1.0, "1.0", float("nan")], "b": 2.50}) == [("a", "1"), ("a", "1.0"), ("b", "2.5")]
    assert read_record('{"stars": 7.0}') == read_record({"stars": 7}) == read_record({"stars": np.array(7)})
    assert read_record([["Oslo", "population", 700000.0]]) == [("Oslo", "population", "700000")]
    assert read_record({"a": [np.float32(7), np.int64(3)]}) == [("a", "7"), ("a", "3")]


@pytest.mark.parametrize(
    "raw",
    [
        {"address": {"city": "Oslo"}},
        {"address": [{"city": "Oslo"}]},
        {"address": [["Oslo", "Bergen"]]},
        '{"address": {"city": "Oslo"}}',
        [["Oslo", {"capital": "of"}, "Norway"]],
        [["Oslo", "capital of", None]],
        {"picture": b"123"},
        {"a": {"x"}},
        {"a": iter("xy")},
        {"a": object()},
    ],
)
def test_what_is_nested_is_refused(raw):
    with pytest.raises(UserError, match=r"expected a text, a number or a list of them in .* of a record, but it is"):
        Records().linearize(raw)


def test_records_that_differ_in_their_slots_are_read_from_json_lines(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"r": {"stars": 7}}\n{"r": {"stars": 4.5, "name": "Zizzi"}}\n')
    rows = open_dataset(str(tmp_path / "rows.jsonl"))["train"]
    assert Records().accepts_column(rows.features["r"])
    assert [read_record(row["r"]) for row in rows] == [[("stars", "7")], [("stars", "4.5"), ("name", "Zizzi")]]
