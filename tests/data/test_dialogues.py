import itertools
import math
import random
import re
from collections import Counter

import datasets
import pytest

from lit_seq2seq.builtin import Dialogues
from lit_seq2seq.builtin.dialogues import SCRIPTS, STARTS, TURN, generate, speak
from lit_seq2seq.types import UserError

SPLITS = ("train", "validation", "test")


def test_every_state_can_be_reached_and_every_dialogue_ends():
    reached = set(STARTS)
    while more := {after for state in reached for _, after in SCRIPTS[state] if after} - reached:
        reached |= more
    assert reached == set(SCRIPTS)
    assert all(len({line for line, _ in lines}) == len(lines) > 1 for lines in SCRIPTS.values())


def test_no_dialogue_is_in_two_splits():
    whole = {split: {row["prompt"] + TURN + row["continuation"] for row in generate(split, 300, 0)} for split in SPLITS}
    ends = {split: {text for text in texts if text.count(TURN) >= 3} for split, texts in whole.items()}
    assert all(ends.values())
    assert not ends["train"] & ends["test"]
    assert not ends["train"] & ends["validation"]
    assert not ends["validation"] & ends["test"]


def test_a_row_goes_on_where_the_one_before_ended():
    rows = list(generate("test", 50, 3))
    assert sum(TURN not in row["prompt"] for row in rows) == 50
    for before, row in itertools.pairwise(rows):
        if TURN in row["prompt"]:
            assert row["prompt"] == before["prompt"] + TURN + before["continuation"]
        assert not re.search(r"[{}]|\s\s", row["continuation"])


def test_whole_dialogues_are_those_that_are_cut():
    cut = list(generate("test", 40, 3))
    whole = list(generate("test", 40, 3, whole=True))
    ends = [one["prompt"] + TURN + one["continuation"] for one, after in itertools.pairwise([*cut, {"prompt": ""}])
            if TURN not in after["prompt"]]  # fmt: skip
    assert [row["text"] for row in whole] == ends
    assert all(row["choices"] % len(STARTS) == 0 for row in whole)


def test_choices_are_the_inverse_of_the_probability():
    """Among many dialogues, what follows the same turns is as frequent as `choices` says."""
    rng = random.Random(0)
    after: Counter[tuple[str, str, int]] = Counter()
    for _ in range(20_000):
        texts = list(speak(rng))
        after.update((texts[0][0], text, choices) for text, choices in texts[1:2])
    first = "Hello, may I speak to Omar?"
    found = {(text, choices): count for (before, text, choices), count in after.items() if before == first}
    total = sum(found.values())
    (asked,) = [(count, choices) for (text, choices), count in found.items() if text.startswith("One moment")]
    assert asked[1] == 2
    assert asked[0] / total == pytest.approx(1 / 2, abs=5 * math.sqrt(0.25 / total))
    assert {choices for (text, choices) in found if text.startswith("I am sorry")} == {40}


def test_the_same_arguments_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    splits = Dialogues(train_size=20, validation_size=5, test_size=5, seed=1).load()
    assert splits["train"][:] == Dialogues(train_size=20, validation_size=5, test_size=5, seed=1).load()["train"][:]
    assert splits["train"][:] != Dialogues(train_size=20, validation_size=5, test_size=5, seed=2).load()["train"][:]
    assert set(splits) == set(SPLITS)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [0, 100_001])
def test_sizes_out_of_range_are_refused(split, size):
    with pytest.raises(UserError, match=rf"expected {split}_size from 1 to 100000, but it is {size}"):
        Dialogues(**{f"{split}_size": size})
