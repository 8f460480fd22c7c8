"""What the cells with gates share."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell
from lit_seq2seq.settings.arguments import checked_fields


class GateNorm(nn.Module):
    """Layer norms inside a cell (Ba et al. 2016, supplementary material).

    Args:
        gates: size of the products that enter the gates.
        state: size of a cell vector that is normalised before it is shown; 0 for none.
    """

    def __init__(self, gates: int, state: int = 0) -> None:
        super().__init__()
        self.inputs, self.recurrent = nn.LayerNorm(gates), nn.LayerNorm(gates)
        self.state = nn.LayerNorm(state) if state else nn.Identity()


@checked_fields
class GatedCell(Cell):
    """Base of cells that read `W x + b` and `U h + b'`, each normalised if asked for.

    Weights start Glorot-uniform for the input (Glorot & Bengio 2010), orthogonal for the state (Saxe et al. 2014), each
    gate by itself, and biases at zero.
    """

    gates: ClassVar[int] = 1
    """How many vectors of the output's size each product holds."""

    def __init__(self, input_size: int, hidden_size: int, layer_norm: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        size = self.gates * hidden_size
        self.inputs, self.recurrent = nn.Linear(input_size, size), nn.Linear(hidden_size, size)
        for layer, draw in ((self.inputs, nn.init.xavier_uniform_), (self.recurrent, nn.init.orthogonal_)):
            for gate in layer.weight.data.chunk(self.gates):
                gate.copy_(draw(torch.empty_like(gate, dtype=torch.float32)))  # 16 bits have no QR decomposition
            layer.bias.data.zero_()
        self.norm = GateNorm(size, hidden_size if self.others else 0) if layer_norm else None

    def enter(self, x: Tensor) -> Tensor:
        """Compute `W x + b`."""
        entered: Tensor = self.inputs(x) if self.norm is None else self.norm.inputs(self.inputs(x))
        return entered

    def from_output(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Compute `U h + b'`."""
        product: Tensor = self.recurrent(h if mask is None else h * mask)
        return product if self.norm is None else self.norm.recurrent(product)
