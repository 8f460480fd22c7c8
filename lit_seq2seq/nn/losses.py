"""Losses."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def label_smoothed_nll(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy against `(1 - e) * one_hot + e / V` (Szegedy et al. 2016, section 7), summed over tokens.

    Args:
        logits: `(N, V)` unnormalised scores.
        targets: `(N,)` ids.
        smoothing: e, from 0 to below 1.

    Returns:
        The sum to minimise, and the plain sum of negative log-likelihoods in nats, for perplexity.

    Example:
        >>> import torch
        >>> loss, nll = label_smoothed_nll(torch.zeros(3, 4), torch.tensor([0, 1, 2]), smoothing=0.1)
        >>> round(loss.item() / 3, 4), round(nll.item() / 3, 4)
        (1.3863, 1.3863)
    """
    scores = logits.float()
    nll = F.cross_entropy(scores, targets, reduction="sum")
    if smoothing == 0:
        return nll, nll
    uniform = scores.logsumexp(dim=-1).sum() - scores.mean(dim=-1).sum()
    return (1 - smoothing) * nll + smoothing * uniform, nll
