"""Sampling in NumPy, as `lit_seq2seq.search.sample_search` does it."""

from __future__ import annotations

import numpy as np

from lit_seq2seq.runtime.beam import Array, Hypothesis, State, StepFunction, add_coverage, constrain, score, select, top
from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.types import SpecialIds

BLOCK = 128
"""So many tokens of an output get their random numbers at once."""


def random_of(config: GenerationConfig) -> np.random.Generator:
    """Return what draws random numbers, the same again where there is a seed, which may be negative as torch's."""
    return np.random.default_rng(None if config.seed is None else config.seed % 2**64)


def sample_search(
    step: StepFunction,
    state: State,
    mask: Array,
    specials: SpecialIds,
    *,
    config: GenerationConfig,
    random: np.random.Generator,
) -> list[list[Hypothesis]]:
    """Draw `num_return_sequences` independent outputs per source, each token from the model's distribution.

    The scores are log-probabilities under the model itself, comparable with those of `beam_search`.

    Args:
        step: see `beam_search`.
        state: see `beam_search`.
        mask: see `beam_search`.
        specials: ids of the special symbols.
        config: the options.
        random: where random numbers come from.

    Returns:
        For each source its hypotheses, best first; the same one may occur more than once.
    """
    shape = len(mask), config.num_return_sequences
    state = select(state, np.arange(shape[0]), np.zeros(shape, np.int64))
    tokens, paths = np.full(shape, specials.bos), np.zeros((*shape, 0), np.int64)
    token_scores = np.zeros((*shape, 0), np.float32)
    log_probs, scores = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    lengths, ended = np.zeros(shape, np.int64), np.zeros(shape, bool)
    coverage: Array | None = None
    for time in range(config.max_new_tokens):
        output = step(tokens, state)
        allowed = constrain(output.log_probs, paths, time, specials, config=config)  # (B, K, V)
        if time % BLOCK == 0:
            uniform = random.random((*shape, min(BLOCK, config.max_new_tokens - time)), np.float32)
        tokens = draw(distribution(allowed, config), uniform[..., time % BLOCK])
        chosen = np.take_along_axis(allowed, tokens[..., None], axis=2)
        paths = np.concatenate([paths, tokens[..., None]], axis=2)
        token_scores = np.concatenate([token_scores, chosen], axis=2)
        log_probs = log_probs + chosen[..., 0]
        coverage = add_coverage(coverage, output.attention, config)
        scores = np.where(ended, scores, score(log_probs, time + 1, coverage, mask, config=config))
        lengths = np.where(ended, lengths, time + 1)
        ended = ended | (tokens == specials.eos)
        if ended.all():
            break
        state = output.state
    found: list[list[Hypothesis]] = []
    for b, order in enumerate(np.argsort(-scores, axis=1, kind="stable")):
        row = [(paths[b, k, : lengths[b, k]].tolist(), float(scores[b, k]), token_scores[b, k]) for k in order]
        found.append(
            [
                Hypothesis(path[:-1] if path[-1] == specials.eos else path, total, numbers[: len(path)].tolist())
                for path, total, numbers in row
            ]
        )
    return found


def distribution(log_probs: Array, config: GenerationConfig) -> Array:
    """Sharpen by `temperature`, cut to `top_k`, then to `top_p`: probabilities `(..., V)`.

    Args:
        log_probs: `(..., V)` of the next token.
        config: the options.

    Example:
        >>> log_probs = np.log(np.array([0.2, 0.5, 0.3]))
        >>> distribution(log_probs, GenerationConfig(do_sample=True, top_k=2)).round(3).tolist()
        [0.0, 0.625, 0.375]
        >>> distribution(log_probs, GenerationConfig(do_sample=True, top_p=0.5)).tolist()
        [0.0, 1.0, 0.0]
    """
    limits = np.finfo(np.float32)
    temperature = np.float32(min(max(config.temperature, float(limits.tiny)), float(limits.max)))
    with np.errstate(over="ignore"):
        logits = (log_probs - log_probs.max(-1, keepdims=True)) / temperature
    if config.top_k:
        values, index = top(logits, config.top_k)
        logits = np.full_like(logits, -np.inf)
        np.put_along_axis(logits, index, values, axis=-1)
    probabilities = _softmax(logits)
    if config.top_p == 1:
        return probabilities
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=-1)
    before = np.cumsum(ordered, axis=-1, dtype=np.float64) - ordered  # mass of the more probable
    np.put_along_axis(
        logits, order, np.where(before >= config.top_p, -np.inf, np.take_along_axis(logits, order, -1)), -1
    )
    return _softmax(logits)


def _softmax(logits: Array) -> Array:
    values = np.exp(logits - logits.max(-1, keepdims=True))
    found: Array = values / values.sum(-1, keepdims=True)
    return found


def draw(probabilities: Array, uniform: Array) -> Array:
    """Turn random numbers `(...)` into tokens: the first whose cumulative probability, of `(..., V)`, exceeds them."""
    cumulative = np.where(probabilities == 0, 0, np.cumsum(probabilities, axis=-1, dtype=np.float64))
    found: Array = (cumulative > uniform[..., None] * cumulative.max(-1, keepdims=True)).argmax(-1)
    return found
