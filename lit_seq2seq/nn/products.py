"""Matrix products in single precision on a CPU by oneDNN, which PyTorch itself leaves to MKL."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@cache
def _has_kernel() -> bool:
    """Whether this build and CPU have oneDNN's product for AVX-512, which is twice as fast as MKL's on AMD's."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _takes(*tensors: Tensor | None) -> bool:
    """Whether oneDNN multiplies these; traced programs keep the operators of PyTorch."""
    return (
        all(one is None or (one.dtype is torch.float32 and one.device.type == "cpu" and one.numel()) for one in tensors)
        and _has_kernel()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `a @ b + bias` for `a (N, D)`, `b (D, K)` and `bias (K,)`; without gradient.

    Example:
        >>> product(torch.ones(2, 3), torch.ones(3, 1)).tolist()
        [[3.0], [3.0]]
    """
    if _takes(a, b, bias):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
        return made
    return a @ b if bias is None else torch.addmm(bias, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Do what `torch.nn.functional.linear` does.

    Args:
        x: `(..., D)`.
        weight: `(K, D)`.
        bias: `(K,)` or `None`.

    Returns:
        `x W' + b`, `(..., K)`.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(1, 3)).tolist()
        [[3.0], [3.0]]
    """
    if not _takes(x, weight, bias):
        return F.linear(x, weight, bias)
    made: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)  # type: ignore[no-untyped-call]
    return made.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`.

    Example:
        >>> Linear(3, 2)(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., K)`."""
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(grad, weight) if wants_x else None,
            product(grad.t(), x) if wants_weight else None,
            grad.sum(dim=0) if wants_bias else None,
        )
