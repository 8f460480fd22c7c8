"""What every recurrent cell promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

CellName = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
"""Short names of the cells that have fused kernels."""
State = tuple[Tensor, ...]
"""The output `(N, H)` of the last step, and what else a cell carries from step to step, `(N, H_i)` each."""


class Cell(nn.Module, ABC):
    """One direction of a recurrent layer: a transition from step to step, and the same over whole sequences.

    A cell of your own needs `advance`; what does not depend on the state may be computed for all steps at once in
    `enter`. Give `others` if it carries more than its output, and `scan` if there is a faster way than a loop.

    Args:
        input_size: size D of the inputs.
        hidden_size: size H of the output.

    Example:
        >>> class Average(Cell):
        ...     def __init__(self, input_size, hidden_size):
        ...         super().__init__(input_size, hidden_size)
        ...         self.dense = nn.Linear(input_size, hidden_size)
        ...     def enter(self, x):
        ...         return self.dense(x)
        ...     def advance(self, entered, state, mask=None):
        ...         return ((state[0] + entered) / 2,)
        >>> cell = Average(3, 4)
        >>> outputs, state = cell.scan(torch.ones(2, 5, 3), cell.first(torch.ones(2, 3)))
        >>> outputs.shape, torch.equal(outputs[:, -1], state[0])
        (torch.Size([2, 5, 4]), True)
    """

    reads_output: bool = True
    """Whether its gates read the output of the step before, so that state dropout has a meaning."""

    mixes: bool = True
    """Whether the mean of two of its states is one, too."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size

    @property
    def others(self) -> tuple[int, ...]:
        """Sizes of what the state holds beside the output."""
        return ()

    def enter(self, x: Tensor) -> Tensor:
        """Compute from inputs `(..., D)` what steps need of them, `(..., E)`."""
        return x

    @abstractmethod
    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make the state after a step.

        Args:
            entered: `(N, E)`, see `enter`.
            state: the one before; it may have more bits than `entered`.
            mask: `(N, H)` dropout of the output that the gates read.
        """

    def step(self, x: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Read one input `(N, D)`; see `advance`."""
        return self.advance(self.enter(x), state, mask)

    def scan(
        self,
        x: Tensor,
        state: State,
        lengths: Tensor | None = None,
        reverse: bool = False,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read whole sequences `(B, T, D)`; equal to T calls of `step`.

        Args:
            x: the inputs.
            state: where to start.
            lengths: `(B,)` real lengths; `None` if nothing is padded.
            reverse: read from the last real input to the first.
            mask: see `advance`.

        Returns:
            Outputs `(B, T, H)`, zero at padding, and the state after each sequence's last real step.
        """
        entered = self.enter(x)
        steps, real = entered.unbind(dim=1), real_positions(x, lengths)
        outputs: list[Tensor] = [state[0]] * len(steps)
        for t in reversed(range(len(steps))) if reverse else range(len(steps)):
            new = self.advance(steps[t], state, mask)
            keep = None if real is None else real[:, t, None]  # (B, 1)
            outputs[t] = new[0] if keep is None else new[0] * keep
            state = new if keep is None else tuple(map(torch.where, [keep] * len(new), new, state))
        return torch.stack(outputs, dim=1).to(entered.dtype), state  # which may be in more bits

    def first(self, like: Tensor) -> State:
        """Make the state before any step; `like (N, ...)` gives number of rows and type."""
        return tuple(like.new_zeros(like.shape[0], size) for size in (self.hidden_size, *self.others))

    @property
    def kernel(self) -> CellName | None:
        """The fused kernel that computes the same over whole sequences; see `RecurrentLayer`."""
        return None


def real_positions(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Tell which positions `(B, T)` of `x (B, T, D)` are no padding; `None` where there is none."""
    return None if lengths is None else torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
