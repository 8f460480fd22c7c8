"""Search by connectionist temporal classification (CTC), alone or joined with a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Self

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.scores import length_divisor, normalize
from lit_seq2seq.types import Hypothesis, Padded, S, SpecialIds, StepFunction, StepOutput, Value

_LEAST = -1000.0
"""A log-probability as good as minus infinity, but such that sums of it can be subtracted."""


@dataclass(frozen=True)
class Prefixes(Value):
    """What CTC thinks of N = B * K beginnings g of outputs; implements `SearchState`.

    `label` and `blank` are the forward variables `log gamma_s^n(g)` and `log gamma_s^b(g)` of Watanabe et al. (2017,
    https://ieeexplore.ieee.org/document/8068205, algorithm 2): the log-probabilities that the positions up to s give
    exactly g and that the last of them is a symbol, or a blank. The recursion over s is linear, so that it is computed
    as a cumulative sum, over all positions at once; in double precision, for its terms are large.

    Attributes:
        frames: `(B, S, V)` probabilities at each position of a *source*, of nothing but the blank after its end.
        label: `(N, S)`.
        blank: `(N, S)`.
        last: `(N,)` last symbol of g, the blank where g is empty.
        log_prob: `(N,)` log-probability that an output begins with g.
        specials: ids of the special symbols; the blank is `specials.pad`.
    """

    frames: Array
    label: Array
    blank: Array
    last: Array
    log_prob: Array
    specials: SpecialIds

    @classmethod
    def start(cls, frames: Padded, specials: SpecialIds) -> Self:
        """Begin with one empty output per source, given log-probabilities `frames (B, S, V)`."""
        xp = arrays.of(frames.values)
        values = xp.exp(xp.double(frames.values))
        padding = xp.full_like(values[0, 0], 0)  # (V,)
        padding[specials.pad] = 1
        values = xp.where(frames.mask[..., None], values, padding)
        blank = xp.log(values[..., specials.pad]).cumsum(1)  # (B, S)
        last = xp.full_like(frames.lengths, specials.pad)
        return cls(values, xp.full_like(blank, -np.inf), blank, last, xp.full_like(blank[:, 0], 0), specials)

    def select(self, index: Array) -> Self:
        """Reorder the beginnings by `index (B', K')` and drop the sources that are missing from it."""
        flat, beams = index.flatten(), len(self.last) // len(self.frames)
        return replace(
            self,
            frames=self.frames if len(index) == len(self.frames) else self.frames[index[:, 0] // beams],
            label=self.label[flat],
            blank=self.blank[flat],
            last=self.last[flat],
            log_prob=self.log_prob[flat],
        )

    def extend(self, tokens: Array) -> Self:
        """Append one symbol to each beginning, `(N,)`; BOS leaves the empty ones as they are."""
        xp, pads = arrays.of(tokens), arrays.of(tokens).full_like(tokens, self.specials.pad)
        new, blanks = self._log_probs(tokens), self._log_probs(pads)  # (N, S)
        whole, ready = self._before()
        ready = xp.where((tokens == self.last)[:, None], ready, whole)  # (N, S)
        label = _linear(ready, new)
        blank = _linear(_shifted(label, -np.inf), blanks)
        log_prob = xp.logsumexp(ready + new)
        kept = tokens == self.specials.bos
        return replace(
            self,
            label=xp.where(kept[:, None], self.label, label),
            blank=xp.where(kept[:, None], self.blank, blank),
            last=xp.where(kept, self.last, tokens),
            log_prob=xp.where(kept, self.log_prob, log_prob),
        )

    def continuations(self) -> Array:
        """Compute by how much the log-probability changes with each symbol that may come next, `(N, V)`.

        For EOS it is that of g being the whole output. Where CTC holds g impossible, as it can with a forced beginning,
        it tells nothing: all are 0.
        """
        xp, specials = arrays.of(self.last), self.specials
        whole, ready = self._before()  # (N, S)
        highest = xp.amax(whole, keepdims=True).clip(float(np.finfo(np.float64).min))  # (N, 1)
        weights = xp.exp(whole - highest).reshape(len(self.frames), -1, whole.shape[1])  # (B, K, S)
        begun = xp.log((weights @ self.frames).reshape(len(whole), -1)) + highest  # (N, V)
        again = xp.logsumexp(ready + self._log_probs(self.last))[:, None]  # (N, 1)
        begun = xp.put(begun, self.last[:, None], again)
        begun[:, specials.pad] = -np.inf
        begun[:, specials.eos] = xp.logaddexp(self.label[:, -1], self.blank[:, -1])
        change = (begun - self.log_prob[:, None]).clip(-np.inf, 0)
        return xp.where((self.log_prob == -np.inf)[:, None], 0.0, change)

    def _log_probs(self, symbols: Array) -> Array:
        """Look up the log-probabilities of one symbol per beginning, `(N,)`, at each position: `(N, S)`."""
        xp = arrays.of(symbols)
        places = symbols.reshape(len(self.frames), 1, -1)  # (B, 1, K)
        return xp.log(xp.gather(self.frames, places, 2)).swapaxes(1, 2).reshape(len(symbols), -1)

    def _before(self) -> tuple[Array, Array]:
        """Log-probabilities that exactly g lies before each position, and that a blank ends it: `(N, S)` each."""
        xp = arrays.of(self.last)
        empty = xp.where(self.last == self.specials.pad, 0.0, xp.full_like(self.log_prob, -np.inf))[:, None]
        blank = xp.concat([empty, self.blank[:, :-1]], 1)
        return xp.logaddexp(_shifted(self.label, -np.inf), blank), blank


def _shifted(x: Array, first: float) -> Array:
    """Move `(N, S)` one position on."""
    xp = arrays.of(x)
    return xp.concat([xp.full_like(x[:, :1], first), x[:, :-1]], 1)


def _linear(entering: Array, staying: Array) -> Array:
    """Solve `x_s = (x_{s-1} + exp(entering_s)) exp(staying_s)`, x_{-1} = 0, for `log x`, `(N, S)`."""
    xp = arrays.of(entering)
    total = staying.clip(_LEAST).cumsum(1)
    solved = total + xp.logcumsumexp(entering - (total - staying.clip(_LEAST)))
    return xp.where(staying == -np.inf, -np.inf, solved)


@dataclass(frozen=True)
class JointState(Value, Generic[S]):
    """State of a decoder, and what CTC thinks of the same hypotheses. Implements `SearchState`."""

    decoder: S
    prefixes: Prefixes

    def select(self, index: Array) -> Self:
        """Reorder the hypotheses of both by `index (B', K')`; see `SearchState`."""
        return replace(self, decoder=self.decoder.select(index), prefixes=self.prefixes.select(index))


def join_ctc(
    step: StepFunction[S], state: S, frames: Padded, specials: SpecialIds, *, weight: float
) -> tuple[StepFunction[JointState[S]], JointState[S]]:
    """Make a step function and first state whose scores are `weight CTC + (1 - weight) decoder`.

    The score of a hypothesis y is then `weight log p_ctc(y...) + (1 - weight) log p(y)` (Watanabe et al. 2017): while y
    is open its CTC part is the probability of all outputs that begin with y, in the end that of y alone.

    Args:
        step: of the decoder.
        state: of the decoder, before BOS, one hypothesis per source.
        frames: `(B, S, V)` CTC's log-probabilities at each position.
        specials: ids of the special symbols; padding is the blank.
        weight: above 0 and at most 1.

    Example:
        >>> table = np.log(np.full((6, 6), 1 / 6))
        >>> class Nothing(Value):
        ...     pass
        >>> def step(tokens, state):
        ...     return StepOutput(table[tokens], state)
        >>> with np.errstate(divide="ignore"):
        ...     frames = Padded(np.log([[[0.5, 0, 0, 0, 0.5, 0]]]), np.array([1]))
        ...     joint, state = join_ctc(step, Nothing(), frames, SpecialIds(), weight=1.0)
        ...     print(np.exp(joint(np.array([2]), state).log_probs)[0, 3:5])  # the end, and the symbol 4
        [0.5 0.5]
    """

    def joint(tokens: Array, state: JointState[S]) -> StepOutput[JointState[S]]:
        output = step(tokens, state.decoder)
        prefixes = state.prefixes.extend(tokens)
        log_probs = weight * prefixes.continuations()
        if weight < 1:
            log_probs = log_probs + (1 - weight) * output.log_probs
        log_probs = arrays.of(log_probs).single(log_probs)
        return StepOutput(log_probs, JointState(output.state, prefixes), output.attention)

    return joint, JointState(state, Prefixes.start(frames, specials))


def best_path(frames: Padded, specials: SpecialIds, config: GenerationConfig) -> list[list[Hypothesis]]:
    """Take the most probable symbol or blank at each position, join repetitions and drop blanks; never BOS or EOS.

    The best path decoding of Graves et al. (2006, section 3.2): no decoder runs, and nothing is searched. The
    log-probability of a hypothesis is that of its path; a token's is that of its positions and the blanks before them,
    EOS's that of the blanks at the end.

    Args:
        frames: `(B, S, V)` CTC's log-probabilities at each position.
        specials: ids of the special symbols; padding is the blank.
        config: of its options, `max_new_tokens` and those of the score count.

    Returns:
        For each source a list of one hypothesis, with its tensors on the CPU.

    Example:
        >>> likely = np.eye(6)[[[4, 4, 0, 4, 5]]]  # 0 is the blank
        >>> best_path(Padded(np.log(likely + 1e-9), np.array([5])), SpecialIds(), GenerationConfig())[0][0].tokens
        array([4, 4, 5])
    """
    xp, pad = arrays.of(frames.values), specials.pad
    values = xp.copy(frames.values)
    values[..., [index for index in {specials.bos, specials.eos} if index != pad]] = -np.inf
    log_probs = xp.host(xp.where(frames.mask, xp.amax(values), 0.0))  # (B, S)
    paths = xp.host(xp.where(frames.mask, values.argmax(-1), pad))
    found = []
    for path, numbers in zip(paths, log_probs, strict=True):
        starts = (path != pad) & (path != _shifted(path[None], pad)[0])
        length = min(int(starts.sum()) + 1, config.max_new_tokens)
        places = np.asarray(starts.cumsum(0) - 1 * (path != pad))  # of the token that a position belongs to
        kept = np.bincount(places, np.asarray(numbers), minlength=length)[:length]
        divisor = length_divisor(np.array([float(length)]), config.length_normalization, config.length_penalty)
        score = float(normalize(kept.sum(), divisor)[0])
        scores = arrays.of(path).array(kept.astype(np.float32))
        found.append([Hypothesis(path[starts][: config.max_new_tokens], score, float(kept.sum()), scores)])
    return found
