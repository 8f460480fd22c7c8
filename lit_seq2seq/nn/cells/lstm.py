"""The LSTM."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_seq2seq.nn.cells.base import CellName, State
from lit_seq2seq.nn.cells.gates import GatedCell


class LSTM(GatedCell):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with a forget gate (Gers et al. 2000).

    `i, f, o = sigmoid(W x + U h + b)`, `g = tanh(W x + U h + b)`, `c' = f c + i g`, `h' = o tanh(c')`. The bias of the
    forget gate starts at 1 (Jozefowicz et al. 2015).

    Args:
        hidden_size: size H of the output and of the cell vector.
        layer_norm: normalise `W x`, `U h` and `c'` (Ba et al. 2016, equations 20 to 22). Runs step by step.
    """

    gates = 4

    def __init__(self, input_size: int, hidden_size: int, layer_norm: bool = False) -> None:
        super().__init__(input_size, hidden_size, layer_norm)
        self.inputs.bias.data[hidden_size : 2 * hidden_size] = 1.0

    @property
    def others(self) -> tuple[int, ...]:
        """The cell vector."""
        return (self.hidden_size,)

    @property
    def kernel(self) -> CellName | None:
        """That of torch, without normalisation."""
        return "lstm" if self.norm is None else None

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h and c; see `Cell.advance`."""
        h, c = state
        i, f, g, o = (entered + self.from_output(h, mask)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c if self.norm is None else self.norm.state(c)), c
