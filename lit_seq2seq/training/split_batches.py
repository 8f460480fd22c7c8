"""Batches that the memory does not hold at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_seq2seq.inference.out_of_memory import lacks_memory, release_memory
from lit_seq2seq.types import Batch

Known = tuple[tuple[Tensor, Tensor], tuple[Tensor | None, ...]]
"""Loss and negative log-likelihood, and the gradient of each parameter."""
Loss = Callable[[Batch], tuple[Tensor, Tensor]]
"""From a batch to the sum over its tokens of what is minimised, and of the plain negative log-likelihoods."""


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

    def loss(self, function: Loss, batch: Batch, parameters: Iterable[nn.Parameter]) -> tuple[Tensor, Tensor]:
        """Compute `function(batch)`, and what its `backward` will add to the gradients of `parameters`.

        Raises:
            RuntimeError, MemoryError: the memory does not even suffice for one row.
        """
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        found, waiting = [], [batch]
        gradients: list[Tensor | None] = [None] * len(learning)
        while waiting:
            part = waiting.pop()
            done = self._take(function, part, learning)
            if done is None:
                waiting += reversed(_halves(part))
            else:
                found.append(done[0])
                gradients = [_add(before, more) for before, more in zip(gradients, done[1], strict=True)]
        loss, nll = (torch.stack(values).sum() for values in zip(*found, strict=True))
        used = [pair for pair in zip(learning, gradients, strict=True) if pair[1] is not None]
        with_gradient: Tensor = _WithGradient.apply(loss, [pair[1] for pair in used], *(pair[0] for pair in used))  # type: ignore[no-untyped-call]
        return with_gradient, nll

    def _take(self, function: Loss, part: Batch, parameters: list[nn.Parameter]) -> Known | None:
        """Compute a part; `None` if it is too large."""
        if len(part) > 1 and not math.isinf(self.budget) and _size(part) > self.budget:
            return None
        try:
            loss, nll = function(part)
            with torch.autocast(loss.device.type, enabled=False):
                return (loss.detach(), nll), torch.autograd.grad(loss, parameters, allow_unused=True)
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
    places = torch.arange(len(batch), device=batch.rows.device)
    return [
        Batch(batch.source.select(half), batch.target.select(half), batch.rows[half]) for half in places.tensor_split(2)
    ]
