"""Attention to several sources: to each one first, then to what was found in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.attention.base import Attention, AttentionMemory, visible
from lit_seq2seq.nn.encoders.multi import JoinedMemory
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import masked_softmax
from lit_seq2seq.types import Padded, UserError, Value


@dataclass(frozen=True)
class HierarchicalMemory(AttentionMemory):
    """Several sources made ready to be attended to, besides all of them in one sequence.

    Attributes:
        parts: each source as its attention wants it.
        order: see `JoinedMemory`.
    """

    parts: Mapping[str, AttentionMemory]
    order: Tensor


@dataclass(frozen=True)
class HierarchicalState(Value):
    """States of the attentions to the sources, by their names; of those that have one."""

    parts: Mapping[str, Value]


class HierarchicalAttention(Attention):
    """Attends to each source by itself, then to the contexts found (Libovicky & Helcl 2017, hierarchical combination).

    Each source has an attention of its own, which gives the context `c_k`. Then `e_k = v tanh(W q + U_k c_k)`,
    `beta = softmax(e)`, and the context is `sum_k beta_k c_k`. The weight of a position is that in its source times the
    `beta` of the source, so that the weights of all positions sum to one.

    Args:
        attentions: makes the attention to each source, by its name.
        attention_size: size of the layer inside tanh; the query size if `None`.

    Raises:
        ValueError: contexts of several sizes.
        UserError: the encoder's sources have other names, or it has only one.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attentions: Mapping[str, Callable[[int, int], Attention]],
        attention_size: int | None = None,
    ) -> None:
        super().__init__(query_size, memory_size)
        made = {name: attention(query_size, memory_size) for name, attention in attentions.items()}
        sizes = {attention.context_size for attention in made.values()}
        if len(sizes) != 1:
            raise ValueError(
                f"HierarchicalAttention needs attentions whose contexts have one size, but they have {sorted(sizes)}"
            )
        self.context_size = sizes.pop()
        self.attentions = nn.ModuleDict(made)
        size = attention_size or query_size
        self.query = Linear(query_size, size)
        self.key = nn.ModuleDict({name: Linear(self.context_size, size, bias=False) for name in made})
        self.energy = Linear(size, 1, bias=False)

    def prepare(self, memory: Padded) -> HierarchicalMemory:
        """Compute what depends on the sources alone."""
        names = list(memory.parts) if isinstance(memory, JoinedMemory) else []
        if not isinstance(memory, JoinedMemory) or set(names) != set(self.attentions):
            raise UserError(
                f"HierarchicalAttention has attentions for {', '.join(self.attentions)}, but the sources are "
                f"{', '.join(names) or 'not named'}: use a MultiSourceEncoder whose encoders have the same names"
            )
        parts = {name: self._attention(name).prepare(part) for name, part in memory.parts.items()}
        return HierarchicalMemory(memory.values, memory.values, memory.mask, parts, memory.order)

    def _attention(self, name: str) -> Attention:
        attention = self.attentions[name]
        assert isinstance(attention, Attention)
        return attention

    def start(self, memory: AttentionMemory) -> HierarchicalState | None:
        """Start the attentions to the sources."""
        assert isinstance(memory, HierarchicalMemory)
        started = {name: self._attention(name).start(part) for name, part in memory.parts.items()}
        parts = {name: state for name, state in started.items() if state is not None}
        return HierarchicalState(parts) if parts else None

    def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
        """Logarithms of the weights, `(B, K, S)`, as they are not made by a single softmax."""
        weights: Tensor = self(query, memory, state)[1]
        return weights.log()

    def forward(
        self, query: Tensor, memory: AttentionMemory, state: Value | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, HierarchicalState | None]:
        """Attend; see `Attention.forward`."""
        assert isinstance(memory, HierarchicalMemory)
        before = state.parts if isinstance(state, HierarchicalState) else {}
        masks = _split(mask, memory)
        contexts, weights, energies, after = [], [], [], {}
        inner = self.query(query)  # (B, K, A)
        for name, part in memory.parts.items():
            context, weight, changed = self._attention(name)(query, part, before.get(name), masks.get(name))
            if changed is not None:
                after[name] = changed
            energies.append(self.energy(torch.tanh(inner + self.key[name](context))))  # (B, K, 1)
            contexts.append(context)  # (B, K, C)
            weights.append(weight)  # (B, K, S_k)
        seen = [visible(part, masks.get(name)).any(dim=2) for name, part in memory.parts.items()]
        beta = masked_softmax(torch.cat(energies, dim=-1), torch.stack(seen, dim=-1))  # (B, K, P)
        context = (beta[..., None] * torch.stack(contexts, dim=2)).sum(dim=2)
        joined = torch.cat([beta[..., k : k + 1] * weight for k, weight in enumerate(weights)], dim=-1)  # (B, K, S)
        joined = joined.gather(-1, memory.order[:, None].expand(-1, joined.shape[1], -1))
        return context, joined, HierarchicalState(after) if after else None


def _split(mask: Tensor | None, memory: HierarchicalMemory) -> dict[str, Tensor]:
    """Cut a mask of the joined positions, `(B, K, S)`, into those of each source."""
    if mask is None:
        return {}
    order = memory.order[:, None].expand(mask.shape)
    beside = torch.zeros_like(mask).scatter(2, order, mask)  # of the padded sources side by side
    sizes = [part.mask.shape[1] for part in memory.parts.values()]
    return dict(zip(memory.parts, torch.split(beside, sizes, dim=2), strict=True))
