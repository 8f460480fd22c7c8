"""Cells whose state enters linearly: all steps of a sequence run at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell, State, real_positions
from lit_seq2seq.nn.kernels.scan import linear_scan
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.settings.arguments import checked_fields


@checked_fields
class LinearCell(Cell):
    """Base of cells with `h' = a h + b`, where a and b depend on the input alone.

    The state is in 32 bits or more: 16 hold neither an a close to 1 nor what is small beside it.
    """

    reads_output = False
    products: ClassVar[int]
    """How many vectors of the output's size a and b are made of, each a product with the input."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.inputs = nn.Linear(input_size, self.products * hidden_size)

    def enter(self, x: Tensor) -> Tensor:
        """Compute all products."""
        entered: Tensor = self.inputs(x)
        return entered

    @abstractmethod
    def coefficients(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Make a and b `(..., H)`, a from 0 to 1."""

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make `a h + b`."""
        keep, new = self.coefficients(wide(entered))
        return (keep * state[0] + new,)

    def scan(
        self,
        x: Tensor,
        state: State,
        lengths: Tensor | None = None,
        reverse: bool = False,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read whole sequences by one scan; see `Cell.scan`."""
        entered = self.enter(x)
        keep, new = self.coefficients(wide(entered))
        real = real_positions(x, lengths)
        if real is not None:  # padding holds the state
            keep, new = keep.masked_fill(~real[..., None], 1.0), new * real[..., None]
        if reverse:
            keep, new = keep.flip(1), new.flip(1)
        outputs = linear_scan(keep, new, state[0])
        final = outputs[:, -1] if outputs.shape[1] else state[0]
        outputs = (outputs.flip(1) if reverse else outputs).to(entered.dtype)
        return outputs if real is None else outputs * real[..., None], (final,)


def positive(x: Tensor) -> Tensor:
    """Make `x + 0.5` above 0 and `sigmoid(x)` below (Feng et al. 2024, appendix B): positive, and without a jump."""
    return torch.relu(x) + torch.sigmoid(x.clamp(max=0))
