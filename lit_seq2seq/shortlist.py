"""Lexical shortlists: scores of the few target symbols that a source is likely to need."""

from __future__ import annotations

from dataclasses import astuple
from typing import NamedTuple

import numpy as np

from lit_seq2seq.arrays import Array
from lit_seq2seq.types import Padded, SpecialIds

_RANKS = [1, 0, 2, 3]  # places of unknown, padding, BOS and EOS: the last one that a symbol has is its own
SAMPLE = 128
"""Symbols of the vocabulary from which the sum over those that are no candidates is estimated."""


class Shortlist:
    """The target symbols that may be produced for a source: the most frequent ones, and translations of its symbols.

    As in L'Hostis et al. (2016), after Jean et al. (2015, section 3.3).

    Args:
        frequent: `(N,)` target ids that are always candidates.
        translations: `(V, K)` target ids for each source symbol, -1 where there are fewer.
        size: number of target symbols.
        specials: ids of the special target symbols, which are always candidates, too.

    Example:
        >>> shortlist = Shortlist(np.array([4]), np.array([[-1], [6], [5]]), size=8, specials=SpecialIds())
        >>> shortlist(np.array([[1, 1], [2, 0]]), np.array([2, 1])).values
        array([[0, 1, 2, 3, 4, 6],
               [0, 1, 2, 3, 4, 5]])
    """

    def __init__(self, frequent: Array, translations: Array, size: int, specials: SpecialIds) -> None:
        self.frequent, self.translations = frequent, translations
        self.size, self.specials = size, specials

    def __call__(self, source: Array, lengths: Array) -> Padded:
        """List the candidates of each source of ids `(B, S)` and its length: the special symbols, then by id."""
        real = np.arange(source.shape[1]) < lengths[:, None]
        found = np.where(real[:, :, None], self.translations[source], -1)  # (B, S, K)
        chosen = np.zeros((len(source), self.size + 1), bool)  # the last column is that of -1
        chosen[np.arange(len(source))[:, None, None], found] = True
        chosen[:, self.frequent] = True
        first = list(astuple(self.specials))
        chosen[:, first] = False
        rows, ids = np.nonzero(chosen[:, : self.size])
        counts: Array = np.bincount(rows, minlength=len(source))  # (B,)
        places = np.arange(len(rows)) - (counts.cumsum() - counts)[rows] + len(first)
        values: Array = np.full((len(source), len(first) + counts.max()), self.specials.pad)
        values[:, : len(first)] = first
        values[rows, places] = ids
        return Padded(values, counts + len(first))


class Scored(NamedTuple):
    """Which symbols are scored for a batch, and what their scores stand for.

    Probabilities are those of the whole vocabulary, nearly: what all other symbols add to the softmax is estimated from
    `SAMPLE` of them, the same for every source. Normalised over the candidates alone, an uncertain step would cost
    hardly more than a certain one, and beams would go other ways. Scores are computed once for what any source in the
    batch needs; no source sees those of another.

    Attributes:
        symbols: `(U,)` ids of the symbols that are scored.
        columns: `(B, C + SAMPLE)` where each source's candidates, and the sample, are among them.
        shares: `(B, C + SAMPLE)` logarithm of the number of symbols for which each stands: 0 for candidates, minus
            infinity for padding and for symbols of the sample that are candidates.
    """

    symbols: Array
    columns: Array
    shares: Array

    @classmethod
    def of(cls, candidates: Padded, size: int) -> Scored:
        """Make it from the candidates of each source and the number of all symbols."""
        ids, real = np.asarray(candidates.values), np.asarray(candidates.mask)
        special = ids[:, _RANKS]
        again = np.triu(special[:, :, None] == special[:, None], 1).any(2)  # one symbol in several roles counts once
        real[:, _RANKS] &= ~again
        lengths = real.sum(1)
        sample = np.arange(0, size, max(1, size // SAMPLE))
        listed: Array = np.zeros((len(ids), size), bool)
        np.put_along_axis(listed, ids, True, axis=1)
        known = listed[:, sample]  # (B, M)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.log((size - lengths) / (~known).sum(1))[:, None]  # (B, 1)
        shares = np.concatenate([np.where(real, 0, -np.inf), np.where(known, -np.inf, each)], axis=1)
        needed: Array = np.any(listed, axis=0)  # (V,)
        needed[sample] = True
        scored = np.concatenate([ids, np.broadcast_to(sample, known.shape)], axis=1)
        return cls(np.flatnonzero(needed), (needed.cumsum() - 1)[scored], shares.astype(np.float32))
