"""Attention that sees where it looked before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.attention.additive import AdditiveAttention
from lit_seq2seq.nn.attention.base import AttentionMemory, Looked, looked
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.types import Value


class LocationAwareAttention(AdditiveAttention):
    """Additive attention that also sees where it looked before, through a convolution (Chorowski et al. 2015, eq. 9).

    `v . tanh(W q + U k + V f)`, f being the last (or, if `cumulative`, the summed) weights convolved over positions.

    Args:
        filters: number of convolution filters.
        kernel_size: width of the filters, in positions; odd.
        cumulative: convolve the sum of all earlier weights rather than the last ones.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attention_size: int | None = None,
        filters: int = 16,
        *,
        kernel_size: int = 15,
        cumulative: bool = False,
    ) -> None:
        super().__init__(query_size, memory_size, attention_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.convolution = nn.Conv1d(1, filters, kernel_size, padding=kernel_size // 2, bias=False)
        self.location = Linear(filters, self.energy.in_features, bias=False)
        self.cumulative = cumulative

    def start(self, memory: AttentionMemory) -> Looked:
        """It has looked nowhere yet."""
        return Looked.nowhere(memory)

    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """`v . tanh(W q + U k + V f)`."""
        features = self.location(self.convolution(looked(state)[:, None]).transpose(1, 2))  # (N, S, A)
        inner = self.query(query)[:, :, None] + memory.keys[:, None]  # (B, K, S, A)
        scores: Tensor = self.energy(torch.tanh(inner + features.view(inner.shape))).squeeze(-1)
        return scores

    def follow(self, state: Value | None, weights: Tensor) -> Looked:
        """Keep the weights, or add them up."""
        return Looked(looked(state) + weights if self.cumulative else weights)
