"""The steps of input feeding for whole targets, with a backward pass of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_seq2seq.nn.kernels.gates import lstm_backward, lstm_forward
from lit_seq2seq.nn.kernels.products import product


class FeedingInputs(NamedTuple):
    """What the loop needs. B sources with S positions, T steps, hidden size H, features F, memory vectors M.

    Attributes:
        entering: `(T, B, 4 H)` what symbols and biases add to the gates.
        recurrent: `(4 H, F + H)` weights of the vector fed back and of h.
        fed: `(B, F)` the vector fed to the first step.
        h: `(B, H)` first state.
        c: `(B, H)` first cell vectors.
        keys: `(B, S, H)` what h is compared with.
        values: `(B, S, M)` what is averaged.
        mask: `(T, B, S)` booleans, true where a step may look, or `(1, B, S)` where all may look at the same.
        offset: `(T, B, F)` what symbols and biases add to the features.
        combine: `(F, H + M)` weights of h and of the context in the features.
        dropped: `(T, B, F)` dropout mask of the features, or `None`.
    """

    entering: Tensor
    recurrent: Tensor
    fed: Tensor
    h: Tensor
    c: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor
    offset: Tensor
    combine: Tensor
    dropped: Tensor | None


def run_feeding_loop(inputs: FeedingInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run an LSTM with dot-product attention whose features are fed back (Luong et al. 2015, section 3.3).

    The backward pass keeps the gradients of all steps, so that each weight gets its gradient in one product.

    Returns:
        Features `(T, B, F)`, attention weights `(T, B, S)`, hidden vectors `(T, B, H)`, contexts `(T, B, M)`.
    """
    made: tuple[Tensor, Tensor, Tensor, Tensor] = _FeedingLoop.apply(*inputs)  # type: ignore[no-untyped-call]
    return made


class _FeedingLoop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        at = FeedingInputs(*given)
        steps, batch, features = at.offset.shape
        size, wide = at.h.shape[1], torch.promote_types(at.entering.dtype, torch.float32)
        read = at.entering.new_empty(steps + 1, batch, features + size)  # [fed; h]
        found = at.entering.new_empty(steps, batch, at.combine.shape[1])  # [h; context]
        weights = at.entering.new_empty(steps, batch, at.keys.shape[1], dtype=wide)
        joined = at.entering.new_empty(steps, batch, features)  # features before dropout
        keys, values, c = at.keys.to(wide), at.values.to(wide), at.c.to(wide)
        closed = torch.zeros_like(at.mask, dtype=wide).masked_fill_(~at.mask, torch.finfo(wide).min)
        seen, closed = (part.expand(steps, -1, -1) for part in (at.mask, closed))
        read[0, :, :features], read[0, :, features:] = at.fed, at.h
        kept = []
        with torch.autocast(at.h.device.type, enabled=False):
            for t in range(steps):
                h, c, saved = lstm_forward(product(read[t], at.recurrent.t(), at.entering[t]), c)
                kept.append(saved)
                scores = (h[:, None] @ keys.mT)[:, 0].add_(closed[t])  # (B, S)
                torch.softmax(scores, dim=-1, out=weights[t])
                weights[t] *= seen[t]  # none where all is masked
                found[t, :, :size], read[t + 1, :, features:] = h, h
                found[t, :, size:] = (weights[t, :, None] @ values)[:, 0]
                torch.tanh(product(found[t], at.combine.t(), at.offset[t]), out=joined[t])
                fed = joined[t] if at.dropped is None else joined[t] * at.dropped[t]
                read[t + 1, :, :features] = fed
        ctx.save_for_backward(
            *given, read, found, weights, joined, keys, values, *(one for each in kept for one in each)
        )
        return (
            read[1:, :, :features].clone(),
            weights.to(read.dtype),
            found[..., :size].clone(),
            found[..., size:].clone(),
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_features: Tensor, grad_weights: Tensor, grad_hidden: Tensor, grad_context: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        at = FeedingInputs(*saved[:11])
        read, found, weights, joined, keys, values, *kept = saved[11:]
        steps, batch, features = at.offset.shape
        size, wide = at.h.shape[1], weights.dtype
        gates, before_tanh = torch.empty_like(at.entering), torch.empty_like(joined)
        scores, contexts = torch.empty_like(weights), weights.new_empty(steps, batch, values.shape[2])
        back = read.new_zeros(batch, features + size)  # of [fed; h] from the step after
        grad_c = torch.zeros_like(kept[0])
        for t in reversed(range(steps)):
            grad = grad_features[t] + back[:, :features]
            if at.dropped is not None:
                grad = grad * at.dropped[t]
            torch.ops.aten.tanh_backward(grad, joined[t], grad_input=before_tanh[t])
            grad_found = product(before_tanh[t], at.combine)
            torch.add(grad_found[:, size:], grad_context[t], out=contexts[t])
            grad_a = (contexts[t][:, None] @ values.mT)[:, 0].add_(grad_weights[t])  # (B, S)
            torch.ops.aten._softmax_backward_data(grad_a, weights[t], -1, wide, grad_input=scores[t])
            grad_h = (grad_found[:, :size] + back[:, features:]).to(wide)
            grad_h += grad_hidden[t]
            grad_h += (scores[t][:, None] @ keys)[:, 0]
            grad_gates, grad_c = lstm_backward(grad_h, grad_c, tuple(kept[6 * t : 6 * t + 6]))
            gates[t] = grad_gates
            back = product(gates[t], at.recurrent)
        return (
            gates,
            product(gates.flatten(0, 1).t(), read[:-1].flatten(0, 1)),
            back[:, :features],
            back[:, features:],
            grad_c.to(at.c.dtype),
            (scores.permute(1, 2, 0) @ found[..., :size].to(wide).transpose(0, 1)).to(at.keys.dtype),
            (weights.permute(1, 2, 0) @ contexts.transpose(0, 1)).to(at.values.dtype),
            None,
            before_tanh,
            product(before_tanh.flatten(0, 1).t(), found.flatten(0, 1)),
            None,
        )
