"""Constraints on what an output repeats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.constraints.base import Constraint, ConstraintState
from lit_seq2seq.search.options import Range, counts, expect
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings.arguments import checked_fields


@dataclass(frozen=True)
class Written(ConstraintState):
    """State of what looks at all tokens so far.

    Attributes:
        tokens: `(N, T)` the tokens of each hypothesis.
    """

    tokens: Array

    def update(self, tokens: Array) -> Self:
        """Append a token to each."""
        return replace(self, tokens=arrays.of(tokens).concat([self.tokens, tokens[:, None]], 1))


@dataclass(frozen=True)
class _NGrams(Written):
    size: int
    eos: int

    def allow(self, log_probs: Array) -> Array:
        length = self.tokens.shape[1]
        if length < self.size:
            return log_probs
        xp = arrays.of(log_probs)
        ngrams = xp.windows(self.tokens, self.size)  # (N, W, size)
        context = self.tokens[:, length - self.size + 1 :]  # (N, size - 1)
        repeated = (ngrams[:, :, :-1] == context[:, None]).all(-1)  # (N, W)
        ending = xp.copy(log_probs[:, self.eos])  # no output so far has one: it stands where nothing is repeated
        xp.put(log_probs, xp.where(repeated, ngrams[:, :, -1], self.eos), -np.inf)
        log_probs[:, self.eos] = ending
        return log_probs


@checked_fields
@dataclass(frozen=True)
class NoRepeatedNGrams(Constraint):
    """No n-gram of `size` tokens occurs twice in an output.

    Args:
        size: n, at least 1.
    """

    size: int

    def __post_init__(self) -> None:
        expect(self, "size", counts(1))

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        return _NGrams(task.xp.full((task.batch_size, 0), 0), self.size, task.specials.eos)


@dataclass(frozen=True)
class _Penalised(Written):
    penalty: float

    def allow(self, log_probs: Array) -> Array:
        xp = arrays.of(log_probs)
        if not self.tokens.shape[1]:
            return log_probs
        said = xp.gather(log_probs, self.tokens)  # above 0 where a scorer has subtracted something
        return xp.put(log_probs, self.tokens, xp.where(said > 0, said / self.penalty, said * self.penalty))


@checked_fields
@dataclass(frozen=True)
class RepetitionPenalty(Constraint):
    """Log-probabilities of symbols that an output already has are multiplied by `penalty` (Keskar et al. 2019).

    Args:
        penalty: above 1 repetitions become less probable, below 1 more.
    """

    penalty: float

    def __post_init__(self) -> None:
        expect(self, "penalty", Range(above=0, most=1000))

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        return _Penalised(task.xp.full((task.batch_size, 0), 0), self.penalty)
