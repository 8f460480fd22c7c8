"""Tensor functions shared by the layers of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@cache
def computes_in(dtype: torch.dtype, device_type: str) -> bool:
    """Whether recurrent layers run in `dtype` under autocast: many CPUs (without AVX-512) have no 16-bit kernels.

    Args:
        dtype: `torch.bfloat16`, `torch.float16`, `torch.float32`, or `torch.int8` for products of integers.
        device_type: "cpu", "cuda", ...
    """
    if dtype == torch.float32:
        return True
    if dtype == torch.int8:
        return device_type == "cpu"
    if device_type == "cuda" and dtype == torch.bfloat16:
        return bool(torch.cuda.is_bf16_supported())
    if device_type != "cpu":
        return True
    try:
        # the weights of the layer must not be drawn from the numbers that the model gets
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            torch.nn.LSTM(8, 8)(torch.zeros(2, 1, 8))
    except RuntimeError:
        return False
    return True


def dropout_mask(like: Tensor, shape: Sequence[int], probability: float) -> Tensor:
    """Sample an inverted-dropout mask: 0 with `probability`, else `1 / (1 - probability)` (Srivastava et al. 2014).

    On a CPU, whose generator is serial, four masks come from each 64-bit draw; the probability is then rounded to
    multiples of 2^-16.

    Args:
        like: gives type and device.
        shape: shape of the mask.
        probability: from 0 to below 1.

    Returns:
        A tensor of `shape`.
    """
    keep = 1.0 - probability
    if like.device.type != "cpu":
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device).bernoulli_(keep).div_(keep)
    count = math.prod(shape)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    threshold = round(probability * 65536) - 32768
    kept = bits.view(torch.int16)[:count].view(tuple(shape)) >= threshold
    return kept.to(like.dtype).mul_(1.0 / keep)


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Drop units of `x` with `probability` while training, and scale the others up.

    Args:
        x: any shape.
        probability: from 0 to below 1.
        training: without it, `x` comes back unchanged.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    return x * dropout_mask(x, x.shape, probability)


def wide(x: Tensor) -> Tensor:
    """Give numbers of 16 bits 32, and leave others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension, in 32 bits or more, over the positions where `mask` is true; else zeros.

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
    weights = torch.softmax(wide(scores).masked_fill(~mask, lowest), dim=-1)
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
