"""Scores of the target symbols that a shortlist names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.ops import wide
from lit_seq2seq.shortlist import Scored
from lit_seq2seq.types import Padded, Value


@dataclass(frozen=True)
class Shortlisted(Value):
    """Output of a decoder that knows only some symbols of each source. Part of its state, which is what search sees.

    Attributes:
        ids: `(B, C)` target ids of each source's candidates, padded at the end.
        columns: see `Scored`.
        shares: see `Scored`.
        output: scores the symbols in `Scored.symbols`.
    """

    ids: Tensor
    columns: Tensor
    shares: Tensor
    output: nn.Module

    @classmethod
    def of(cls, candidates: Padded, size: int, restricted: Callable[[Tensor], nn.Module]) -> Self:
        """Make it from the candidates of each source, the number of all symbols, and `Output.restricted`."""
        ids = candidates.values
        scored = Scored.of(candidates.to("cpu"), size)
        symbols, columns, shares = (torch.from_numpy(table).to(ids.device) for table in scored)
        return cls(ids, columns, shares, restricted(symbols))

    def read(self, places: Tensor) -> Tensor:
        """Turn places among the candidates, `(B * K,)`, into target ids."""
        return self.ids.gather(1, places.view(len(self.ids), -1)).flatten()

    def log_probs(self, features: Tensor) -> Tensor:
        """Compute the log-probability of each candidate, `(B * K, C)`, minus infinity at padding."""
        scores: Tensor = wide(self.output(features))  # (B * K, U)
        scores = scores.view(len(self.columns), -1, scores.shape[-1])
        own = scores.gather(2, self.columns[:, None].expand(-1, scores.shape[1], -1))  # (B, K, C + M)
        log_probs = own.add_(self.shares[:, None]).log_softmax(dim=-1)
        return log_probs[:, :, : self.ids.shape[1]].flatten(0, 1)
