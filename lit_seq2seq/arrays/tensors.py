"""The functions of `Arrays` for torch; their docstrings are there."""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_seq2seq.arrays import Arrays

BLOCK = 64
"""Symbols that `top` looks at together."""
FEW = 8
"""Blocks, or hypotheses, below which `top` looks at a vocabulary as a whole."""


class Tensors(Arrays):
    """Functions of torch, on one device; see `Arrays`."""

    log: Any = staticmethod(torch.log)
    exp: Any = staticmethod(torch.exp)
    where: Any = staticmethod(torch.where)
    logaddexp: Any = staticmethod(torch.logaddexp)
    full_like: Any = staticmethod(torch.full_like)

    def __init__(self, device: torch.device | str) -> None:
        self.device = device

    def quiet(self) -> AbstractContextManager[object]:
        return torch.no_grad()

    def array(self, values: Any) -> Tensor:
        return torch.as_tensor(values, device=self.device)

    def random(self, seed: int | None) -> np.random.Generator:
        """Return a random generator; without a seed, torch's global random state seeds it."""
        return super().random(int(torch.randint(2**63 - 1, ())) if seed is None else seed)

    def host(self, array: Tensor) -> Tensor:
        return array.cpu()

    def arange(self, stop: int) -> Tensor:
        return torch.arange(stop, device=self.device)

    def full(self, shape: Sequence[int], value: bool | int | float) -> Tensor:
        return torch.full(tuple(shape), value, device=self.device)

    def wide(self, array: Tensor, copy: bool = False) -> Tensor:
        return array.to(torch.promote_types(array.dtype, torch.float32), copy=copy)

    def single(self, array: Tensor) -> Tensor:
        return array.float()

    def integers(self, array: Any) -> Tensor:
        return self.array(array).long()

    def copy(self, array: Tensor) -> Tensor:
        return array.clone()

    def double(self, array: Tensor) -> Tensor:
        return array.double()

    def take(self, array: Tensor, index: Tensor) -> Tensor:
        return array.index_select(0, index)

    def repeat(self, array: Tensor, times: int) -> Tensor:
        return array.repeat_interleave(times, dim=0)

    def concat(self, arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
        return torch.cat(list(arrays), axis)

    def gather(self, array: Tensor, index: Tensor, axis: int = -1) -> Tensor:
        return array.take_along_dim(index, axis)

    def put(self, array: Tensor, index: Tensor, value: Any) -> Tensor:
        return array.scatter_(-1, index, value)

    def counts(self, ids: Tensor, size: int) -> Tensor:
        found = torch.zeros(len(ids), size, device=ids.device)
        return found.scatter_add_(1, ids, torch.ones_like(ids, dtype=found.dtype))

    def nonzero(self, mask: Tensor) -> Tensor:
        return mask.nonzero()[:, 0].to(self.device)

    def amax(self, array: Tensor, axis: int = -1, keepdims: bool = False) -> Tensor:
        return array.amax(axis, keepdims)

    def first(self, mask: Tensor) -> Tensor:
        return mask.byte().argmax(-1)

    def cumsum(self, array: Tensor) -> Tensor:
        return array.cumsum(-1)

    def logcumsumexp(self, array: Tensor) -> Tensor:
        return array.logcumsumexp(-1)

    def logsumexp(self, array: Tensor, axis: int = -1) -> Tensor:
        return array.logsumexp(axis)

    def softmax(self, array: Tensor) -> Tensor:
        return array.softmax(-1)

    def windows(self, array: Tensor, size: int) -> Tensor:
        return array.unfold(1, size, 1)

    def sort_down(self, array: Tensor) -> tuple[Tensor, Tensor]:
        values, order = array.sort(dim=-1, descending=True, stable=True)
        return values, order

    def largest(self, array: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, index = array.topk(min(count, array.shape[-1]), dim=-1)
        return values, index

    def top(self, log_probs: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Find the largest sums of an offset and a log-probability among all hypotheses of each sentence.

        The largest of each block of symbols are compared first: the best `count` lie in the `count` blocks that have
        the best. Equal values go by hypothesis, then by token id (which of several equal ones are found, where not all
        can be, is left to `torch.topk`).

        Args:
            log_probs: `(B, K, V)` of the next token after each hypothesis.
            offsets: `(B, K)` what is added for each hypothesis; at most one of `offsets` and `log_probs` is infinite.
            count: how many, C; fewer come back where there are fewer.

        Returns:
            `(B, C)` sums, best first, their hypotheses, from 0 to K - 1, and their tokens.
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
