"""Attention mechanisms: how a decoder looks back at the source."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.kernels.products import Linear, average, compare
from lit_seq2seq.nn.ops import masked_softmax
from lit_seq2seq.types import Padded, Value


@dataclass(frozen=True)
class AttentionMemory(Value):
    """A source made ready to be attended to, computed once per source.

    Attributes:
        keys: `(B, S, K)` what queries are compared with.
        values: `(B, S, M)` what is averaged.
        mask: `(B, S)` booleans, true at real positions.

    Example:
        >>> memory = AttentionMemory(torch.zeros(2, 5, 3), torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool))
        >>> memory.select(torch.tensor([1])).values.shape
        torch.Size([1, 5, 4])
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class AttentionHistory(Value):
    """Where a hypothesis has looked so far.

    Attributes:
        last: `(N, S)` weights of the step before.
        total: `(N, S)` sum of the weights of all steps before: the coverage vector.

    Example:
        >>> history = AttentionHistory(last=torch.tensor([[1.0, 0.0]]), total=torch.tensor([[1.0, 0.0]]))
        >>> history.add(torch.tensor([[0.5, 0.5]])).total
        tensor([[1.5000, 0.5000]])
    """

    last: Tensor
    total: Tensor

    def add(self, weights: Tensor) -> AttentionHistory:
        """Return the history after a step with `weights (N, S)`."""
        return AttentionHistory(weights, self.total + weights)


class Attention(nn.Module, ABC):
    """Base of all attentions: weights `a = softmax(score(q, k))` over real positions, context `sum_s a_s v_s`.

    Queries come as `(B, Q, D)`: the Q steps of a teacher-forced target, or the Q hypotheses of a beam, all looking at
    the same source.

    Args:
        query_size: size D of the queries.
        memory_size: size M of the memory vectors.

    Example:
        >>> class Nearest(Attention):
        ...     def scores(self, query, memory, history):
        ...         return -torch.cdist(query, memory.keys)
        >>> attention = Nearest(query_size=2, memory_size=2)
        >>> memory = attention.prepare(Padded(torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), torch.tensor([2])))
        >>> context, weights = attention(torch.tensor([[[9.0, 1.0]]]), memory)
        >>> weights.round()
        tensor([[[0., 1.]]])
    """

    uses_history: bool = False
    """Whether scores depend on earlier weights, which rules out computing all steps at once."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = memory_size
        self.context_size = memory_size

    def prepare(self, memory: Padded) -> AttentionMemory:
        """Compute what depends on the source alone."""
        return AttentionMemory(self.keys(memory.values), memory.values, memory.mask)

    def keys(self, values: Tensor) -> Tensor:
        """Map memory vectors `(B, S, M)` to keys `(B, S, K)`."""
        return values

    @abstractmethod
    def scores(self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None) -> Tensor:
        """Compare `query (B, Q, D)` with the keys: `(B, Q, S)` unnormalised scores."""

    def forward(
        self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            query: `(B, Q, D)`.
            memory: from `prepare`.
            history: `(B * Q, S)` earlier weights of each query's hypothesis; needed where `uses_history`.

        Returns:
            Context `(B, Q, context_size)` and weights `(B, Q, S)`.
        """
        weights = masked_softmax(self.scores(query, memory, history), memory.mask[:, None])  # (B, Q, S)
        return average(weights, memory.values), weights


class DotAttention(Attention):
    """Luong's dot score `q . k` (Luong et al. 2015, eq. 8); with `scaled`, divided by sqrt(D) (Vaswani et al. 2017).

    The memory is projected to the query size only where their sizes differ.

    Args:
        query_size: see `Attention`.
        memory_size: see `Attention`.
        scaled: divide scores by the square root of the query size.

    Example:
        >>> attention = DotAttention(2, 2)
        >>> memory = attention.prepare(Padded(torch.eye(2)[None], torch.tensor([2])))
        >>> context, weights = attention(torch.tensor([[[9.0, 0.0]]]), memory)
        >>> weights.round().tolist()
        [[[1.0, 0.0]]]
    """

    def __init__(self, query_size: int, memory_size: int, scaled: bool = False) -> None:
        super().__init__(query_size, memory_size)
        same = query_size == memory_size
        self.key = nn.Identity() if same else Linear(memory_size, query_size, bias=False)
        self.scale = query_size**-0.5 if scaled else 1.0

    def keys(self, values: Tensor) -> Tensor:
        """Project to the query size where needed."""
        keys: Tensor = self.key(values)
        return keys

    def scores(self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None) -> Tensor:
        """`q . k`."""
        return compare(query, memory.keys) * self.scale  # (B, Q, S)


class GeneralAttention(Attention):
    """Luong's general score `q W v` (Luong et al. 2015, eq. 8), a bilinear form learned between query and memory.

    Example:
        >>> attention = GeneralAttention(3, 4)
        >>> memory = attention.prepare(Padded(torch.randn(2, 5, 4), torch.tensor([5, 2])))
        >>> context, weights = attention(torch.randn(2, 7, 3), memory)
        >>> context.shape, weights.shape
        (torch.Size([2, 7, 4]), torch.Size([2, 7, 5]))
    """

    scale = 1.0

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.key = Linear(memory_size, query_size, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """`W v`, once per source."""
        keys: Tensor = self.key(values)
        return keys

    def scores(self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None) -> Tensor:
        """`q . (W v)`."""
        return compare(query, memory.keys)  # (B, Q, S)


class AdditiveAttention(Attention):
    """Bahdanau's score `v . tanh(W q + U k + b)` (Bahdanau et al. 2015, appendix A.1.2).

    With `coverage`, `w * total` joins the sum, `total` being the sum of all earlier weights (See et al. 2017, eq. 11).

    Args:
        query_size: see `Attention`.
        memory_size: see `Attention`.
        attention_size: size of the layer inside tanh; the query size if `None`.
        coverage: let the score see how much each position has been attended to.

    Example:
        >>> attention = AdditiveAttention(3, 4, attention_size=8)
        >>> memory = attention.prepare(Padded(torch.randn(2, 5, 4), torch.tensor([5, 2])))
        >>> context, weights = attention(torch.randn(2, 7, 3), memory)
        >>> context.shape, weights.shape
        (torch.Size([2, 7, 4]), torch.Size([2, 7, 5]))
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
        self.uses_history = coverage

    def keys(self, values: Tensor) -> Tensor:
        """`U k`, once per source."""
        keys: Tensor = self.key(values)
        return keys

    def scores(self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None) -> Tensor:
        """`v . tanh(W q + U k + w total)`."""
        inner = self.query(query)[:, :, None] + memory.keys[:, None]  # (B, Q, S, A)
        if self.coverage is not None:
            total = _require(history, self).total.view(*query.shape[:2], -1, 1)  # (B, Q, S, 1)
            inner = inner + self.coverage(total)
        scores: Tensor = self.energy(torch.tanh(inner)).squeeze(-1)  # (B, Q, S)
        return scores


class LocationAwareAttention(AdditiveAttention):
    """Additive attention that also sees where it looked before, through a convolution (Chorowski et al. 2015, eq. 9).

    `v . tanh(W q + U k + V f)`, f being the last (or, if `cumulative`, the summed) weights convolved over positions.

    Args:
        query_size: see `Attention`.
        memory_size: see `Attention`.
        attention_size: see `AdditiveAttention`.
        filters: number of convolution filters.
        kernel_size: width of the filters, in positions; odd.
        cumulative: convolve the sum of all earlier weights rather than the last ones.

    Example:
        >>> attention = LocationAwareAttention(3, 4, kernel_size=5)
        >>> memory = attention.prepare(Padded(torch.randn(2, 6, 4), torch.tensor([6, 3])))
        >>> history = AttentionHistory(torch.zeros(2, 6), torch.zeros(2, 6))
        >>> context, weights = attention(torch.randn(2, 1, 3), memory, history)
        >>> history.add(weights[:, 0]).total.shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        attention_size: int | None = None,
        filters: int = 16,
        kernel_size: int = 15,
        cumulative: bool = False,
    ) -> None:
        super().__init__(query_size, memory_size, attention_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.convolution = nn.Conv1d(1, filters, kernel_size, padding=kernel_size // 2, bias=False)
        self.location = Linear(filters, self.energy.in_features, bias=False)
        self.cumulative = cumulative
        self.uses_history = True

    def scores(self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None) -> Tensor:
        """`v . tanh(W q + U k + V f)`."""
        known = _require(history, self)
        seen = known.total if self.cumulative else known.last  # (B * Q, S)
        features = self.location(self.convolution(seen[:, None]).transpose(1, 2))  # (B * Q, S, A)
        inner = self.query(query)[:, :, None] + memory.keys[:, None]  # (B, Q, S, A)
        scores: Tensor = self.energy(torch.tanh(inner + features.view(inner.shape))).squeeze(-1)
        return scores


class MultiHeadAttention(Attention):
    """Several scaled dot attentions side by side, `softmax(QK'/sqrt(d))V` each (Vaswani et al. 2017, section 3.2).

    The reported weights are the mean over heads.

    Args:
        query_size: see `Attention`; divisible by `num_heads`.
        memory_size: see `Attention`.
        num_heads: number of heads.

    Example:
        >>> attention = MultiHeadAttention(8, 4, num_heads=2)
        >>> memory = attention.prepare(Padded(torch.randn(2, 5, 4), torch.tensor([5, 2])))
        >>> context, weights = attention(torch.randn(2, 7, 8), memory)
        >>> context.shape, weights.shape
        (torch.Size([2, 7, 8]), torch.Size([2, 7, 5]))
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

    def scores(self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None) -> Tensor:
        """`(B, heads, Q, S)` scaled dot products."""
        heads = self._heads(self.query(query))
        return heads @ self._heads(memory.keys).transpose(2, 3).to(heads.dtype) / math.sqrt(heads.shape[-1])

    def forward(
        self, query: Tensor, memory: AttentionMemory, history: AttentionHistory | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend; see `Attention.forward`."""
        weights = masked_softmax(self.scores(query, memory, history), memory.mask[:, None, None])  # (B, heads, Q, S)
        context = weights @ self._heads(memory.values).to(weights.dtype)  # (B, heads, Q, d)
        return self.output(context.transpose(1, 2).flatten(2)), weights.mean(dim=1)


def _require(history: AttentionHistory | None, attention: Attention) -> AttentionHistory:
    if history is None:
        raise ValueError(f"{type(attention).__name__} needs the history of earlier weights, got None")
    return history
