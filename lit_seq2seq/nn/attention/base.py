"""What every attention promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.kernels.products import average, gathering_gradients
from lit_seq2seq.nn.ops import masked_softmax
from lit_seq2seq.types import Padded, Value


@dataclass(frozen=True)
class AttentionMemory(Value):
    """A source made ready to be attended to, computed once per source.

    Attributes:
        keys: `(B, S, K)` what queries are compared with.
        values: `(B, S, M)` what is averaged.
        mask: `(B, S)` booleans, true at real positions.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Looked(Value):
    """State of the attentions that need to know where they have looked.

    Attributes:
        weights: `(N, S)` weights of the step before, or the sum of those of all steps before: their coverage.
    """

    weights: Tensor

    @classmethod
    def nowhere(cls, memory: AttentionMemory) -> Looked:
        """Return the state before the first step."""
        return cls(memory.mask.to(memory.values.dtype) * 0.0)


class Attention(nn.Module, ABC):
    """Base of all attentions: weights `a = softmax(score(q, k))` over real positions, context `sum_s a_s v_s`.

    One that remembers something from step to step returns it from `start` and then from every `forward`: any `Value`
    whose tensors have one row per hypothesis. Decoders hand it on, search selects it, and exported models carry it.

    Args:
        query_size: size D of the queries.
        memory_size: size M of the memory vectors.

    Example:
        >>> class Nearest(Attention):
        ...     def scores(self, query, memory, state):
        ...         return -torch.cdist(query, memory.keys)
        >>> attention = Nearest(query_size=2, memory_size=2)
        >>> memory = attention.prepare(Padded(torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), torch.tensor([2])))
        >>> context, weights, state = attention(torch.tensor([[[9.0, 1.0]]]), memory)
        >>> weights.round()
        tensor([[[0., 1.]]])
    """

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = memory_size
        self.context_size = memory_size

    @property
    def product_scale(self) -> float | None:
        """What `q . k` is multiplied by, where that is all there is to the score; `None` for other attentions."""
        return None

    def prepare(self, memory: Padded) -> AttentionMemory:
        """Compute what depends on the source alone."""
        return AttentionMemory(self.keys(memory.values), memory.values, memory.mask)

    def keys(self, values: Tensor) -> Tensor:
        """Map memory vectors `(B, S, M)` to keys `(B, S, K)`."""
        return values

    def start(self, memory: AttentionMemory) -> Value | None:
        """Make the state before the first step, one row per source; `None` where steps do not depend on each other."""
        return None

    @abstractmethod
    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """Compare `query (B, K, D)` with the keys: `(B, K, S)` unnormalised scores."""

    def follow(self, state: Value | None, weights: Tensor) -> Value | None:
        """Return the state after a step whose weights were `(N, S)`."""
        return state

    def forward(
        self, query: Tensor, memory: AttentionMemory, state: Value | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Value | None]:
        """Attend at one step.

        Args:
            query: `(B, K, D)`, of the K hypotheses of each source, which attend to it side by side.
            memory: from `prepare`.
            state: from `start`, or after the step before; N = B * K rows.
            mask: `(B, K, S)` booleans, true where a query may look; `None` for the whole source.

        Returns:
            Context `(B, K, context_size)`, weights `(B, K, S)` and the state after the step.
        """
        weights = masked_softmax(self.scores(query, memory, state), visible(memory, mask))  # (B, K, S)
        return average(weights, memory.values), weights, self.follow(state, weights.flatten(0, 1))

    def scan(
        self, query: Tensor, memory: AttentionMemory, state: Value | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend at all steps of a target: equal to T calls of `forward`.

        Args:
            query: `(B, T, D)`, of the steps of each source's target.
            memory: see `forward`.
            state: see `forward`; N = B rows.
            mask: `(B, T, S)`, see `forward`.

        Returns:
            Context `(B, T, context_size)` and weights `(B, T, S)`.
        """
        if state is None:
            context, weights, _ = self(query, memory, None, mask)
            return context, weights
        contexts, found = [], []
        with gathering_gradients():
            for t in range(query.shape[1]):
                seen = None if mask is None else mask[:, t : t + 1]
                context, weights, state = self(query[:, t : t + 1], memory, state, seen)
                contexts.append(context)
                found.append(weights)
        return torch.cat(contexts, dim=1), torch.cat(found, dim=1)


def visible(memory: AttentionMemory, mask: Tensor | None) -> Tensor:
    """Tell which positions each query may look at: `(B, K, S)`, or `(B, 1, S)` where that is all real ones."""
    return memory.mask[:, None] if mask is None else memory.mask[:, None] & mask


def looked(state: Value | None) -> Tensor:
    """Return the weights of a `Looked`."""
    if not isinstance(state, Looked):
        raise ValueError(f"expected the state that start or the step before has returned, got {state}")
    return state.weights
