"""Sampling of outputs."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array, Arrays
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.greedy import Choice, Paths, follow
from lit_seq2seq.search.rules import Options, begin
from lit_seq2seq.types import Hypothesis, S, StepFunction

BLOCK = 128
"""So many tokens of an output get their random numbers at once."""


@arrays.quiet
def sample_search(
    step: StepFunction[S], state: S, *, return_attention: bool = False, **options: Unpack[Options]
) -> list[list[Hypothesis]]:
    """Draw `num_return_sequences` independent outputs per sentence, each token from the model's distribution.

    The distribution is first sharpened by `temperature`, then cut to `top_k`, then to `top_p`. The scores in the result
    do not show this: they are log-probabilities under the model itself, comparable with those of `beam_search`. The
    random numbers are drawn on the CPU for the whole batch, so that an output depends on the seed and on the sentence's
    place in the batch, but neither on its batch mates nor on the device.

    For the arguments see `search`. The same output may occur more than once in the result.
    """
    config = options["config"]
    step, state, rules, constraints = begin(step, state, **options)
    choose = sampler(config, options["batch_size"], rules.xp)
    paths = Paths.start(rules, constraints, config.num_return_sequences)
    return follow(step, state, choose, paths, return_attention=return_attention)


def sampler(config: GenerationConfig, batch_size: int, xp: Arrays) -> Choice:
    """Return what chooses the tokens of one search at random.

    Args:
        config: the options.
        batch_size: number of sentences B.
        xp: functions of the arrays that the log-probabilities will be.
    """
    random, shape = xp.random(config.seed), (batch_size, config.num_return_sequences)
    uniform, steps = xp.full((*shape, 0), 0.0), 0  # (B, K, T)

    def choose(log_probs: Array, sentences: Array, positions: Array) -> Array:
        nonlocal steps, uniform
        if uniform.shape[2] == steps < config.max_new_tokens:
            more = random.random((*shape, min(BLOCK, config.max_new_tokens - steps)), np.float32)
            uniform = xp.concat([uniform, xp.array(more)], 2)
        steps += 1
        return draw(distribution(log_probs, config), uniform[sentences, :, positions.clip(0, uniform.shape[2] - 1)])

    return choose


def distribution(log_probs: Array, config: GenerationConfig) -> Array:
    """Sharpen by `temperature`, cut to `top_k`, then to `top_p`: probabilities `(..., V)`.

    Args:
        log_probs: `(..., V)` of the next token.
        config: the options.

    Example:
        >>> log_probs = np.log(np.array([0.2, 0.5, 0.3]))
        >>> distribution(log_probs, GenerationConfig(do_sample=True, top_k=2)).round(3)
        array([0.   , 0.625, 0.375])
        >>> distribution(log_probs, GenerationConfig(do_sample=True, top_p=0.5))
        array([0., 1., 0.])
    """
    xp, limits = arrays.of(log_probs), np.finfo(np.float32)
    temperature = min(max(config.temperature, float(limits.tiny)), float(limits.max))
    logits = (log_probs - xp.amax(log_probs, keepdims=True)) / temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    return xp.softmax(keep_top_p(logits, config.top_p) if config.top_p < 1 else logits)


def keep_top_k(log_probs: Array, k: int) -> Array:
    """Set all but the `k` largest values of each row to minus infinity.

    Args:
        log_probs: `(..., V)` log-probabilities or logits.
        k: how many to keep, >= 1; a `k` beyond V keeps all.

    Returns:
        `(..., V)` the filtered values.

    Example:
        >>> keep_top_k(np.array([[1.0, 3.0, 2.0]]), k=2)
        array([[-inf,   3.,   2.]])
    """
    xp = arrays.of(log_probs)
    values, index = xp.largest(log_probs, k)  # (..., k)
    return xp.put(xp.full_like(log_probs, -np.inf), index, values)


def keep_top_p(log_probs: Array, p: float) -> Array:
    """Keep the nucleus: the smallest set of most probable tokens whose probabilities sum to at least `p`.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", eq. 2.

    Args:
        log_probs: `(..., V)` log-probabilities or logits; they are normalised first.
        p: the mass to keep, in (0, 1]. The most probable token is always kept.

    Returns:
        `(..., V)` the given values, minus infinity outside the nucleus.

    Example:
        >>> np.exp(keep_top_p(np.log(np.array([[0.2, 0.7, 0.1]])), p=0.8))
        array([[0.2, 0.7, 0. ]])
    """
    xp = arrays.of(log_probs)
    ordered, index = xp.sort_down(xp.softmax(log_probs))  # (..., V)
    outside = xp.cumsum(ordered) - ordered >= p
    outside[..., 0] = False  # single precision may not tell `p` from 0
    return xp.where(xp.put(xp.full_like(outside, False), index, outside), -np.inf, log_probs)


def draw(probabilities: Array, uniform: Array) -> Array:
    """Turn uniform random numbers into tokens by inversion: the first token whose cumulative probability exceeds them.

    Args:
        probabilities: `(..., V)` distributions.
        uniform: `(...)` numbers in [0, 1).

    Returns:
        `(...)` tokens; those of probability 0 are never drawn.

    Example:
        >>> draw(np.array([[0.5, 0.0, 0.5], [0.5, 0.0, 0.5]]), np.array([0.4, 0.5]))
        array([0, 2])
    """
    xp = arrays.of(probabilities)
    cumulative = xp.where(probabilities == 0, 0.0, xp.cumsum(probabilities))  # (..., V)
    threshold = uniform[..., None] * xp.amax(cumulative, keepdims=True)  # (..., 1)
    return xp.first(cumulative > threshold)
