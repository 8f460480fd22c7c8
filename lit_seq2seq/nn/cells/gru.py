"""The gated recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell, CellName, State
from lit_seq2seq.nn.cells.gates import GateNorm, draw_gates


class GRU(Cell):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as in cuDNN.

    `r, z = sigmoid(W x + U h + b)`, `n = tanh(W x + r (U h + b'))`, `h' = (1 - z) n + z h`. Under state dropout the
    gates see h dropped, and z carries it whole: the scale of the mask would grow with time.

    Args:
        layer_norm: normalise `W x` and `U h` (after Ba et al. 2016). Runs step by step.
    """

    def __init__(self, input_size: int, hidden_size: int, layer_norm: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        self.inputs, self.recurrent = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)
        draw_gates(self.inputs, self.recurrent, 3)
        self.norm = GateNorm(3 * hidden_size) if layer_norm else None

    @property
    def kernel(self) -> CellName | None:
        """That of torch, without normalisation."""
        return "gru" if self.norm is None else None

    def enter(self, x: Tensor) -> Tensor:
        """Compute `W x + b`."""
        entered: Tensor = self.inputs(x) if self.norm is None else self.norm.inputs(self.inputs(x))
        return entered

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h; see `Cell.advance`."""
        (h,) = state
        from_h = self.recurrent(h if mask is None else h * mask)
        from_h = from_h if self.norm is None else self.norm.recurrent(from_h)
        (r, z, n), (r_h, z_h, n_h) = entered.chunk(3, dim=-1), from_h.chunk(3, dim=-1)
        new = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
        return (new + torch.sigmoid(z + z_h) * (h - new),)
