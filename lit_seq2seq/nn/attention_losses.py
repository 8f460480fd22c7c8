"""Terms of the loss that look at attention weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class AttentionLoss(nn.Module, ABC):
    """Base of the terms that are added to the loss for what attention does over a whole target.

    Example:
        >>> class Peaked(AttentionLoss):
        ...     def forward(self, weights, target_mask, source_mask=None):
        ...         return ((1 - weights.amax(dim=-1)) * target_mask).sum()
        >>> Peaked()(torch.tensor([[[0.75, 0.25]]]), torch.tensor([[True]]))
        tensor(0.2500)
    """

    @abstractmethod
    def forward(self, weights: Tensor, target_mask: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term.

        Args:
            weights: `(B, T, S)` attention weights; zeros are no sign of padding.
            target_mask: `(B, T)` booleans, true at real target tokens.
            source_mask: `(B, S)` booleans, true at real source positions; `None` if all are real.

        Returns:
            A scalar, summed over tokens as the loss is.
        """


class CoverageLoss(AttentionLoss):
    """Penalty on looking again where attention has been: `sum_t sum_i min(a_ti, c_ti)`, `c_t = sum_{t' < t} a_t'`.

    See et al. 2017, eq. 10, 12 and 13. It works with every attention; together with `AdditiveAttention(coverage=True)`
    the attention knows where it has been.

    Args:
        weight: factor of the term, >= 0; the paper's is 1.

    Example:
        >>> weights = torch.tensor([[[1.0, 0.0], [0.75, 0.25]]])
        >>> CoverageLoss()(weights, torch.tensor([[True, True]]))
        tensor(0.7500)
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight of CoverageLoss must be at least 0, got {weight}")
        self.weight = weight

    def forward(self, weights: Tensor, target_mask: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term; see `AttentionLoss.forward`."""
        weights = weights.float() if source_mask is None else weights.float() * source_mask[:, None]
        coverage = weights.cumsum(dim=1) - weights  # (B, T, S)
        repeated = torch.minimum(weights, coverage).sum(dim=-1)  # (B, T)
        return self.weight * (repeated * target_mask).sum()


class DoublyStochasticLoss(AttentionLoss):
    """Push attention to look at every place about once: `weight * sum_i (1 - sum_t a_ti)^2`.

    Xu et al. 2015, eq. 14 (https://arxiv.org/abs/1502.03044), over the real positions i of the source.

    Args:
        weight: factor of the term, >= 0; the paper's is 1.

    Example:
        >>> weights = torch.tensor([[[1.0, 0.25, 0.0], [0.5, 0.5, 0.0]]])
        >>> source = torch.tensor([[True, True, False]])  # the last position is padding
        >>> DoublyStochasticLoss()(weights, torch.tensor([[True, True]]), source)
        tensor(0.3125)
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight of DoublyStochasticLoss must be at least 0, got {weight}")
        self.weight = weight

    def forward(self, weights: Tensor, target_mask: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term; see `AttentionLoss.forward`."""
        looked = (weights.float() * target_mask[:, :, None]).sum(dim=1)  # (B, S)
        missing = (1 - looked).square()  # (B, S)
        if source_mask is not None:
            missing = missing.masked_fill(~source_mask, 0)
        return self.weight * missing.sum()
