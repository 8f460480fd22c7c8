"""Which symbols translate which, learnt from pairs of sentences by IBM Model 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lit_seq2seq.types import Batch, Padded, Shared, Value

Pairs = Sequence[tuple[Padded, Padded]]


def pair_of(batch: Batch) -> tuple[Padded, Padded]:
    """Return the source and the target of each example of a batch with symbols on both sides."""
    source = batch.source
    if isinstance(source, Shared):
        source = source.distinct.select(source.index)
    assert isinstance(source, Padded)
    assert batch.target is not None
    return source, batch.target


@dataclass(frozen=True)
class Translations(Value):
    """`t(f | e)` for all pairs of symbols that occur together.

    Attributes:
        known: `(N,)` the pairs, each as the number `e * size + f`, in ascending order.
        chance: `(N,)` the probability of each.
        size: number of target symbols.
    """

    known: Tensor
    chance: Tensor
    size: int

    @classmethod
    def estimate(cls, pairs: Pairs, sizes: tuple[int, int], iterations: int = 5) -> Self:
        """Estimate all probabilities, as Brown et al. (1993), section 4.1, from equal ones.

        There is no empty word of its own: the EOS that ends a text takes its place. Memory grows with the number of
        different pairs of symbols.

        Args:
            pairs: batches of source ids `(B, S)` and target ids `(B, T)`.
            sizes: number of source symbols and of target symbols.
            iterations: of expectation maximisation, >= 1.
        """
        known = _occurring(pairs, sizes[1])
        sources = known // sizes[1]
        chance = torch.ones(len(known), dtype=torch.double)
        for _ in range(iterations):
            counts = torch.zeros_like(chance)
            for source, target in pairs:
                codes, together = _together(source, target, sizes[1])
                places = torch.searchsorted(known, codes).clamp(max=len(known) - 1)  # (B, T, S)
                share = _shares(chance[places].mul_(together))
                counts.index_add_(0, places.flatten(), share.flatten())
            totals = torch.zeros(sizes[0], dtype=torch.double).index_add_(0, sources, counts)
            chance = counts / totals[sources]
        return cls(known, chance, sizes[1])

    def align(self, source: Padded, target: Padded, tension: float = 0.0) -> Tensor:
        """Compute the probability that a target symbol f comes from the source symbol e at a place.

        `p(s | t)` is proportional to `t(f_t | e_s) exp(-tension |s / S - t / T|)`: with a tension above 0, places near
        the diagonal are more probable than others (Dyer et al. 2013, https://aclanthology.org/N13-1073).

        Args:
            source: `(B, S)` ids.
            target: `(B, T)` ids.
            tension: >= 0.

        Returns:
            `(B, T, S)`, each row of a real target symbol summing to one, or to zero where it has not been seen with any
            of these source symbols.
        """
        codes, together = _together(source, target, self.size)
        places = torch.searchsorted(self.known, codes).clamp(max=len(self.known) - 1)  # (B, T, S)
        found = self.chance[places] * (together & (self.known[places] == codes))
        far = (_shares_of_length(target)[:, :, None] - _shares_of_length(source)[:, None]).abs()  # (B, T, S)
        return _shares(found * (-tension * far).exp())


def _shares(weights: Tensor) -> Tensor:
    """Make each row sum to one, if it is not zero."""
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _shares_of_length(text: Padded) -> Tensor:
    """Return how far each place is from the beginning of its sequence to its end, `(B, S)`."""
    return torch.arange(text.values.shape[1], device=text.lengths.device) / text.lengths.clamp(min=1)[:, None]


def _occurring(pairs: Pairs, size: int) -> Tensor:
    """List each pair of symbols that occurs, as one number."""
    known, fresh = torch.zeros(0, dtype=torch.long), list[Tensor]()
    for source, target in pairs:
        codes, together = _together(source, target, size)
        fresh.append(_distinct(codes[together]))
        if sum(map(len, fresh)) > len(known):
            known, fresh = _distinct(torch.cat([known, *fresh])), []
    return _distinct(torch.cat([known, *fresh]))


def _distinct(codes: Tensor) -> Tensor:
    found: Tensor = torch.unique(codes)
    return found


def _together(source: Padded, target: Padded, size: int) -> tuple[Tensor, Tensor]:
    """Number each pair of a target and a source symbol of a sentence, `(B, T, S)`; and tell which are real."""
    codes = source.values[:, None].long() * size + target.values[:, :, None]
    return codes, target.mask[:, :, None] & source.mask[:, None]
