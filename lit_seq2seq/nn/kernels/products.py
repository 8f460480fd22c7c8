"""Matrix products: on a CPU by the faster kernels, with one gradient for all steps of a loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@cache
def _has_kernel() -> bool:
    """Whether this build and CPU have oneDNN's product for AVX-512."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@cache
def _beats_mkl() -> bool:
    """Whether oneDNN is the faster one in 32 bits: twice as fast on AMD's CPUs, up to half as fast on Intel's."""
    known = getattr(torch.cpu, "get_capabilities", dict[str, object])()  # older versions of torch lack it
    return "Intel" not in str(known.get("cpu_name", ""))


def _takes(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN multiplies these; traced programs keep the operators of PyTorch."""
    return (
        all(one is None or (one.dtype is dtype and one.device.type == "cpu" and one.numel()) for one in tensors)
        and _has_kernel()
        and (dtype is not torch.float32 or _beats_mkl())
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _dense(x: Tensor) -> Tensor:
    """Copy a matrix with gaps between its rows, for which oneDNN has no fast kernel."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `a @ b + bias` for `a (N, D)`, `b (D, K)` and `bias (K,)` or `(N, K)`; without gradient."""
    rows = bias is not None and bias.dim() == 2
    adds = bias is not None and not rows  # PyTorch's own product in bf16 first writes the bias to every row
    if _takes(a, b, bias) or (adds and _takes(a, b, bias, dtype=torch.bfloat16)):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(
            _dense(a), _dense(b).t(), None if rows else bias, "none", [], ""
        )
        return made.add_(bias) if bias is not None and rows else made
    return a @ b if bias is None else torch.addmm(bias, a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Do what `torch.nn.functional.linear` does.

    Args:
        x: `(..., D)`.
        weight: `(K, D)`.
        bias: `(K,)` or `None`.

    Returns:
        `x W' + b`, `(..., K)`.
    """
    if _gathered.get() is None and not _takes(x, weight, bias):
        return F.linear(x, weight, bias)
    made = _multiply(x.reshape(-1, x.shape[-1]), weight, bias)
    return made.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., K)`."""
        return linear(x, self.weight, self.bias)

    def rows(self, index: Tensor) -> Rows:
        """Return what computes only some of the K numbers, those of `index`, without gradient."""
        return Rows(self.weight.detach()[index], None if self.bias is None else self.bias.detach()[index])


class Rows(nn.Module):
    """Some rows of a `Linear`, which does not learn.

    Args:
        weight: `(K, D)`.
        bias: `(K,)` or `None`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., D)` to `(..., K)`."""
        return linear(x, self.weight, self.bias)


def compare(queries: Tensor, keys: Tensor) -> Tensor:
    """Compute the dot products of `queries (B, Q, K)` with `keys (B, S, K)`: `(B, Q, S)`."""
    if _gathered.get() is None:
        return queries @ keys.mT.to(queries.dtype)
    return _multiply(queries, keys)


def average(weights: Tensor, values: Tensor) -> Tensor:
    """Sum `values (B, S, M)` by `weights (B, Q, S)`: `(B, Q, M)`."""
    if _gathered.get() is None:
        return weights @ values.to(weights.dtype)
    return _multiply(weights, values, transposed=True)


class _Gathered(NamedTuple):
    """A matrix that is multiplied at many steps: as given, as it is multiplied, and what its gradient is made of."""

    given: Tensor
    weight: Tensor
    bias: Tensor | None
    steps: dict[int, tuple[Tensor, Tensor]]


_gathered: ContextVar[dict[tuple[int, bool, torch.dtype], _Gathered] | None] = ContextVar("_gathered", default=None)


@contextmanager
def gathering_gradients() -> Iterator[None]:
    """Inside, the gradient of a matrix that is multiplied again and again is made in one product at the end.

    A loop over time otherwise makes a gradient as large as the matrix at each step, and adds them up.

    Example:
        >>> weight = torch.ones(1, 2, requires_grad=True)
        >>> h = torch.ones(1, 2)
        >>> with gathering_gradients():
        ...     for _ in range(3):
        ...         h = linear(h, weight).expand(1, 2)
        >>> h.sum().backward()
        >>> weight.grad.tolist()
        [[24.0, 24.0]]
    """
    loops = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    token = _gathered.set({} if loops else None)
    try:
        yield
    finally:
        _gathered.reset(token)


def _multiply(x: Tensor, given: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """Compute `x @ W' + bias`, W being `given` or its transpose; a matrix, or a batch of them for a batch x."""
    loop = _gathered.get()
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    place = id(given), transposed, dtype
    found = None if loop is None else loop.get(place)
    if found is None:
        steps: dict[int, tuple[Tensor, Tensor]] = {}
        weight, bias = given.to(dtype), None if bias is None else bias.to(dtype)
        turned = weight.mT if transposed else weight
        handed: tuple[Tensor, Tensor | None] = _Gather.apply(turned, bias, steps)  # type: ignore[no-untyped-call]
        found = _Gathered(given, *handed, steps)
        if loop is not None:
            loop[place] = found
    made: Tensor = _Multiply.apply(x.to(dtype), *found[1:])  # type: ignore[no-untyped-call]
    return made


class _Gather(torch.autograd.Function):
    """Hands a matrix and a bias to the steps; runs backward after them, as they depend on it."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, steps: dict[int, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.steps = steps
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: None) -> tuple[Tensor | None, ...]:
        if not ctx.steps:
            return None, None, None
        inputs, gradients = (torch.cat(parts, dim=-2) for parts in zip(*ctx.steps.values(), strict=True))
        ctx.steps.clear()
        wants_weight, wants_bias, _ = ctx.needs_input_grad
        multiply = product if inputs.dim() == 2 else torch.matmul
        return (
            multiply(gradients.mT, inputs) if wants_weight else None,
            gradients.sum(dim=0) if wants_bias else None,
            None,
        )


class _Multiply(torch.autograd.Function):
    """Multiplies at one step; leaves what the gradient of the matrix is made of to `_Gather`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, steps: dict[int, tuple[Tensor, Tensor]]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        with torch.autocast(x.device.type, enabled=False):
            return product(x, weight.mT, bias) if x.dim() == 2 else x @ weight.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, *wants = ctx.needs_input_grad
        if any(wants):
            ctx.steps[id(ctx)] = (x, grad)
        multiply = product if x.dim() == 2 else torch.matmul
        return multiply(grad, weight) if wants_x else None, None, None, None
