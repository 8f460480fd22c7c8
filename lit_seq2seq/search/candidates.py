"""Search among some symbols only, which differ from sentence to sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

import torch
from torch import Tensor

from lit_seq2seq.search.rules import check_prefix
from lit_seq2seq.types import Hypothesis, Padded, SpecialIds


def including(candidates: Padded, prefix: Tensor, specials: SpecialIds) -> Padded:
    """Add the tokens with which outputs must begin, `(B, P)`, to the candidates of each sentence.

    Example:
        >>> candidates = Padded(torch.tensor([[0, 1, 2, 3, 7], [0, 1, 2, 3, 0]]), torch.tensor([5, 4]))
        >>> including(candidates, torch.tensor([[7, 9], [8, 8]]), SpecialIds()).values
        tensor([[0, 1, 2, 3, 7, 9],
                [0, 1, 2, 3, 8, 0]])
    """
    check_prefix(prefix, len(candidates.values), specials)
    prefix = prefix.to(candidates.values.device)
    known = (prefix[:, :, None] == candidates.values[:, None]).any(2)  # (B, P), padding too
    before = (prefix[:, :, None] == prefix[:, None]).tril(-1).any(2)
    real = torch.cat([candidates.mask, ~known & ~before], dim=1)  # (B, C + P)
    lengths = real.sum(1)
    order = real.byte().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    added = Padded(torch.cat([candidates.values, prefix], dim=1).gather(1, order), lengths)
    return replace(added, values=added.values.masked_fill(~added.mask, specials.pad))


def located(candidates: Padded, specials: SpecialIds, prefix: Tensor | None) -> tuple[SpecialIds, Tensor | None]:
    """Find the special symbols and the tokens of a prefix among the candidates, where the special ones come first."""
    places = SpecialIds(*range(len(astuple(specials))))
    if prefix is None:
        return places, None
    check_prefix(prefix, len(candidates.values), specials)
    same = candidates.values[:, None] == prefix.to(candidates.values.device)[:, :, None]  # (B, P, C)
    return places, same.byte().argmax(dim=2)


def named(found: Sequence[Sequence[Hypothesis]], candidates: Padded) -> list[list[Hypothesis]]:
    """Turn places among the candidates into tokens."""
    rows = zip(candidates.values.cpu(), found, strict=True)
    return [[replace(one, tokens=ids[one.tokens]) for one in hypotheses] for ids, hypotheses in rows]
