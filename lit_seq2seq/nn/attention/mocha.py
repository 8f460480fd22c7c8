"""Attention to a few positions, which moves from left to right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_seq2seq.nn.attention.base import AttentionMemory
from lit_seq2seq.nn.attention.monotonic import MonotonicAttention
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.types import Value

_LOWEST = -1e30


class MoChA(MonotonicAttention):
    """Monotonic chunkwise attention: soft attention over the few positions up to where it stops.

    Chiu & Raffel 2018 (arXiv:1712.05382). `MonotonicAttention` chooses the place k with weight `a_k`, softmax of the
    energies `u = v . tanh(W q + U k + b)` spreads it over the `chunk_size` positions that end there.

    Args:
        chunk_size: number of positions; with 1 this is `MonotonicAttention`.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attention_size: int | None = None,
        chunk_size: int = 2,
        *,
        offset: float = -1.0,
        noise: float = 1.0,
    ) -> None:
        super().__init__(query_size, memory_size, attention_size, offset, noise=noise)
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self.chunk_size = chunk_size
        self.size = attention_size or query_size
        self.chunk_query = Linear(query_size, self.size)
        self.chunk_key = Linear(memory_size, self.size, bias=False)
        self.chunk_energy = Linear(self.size, 1, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """Keys of the monotonic energy and of that inside chunks, `(B, S, 2 A)`."""
        return torch.cat([super().keys(values), self.chunk_key(values)], dim=-1)

    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """Energies of stopping, `(B, K, S)`."""
        energies: Tensor = self.energy(query, memory.keys[..., : self.size])
        return energies

    def spread(self, weights: Tensor, query: Tensor, memory: AttentionMemory, seen: Tensor) -> Tensor:
        """Spread each weight over the positions that end at its own."""
        inner = self.chunk_query(query)[:, :, None] + memory.keys[:, None, :, self.size :]  # (B, K, S, A)
        energies = wide(self.chunk_energy(torch.tanh(inner)))[..., 0].masked_fill(~seen, _LOWEST)  # (B, K, S)
        positions, before = weights.shape[-1], self.chunk_size - 1
        padded = F.pad(energies, (before, 0), value=_LOWEST)
        windows = torch.stack([padded[..., o : o + positions] for o in range(self.chunk_size)])  # (w, B, K, S)
        shares = windows.softmax(dim=0) * weights  # of the position that is before - o to the left
        return torch.stack(
            [F.pad(share, (0, before))[..., before - o :][..., :positions] for o, share in enumerate(shares)]
        ).sum(dim=0)
