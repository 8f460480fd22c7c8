"""One step of an LSTM or a GRU from its matrix products, as `torch.lstm_cell` and `torch.gru_cell` do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_seq2seq.nn.kernels.products import linear

_sigmoid_backward, _tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


def lstm_step(x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Advance an LSTM by one input (Hochreiter & Schmidhuber 1997).

    Args:
        x: `(N, D)` inputs.
        h: `(N, H)` what the gates see of the state.
        c: `(N, H)` cell vectors.
        weights: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`, as in `torch.nn.LSTM`.

    Returns:
        New h and c.
    """
    w_x, w_h, b_x, b_h = weights
    gates = linear(x, w_x, b_x) + linear(h, w_h, b_h)  # (N, 4 H)
    made: tuple[Tensor, Tensor] = _LSTMGates.apply(gates, c)  # type: ignore[no-untyped-call]
    return made


def gru_step(x: Tensor, h: Tensor, carried: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Advance a GRU by one input (Cho et al. 2014), `h' = (1 - z) n + z h`.

    With dropout only the gates see h dropped: carried on, the scale of the mask would grow with time.

    Args:
        x: `(N, D)` inputs.
        h: `(N, H)` what the gates see of the state.
        carried: `(N, H)` the state that `z` keeps.
        weights: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`, as in `torch.nn.GRU`.

    Returns:
        New h.
    """
    w_x, w_h, b_x, b_h = weights
    size = h.shape[-1]
    from_x, from_h = linear(x, w_x, b_x), linear(h, w_h, b_h)  # (N, 3 H)
    reset, keep = torch.sigmoid(from_x[:, : 2 * size] + from_h[:, : 2 * size]).chunk(2, dim=-1)
    new = torch.tanh(from_x[:, 2 * size :] + reset * from_h[:, 2 * size :])
    return new + keep * (carried - new)


def _tanh(x: Tensor) -> Tensor:
    """Make tanh from the logistic function, which on a CPU takes a quarter of the time of `torch.tanh`."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)


def lstm_forward(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Make h and c `(N, H)` from the sums that enter the gates, `(N, 4 H)`; without gradient.

    Works in single precision at least; what it returns last is for `lstm_backward`.
    """
    wide = torch.promote_types(gates.dtype, torch.float32)
    let_in, keep, new, let_out = gates.to(wide).chunk(4, dim=-1)
    let_in, keep, new, let_out = let_in.sigmoid(), keep.sigmoid(), _tanh(new), let_out.sigmoid()
    new_c = (keep * c).addcmul_(let_in, new)
    seen = _tanh(new_c)
    return let_out * seen, new_c, (let_in, keep, new, let_out, seen, c)


def lstm_backward(grad_h: Tensor, grad_c: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Give the gradients of the gates' sums and of c for those of the new h and c."""
    let_in, keep, new, let_out, seen, c = kept
    inner = _tanh_backward(grad_h * let_out, seen).add_(grad_c)
    parts = [
        _sigmoid_backward(inner * new, let_in),
        _sigmoid_backward(inner * c, keep),
        _tanh_backward(inner * let_in, new),
        _sigmoid_backward(grad_h * seen, let_out),
    ]
    return torch.cat(parts, dim=-1), inner * keep


class _LSTMGates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        h, new_c, kept = lstm_forward(gates, c)
        ctx.save_for_backward(*kept)
        ctx.dtype = gates.dtype
        return h.to(gates.dtype), new_c.to(c.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor, Tensor]:
        kept = ctx.saved_tensors
        grad_gates, grad_c = lstm_backward(grad_h.to(kept[0].dtype), grad_c, kept)
        return grad_gates.to(ctx.dtype), grad_c.to(kept[-1].dtype)
