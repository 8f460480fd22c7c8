import pytest

from lit_seq2seq.builtin import SequenceTask
from lit_seq2seq.types import UserError

SIZES = {"train_size": 200, "validation_size": 40, "test_size": 120}
RULES = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "addition": lambda text: str(sum(int(number) for number in text.split("+"))),
}


def length(text):
    return max(len(part) for part in text.split("+"))


@pytest.mark.parametrize("task", RULES)
def test_targets_follow_the_rule_and_the_test_split_is_longer(task):
    splits = SequenceTask(task, max_length=4, **SIZES).load()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 200, "validation": 40, "test": 120}
    for rows in splits.values():
        assert all(row["target"] == RULES[task](row["source"]) for row in rows)
    longest = {name: max(map(length, rows["source"])) for name, rows in splits.items()}
    assert longest == {"train": 4, "validation": 4, "test": 8}
    assert {length(text) for text in splits["test"]["source"]} == set(range(1, 9))


def test_splits_share_no_source_and_the_seed_decides():
    splits = SequenceTask("sort", max_length=3, **SIZES).load()
    sources = {name: set(rows["source"]) for name, rows in splits.items()}
    assert not sources["train"] & (sources["validation"] | sources["test"])
    assert not sources["validation"] & sources["test"]
    again = SequenceTask("sort", max_length=3, **SIZES).load()
    assert {name: rows[:] for name, rows in again.items()} == {name: rows[:] for name, rows in splits.items()}
    assert SequenceTask("sort", max_length=3, **SIZES, seed=1).load()["test"][:] != splits["test"][:]


def test_the_length_of_the_test_split_can_be_chosen():
    splits = SequenceTask("copy", max_length=4, test_length=4, **SIZES).load()
    assert max(map(len, splits["test"]["source"])) == 4


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="expected a task of copy, reverse, sort, addition, but got 'swap'"):
        SequenceTask("swap")
    with pytest.raises(UserError, match="expected max_length to be at least 1, but it is 0"):
        SequenceTask(max_length=0)
    with pytest.raises(UserError, match="expected test_size from 1 to 10000000, but it is 0"):
        SequenceTask(test_size=0)
