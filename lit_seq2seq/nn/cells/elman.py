"""The simple recurrent network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_seq2seq.nn.cells.base import CellName, State
from lit_seq2seq.nn.cells.gates import GatedCell


class Elman(GatedCell):
    """Simple recurrent network (Elman 1990): `h' = tanh(W x + U h + b)`, or with a rectifier (Le et al. 2015).

    Args:
        activation: which of the two.
        layer_norm: normalise `W x` and `U h` (after Ba et al. 2016). Runs step by step.
    """

    def __init__(
        self, input_size: int, hidden_size: int, activation: Literal["tanh", "relu"] = "tanh", layer_norm: bool = False
    ) -> None:
        super().__init__(input_size, hidden_size, layer_norm)
        self.activation = activation

    @property
    def kernel(self) -> CellName | None:
        """That of torch, without normalisation."""
        names: dict[str, CellName] = {"tanh": "rnn_tanh", "relu": "rnn_relu"}
        return names[self.activation] if self.norm is None else None

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h; see `Cell.advance`."""
        total = entered + self.from_output(state[0], mask)
        return (torch.tanh(total) if self.activation == "tanh" else torch.relu(total),)
