"""Linear recurrences over time, by one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_scan(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
    """Compute `h_t = a_t h_{t-1} + b_t` for all t.

    On a CPU a loop without a graph, and one back again for the gradient; elsewhere in log2(T) rounds over all steps.

    Args:
        a: `(B, T, H)`, from 0 to 1.
        b: `(B, T, H)`.
        first: `(B, H)` what stands before the first step.

    Returns:
        `(B, T, H)`.

    Example:
        >>> linear_scan(torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1), torch.zeros(1, 1)).flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    if a.device.type != "cpu":
        return in_rounds(a, b, first)
    made: Tensor = _Loop.apply(a, b, first.to(b.dtype))  # type: ignore[no-untyped-call]
    return made


def in_rounds(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
    """Do what `linear_scan` does by doubling (Hillis & Steele 1986): after round r each step has seen 2^r others."""
    reach, steps = 1, a.shape[1]
    b = torch.cat([b[:, :1] + a[:, :1] * first[:, None], b[:, 1:]], dim=1)
    while reach < steps:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return b


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, first: Tensor) -> Tensor:
        by_step, kept = a.transpose(0, 1).contiguous(), b.transpose(0, 1).contiguous()  # (T, B, H)
        h, outputs = first, torch.empty_like(kept)
        for t in range(len(kept)):
            h = torch.addcmul(kept[t], by_step[t], h, out=outputs[t])
        ctx.save_for_backward(by_step, outputs, first)
        return outputs.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, outputs, first = ctx.saved_tensors
        entering = grad.transpose(0, 1).contiguous()
        grads, after = torch.empty_like(entering), torch.zeros_like(first)
        for t in range(len(entering) - 1, -1, -1):
            torch.add(entering[t], after, out=grads[t])
            after = grads[t] * a[t]
        before = torch.cat([first[None], outputs[:-1]])
        return (grads * before).transpose(0, 1), grads.transpose(0, 1), after
