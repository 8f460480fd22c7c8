"""The minimal gated recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_seq2seq.nn.cells.linear import LinearCell, positive


class MinGRU(LinearCell):
    """GRU whose gate does not look at the state (Feng et al. 2024, section 3.1), so that all steps run at once.

    `z = sigmoid(W x + b)`, `h' = (1 - z) h + z g(V x + b)`, where `g(x) = x + 0.5` above 0 and `sigmoid(x)` below
    (https://arxiv.org/abs/2410.01201, appendix B).
    """

    products = 2

    def coefficients(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Give `1 - z` and `z g`; see `LinearCell`."""
        gate, new = entered.chunk(2, dim=-1)
        return torch.sigmoid(-gate), torch.sigmoid(gate) * positive(new)
