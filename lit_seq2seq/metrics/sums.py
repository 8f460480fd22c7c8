"""Sums over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_seq2seq.settings.arguments import checked


class Sums(Metric):
    """What metrics keep of a corpus."""

    is_differentiable = False
    full_state_update = False

    def keep(self, name: str, start: Any, how: str) -> None:
        """Begin an attribute that batches add to.

        Args:
            name: of the attribute.
            start: its first value: numbers for a tensor of them, or an empty list of tensors where `how` is `cat`.
            how: how processes join theirs: `sum`, `min`, `max` or `cat`.
        """
        self.add_state(name, start if how == "cat" else torch.tensor(start), dist_reduce_fx=how)


class TokenAverage(Sums):
    """Mean over all tokens of a quantity that comes as sums over batches, such as the negative log-likelihood.

    Perplexity is the exponential of the mean negative log-likelihood. The sum is compensated (Neumaier, 1974), so
    that single precision holds over millions of tokens, on every device.
    """

    higher_is_better = False
    total: Tensor
    error: Tensor
    tokens: Tensor

    @checked
    def __init__(self) -> None:
        super().__init__()
        self.keep("total", 0.0, "sum")
        self.keep("error", 0.0, "sum")
        self.keep("tokens", 0, "sum")

    def update(self, value: Tensor, tokens: Tensor | int) -> None:
        """Add a batch.

        Args:
            value: scalar, the sum of the quantity over the tokens of the batch.
            tokens: scalar, the number of tokens summed over.
        """
        value = value.detach().float()
        total = self.total + value
        larger = self.total.abs() >= value.abs()
        lost = torch.where(larger, (self.total - total) + value, (value - total) + self.total)
        self.error = self.error + lost
        self.total = total
        self.tokens = self.tokens + tokens

    def compute(self) -> Tensor:
        """Return the mean per token, a scalar; 0 when there are no tokens."""
        return (self.total + self.error) / self.tokens.clamp(min=1)
