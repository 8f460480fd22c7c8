import re

import datasets
import pytest

from lit_seq2seq.builtin import WeatherAndCalendar
from lit_seq2seq.builtin.records import KINDS, generate, say
from lit_seq2seq.features.records import read_record
from lit_seq2seq.types import UserError

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


def records(split, seed=0, size=300):
    return [dict(read_record(row["record"])) for row in generate(split, size, 1, seed)]


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_share_no_combination_but_every_name_is_trained(seed):
    made = {split: records(split, seed, 700) for split in SPLITS}
    pairs = {split: {tuple(record.values())[:2] for record in made[split]} for split in SPLITS}
    assert pairs["train"].isdisjoint(pairs["test"] | pairs["validation"])
    assert pairs["validation"].isdisjoint(pairs["test"])
    values = {split: {value for record in made[split] for value in record.items()} for split in SPLITS}
    named = {value for value in values["test"] if value[0] not in ("day", "start", "end", "high", "low")}
    assert named <= values["train"]


def test_a_record_is_said_by_different_templates_that_name_its_values():
    rows = list(generate("test", 100, 4, 0))
    for start in range(0, len(rows), 4):
        group = rows[start : start + 4]
        assert len({row["record"] for row in group}) == 1
        assert len({row["text"] for row in group}) == 4
        record = dict(read_record(group[0]["record"]))
        named = [record[slot] for slot in ("city", "sky", "wind", "person", "event", "place") if slot in record]
        for row in group:
            assert all(name in row["text"] for name in named), row
            assert not re.search(r"[\[\]{}]|\s\s|\s[.,]", row["text"]), row


def test_slots_that_are_absent_are_not_said():
    weather, calendar = KINDS
    short = {"city": "Oslo", "sky": "rainy", "day": "03 05", "high": "-1"}
    assert [say(short, sentence) for sentence in weather.sentences[:2]] == [
        "On March 5 it will be rainy in Oslo, with a high of -1°C.",
        "Oslo will be rainy on 5 March. The temperature reaches -1 degree Celsius.",
    ]
    event = {"person": "Ines", "event": "chess game", "day": "12 24", "start": "00:30", "end": "13:15"}
    assert [say(event, sentence) for sentence in calendar.sentences[:2]] == [
        "Ines has a chess game on December 24 at 12:30 AM. It ends at 1:15 PM.",
        "On 24 December at 00:30, until 13:15, there is a chess game for Ines.",
    ]


def test_highs_are_not_below_lows_and_ends_not_before_starts():
    for record in records("train", size=500):
        assert int(record.get("low", -99)) <= int(record.get("high", 99))
        assert record.get("start", "") <= record.get("end", "24")


def test_sizes_count_records_and_the_seed_decides():
    options = {"train_size": 30, "validation_size": 5, "test_size": 6}
    splits = WeatherAndCalendar(**options, references=3).load()
    assert {split: rows.num_rows for split, rows in splits.items()} == {"train": 90, "validation": 20, "test": 24}
    assert len(set(splits["train"]["record"])) == 30
    assert WeatherAndCalendar(**options, references=3).load()["test"][:] == splits["test"][:]
    assert WeatherAndCalendar(**options, references=3, seed=1).load()["test"][:] != splits["test"][:]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"train_size": 0}, "train_size from 1 to"), ({"references": 5}, "references from 1 to 4.*but it is 5")],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(UserError, match=message):
        WeatherAndCalendar(**options)
