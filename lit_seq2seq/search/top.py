"""The most probable continuations, without sorting a vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Symbols that are looked at together."""
FEW = 8
"""Blocks, or hypotheses, below which a vocabulary is looked at as a whole."""


def top(log_probs: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the largest sums of an offset and a log-probability among all hypotheses of each sentence.

    The largest of each block of symbols are compared first: the best `count` lie in the `count` blocks that have the
    best. Equal values go by hypothesis, then by token id (which of several equal ones are found, where not all can be,
    is left to `torch.topk`).

    Args:
        log_probs: `(B, K, V)` of the next token after each hypothesis.
        offsets: `(B, K)` what is added for each hypothesis; at most one of `offsets` and `log_probs` is infinite.
        count: how many, C; fewer come back where there are fewer.

    Returns:
        `(B, C)` sums, best first, their hypotheses, from 0 to K - 1, and their tokens.

    Example:
        >>> log_probs = torch.tensor([[[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]]).log()
        >>> values, hypotheses, tokens = top(log_probs, torch.tensor([[0.0, -9.0]]), 2)
        >>> hypotheses, tokens
        (tensor([[0, 0]]), tensor([[1, 2]]))
    """
    size = log_probs.shape[-1]
    if size < FEW * BLOCK or log_probs.shape[:-1].numel() < FEW:
        sums = (log_probs + offsets[..., None]).flatten(1)  # (B, K * V)
        values, places = sums.topk(min(count, sums.shape[1]), dim=1, sorted=False)  # (B, C)
    else:
        values, places = _by_blocks(log_probs, offsets, count)
    if count > 1:
        places, order = places.sort(dim=1)
        values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        places = places.gather(1, order)
    return values, places // size, places % size


def _by_blocks(log_probs: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the largest sums, `(B, C)`, and their places among the K * V of each sentence."""
    size = log_probs.shape[-1]
    whole = size // BLOCK * BLOCK
    best = log_probs[..., :whole].reshape(*log_probs.shape[:2], -1, BLOCK).amax(-1)  # (B, K, M)
    if whole < size:
        best = torch.cat([best, log_probs[..., whole:].amax(-1, keepdim=True)], dim=-1)
    blocks = best.shape[-1]
    ranked = (best + offsets[..., None]).flatten(1)  # (B, K * M)
    found = ranked.topk(min(count, ranked.shape[1]), dim=1, sorted=False).indices[..., None]  # (B, C, 1)
    hypotheses = found // blocks
    columns = found % blocks * BLOCK + torch.arange(BLOCK, device=found.device)  # (B, C, BLOCK)
    beyond, columns = columns >= size, columns.clamp(max=size - 1)
    rows = torch.arange(len(log_probs), device=found.device)[:, None, None]
    sums = log_probs[rows, hypotheses, columns] + offsets.gather(1, hypotheses[..., 0])[..., None]
    sums = sums.masked_fill_(beyond, -torch.inf).flatten(1)
    values, index = sums.topk(min(count, sums.shape[1]), dim=1, sorted=False)
    return values, (hypotheses * size + columns).flatten(1).gather(1, index)
