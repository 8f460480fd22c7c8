"""Alignments of words, as word aligners write them, as alignments of symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_seq2seq.features.feature import Array
from lit_seq2seq.types import AlignedTarget, Padded, UserError


def aligned_symbols(pairs: str, source: Sequence[int], target: Sequence[int], words: tuple[int, int]) -> Array:
    """Turn pairs of words, such as `0-0 1-2`, into pairs of all symbols of these words.

    Args:
        pairs: numbers of words of the source and the target, counted from 0.
        source: number of the word that each source symbol belongs to; below 0 before the first word.
        target: the same of each target symbol.
        words: number of words of the source and of the target.

    Returns:
        `(2N,)` places of target and source symbol of each pair, one after the other.

    Raises:
        UserError: a pair is no such pair, or of a word that is not there.

    Example:
        >>> aligned_symbols("0-1 1-0", [0, 0, 1], [0, 1], (2, 2)).reshape(-1, 2).tolist()
        [[0, 2], [1, 0], [1, 1]]
    """
    table = np.zeros((words[1] + 1, words[0] + 1), dtype=bool)  # the last row and column are of no word
    for pair in pairs.split():
        numbers = pair.split("-")
        if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise UserError(f"expected pairs of words such as 0-0 1-2 in columns.alignment, but one is '{pair}'")
        for number, count, side in zip(map(int, numbers), words, ("source", "target"), strict=True):
            if number >= count:
                raise UserError(
                    f"{pair} in columns.alignment names word {number} of the {side}, counted from 0, but it has {count}"
                )
        table[int(numbers[1]), int(numbers[0])] = True
    symbols = np.ix_(*(np.maximum(np.array(side, int), -1) for side in (target, source)))
    return np.argwhere(table[symbols]).astype(np.int32).reshape(-1)


def with_alignment(target: Padded, source: Padded, pairs: Sequence[Array]) -> AlignedTarget:
    """Add the `aligned_symbols` of each example to a batch of targets; the last symbols, EOS, have none."""
    alignment = np.zeros((*target.values.shape, source.values.shape[1]), dtype=bool)  # (B, T, S)
    lengths = zip(np.asarray(target.lengths), np.asarray(source.lengths), strict=True)
    for row, own, ends in zip(alignment, pairs, lengths, strict=True):
        t, s = own.reshape(-1, 2).T
        there = (t < ends[0] - 1) & (s < ends[1] - 1)  # not beyond where a text was cut
        row[t[there], s[there]] = True
    found: Any = target.values, target.lengths, alignment
    return AlignedTarget(*found)
