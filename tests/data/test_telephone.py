import numpy as np
import pytest

from lit_seq2seq.builtin import TelephoneKeys
from lit_seq2seq.builtin.telephone import RATE, TONES, split_of, tones
from lit_seq2seq.types import UserError


def test_every_key_has_the_two_tones_of_the_standard() -> None:
    assert len(TONES) == 10
    assert (TONES["1"], TONES["0"], TONES["9"]) == ((697, 1209), (941, 1336), (852, 1477))
    for digit, expected in TONES.items():
        samples, (end,) = tones(digit, np.random.default_rng(0), noise=0.0)
        signal = samples.astype(float)
        assert np.flatnonzero(signal)[-1] == pytest.approx(end * RATE / 1000, abs=2)
        spectrum = np.abs(np.fft.rfft(signal, RATE))  # one bin per hertz
        for low, high, hertz in ((600, 1050, expected[0]), (1050, 1600, expected[1])):
            assert abs(low + spectrum[low:high].argmax() - hertz) < 0.03 * hertz


def test_splits_share_no_string_and_repeat_by_seed() -> None:
    sizes = {"train_size": 30, "validation_size": 10, "test_size": 10}
    splits = TelephoneKeys(**sizes).load()
    for split, rows in splits.items():
        assert len(rows) == sizes[f"{split}_size"]
        assert {split_of(digits) for digits in rows["digits"]} == {split}
        assert all(3 <= len(digits) <= 8 for digits in rows["digits"])
        assert [len(ends) for ends in rows["ends"]] == [len(digits) for digits in rows["digits"]]
    assert TelephoneKeys(**sizes).load()["test"][0] == splits["test"][0]
    assert TelephoneKeys(**sizes, seed=1).load()["test"][0] != splits["test"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortest": 9}, "expected 2 <= shortest <= longest, but they are 9 and 8"),
        ({"noise": -1.0}, "expected noise of at least 0"),
        ({"test_size": 0}, "expected test_size from 1 to 10000000, but it is 0"),
    ],
)
def test_arguments_out_of_range_are_explained(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TelephoneKeys(**options)
