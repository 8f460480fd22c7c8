"""Several attentions side by side."""

from __future__ import annotations

import math

from torch import Tensor

from lit_seq2seq.nn.attention.base import Attention, AttentionMemory, visible
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import masked_softmax
from lit_seq2seq.types import Padded, Value


class MultiHeadAttention(Attention):
    """Several scaled dot attentions side by side, `softmax(QK'/sqrt(d))V` each (Vaswani et al. 2017, section 3.2).

    The reported weights are the mean over heads.

    Args:
        query_size: see `Attention`; divisible by `num_heads`.
        num_heads: number of heads.
    """

    def __init__(self, query_size: int, memory_size: int, num_heads: int = 4) -> None:
        super().__init__(query_size, memory_size)
        if query_size % num_heads:
            raise ValueError(f"query_size {query_size} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.context_size = query_size
        self.query = Linear(query_size, query_size, bias=False)
        self.key = Linear(memory_size, query_size, bias=False)
        self.value = Linear(memory_size, query_size, bias=False)
        self.output = Linear(query_size, query_size, bias=False)

    def prepare(self, memory: Padded) -> AttentionMemory:
        """Project keys and values once per source."""
        return AttentionMemory(self.key(memory.values), self.value(memory.values), memory.mask)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, heads, T, d)

    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """`(B, heads, K, S)` scaled dot products."""
        heads = self._heads(self.query(query))
        return heads @ self._heads(memory.keys).transpose(2, 3).to(heads.dtype) / math.sqrt(heads.shape[-1])

    def forward(
        self, query: Tensor, memory: AttentionMemory, state: Value | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Value | None]:
        """Attend; see `Attention.forward`."""
        weights = masked_softmax(self.scores(query, memory, state), visible(memory, mask)[:, None])  # (B, heads, K, S)
        context = weights @ self._heads(memory.values).to(weights.dtype)  # (B, heads, K, d)
        return self.output(context.transpose(1, 2).flatten(2)), weights.mean(dim=1), state
