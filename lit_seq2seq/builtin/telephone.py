"""Speech-like data made on the machine: the tones of telephone keys."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Features, List, Value

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.types import UserError

RATE = 8000
_LOW, _HIGH = (697, 770, 852, 941), (1209, 1336, 1477)  # ITU-T Q.23, hertz
TONES = {
    digit: (_LOW[row], _HIGH[column])
    for row, digits in enumerate(("123", "456", "789", "*0#"))
    for column, digit in enumerate(digits)
    if digit.isdigit()
}


def split_of(digits: str) -> str:
    """Return the split that a string of digits belongs to: one in ten to validation and test each."""
    return {0: "validation", 1: "test"}.get(zlib.crc32(digits.encode()) % 10, "train")


def tones(digits: str, rng: np.random.Generator, noise: float) -> tuple[npt.NDArray[np.int16], list[float]]:
    """Return 16-bit samples of the keys pressed one after the other, and when each tone ends, in milliseconds.

    Every press has a length, a level and a balance of its two tones of its own; noise lies over everything.
    """
    parts = [np.zeros(rng.integers(200, 800))]
    for digit in digits:
        time = np.arange(rng.integers(400, 1000)) / RATE  # 50 to 125 ms
        level, tilt = rng.uniform(0.1, 0.4), rng.uniform(0.6, 1.4)
        low, high = (hertz * rng.uniform(0.985, 1.015) for hertz in TONES[digit])
        phases = rng.uniform(0, 2 * np.pi, 2)
        tone = np.sin(2 * np.pi * low * time + phases[0]) + tilt * np.sin(2 * np.pi * high * time + phases[1])
        parts += [level * tone / (1 + tilt), np.zeros(rng.integers(240, 800))]  # a gap of 30 to 100 ms
    signal = np.concatenate(parts)
    signal = signal + rng.normal(0, noise * rng.uniform(0.3, 1), len(signal))
    ends = np.cumsum([len(part) for part in parts])[1::2] * 1000 / RATE
    return np.clip(signal * 32768, -32768, 32767).astype(np.int16), ends.tolist()


def generate(
    split: str, size: int, seed: int, *, lengths: tuple[int, int], noise: float, version: str
) -> Iterator[Any]:
    """Yield `size` rows of `split`; `version` changes nothing but the key under which `datasets` caches them."""
    rng = np.random.default_rng((seed, zlib.crc32(split.encode())))
    made = 0
    while made < size:
        digits = "".join(map(str, rng.integers(0, 10, rng.integers(lengths[0], lengths[1] + 1))))
        if split_of(digits) == split:
            made += 1
            samples, ends = tones(digits, rng, noise)
            yield {"audio": {"array": samples, "sampling_rate": RATE}, "digits": digits, "ends": ends}


class TelephoneKeys(GeneratedDataset):
    """Strings of digits as dual tones (ITU-T Q.23) with noise, gaps, and levels and frequencies that vary.

    Columns: `audio`, a mapping of `array` (16-bit samples) and `sampling_rate` (8,000), `digits`, such as `"391"`, and
    `ends`, when the tone of each ends, in milliseconds. No string of digits is in two splits.

    Args:
        shortest: smallest number of digits.
        longest: greatest number of digits.
        noise: greatest standard deviation of the noise, for samples from -1 to 1.
        seed: draws the rows.
    """

    generate = staticmethod(generate)
    edition = 2
    features = Features(
        {
            "audio": {"array": List(Value("int16")), "sampling_rate": Value("int32")},
            "digits": Value("string"),
            "ends": List(Value("float32")),
        }
    )

    def __init__(
        self,
        train_size: int = 2000,
        validation_size: int = 200,
        test_size: int = 200,
        *,
        shortest: int = 3,
        longest: int = 8,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not 2 <= shortest <= longest:
            raise UserError(f"expected 2 <= shortest <= longest, but they are {shortest} and {longest}: change them")
        if not 0 <= noise < math.inf:
            raise UserError(f"expected noise of at least 0, but it is {noise}")
        added: dict[str, Any] = {"lengths": (shortest, longest), "noise": noise}
        super().__init__(train_size, validation_size, test_size, seed, **added)
