"""The minimal LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.linear import LinearCell, positive


class MinLSTM(LinearCell):
    """LSTM whose gates do not look at the state (Feng et al. 2024, section 3.2), so that all steps run at once.

    `f, i = sigmoid(W x + b)`, `f' = f / (f + i)`, `i' = i / (f + i)`, `h' = f' h + i' g(V x + b)`, with `g` as in
    `MinGRU` (https://arxiv.org/abs/2410.01201, appendix B).
    """

    products = 3

    def coefficients(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        """Give `f'` and `i' g`; see `LinearCell`."""
        forget, let_in, new = entered.chunk(3, dim=-1)
        # f / (f + i) = sigmoid(log f - log i): no quotient of two small numbers
        difference = nn.functional.logsigmoid(forget) - nn.functional.logsigmoid(let_in)
        return torch.sigmoid(difference), torch.sigmoid(-difference) * positive(new)
