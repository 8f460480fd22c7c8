"""The simple recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell, State


class SRU(Cell):
    """Simple recurrent unit (Lei et al. 2018, equations 1 to 4): all matrix products before the loop over time.

    `f = sigmoid(W_f x + v_f c + b_f)`, `c' = f c + (1 - f) (W x)`, `r = sigmoid(W_r x + v_r c + b_r)`,
    `h = r c' + (1 - r) x` (https://arxiv.org/abs/1709.02755). Inputs of another size than the output are projected for
    the last term.

    Example:
        >>> cell = SRU(3, 4)
        >>> h, c = cell.step(torch.ones(2, 3), cell.first(torch.ones(2, 3)))
        >>> h.shape, c.shape
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    reads_output = False

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.projects = input_size != hidden_size
        self.inputs = nn.Linear(input_size, (4 if self.projects else 3) * hidden_size, bias=False)
        self.peep = nn.Parameter(torch.empty(2, hidden_size).uniform_(-(3**0.5) / hidden_size, 3**0.5 / hidden_size))
        self.bias = nn.Parameter(torch.zeros(2, hidden_size))

    @property
    def others(self) -> tuple[int, ...]:
        """The cell vector."""
        return (self.hidden_size,)

    def enter(self, x: Tensor) -> Tensor:
        """Compute the products, and the input as it passes by: `(..., 4 H)`."""
        return self.inputs(x) if self.projects else torch.cat([self.inputs(x), x], dim=-1)

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h and c; see `Cell.advance`."""
        _, c = state
        new, forget, reset, passing = entered.chunk(4, dim=-1)
        forget = torch.sigmoid(forget + self.peep[0] * c + self.bias[0])
        reset = torch.sigmoid(reset + self.peep[1] * c + self.bias[1])
        c = new + forget * (c - new)
        return passing + reset * (c - passing), c
