"""Beam search in NumPy, with the results of `lit_seq2seq.search.beam_search`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.types import SpecialIds, UserError

Array = npt.NDArray[Any]
State = dict[str, Array]


class Hypothesis(NamedTuple):
    """One decoded output.

    Attributes:
        tokens: ids without BOS and without EOS.
        score: the number by which hypotheses are ranked.
        token_scores: log-probability of each token, then of EOS where it was produced.
    """

    tokens: list[int]
    score: float
    token_scores: list[float]


class Step(NamedTuple):
    """Result of one step: `log_probs (B, K, V)`, `attention (B, K, S)` or `None`, and the state after it."""

    log_probs: Array
    attention: Array | None
    state: State


StepFunction = Callable[[Array, State], Step]


def select(state: State, rows: Array, parents: Array) -> State:
    """Reorder a state: tensors of sources by `rows (B',)`, those of hypotheses by `parents (B', K')` too.

    Those of the whole batch, under `batch.*`, stay.

    Example:
        >>> state = {"memory.keys": np.arange(2), "cells.h": np.arange(6).reshape(2, 3)}
        >>> select(state, np.array([1]), np.array([[2, 0]]))["cells.h"]
        array([[5, 3]])
    """

    def chosen(name: str, value: Array) -> Array:
        if name.startswith("batch"):
            return value
        return value[rows] if name.startswith(("memory", "summary")) else value[rows[:, None], parents]

    return {name: chosen(name, value) for name, value in state.items()}


def beam_search(
    step: StepFunction, state: State, mask: Array, specials: SpecialIds, *, config: GenerationConfig
) -> list[list[Hypothesis]]:
    """Search for the best outputs; with one beam this is greedy search.

    Args:
        step: `step(tokens (B, K), state)` advances every hypothesis by one token.
        state: the state before BOS, one hypothesis per source; see `select` for the names.
        mask: `(B, S)` true at real source positions; its first size is the number of sources.
        specials: ids of the special symbols.
        config: the options.

    Returns:
        For each source up to `num_return_sequences` hypotheses, best first.
    """
    sources, width = len(mask), config.num_beams
    ended: list[list[Hypothesis]] = [[] for _ in range(sources)]
    rows = np.arange(sources)  # of the sources still searched
    log_probs = np.zeros((sources, 1), np.float32)
    paths = np.zeros((sources, 1, 0), np.int64)
    token_scores = np.zeros((sources, 1, 0), np.float32)
    coverage: Array | None = None
    tokens = np.full((sources, 1), specials.bos)
    for time in range(config.max_new_tokens):
        output = step(tokens, state)
        allowed = constrain(output.log_probs, paths, time, specials, config=config)
        parents, chosen, log_probs, chosen_scores = _candidates(allowed, log_probs, 2 * width if width > 1 else 1)
        place = np.arange(len(rows))[:, None]
        paths = np.concatenate([paths[place, parents], chosen[..., None]], axis=2)  # (B, C, T)
        token_scores = np.concatenate([token_scores[place, parents], chosen_scores[..., None]], axis=2)
        coverage = add_coverage(coverage, output.attention, config)
        coverage = None if coverage is None else coverage[place, parents]  # (B, C, S)
        ends = (chosen == specials.eos) | (time + 1 >= config.max_new_tokens)
        scores = score(log_probs, time + 1, coverage, mask[rows], config=config)
        for b, c in np.argwhere(ends[:, :width] & np.isfinite(log_probs[:, :width])):
            finished = paths[b, c, :-1] if chosen[b, c] == specials.eos else paths[b, c]
            found = Hypothesis(finished.tolist(), float(scores[b, c]), token_scores[b, c].tolist())
            ended[rows[b]] = sorted([*ended[rows[b]], found], key=lambda one: -one.score)[:width]

        log_probs = np.where(ends, -np.inf, log_probs).astype(np.float32)
        order = np.argsort(-log_probs, axis=1, kind="stable")[:, :width]  # (B, K)
        best = log_probs[place[:, 0], order[:, 0]]
        reachable = _best_reachable(best, time + 2, config)
        going = [
            i for i in range(len(rows)) if np.isfinite(best[i]) and not _enough(ended[rows[i]], reachable[i], config)
        ]
        if not going:
            break
        kept = np.array(going)
        order, rows = order[kept], rows[kept]
        state = select(output.state, kept, parents[kept[:, None], order])
        log_probs, paths = log_probs[kept[:, None], order], paths[kept[:, None], order]
        token_scores = token_scores[kept[:, None], order]
        coverage = None if coverage is None else coverage[kept[:, None], order]
        tokens = paths[:, :, -1]
    return [found[: config.num_return_sequences] for found in ended]


def _enough(ended: list[Hypothesis], reachable: float, config: GenerationConfig) -> bool:
    """Tell whether a source needs no further step."""
    if config.early_stopping is True or config.num_beams == 1:
        return len(ended) >= config.num_beams
    count = config.num_return_sequences
    return len(ended) >= count and reachable <= ended[count - 1].score


def constrain(log_probs: Array, paths: Array, time: int, specials: SpecialIds, *, config: GenerationConfig) -> Array:
    """Ban padding, BOS, repeated n-grams and a too early EOS; what nothing may follow gets EOS for certain."""
    log_probs = log_probs.astype(np.float32)
    ending = log_probs[..., specials.eos].copy()  # (B, K); padding or BOS may be the same symbol
    log_probs[..., [specials.pad, specials.bos]] = -np.inf
    size = config.no_repeat_ngram_size
    if size and paths.shape[2] >= size:
        ngrams = np.lib.stride_tricks.sliding_window_view(paths, size, axis=2)  # (B, K, W, size)
        context = paths[:, :, None, paths.shape[2] - size + 1 :]
        repeated = (ngrams[..., :-1] == context).all(-1)  # (B, K, W)
        np.put_along_axis(log_probs, np.where(repeated, ngrams[..., -1], specials.pad), -np.inf, axis=2)
    log_probs[..., specials.eos] = -np.inf if time < config.min_new_tokens else ending
    log_probs[np.isneginf(log_probs.max(-1)), specials.eos] = 0
    return log_probs


def add_coverage(coverage: Array | None, attention: Array | None, config: GenerationConfig) -> Array | None:
    """Add one step's attention to its sum `(B, K, S)`, if there is a coverage penalty."""
    if not config.coverage_penalty:
        return None
    if attention is None:
        value = config.coverage_penalty
        raise UserError(f"coverage_penalty={value}: needs a model with attention; set coverage_penalty to 0")
    return attention if coverage is None else coverage + attention


def _candidates(allowed: Array, log_probs: Array, count: int) -> tuple[Array, Array, Array, Array]:
    """Return the `count` best continuations of each source: parents, tokens, log-probabilities, those of the token."""
    scores, tokens = top(allowed, count)  # (B, K, C)
    best = log_probs[:, :1]
    relative = ((log_probs - best)[:, :, None] + scores).reshape(len(log_probs), -1)
    values, index = top(relative, count)  # (B, C)
    places = tokens.shape[2]
    flat_tokens, flat_scores = tokens.reshape(len(tokens), -1), scores.reshape(len(scores), -1)
    chosen = np.take_along_axis(flat_tokens, index, 1)
    return index // places, chosen, best + values, np.take_along_axis(flat_scores, index, 1)


def top(scores: Array, count: int) -> tuple[Array, Array]:
    """Return the `count` largest of the last dimension and their places, best first, equal ones by place."""
    if count == 1:
        index = scores.argmax(-1)[..., None]
        return np.take_along_axis(scores, index, -1), index
    if count < scores.shape[-1]:
        index = np.sort(np.argpartition(-scores, count - 1, axis=-1)[..., :count], axis=-1)
    else:
        index = np.broadcast_to(np.arange(scores.shape[-1]), scores.shape)
    values = np.take_along_axis(scores, index, -1)
    order = np.argsort(-values, axis=-1, kind="stable")
    return np.take_along_axis(values, order, -1), np.take_along_axis(index, order, -1)


def length_divisor(length: int, config: GenerationConfig) -> np.float32:
    """Compute what log-probabilities are divided by; see `GenerationConfig.length_normalization`."""
    kind, limits = config.length_normalization, np.finfo(np.float32)
    if kind == "none":
        return np.float32(1)
    base = np.float32((5 + length) / 6 if kind == "wu" else length)
    if kind == "average":
        return base
    with np.errstate(over="ignore"):
        return np.float32(np.clip(base ** np.float32(config.length_penalty), limits.tiny, limits.max))


def normalize(log_probs: Array, divisor: np.float32) -> Array:
    """Divide log-probabilities; the result stays finite."""
    return np.maximum(log_probs / divisor, np.finfo(np.float32).min)


def score(log_probs: Array, length: int, coverage: Array | None, mask: Array, *, config: GenerationConfig) -> Array:
    """Score hypotheses `(B, C)` that end with so many tokens (Wu et al. 2016, eq. 14)."""
    scores = normalize(log_probs, length_divisor(length, config))
    if coverage is None:
        return scores
    logs = np.log(np.clip(coverage, np.finfo(np.float32).tiny, 1))  # (B, C, S)
    found: Array = scores + np.float32(config.coverage_penalty) * np.where(mask[:, None], logs, 0).sum(-1)
    return found


def _best_reachable(log_probs: Array, length: int, config: GenerationConfig) -> Array:
    """Bound the score of any later end."""
    longest = length_divisor(config.max_new_tokens, config)
    return normalize(log_probs, max(length_divisor(length, config), longest))
