import pytest
from num2words import num2words

from lit_seq2seq.builtin import SpelledNumbers
from lit_seq2seq.types import UserError

SIZES = {"train_size": 300, "validation_size": 60, "test_size": 80}


def test_rows_say_the_number_in_the_language_and_form():
    splits = SpelledNumbers(["de", "fr"], **SIZES).load()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 300, "validation": 60, "test": 80}
    for row in splits["train"]:
        assert row["spelled"] == num2words(int(row["number"]), lang=row["language"], to=row["form"])
    assert {(row["language"], row["form"]) for row in splits["train"]} == {
        (language, form) for language in ("de", "fr") for form in ("cardinal", "ordinal")
    }


def test_splits_share_no_number_and_rows_are_distinct():
    splits = SpelledNumbers(["en"], train_size=3000, validation_size=500, test_size=500).load()
    numbers = {name: set(rows["number"]) for name, rows in splits.items()}
    assert not numbers["train"] & (numbers["validation"] | numbers["test"])
    assert not numbers["validation"] & numbers["test"]
    assert len({tuple(row.values()) for row in splits["train"]}) == 3000


def test_the_seed_decides():
    assert SpelledNumbers(**SIZES).load()["test"][:] == SpelledNumbers(**SIZES).load()["test"][:]
    assert SpelledNumbers(**SIZES).load()["test"][:] != SpelledNumbers(**SIZES, seed=1).load()["test"][:]


def test_mistakes_are_explained():
    with pytest.raises(UserError, match=r"expected languages of de, en, .*, but got 'xx'"):
        SpelledNumbers(["xx"])
    with pytest.raises(UserError, match="but got none"):
        SpelledNumbers([])
    with pytest.raises(UserError, match="expected test_size from 1 to 2000, but it is 9999"):
        SpelledNumbers(["en"], test_size=9999)
