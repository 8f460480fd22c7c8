"""The simple recurrent network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell, CellName, State
from lit_seq2seq.nn.cells.gates import GateNorm, draw_gates


class Elman(Cell):
    """Simple recurrent network (Elman 1990): `h' = tanh(W x + U h + b)`, or with a rectifier (Le et al. 2015).

    Args:
        activation: which of the two.
        layer_norm: normalise `W x` and `U h` (after Ba et al. 2016). Runs step by step.
    """

    def __init__(
        self, input_size: int, hidden_size: int, activation: Literal["tanh", "relu"] = "tanh", layer_norm: bool = False
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.inputs, self.recurrent = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        draw_gates(self.inputs, self.recurrent, 1)
        self.activation = activation
        self.norm = GateNorm(hidden_size) if layer_norm else None

    @property
    def kernel(self) -> CellName | None:
        """That of torch, without normalisation."""
        names: dict[str, CellName] = {"tanh": "rnn_tanh", "relu": "rnn_relu"}
        return names[self.activation] if self.norm is None else None

    def enter(self, x: Tensor) -> Tensor:
        """Compute `W x + b`."""
        entered: Tensor = self.inputs(x) if self.norm is None else self.norm.inputs(self.inputs(x))
        return entered

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h; see `Cell.advance`."""
        from_h = self.recurrent(state[0] if mask is None else state[0] * mask)
        total = entered + (from_h if self.norm is None else self.norm.recurrent(from_h))
        return (torch.tanh(total) if self.activation == "tanh" else torch.relu(total),)
