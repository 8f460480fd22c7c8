"""Attention that moves from left to right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.attention.base import Attention, AttentionMemory, Looked, looked, visible
from lit_seq2seq.nn.kernels.products import Linear, average
from lit_seq2seq.nn.kernels.scan import linear_scan
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.types import Value


class MonotonicEnergy(nn.Module):
    """`g (v / |v|) . tanh(W q + U k + b) + r`, in which the keys are `U k` (Raffel et al. 2017, section 2.4).

    Args:
        query_size: size of the queries.
        memory_size: size of the memory vectors.
        size: size of the layer inside tanh.
        offset: the first r; below zero, attention moves on readily before it has learnt where to stop.
    """

    def __init__(self, query_size: int, memory_size: int, size: int, offset: float) -> None:
        super().__init__()
        self.query = Linear(query_size, size)
        self.key = Linear(memory_size, size, bias=False)
        self.direction = nn.Parameter(torch.randn(size))
        self.gain = nn.Parameter(torch.tensor(size**-0.5))
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Compare `query (B, K, D)` with `keys (B, S, A)`: `(B, K, S)`."""
        inner = torch.tanh(self.query(query)[:, :, None] + keys[:, None])  # (B, K, S, A)
        direction = self.direction * (self.gain / self.direction.norm())
        energies: Tensor = inner @ direction.to(inner.dtype) + self.offset
        return energies


class MonotonicAttention(Attention):
    """Looks at one position a step, the same as before or a later one (Raffel et al. 2017, arXiv:1704.00784).

    From where it stood it goes right and stops at position j with probability `p_ij = sigmoid(e_ij)`. In training the
    weights are the expectation over all paths, by the paper's recurrence `q_ij = (1 - p_i,j-1) q_i,j-1 + a_i-1,j`,
    `a_ij = p_ij q_ij`, with noise on the energies, which teaches them to be decided. In evaluation it stops where the
    energy is above zero. Where it finds no place to stop it has left the source, and sees zeros from then on.

    Decoding reads the source from left to right, once: with an encoder that does so, too, outputs can begin before the
    source has ended.

    Args:
        attention_size: size of the layer inside tanh; the query size if `None`.
        offset: the energy's offset r before training. Source sequences much longer than targets want it lower.
        noise: standard deviation of the noise on energies in training.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attention_size: int | None = None,
        offset: float = -1.0,
        *,
        noise: float = 1.0,
    ) -> None:
        super().__init__(query_size, memory_size)
        self.energy = MonotonicEnergy(query_size, memory_size, attention_size or query_size, offset)
        self.noise = noise

    def keys(self, values: Tensor) -> Tensor:
        """`U k`, once per source."""
        keys: Tensor = self.energy.key(values)
        return keys

    def start(self, memory: AttentionMemory) -> Looked:
        """It stands at the first position."""
        nowhere = wide(Looked.nowhere(memory).weights)
        return Looked(torch.cat([nowhere[:, :1] + 1, nowhere[:, 1:]], dim=1))

    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """Energies of stopping, `(B, K, S)`."""
        energies: Tensor = self.energy(query, memory.keys)
        return energies

    def stops(self, query: Tensor, memory: AttentionMemory, state: Value | None, seen: Tensor) -> Tensor:
        """Compute the probability of stopping at each position, `(B, K, S)`; in evaluation zero or one."""
        energies = wide(self.scores(query, memory, state))
        if not self.training:
            return ((energies > 0) & seen).to(energies.dtype)
        return torch.sigmoid(energies + self.noise * torch.randn_like(energies)) * seen

    def move(self, stops: Tensor, before: Tensor) -> Tensor:
        """Compute the weights of a step, `(N, S)`, from where it stops and from the weights of the step before."""
        if not self.training:
            places = stops * (before.cumsum(dim=1) > 0)
            return places * (places.cumsum(dim=1) == 1)
        passes = nn.functional.pad(1 - stops[:, :-1], (1, 0))  # on from the position before
        reached = linear_scan(passes[..., None], before[..., None], torch.zeros_like(before[:, :1]))
        return stops * reached[..., 0]

    def spread(self, weights: Tensor, query: Tensor, memory: AttentionMemory, seen: Tensor) -> Tensor:
        """Turn the weights of the places where it stops, `(B, K, S)`, into those of attention."""
        return weights

    def forward(
        self, query: Tensor, memory: AttentionMemory, state: Value | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Looked]:
        """Attend; see `Attention.forward`."""
        seen = visible(memory, mask)
        stops = self.stops(query, memory, state, seen)
        after = self.move(stops.flatten(0, 1), looked(state))  # (N, S)
        weights = self.spread(after.view(stops.shape), query, memory, seen).to(query.dtype)
        return average(weights, memory.values), weights, Looked(after)

    def scan(
        self, query: Tensor, memory: AttentionMemory, state: Value | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend; see `Attention.scan`. Only the recurrence goes step by step."""
        seen = visible(memory, mask)
        stops = self.stops(query, memory, state, seen)  # (B, T, S)
        places, before = [], looked(state)
        for column in stops.unbind(dim=1):
            before = self.move(column, before)
            places.append(before)
        weights = self.spread(torch.stack(places, dim=1), query, memory, seen).to(query.dtype)
        return average(weights, memory.values), weights
