"""Layers of GRUs and Elman networks over whole sequences, for training on a CPU.

PyTorch has no fused kernel for them there: each step leaves a graph, and makes a gradient as large as the weights. Here
a loop without a graph runs forward and another one back; the gradient of the weights is one product over all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_seq2seq.nn.chunks import SHUT
from lit_seq2seq.nn.kernels.products import linear, product
from lit_seq2seq.nn.ops import wide


def run_layer(x: Tensor, start: Tensor, weights: Sequence[Tensor], cell: str, *, real: Tensor | None = None) -> Tensor:
    """Run one direction of a layer. It can be differentiated once.

    Args:
        x: `(B, T, D)` inputs.
        start: `(B, H)` the state before the first step.
        weights: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`, as in `torch.nn.GRU` and `torch.nn.RNN`.
        cell: "gru" (Cho et al. 2014), "rnn_tanh" or "rnn_relu" (Elman 1990).
        real: `(B, T, 1)` booleans, false at padding, which comes last; what is returned there means nothing.

    Returns:
        Outputs `(B, T, H)`.
    """
    w_x, w_h, b_x, b_h = weights
    from_x = linear(x.transpose(0, 1).contiguous(), w_x, b_x)  # (T, B, G)
    if real is not None and cell == "rnn_relu":  # which could grow there without bound
        from_x = from_x.masked_fill(~real.transpose(0, 1), -SHUT)
    kind = _GRU if cell == "gru" else _Elman
    made: Tensor = kind.apply(from_x, start, w_h, b_h, cell)  # type: ignore[no-untyped-call]
    return made.transpose(0, 1)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_x: Tensor, start: Tensor, w_h: Tensor, b_h: Tensor, cell: str) -> Tensor:
        size, back = start.shape[1], w_h.t().to(from_x.dtype)
        bias, h = b_h.to(from_x.dtype), wide(start)
        states = h.new_empty(len(from_x) + 1, *h.shape)
        gates, news, proposals = (h.new_empty(len(from_x), len(h), width * size) for width in (2, 1, 1))
        states[0] = h
        by_step = (tensor.unbind() for tensor in (from_x, states[1:], gates, news, proposals))
        for entered, after, gate, new, proposal in zip(*by_step, strict=True):
            from_h = product(h.to(from_x.dtype), back, bias)
            torch.add(entered[:, : 2 * size], from_h[:, : 2 * size], out=gate).sigmoid_()
            proposal.copy_(from_h[:, 2 * size :])
            torch.addcmul(wide(entered[:, 2 * size :]), gate[:, :size], proposal, out=new).tanh_()
            h = torch.lerp(new, h, gate[:, size:], out=after)
        ctx.save_for_backward(w_h, states, gates, news, proposals)
        ctx.dtype, ctx.types = from_x.dtype, (start.dtype, b_h.dtype)
        return states[1:].to(start.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_h, states, gates, news, proposals = ctx.saved_tensors
        reset, keep = gates.chunk(2, dim=-1)
        new = (1 - keep) * (1 - news.square())
        slopes = torch.cat(  # of the output by what enters the gates from the state, in the order of the weights
            [new * proposals * reset * (1 - reset), (states[:-1] - news) * keep * (1 - keep), new * reset], dim=-1
        )
        found, grads, first = _back(grad, slopes, w_h.to(ctx.dtype), keep)
        by_x = torch.cat([found[..., : 2 * keep.shape[-1]], (grads * new).to(found.dtype)], dim=-1)
        by_weight, by_bias = _of_weights(found, states[:-1])
        return by_x, first.to(ctx.types[0]), by_weight.to(w_h.dtype), by_bias.to(ctx.types[1]), None


class _Elman(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_x: Tensor, start: Tensor, w_h: Tensor, b_h: Tensor, cell: str) -> Tensor:
        back, bias, h = w_h.t().to(from_x.dtype), b_h.to(from_x.dtype), wide(start)
        activate = torch.tanh_ if cell == "rnn_tanh" else torch.relu_
        states = h.new_empty(len(from_x) + 1, *h.shape)
        states[0] = h
        for entered, after in zip(from_x.unbind(), states[1:].unbind(), strict=True):
            h = activate(torch.add(product(h.to(from_x.dtype), back, bias), entered, out=after))
        ctx.save_for_backward(w_h, states)
        ctx.cell, ctx.dtype, ctx.types = cell, from_x.dtype, (start.dtype, b_h.dtype)
        return states[1:].to(start.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_h, states = ctx.saved_tensors
        slopes = 1 - states[1:].square() if ctx.cell == "rnn_tanh" else (states[1:] > 0).to(states.dtype)
        found, _, first = _back(grad, slopes, w_h.to(ctx.dtype), None)
        by_weight, by_bias = _of_weights(found, states[:-1])
        return found, first.to(ctx.types[0]), by_weight.to(w_h.dtype), by_bias.to(ctx.types[1]), None


def _back(grad: Tensor, slopes: Tensor, w_h: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Run back over time.

    Args:
        grad: `(T, B, H)` of the outputs.
        slopes: `(T, B, G)` of each step's output by what its gates get from the state, G / H for each unit.
        w_h: `(G, H)`.
        keep: `(T, B, H)` share of the state that each step keeps; `None` for none.

    Returns:
        Gradients of what the gates get `(T, B, G)`, of the states `(T, B, H)` with what comes from later steps, and of
        the state before the first step `(B, H)`.
    """
    grads, found = torch.empty_like(slopes[..., : grad.shape[-1]]), torch.empty_like(slopes, dtype=w_h.dtype)
    after = torch.zeros_like(grads[0])
    apart = (
        both.view(*both.shape[:2], both.shape[2] // grad.shape[2], grad.shape[2]) for both in (slopes, found)
    )  # (T, B, G / H, H)
    by_step = [tensor.unbind()[::-1] for tensor in (grad, grads, found, *apart)]
    kept = [None] * len(grad) if keep is None else keep.unbind()[::-1]
    for came, whole, flat, slope, out, stays in zip(*by_step, kept, strict=True):
        torch.add(came, after, out=whole)
        torch.mul(whole[:, None], slope, out=out)
        after = wide(product(flat, w_h))
        after = after if stays is None else after.addcmul_(whole, stays)
    return found, grads, after


def _of_weights(found: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Give the gradients of `weight_hh (G, H)` and its bias, from those of what they make, `(T, B, G)`."""
    flat = found.flatten(0, 1)
    return product(flat.t(), states.flatten(0, 1).to(found.dtype)), wide(flat).sum(dim=0)
