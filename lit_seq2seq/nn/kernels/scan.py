"""Recurrences over time in which no unit looks at another, by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def elementwise_scan(
    step: Callable[..., Tensor], first: Tensor, by_step: Sequence[Tensor], shared: Sequence[Tensor] = ()
) -> Tensor:
    """Compute `h_t = step(h_{t-1}, *by_step_t, *shared)` for all t, where no unit of h depends on another one.

    A loop without a graph. The gradient runs back by what `step` gives for all t at once, since its derivative by
    `h_{t-1}` has one number for each unit.

    Args:
        step: an elementwise function of tensors.
        first: `(B, H)` what stands before the first step.
        by_step: `(B, T, ...)` each.
        shared: of all steps, `(H,)` each.

    Returns:
        `(B, T, H)`.
    """
    made: Tensor = _Elementwise.apply(step, len(by_step), first, *by_step, *shared)  # type: ignore[no-untyped-call]
    return made


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Callable[..., Tensor], count: int, first: Tensor, *inputs: Tensor) -> Tensor:
        h, outputs, shared = first, [], inputs[count:]
        for now in zip(*(tensor.unbind(1) for tensor in inputs[:count]), strict=True):
            h = step(h, *now, *shared)
            outputs.append(h)
        made = torch.stack(outputs, dim=1)
        ctx.step = step
        ctx.save_for_backward(torch.cat([first[:, None].to(made.dtype), made[:, :-1]], dim=1), *inputs)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        before, *inputs = (tensor.detach() for tensor in ctx.saved_tensors)
        wanted = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in inputs]
        before.requires_grad_()
        with torch.enable_grad():
            made = ctx.step(before, *wanted)
            (slope,) = torch.autograd.grad(made.sum(), before, retain_graph=True)
        grads = _back(slope.transpose(0, 1).contiguous(), grad.transpose(0, 1).contiguous()).transpose(0, 1)
        floating = [tensor for tensor in wanted if tensor.requires_grad]
        found = iter(torch.autograd.grad(made, floating, grads, materialize_grads=True))
        return None, None, slope[:, 0] * grads[:, 0], *(next(found) if t.requires_grad else None for t in wanted)


def _back(a: Tensor, entering: Tensor) -> Tensor:
    """Compute `g_t = entering_t + a_{t+1} g_{t+1}`, all `(T, B, H)`."""
    grads, after = torch.empty_like(entering), torch.zeros_like(entering[0])
    for out, came, keep in zip(*(by_step.unbind()[::-1] for by_step in (grads, entering, a)), strict=True):
        after = torch.add(came, after, out=out) * keep
    return grads


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, first: Tensor) -> Tensor:
        by_step, kept = a.transpose(0, 1).contiguous(), b.transpose(0, 1).contiguous()  # (T, B, H)
        h, outputs = first, torch.empty_like(kept)
        for out, keep, new in zip(outputs.unbind(), by_step.unbind(), kept.unbind(), strict=True):
            h = torch.addcmul(new, keep, h, out=out)
        ctx.save_for_backward(by_step, outputs, first)
        return outputs.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, outputs, first = ctx.saved_tensors
        grads = _back(a, grad.transpose(0, 1).contiguous())
        before = torch.cat([first[None], outputs[:-1]])
        return (grads * before).transpose(0, 1), grads.transpose(0, 1), grads[0] * a[0]
