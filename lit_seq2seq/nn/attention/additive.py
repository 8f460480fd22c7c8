"""Attention by a layer with tanh, with coverage if so wished."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_seq2seq.nn.attention.base import Attention, AttentionMemory, Looked, looked
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.types import Value


class AdditiveAttention(Attention):
    """Bahdanau's score `v . tanh(W q + U k + b)` (Bahdanau et al. 2015, appendix A.1.2).

    With `coverage`, `w * total` joins the sum, `total` being the sum of all earlier weights (See et al. 2017, eq. 11).

    Args:
        attention_size: size of the layer inside tanh; the query size if `None`.
        coverage: let the score see how much each position has been attended to.
    """

    def __init__(
        self, query_size: int, memory_size: int, attention_size: int | None = None, coverage: bool = False
    ) -> None:
        super().__init__(query_size, memory_size)
        size = attention_size or query_size
        self.query = Linear(query_size, size)
        self.key = Linear(memory_size, size, bias=False)
        self.energy = Linear(size, 1, bias=False)
        self.coverage = Linear(1, size, bias=False) if coverage else None

    def keys(self, values: Tensor) -> Tensor:
        """`U k`, once per source."""
        keys: Tensor = self.key(values)
        return keys

    def start(self, memory: AttentionMemory) -> Value | None:
        """Nothing is covered yet."""
        return None if self.coverage is None else Looked.nowhere(memory)

    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """`v . tanh(W q + U k + w total)`."""
        inner = self.query(query)[:, :, None] + memory.keys[:, None]  # (B, K, S, A)
        if self.coverage is not None:
            inner = inner + self.coverage(looked(state).view(*query.shape[:2], -1, 1))
        scores: Tensor = self.energy(torch.tanh(inner)).squeeze(-1)  # (B, K, S)
        return scores

    def follow(self, state: Value | None, weights: Tensor) -> Value | None:
        """Add up the weights."""
        return None if self.coverage is None else Looked(looked(state) + weights)
