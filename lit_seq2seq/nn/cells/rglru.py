"""The real-gated linear recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_seq2seq.nn.cells.linear import LinearCell

_SHARPNESS = 8.0  # the constant c of the paper


class RGLRU(LinearCell):
    """Real-gated linear recurrent unit of Griffin (De et al. 2024, section 2.4, equations 1 to 4).

    `r, i = sigmoid(W x + b)`, `a = exp(-8 softplus(-l) r)`, `h' = a h + sqrt(1 - a^2) (i x')`, where l is learned and
    `sigmoid(l)^8` starts between 0.9 and 0.999 (https://arxiv.org/abs/2402.19427). `x' = V x` has the size of the
    output: in the paper a linear layer of the block around it does that.
    """

    products = 3

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        kept = torch.empty(hidden_size).uniform_(0.9, 0.999) ** (1 / _SHARPNESS)
        self.keep = nn.Parameter(torch.log(kept) - torch.log1p(-kept))

    def coefficients(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Give `a` and `sqrt(1 - a^2) (i x')`; see `LinearCell`."""
        recurrence, let_in, x = entered.chunk(3, dim=-1)
        log_a = -_SHARPNESS * F.softplus(-self.keep) * torch.sigmoid(recurrence)
        scale = torch.sqrt(-torch.expm1(2 * log_a) + 1e-12)
        return torch.exp(log_a), scale * torch.sigmoid(let_in) * x
