"""Attention by dot products."""

from __future__ import annotations

from torch import Tensor, nn

from lit_seq2seq.nn.attention.base import Attention, AttentionMemory
from lit_seq2seq.nn.kernels.products import Linear, compare
from lit_seq2seq.types import Value


class ProductAttention(Attention):
    """Base of the attentions whose score is `scale * (q . k)`."""

    scale: float = 1.0
    key: nn.Module

    @property
    def product_scale(self) -> float | None:
        """See `Attention`; a subclass may compute something else."""
        own = type(self)
        plain = own.scores is ProductAttention.scores and own.forward is Attention.forward
        return self.scale if plain else None

    def keys(self, values: Tensor) -> Tensor:
        """Project to the query size, once per source."""
        keys: Tensor = self.key(values)
        return keys

    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """`scale * (q . k)`."""
        return compare(query, memory.keys) * self.scale  # (B, K, S)


class DotAttention(ProductAttention):
    """Luong's dot score `q . k` (Luong et al. 2015, eq. 8); with `scaled`, divided by sqrt(D) (Vaswani et al. 2017).

    The memory is projected to the query size only where their sizes differ.

    Args:
        scaled: divide scores by the square root of the query size.

    Example:
        >>> import torch
        >>> from lit_seq2seq.types import Padded
        >>> attention = DotAttention(2, 2)
        >>> memory = attention.prepare(Padded(torch.eye(2)[None], torch.tensor([2])))
        >>> context, weights, _ = attention(torch.tensor([[[9.0, 0.0]]]), memory)
        >>> weights.round().tolist()
        [[[1.0, 0.0]]]
    """

    def __init__(self, query_size: int, memory_size: int, scaled: bool = False) -> None:
        super().__init__(query_size, memory_size)
        same = query_size == memory_size
        self.key = nn.Identity() if same else Linear(memory_size, query_size, bias=False)
        self.scale = query_size**-0.5 if scaled else 1.0
