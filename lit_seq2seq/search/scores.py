"""Length normalisation and coverage penalty: how finished hypotheses are ranked."""

from __future__ import annotations

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.config import GenerationConfig, LengthNormalization

_TINY, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def length_divisor(lengths: Array, normalization: LengthNormalization, penalty: float) -> Array:
    """Compute what the log-probability of a hypothesis of some length is divided by.

    `"none"`: 1; `"average"`: length; `"power"`: length ** penalty; `"wu"`: ((5 + length) / 6) ** penalty
    (Wu et al. 2016, "Google's Neural Machine Translation System", eq. 14).

    Args:
        lengths: number of generated tokens with EOS, >= 1, floating point, any shape.
        normalization: the kind.
        penalty: the exponent of `"power"` and `"wu"`.

    Returns:
        The divisors, positive and finite, in the shape of `lengths`.

    Example:
        >>> length_divisor(np.array([1.0, 4.0]), "power", 0.5)
        array([1., 2.])
    """
    if normalization == "none":
        return arrays.of(lengths).full_like(lengths, 1)
    if normalization == "average":
        return lengths
    base = (5 + lengths) / 6 if normalization == "wu" else lengths
    return (base**penalty).clip(_TINY, _LARGEST)


def normalize(log_probs: Array, divisor: Array) -> Array:
    """Divide log-probabilities by length divisors; the result stays finite, however extreme the length penalty."""
    return (log_probs / divisor).clip(-_LARGEST)


def best_reachable(
    log_probs: Array, lengths: Array, max_lengths: Array, normalization: LengthNormalization, *, penalty: float
) -> Array:
    """Bound from above the score that an open hypothesis can end with.

    A log-probability can only fall and the divisor is monotone in the length, so no end is better than one that costs
    nothing at whichever of the shortest and the longest possible lengths has the larger divisor. The coverage penalty
    is never positive and drops out.

    Args:
        log_probs: log-probabilities of open hypotheses, <= 0, any shape.
        lengths: the shortest length at which each can end, broadcast against `log_probs`.
        max_lengths: the longest.
        normalization: see `length_divisor`.
        penalty: see `length_divisor`.

    Returns:
        The bounds, in the shape of `log_probs`.

    Example:
        >>> best_reachable(np.array([-4.0]), np.array([2.0]), np.array([8.0]), "average", penalty=1.0)
        array([-0.5])
    """
    shortest = length_divisor(lengths, normalization, penalty)
    longest = length_divisor(max_lengths, normalization, penalty)
    return normalize(log_probs, arrays.of(log_probs).where(shortest > longest, shortest, longest))


def coverage_score(attention: Array, source_mask: Array | None, penalty: float) -> Array:
    """Compute penalty * sum_i log(min(sum_j a_ij, 1)) over real source positions i (Wu et al. 2016, eq. 14).

    Args:
        attention: `(..., S)` attention weights summed over all target tokens, EOS included.
        source_mask: booleans, true at real source positions, broadcast against `attention`; `None`: all are real.
        penalty: the weight beta, >= 0.

    Returns:
        `(...)` scores, <= 0: zero where every real position has received a total weight of one. A position without any
        weight counts as the smallest positive number, so that scores stay finite.

    Example:
        >>> coverage_score(np.array([[1.5, 1.0], [1.0, 0.5]]), None, penalty=1.0).round(4)
        array([ 0.    , -0.6931])
    """
    xp = arrays.of(attention)
    logs = xp.log(attention.clip(_TINY, 1))  # (..., S)
    if source_mask is not None:
        logs = xp.where(source_mask, logs, 0.0)
    return penalty * logs.sum(-1)


def score_of(log_prob: float, length: int, attention: Array | None, config: GenerationConfig) -> float:
    """Compute what a whole output is ranked by.

    Args:
        log_prob: sum of the log-probabilities of its tokens.
        length: their number, EOS included.
        attention: `(T, S)` attention weights, for the coverage penalty.
        config: the options.
    """
    divisor = length_divisor(np.array([max(length, 1)], float), config.length_normalization, config.length_penalty)
    score = float(normalize(np.array([log_prob]), divisor)[0])
    if config.coverage_penalty and attention is not None:
        score += float(coverage_score(attention.sum(0), None, config.coverage_penalty))
    return score
