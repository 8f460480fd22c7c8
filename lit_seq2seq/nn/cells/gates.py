"""What the cells with gates share."""

from __future__ import annotations

import torch
from torch import nn


def draw_gates(inputs: nn.Linear, recurrent: nn.Linear, gates: int) -> None:
    """Draw weights: Glorot-uniform for the input (Glorot & Bengio 2010), orthogonal for the state (Saxe et al. 2014).

    Each gate by itself; biases become zero.
    """
    for layer, draw in ((inputs, nn.init.xavier_uniform_), (recurrent, nn.init.orthogonal_)):
        for gate in layer.weight.data.chunk(gates):
            gate.copy_(draw(torch.empty_like(gate, dtype=torch.float32)))  # 16 bits have no QR decomposition
        layer.bias.data.zero_()


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
