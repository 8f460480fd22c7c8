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
    """Where N hypotheses stand under a constraint: a value with a row for each, which search selects by."""

    @abstractmethod
    def allow(self, log_probs: Array) -> Array:
        """Put minus infinity where a token may not come next.

        Args:
            log_probs: `(N, V)` log-probabilities of the next token, EOS among them; may be changed.
        """

    @abstractmethod
    def update(self, tokens: Array) -> Self:
        """Return the state after one more token of each hypothesis, `(N,)`; after EOS it does not matter."""

    @property
    def met(self) -> Array | None:
        """`(N,)` whether each hypothesis would do as a whole output; `None` where `allow` leaves nothing undone."""
        return None

    def progress(self, size: int) -> Array | None:
        """Count what each hypothesis has done for the constraint after each of `size` next tokens, `(N, V)` integers.

        A beam keeps hypotheses of every count (dynamic beam allocation, Post and Vilar 2018); `None`: it need not.
        """
        return None


class Constraint(Part, ABC):
    """What outputs have to be like; a frozen dataclass, named in `generation.constraints`.

    Attributes:
        needs_beam: whether greedy search would hardly ever meet it.
    """

    needs_beam: ClassVar[bool] = False

    @abstractmethod
    def start(self, task: Task) -> ConstraintState:
        """Return the state before the first token, of one hypothesis for each sentence."""


def all_met(constraints: Sequence[ConstraintState]) -> Array | None:
    """Tell which hypotheses meet all constraints, `(N,)`; `None` where nothing can be left undone."""
    found = [met for met in (one.met for one in constraints) if met is not None]
    return functools.reduce(operator.and_, found) if found else None
