"""Lexical shortlists: scores of the few target symbols that a source is likely to need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lit_seq2seq.types import Padded, SpecialIds, Value


class Shortlist(nn.Module):
    """The target symbols that may be produced for a source: the most frequent ones, and translations of its symbols.

    As in L'Hostis et al. (2016), after Jean et al. (2015, section 3.3). Its tables are no parameters of the model.

    Args:
        frequent: `(N,)` target ids that are always candidates.
        translations: `(V, K)` target ids for each source symbol, -1 where there are fewer.
        size: number of target symbols.
        specials: ids of the special target symbols, which are always candidates, too.

    Example:
        >>> shortlist = Shortlist(torch.tensor([4]), torch.tensor([[-1], [6], [5]]), size=8, specials=SpecialIds())
        >>> shortlist(Padded(torch.tensor([[1, 1], [2, 0]]), torch.tensor([2, 1]))).values
        tensor([[0, 1, 2, 3, 4, 6],
                [0, 1, 2, 3, 4, 5]])
    """

    frequent: Tensor
    translations: Tensor

    def __init__(self, frequent: Tensor, translations: Tensor, size: int, specials: SpecialIds) -> None:
        super().__init__()
        self.size, self.specials = size, specials
        self.register_buffer("frequent", frequent.long(), persistent=False)
        self.register_buffer("translations", translations.long(), persistent=False)

    def forward(self, source: Padded) -> Padded:
        """List the candidates of each source of ids `(B, S)`.

        Returns:
            `(B, C)` different target ids: padding, unknown, BOS and EOS, then the others in their order.
        """
        found = self.translations[source.values].masked_fill(~source.mask[:, :, None], -1)  # (B, S, K)
        chosen = torch.zeros(len(found), self.size + 1, dtype=torch.bool, device=found.device)
        chosen.scatter_(1, found.where(found >= 0, self.size).flatten(1), True)
        chosen[:, self.frequent] = True
        first = torch.tensor(astuple(self.specials), device=found.device)
        chosen[:, first] = False
        rows, ids = chosen[:, : self.size].nonzero(as_tuple=True)
        counts = rows.bincount(minlength=len(found))  # (B,)
        places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows] + len(first)
        lengths = counts + len(first)
        values = torch.full((len(found), int(lengths.max())), self.specials.pad, device=found.device)
        values[:, : len(first)] = first
        values[rows, places] = ids
        return Padded(values, lengths)


SAMPLE = 128
"""Symbols of the vocabulary from which the sum over those that are no candidates is estimated."""


@dataclass(frozen=True)
class Candidates(Value):
    """Output of a decoder that knows only some symbols of each source. Part of its state, which is what search sees.

    Probabilities are those of the whole vocabulary, nearly: what all other symbols add to the softmax is estimated from
    `SAMPLE` of them, the same for every source. Normalised over the candidates alone, an uncertain step would cost
    hardly more than a certain one, and beams would go other ways. Scores are computed once for what any source in the
    batch needs; no source sees those of another.

    Attributes:
        ids: `(B, C)` target ids of each source's candidates, padded at the end.
        columns: `(B, C + SAMPLE)` where their scores, and those of the sample, are among those of `output`.
        shares: `(B, C + SAMPLE)` logarithm of the number of symbols for which each stands: 0 for candidates, minus
            infinity for padding and for symbols of the sample that are candidates.
        output: scores the symbols in `columns`.
    """

    ids: Tensor
    columns: Tensor
    shares: Tensor
    output: nn.Module

    @classmethod
    def of(cls, candidates: Padded, size: int, restricted: Callable[[Tensor], nn.Module]) -> Self:
        """Make it from the candidates of each source, the number of all symbols, and `Output.restricted`."""
        ids, count = candidates.values, candidates.lengths[:, None]
        sample = torch.arange(0, size, max(1, size // SAMPLE), device=ids.device)
        listed = torch.zeros(len(ids), size, dtype=torch.bool, device=ids.device).scatter_(1, ids, True)  # (B, V)
        known = listed[:, sample]  # (B, M)
        each = ((size - count) / (~known).sum(1, keepdim=True)).log()  # (B, 1)
        shares = torch.cat(
            [
                torch.zeros(ids.shape, device=ids.device).masked_fill(~candidates.mask, -torch.inf),
                each.expand(known.shape).masked_fill(known, -torch.inf),
            ],
            dim=1,
        )
        scored = torch.cat([ids, sample.expand(len(ids), -1)], dim=1)
        needed = listed.any(0)  # (V,)
        needed[sample] = True
        places = needed.cumsum(0) - 1
        return cls(ids, places[scored], shares, restricted(needed.nonzero()[:, 0]))

    def read(self, places: Tensor) -> Tensor:
        """Turn places among the candidates, `(B * K,)`, into target ids."""
        return self.ids.gather(1, places.view(len(self.ids), -1)).flatten()

    def log_probs(self, features: Tensor) -> Tensor:
        """Compute the log-probability of each candidate, `(B * K, C)` in float32, minus infinity at padding."""
        scores: Tensor = self.output(features).float()  # (B * K, U)
        scores = scores.view(len(self.columns), -1, scores.shape[-1])
        own = scores.gather(2, self.columns[:, None].expand(-1, scores.shape[1], -1))  # (B, K, C + M)
        log_probs = own.add_(self.shares[:, None]).log_softmax(dim=-1)
        return log_probs[:, :, : self.ids.shape[1]].flatten(0, 1)
