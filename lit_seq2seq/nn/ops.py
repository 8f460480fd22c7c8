"""Tensor functions shared by the layers of the network."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32, of the positions where `mask` is true; zeros where there are none.

    Args:
        scores: `(..., S)` real numbers.
        mask: booleans that broadcast to `scores`.

    Returns:
        `(..., S)` weights, each row summing to 1 or, where everything is masked, to 0.

    Example:
        >>> masked_softmax(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
        tensor([[1., 0.],
                [0., 0.]])
    """
    lowest = torch.finfo(torch.float32).min
    weights = torch.softmax(scores.float().masked_fill(~mask, lowest), dim=-1)
    return (weights * mask).to(scores.dtype)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over time of the real positions; zeros for an empty sequence.

    Args:
        values: `(B, S, D)`.
        mask: `(B, S)` booleans.

    Returns:
        `(B, D)`.

    Example:
        >>> masked_mean(torch.tensor([[[2.0], [4.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[3.]])
    """
    weights = mask.to(values.dtype)[..., None]  # (B, S, 1)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
