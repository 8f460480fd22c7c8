"""The LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell, CellName, State
from lit_seq2seq.nn.cells.gates import GateNorm, draw_gates


class LSTM(Cell):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with a forget gate (Gers et al. 2000).

    `i, f, o = sigmoid(W x + U h + b)`, `g = tanh(W x + U h + b)`, `c' = f c + i g`, `h' = o tanh(c')`. The bias of the
    forget gate starts at 1 (Jozefowicz et al. 2015).

    Args:
        hidden_size: size H of the output and of the cell vector.
        layer_norm: normalise `W x`, `U h` and `c'` (Ba et al. 2016, equations 20 to 22). Runs step by step.
    """

    def __init__(self, input_size: int, hidden_size: int, layer_norm: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        self.inputs, self.recurrent = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)
        draw_gates(self.inputs, self.recurrent, 4)
        self.inputs.bias.data[hidden_size : 2 * hidden_size] = 1.0
        self.norm = GateNorm(4 * hidden_size, hidden_size) if layer_norm else None

    @property
    def others(self) -> tuple[int, ...]:
        """The cell vector."""
        return (self.hidden_size,)

    @property
    def kernel(self) -> CellName | None:
        """That of torch, without normalisation."""
        return "lstm" if self.norm is None else None

    def enter(self, x: Tensor) -> Tensor:
        """Compute `W x + b`."""
        entered: Tensor = self.inputs(x) if self.norm is None else self.norm.inputs(self.inputs(x))
        return entered

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h and c; see `Cell.advance`."""
        h, c = state
        from_h = self.recurrent(h if mask is None else h * mask)
        i, f, g, o = (entered + (from_h if self.norm is None else self.norm.recurrent(from_h))).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c if self.norm is None else self.norm.state(c)), c
