"""The contract of constraints."""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from lit_seq2seq.arrays import Array
from lit_seq2seq.search.task import Task
from lit_seq2seq.types import Part, Value


@dataclass(frozen=True)
class ConstraintState(Value, ABC):
    """The state of N hypotheses under a constraint, with a row for each."""

    @abstractmethod
    def allow(self, log_probs: Array) -> Array:
        """Set the log-probabilities of tokens that must not come next to minus infinity.

        Args:
            log_probs: `(N, V)` log-probabilities of the next token, EOS among them; may be changed.
        """

    @abstractmethod
    def update(self, tokens: Array) -> Self:
        """Return the state after one more token of each hypothesis, `(N,)`; after EOS, any."""

    @property
    def met(self) -> Array | None:
        """`(N,)` whether each hypothesis meets it as a whole output; `None` if `allow` ensures that."""
        return None

    def progress(self, size: int) -> Array | None:
        """Measure how far each hypothesis gets with each of `size` next tokens, `(N, V)` integers.

        A beam keeps hypotheses of every count (dynamic beam allocation, Post and Vilar 2018); `None`: it need not.
        """
        return None


class Constraint(Part, ABC):
    """A constraint on outputs; a frozen dataclass, named in `generation.constraints`.

    Attributes:
        needs_beam: whether greedy search would rarely meet it.
        whole_source: see `Scorer`.
    """

    needs_beam: ClassVar[bool] = False
    whole_source: ClassVar[bool] = False

    @abstractmethod
    def start(self, task: Task) -> ConstraintState:
        """Return the state before the first token, of one hypothesis for each sentence."""


def all_met(constraints: Sequence[ConstraintState]) -> Array | None:
    """Tell which hypotheses meet all constraints, `(N,)`; `None` where nothing can be left undone."""
    found = [met for met in (one.met for one in constraints) if met is not None]
    return functools.reduce(operator.and_, found) if found else None
