"""Cross-entropy over large vocabularies, without ever holding all scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_seq2seq.nn.kernels.products import product

BLOCK_SCORES = 1 << 24
"""Scores held at a time, in the type of the features: enough for a fast matrix product."""
CHUNK_SCORES = 1 << 19
"""Scores worked on at a time in single precision on a CPU: few enough for the cache of a core."""
ROW_DIGITS = 5
"""Leading binary digits of the number of rows multiplied on a CPU: a kernel is made for each number, slowly."""


def _rounded(rows: int) -> int:
    """Round up to a number that has so few leading digits before its zeros."""
    step = 1 << max(0, (rows - 1).bit_length() - ROW_DIGITS)
    return -(-rows // step) * step


def projected_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    smoothing: float = 0.0,
    mixture: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `features W' + b` against `(1 - e) one_hot + e / V` (Szegedy et al. 2016), summed over tokens.

    The scores `(N, V)` are made a few rows at a time, and their gradient with them, so that memory grows with N and V
    but never with N * V.

    With a `mixture` the likelihood of a target y is `exp(u) p(y) + exp(v)`: the distribution is used with probability
    `exp(u)`, and y comes from elsewhere with probability `exp(v)`. Smoothing then concerns `p` alone.

    Args:
        features: `(N, F)`.
        weight: `(V, F)` output weights.
        bias: `(V,)`.
        targets: `(N,)` ids.
        smoothing: e, from 0 to below 1.
        mixture: u and v, `(N,)` each, of which one at least is finite.

    Returns:
        The sum to minimise, and, without gradient, the sum of plain negative log-likelihoods in nats.
    """
    log_share, log_other = (None, None) if mixture is None else mixture
    arguments = (features, weight, bias, targets, smoothing, log_share, log_other, torch.is_grad_enabled())
    result: tuple[Tensor, Tensor] = _ProjectedCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        smoothing: float,
        log_share: Tensor | None,
        log_other: Tensor | None,
        train: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = features.dtype
        if torch.is_autocast_enabled(features.device.type):
            dtype = torch.get_autocast_dtype(features.device.type)
        x, w, b = features.to(dtype), weight.to(dtype), bias.to(dtype)
        vocab, wide = w.shape[0], torch.promote_types(dtype, torch.float32)
        loss = features.new_zeros((), dtype=wide)
        nll = torch.zeros_like(loss)
        grad_x = torch.empty_like(x) if train else None
        grad_w = None
        grad_b = torch.zeros_like(bias, dtype=wide) if train else None
        used = None if log_share is None else torch.empty_like(log_share)  # (N,) p(the distribution was used | target)
        block = max(1, BLOCK_SCORES // vocab)
        rows = max(1, CHUNK_SCORES // vocab) if features.device.type == "cpu" else block
        with torch.autocast(features.device.type, enabled=False):
            for begin in range(0, max(1, x.shape[0]), block):
                whole = slice(begin, min(begin + block, x.shape[0]))
                count = whole.stop - begin
                inputs = x[whole]
                if x.device.type == "cpu":
                    inputs = F.pad(inputs, (0, 0, 0, _rounded(count) - count))
                held = product(inputs, w.t(), b)  # (block, V) scores, replaced by their gradients
                held[count:] = 0
                for start in range(whole.start, whole.stop, rows):
                    part = slice(start, min(start + rows, whole.stop))
                    here = held[part.start - begin : part.stop - begin]
                    chosen = targets[part, None]
                    probabilities = torch.softmax(here, dim=1, dtype=wide)  # (n, V)
                    log_total = here.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log()  # (n, 1)
                    likelihood = here.gather(1, chosen) - log_total
                    share = torch.ones_like(likelihood)
                    if log_share is not None and log_other is not None and used is not None:
                        generated = log_share[part, None] + likelihood
                        likelihood = torch.logaddexp(generated, log_other[part, None])
                        share = (generated - likelihood).exp()  # (n, 1)
                        used[part] = share[:, 0]
                    nll -= likelihood.sum()
                    if smoothing:
                        mean = here.mean(dim=1, keepdim=True, dtype=wide)
                        loss += smoothing * (log_total - mean).sum()
                    loss -= (1 - smoothing) * likelihood.sum()
                    if grad_b is None:
                        continue
                    pulled = (1 - smoothing) * share
                    grad = probabilities if used is None else probabilities.mul_(pulled + smoothing)
                    if smoothing:
                        grad.sub_(smoothing / vocab)
                    grad.scatter_add_(1, chosen, -pulled)
                    grad_b += grad.sum(dim=0)
                    here.copy_(grad)
                if grad_x is None:
                    continue
                grad_x[whole] = product(held, w)[:count]
                grad_here = product(held.t(), inputs)
                grad_w = grad_here if grad_w is None else grad_w.to(wide).add_(grad_here)
        grad_share = None if used is None else (smoothing - 1) * used
        grad_other = None if used is None else (smoothing - 1) * (1 - used)
        ctx.save_for_backward(grad_x, grad_w, grad_b, grad_share, grad_other)
        ctx.dtypes = features.dtype, weight.dtype, bias.dtype, wide, wide
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made = (
            None if saved is None else saved.to(dtype).mul_(grads[0])
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        x, w, b, share, other = made
        return x, w, b, None, None, share, other, None
