"""Attention by a bilinear form."""

from __future__ import annotations

from lit_seq2seq.nn.attention.dot import ProductAttention
from lit_seq2seq.nn.kernels.products import Linear


class GeneralAttention(ProductAttention):
    """Luong's general score `q W v` (Luong et al. 2015, eq. 8), a bilinear form learned between query and memory."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.key = Linear(memory_size, query_size, bias=False)
