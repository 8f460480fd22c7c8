"""How far a model has read when it writes: the policies of simultaneous decoding, named in `generation.policy`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.options import Range, counts, expect
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import Hypothesis, Part, StepFunction, StepOutput, UserError, Value


class Policy(Part, ABC):
    """Decides how many positions of its source a model has read before each token; a frozen dataclass.

    Attributes:
        attends: whether it follows the attention weights.
    """

    attends: ClassVar[bool] = False

    @abstractmethod
    def reach(self, times: Array, attention: Array | None = None) -> Array:
        """Compute how many positions have been read before the token of each step, from 1, and never fewer than before.

        Args:
            times: `(N,)` decoding steps, from 0.
            attention: `(N, S)` attention weights of these steps, if the model has attention.

        Returns:
            `(N,)`; there may be more than the source has.
        """

    def join(self, step: StepFunction[Any], state: Any, task: Task) -> tuple[StepFunction[Any], Any]:
        """Wrap a step function and its first state, so that steps see only what has been read; see `Scorer.join`."""
        return step, state

    def delayed(self, found: Hypothesis, length: int) -> Hypothesis:
        """Return an output with its delays, its source having `length` positions."""
        reach = self.reach(arrays.of(found.tokens).arange(len(found.token_scores)), found.attention)
        return replace(found, delays=reach.clip(0, length))


@dataclass(frozen=True)
class Timed(Value):
    """A state, and the number of steps before it. Implements `SearchState`."""

    state: Any
    time: int = 0

    def select(self, index: Array) -> Self:
        """Reorder the hypotheses by `index (B', K')`; see `SearchState`."""
        return replace(self, state=self.state.select(index))


@checked_fields
@dataclass(frozen=True)
class WaitK(Policy):
    """Reads `k` positions, then writes and reads in turns, `min(k + t - 1 - floor(catchup t), |x|)` before token t.

    Ma et al. 2019 (https://aclanthology.org/P19-1289, equations 3 and 8). Models are trained for it by the objective of
    the same name.

    Args:
        k: how many positions, from 1.
        catchup: how many more tokens than positions are written, for each token, so that a target longer than its
            source does not fall behind: from 0 to below 1.

    Example:
        >>> import numpy as np
        >>> WaitK(2, catchup=0.25).reach(np.arange(6))
        array([2, 3, 4, 4, 5, 6])
    """

    k: int
    catchup: float = 0.0

    def __post_init__(self) -> None:
        expect(self, "k", counts(1))
        expect(self, "catchup", Range(0, 0.99))

    def reach(self, times: Array, attention: Array | None = None) -> Array:
        """Count; see `Policy.reach`."""
        return self.k + times - arrays.of(times).integers((times + 1) * self.catchup + 1e-4)

    def join(self, step: StepFunction[Any], state: Any, task: Task) -> tuple[StepFunction[Any], Any]:
        """Narrow what each step sees; see `Policy.join`."""

        def narrowed(tokens: Array, state: Timed) -> StepOutput[Timed]:
            reach = self.reach(task.xp.full((1,), state.time))
            output = step(tokens, state.state.narrowed(reach))
            return replace(output, state=Timed(output.state, state.time + 1))

        return narrowed, Timed(state)


@checked_fields
@dataclass(frozen=True)
class Monotonic(Policy):
    """Reads as far as attention looks: for models with `MonotonicAttention` or `MoChA`, which move left to right.

    Where attention has found no place to stop, it has read the whole source.
    """

    attends: ClassVar[bool] = True

    def reach(self, times: Array, attention: Array | None = None) -> Array:
        """Find the last position with a weight; see `Policy.reach`."""
        if attention is None:
            raise UserError("policy: Monotonic follows attention, but this search computes none: leave it out")
        xp, size = arrays.of(attention), attention.shape[1]
        last = xp.amax(xp.where(attention > 0, xp.arange(size) + 1, 0), 1)
        return xp.where(last == 0, size, last)
