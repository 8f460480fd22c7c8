"""Search among some symbols only, which differ from sentence to sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.rules import Options, check_prefix, prefix_of
from lit_seq2seq.types import Hypothesis, Padded, SpecialIds


def including(candidates: Padded, prefix: Array, specials: SpecialIds) -> Padded:
    """Add the tokens with which outputs must begin, `(B, P)`, to the candidates of each sentence.

    Example:
        >>> import numpy as np
        >>> candidates = Padded(np.array([[0, 1, 2, 3, 7], [0, 1, 2, 3, 0]]), np.array([5, 4]))
        >>> including(candidates, np.array([[7, 9], [8, 8]]), SpecialIds()).values
        array([[0, 1, 2, 3, 7, 9],
               [0, 1, 2, 3, 8, 0]])
    """
    check_prefix(prefix, len(candidates.values), specials)
    xp = arrays.of(candidates.values)
    prefix = xp.array(prefix)
    known = (prefix[:, :, None] == candidates.values[:, None]).any(2)  # (B, P), padding too
    places = xp.arange(prefix.shape[1])
    before = ((prefix[:, :, None] == prefix[:, None]) & (places[:, None] > places)).any(2)
    real = xp.concat([candidates.mask, ~known & ~before], 1)  # (B, C + P)
    lengths = real.sum(1)
    order = xp.sort_down(xp.wide(real))[1][:, : int(lengths.max())]
    added = Padded(xp.gather(xp.concat([candidates.values, prefix], 1), order), lengths)
    return replace(added, values=xp.where(added.mask, added.values, specials.pad))


def among(options: Options) -> Options:
    """Return the options of a search by places among its candidates, of which the special symbols come first.

    The option `prefix`, a text, becomes tokens.
    """
    candidates, batch_size, specials = options.get("candidates"), options["batch_size"], options["specials"]
    prefix = prefix_of(options["config"], options.get("prefix"), options.get("vocabulary"), batch_size)
    if candidates is not None:
        places = SpecialIds(*range(len(astuple(specials))))
        if prefix is not None:
            check_prefix(prefix, batch_size, specials)
            xp = arrays.of(candidates.values)
            prefix = xp.first(candidates.values[:, None] == xp.array(prefix)[:, :, None])  # (B, P) of (B, P, C)
        specials = places
    return {**options, "specials": specials, "prefix": prefix}


def named(found: Sequence[Sequence[Hypothesis]], candidates: Padded) -> list[list[Hypothesis]]:
    """Turn places among the candidates into tokens."""
    rows = zip(arrays.of(candidates.values).host(candidates.values), found, strict=True)
    return [[replace(one, tokens=ids[one.tokens]) for one in hypotheses] for ids, hypotheses in rows]
