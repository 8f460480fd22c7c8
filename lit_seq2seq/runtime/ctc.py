"""Search by connectionist temporal classification (CTC) in NumPy, as `lit_seq2seq.search.ctc` does it."""

from __future__ import annotations

import numpy as np

from lit_seq2seq.runtime.beam import Array, Hypothesis, State, Step, StepFunction, length_divisor, normalize
from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.types import SpecialIds

_LEAST = -1000.0
"""A log-probability as good as minus infinity, but such that sums of it can be subtracted."""


def join_ctc(
    step: StepFunction, state: State, frames: Array, mask: Array, *, specials: SpecialIds, weight: float
) -> tuple[StepFunction, State]:
    """Make a step function and first state whose scores are `weight CTC + (1 - weight) decoder`.

    What CTC thinks of each hypothesis lies in the state beside the decoder's, under `memory.frames` and `ctc.*`: see
    `lit_seq2seq.search.ctc.Prefixes`, whose double precision and recursion these are.

    Args:
        step: of the decoder.
        state: of the decoder, before BOS, one hypothesis per source.
        frames: `(B, S, V)` CTC's log-probabilities at each position.
        mask: `(B, S)` true at real positions.
        specials: ids of the special symbols; padding is the blank.
        weight: above 0 and at most 1.
    """

    def joint(tokens: Array, state: State) -> Step:
        output = step(tokens, state)
        with np.errstate(divide="ignore", invalid="ignore"):
            prefixes = _extend(state, tokens, specials)
            log_probs = weight * _continuations(prefixes, specials)
        if weight < 1:
            log_probs = log_probs + (1 - weight) * output.log_probs
        return Step(log_probs.astype(np.float32), output.attention, {**output.state, **prefixes})

    with np.errstate(divide="ignore"):
        return joint, {**state, **_start(frames, mask, specials)}


def _start(frames: Array, mask: Array, specials: SpecialIds) -> State:
    """Begin with one empty output per source."""
    values = np.exp(frames.astype(np.float64))
    values = np.where(mask[..., None], values, np.eye(values.shape[2])[specials.pad])
    blank = np.log(values[..., specials.pad]).cumsum(axis=1)[:, None]  # (B, 1, S)
    last = np.full(blank.shape[:2], specials.pad)
    label, log_prob = np.full_like(blank, -np.inf), np.zeros(blank.shape[:2])
    return {"memory.frames": values, "ctc.label": label, "ctc.blank": blank, "ctc.last": last, "ctc.log_prob": log_prob}


def _extend(state: State, tokens: Array, specials: SpecialIds) -> State:
    """Append one symbol to each beginning, `(B, K)`; BOS leaves the empty ones as they are."""
    new, blanks = _log_probs(state, tokens), _log_probs(state, np.full_like(tokens, specials.pad))  # (B, K, S)
    whole, ready = _before(state, specials)
    ready = np.where((tokens == state["ctc.last"])[..., None], ready, whole)
    label = _linear(ready, new)
    after = {
        "ctc.label": label,
        "ctc.blank": _linear(_shifted(label), blanks),
        "ctc.last": tokens,
        "ctc.log_prob": np.logaddexp.reduce(ready + new, axis=2),
    }
    kept = tokens == specials.bos
    chosen = {
        name: np.where(kept if value.ndim == 2 else kept[..., None], state[name], value)
        for name, value in after.items()
    }
    return {"memory.frames": state["memory.frames"], **chosen}


def _continuations(state: State, specials: SpecialIds) -> Array:
    """Compute by how much the log-probability changes with each symbol that may come next, `(B, K, V)`."""
    whole, ready = _before(state, specials)  # (B, K, S)
    highest = np.maximum(whole.max(axis=2, keepdims=True), np.finfo(whole.dtype).min)  # (B, K, 1)
    begun = np.log(np.exp(whole - highest) @ state["memory.frames"]) + highest  # (B, K, V)
    last, log_prob = state["ctc.last"], state["ctc.log_prob"]
    again = np.logaddexp.reduce(ready + _log_probs(state, last), axis=2)
    np.put_along_axis(begun, last[..., None], again[..., None], axis=2)
    begun[..., specials.pad] = -np.inf
    begun[..., specials.eos] = np.logaddexp(state["ctc.label"][..., -1], state["ctc.blank"][..., -1])
    impossible = np.isneginf(log_prob)[..., None]
    found: Array = np.where(impossible, 0, np.minimum(begun - log_prob[..., None], 0))
    return found


def _log_probs(state: State, symbols: Array) -> Array:
    """Look up the log-probabilities of one symbol per beginning, `(B, K)`, at each position: `(B, K, S)`."""
    found: Array = np.log(np.take_along_axis(state["memory.frames"], symbols[:, None], axis=2)).swapaxes(1, 2)
    return found


def _before(state: State, specials: SpecialIds) -> tuple[Array, Array]:
    """Log-probabilities that exactly g lies before each position, and that a blank ends it: `(B, K, S)` each."""
    blank = _shifted(state["ctc.blank"])
    blank[..., 0] = np.where(state["ctc.last"] == specials.pad, 0, -np.inf)
    return np.logaddexp(_shifted(state["ctc.label"]), blank), blank


def _shifted(x: Array) -> Array:
    """Move `(B, K, S)` one position on."""
    return np.concatenate([np.full_like(x[..., :1], -np.inf), x[..., :-1]], axis=-1)


def _linear(entering: Array, staying: Array) -> Array:
    """Solve `x_s = (x_{s-1} + exp(entering_s)) exp(staying_s)`, x_{-1} = 0, for `log x`, `(B, K, S)`."""
    finite = np.maximum(staying, _LEAST)
    total = finite.cumsum(axis=-1)
    solved = total + np.logaddexp.accumulate(entering - (total - finite), axis=-1)
    return np.where(np.isneginf(staying), -np.inf, solved)


def best_path(frames: Array, mask: Array, specials: SpecialIds, config: GenerationConfig) -> list[list[Hypothesis]]:
    """Take the most probable symbol or blank at each position, join repetitions and drop blanks (Graves et al. 2006).

    Args:
        frames: `(B, S, V)` CTC's log-probabilities at each position.
        mask: `(B, S)` true at real positions.
        specials: ids of the special symbols; padding is the blank.
        config: of its options, `max_new_tokens` and those of the score count.

    Returns:
        For each source a list of one hypothesis.
    """
    never = [index for index in {specials.bos, specials.eos} if index != specials.pad]
    frames = frames.copy()
    frames[..., never] = -np.inf
    path = np.where(mask, frames.argmax(-1), specials.pad)  # (B, S)
    log_probs = np.where(mask, frames.max(-1), 0)
    labels = path != specials.pad
    begins = labels.copy()
    begins[:, 1:] &= path[:, 1:] != path[:, :-1]
    places = begins.cumsum(axis=1) - labels  # (B, S), place of the token that a position belongs to
    found = []
    for row, starts, place, numbers in zip(path, begins, places, log_probs, strict=True):
        length = min(int(starts.sum()) + 1, config.max_new_tokens)
        kept = np.bincount(place, numbers, minlength=length)[:length]
        score = normalize(kept.sum(), length_divisor(length, config))
        found.append([Hypothesis(row[starts][: config.max_new_tokens].tolist(), float(score), kept.tolist())])
    return found
