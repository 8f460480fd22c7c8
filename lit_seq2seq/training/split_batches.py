"""Batches that the memory does not hold at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_seq2seq.inference.out_of_memory import lacks_memory, release_memory
from lit_seq2seq.training.objectives import Loss
from lit_seq2seq.types import Batch

Known = tuple[Loss, tuple[Tensor | None, ...]]
"""A loss and its gradient, by each parameter."""


class SplitBatches:
    """The loss of a batch with its gradient, taken in parts where the memory does not suffice for the whole.

    A batch that fails is halved, and the gradients of the parts are summed; from then on every batch of more tokens,
    padding counted, than one half is halved at once. The result goes on as one loss, so that nobody else needs to know:
    processes wait for each other only when each of them has its gradient. It costs memory for the gradients once more.

    Attributes:
        budget: number of tokens of a batch from which it is halved without a try.
    """

    def __init__(self) -> None:
        self.budget = math.inf

    def loss(self, function: Callable[[Batch], Loss], batch: Batch, parameters: Iterable[nn.Parameter]) -> Loss:
        """Compute `function(batch)`, and what its `backward` will add to the gradients of `parameters`.

        Raises:
            RuntimeError, MemoryError: the memory does not even suffice for one row.
        """
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        waiting = [batch]
        found: list[Loss] = []
        gradients: list[Tensor | None] = [None] * len(learning)
        while waiting:
            part = waiting.pop()
            done = self._take(function, part, learning)
            if done is None:
                waiting += reversed(_halves(part))
            else:
                found.append(done[0])
                gradients = [_add(before, more) for before, more in zip(gradients, done[1], strict=True)]
        loss = Loss(*(torch.stack(values).sum() for values in zip(*found, strict=True)))
        used = [pair for pair in zip(learning, gradients, strict=True) if pair[1] is not None]
        total: Tensor = _WithGradient.apply(loss.total, [pair[1] for pair in used], *(pair[0] for pair in used))  # type: ignore[no-untyped-call]
        return loss._replace(total=total)

    def _take(self, function: Callable[[Batch], Loss], part: Batch, parameters: list[nn.Parameter]) -> Known | None:
        """Compute a part; `None` if it is too large."""
        if len(part) > 1 and not math.isinf(self.budget) and _size(part) > self.budget:
            return None
        try:
            loss = function(part)
            with torch.autocast(loss.total.device.type, enabled=False):
                gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
                return loss._replace(total=loss.total.detach()), gradients
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not lacks_memory(error):
                raise
        release_memory()
        self.budget = max(map(_size, _halves(part)))
        warnings.warn(
            f"the memory does not suffice for a batch of {len(part)} rows and {_size(part)} tokens: from now on those "
            f"of more than {self.budget} are taken in parts; lower data.batches.max_tokens or "
            "data.batches.size to know it beforehand",
            stacklevel=2,
        )
        return None


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * grads[0] for gradient in ctx.gradients)


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total + more


def _size(batch: Batch) -> int:
    """Tokens of a batch, padding counted."""
    assert batch.target is not None
    return len(batch) * int(batch.source.lengths.max() + batch.target.lengths.max())


def _halves(batch: Batch) -> list[Batch]:
    assert batch.target is not None
    halves = torch.arange(len(batch), device=batch.rows.device).tensor_split(2)
    places = (slice(0, len(halves[0])), slice(len(halves[0]), None))
    return [
        Batch(
            batch.source.select(half),
            batch.target.select(half),
            batch.rows[half],
            batch.references[own],
            batch.texts[own],
        )
        for half, own in zip(halves, places, strict=True)
    ]
