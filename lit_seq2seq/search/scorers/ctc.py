"""Connectionist temporal classification (CTC) beside a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.options import Range, expect
from lit_seq2seq.search.scorers.base import Scorer
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import Joined, Padded, S, SpecialIds, StepFunction, StepOutput, UserError, Value

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
        blank = _linear(shifted(label, -np.inf), blanks)
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
        return xp.logaddexp(shifted(self.label, -np.inf), blank), blank


def shifted(x: Array, first: float) -> Array:
    """Move `(N, S)` one position on."""
    xp = arrays.of(x)
    return xp.concat([xp.full_like(x[:, :1], first), x[:, :-1]], 1)


def _linear(entering: Array, staying: Array) -> Array:
    """Solve `x_s = (x_{s-1} + exp(entering_s)) exp(staying_s)`, x_{-1} = 0, for `log x`, `(N, S)`."""
    xp = arrays.of(entering)
    total = staying.clip(_LEAST).cumsum(1)
    solved = total + xp.logcumsumexp(entering - (total - staying.clip(_LEAST)))
    return xp.where(staying == -np.inf, -np.inf, solved)


@checked_fields
@dataclass(frozen=True)
class JointCTC(Scorer):
    """The score of a token is `weight CTC + (1 - weight) decoder` (Watanabe et al. 2017).

    While a hypothesis y is open, its CTC part is the log-probability of all outputs that begin with y, in the end that
    of y alone. The option `ctc_weight` is the same.

    Args:
        weight: above 0 and at most 1.
    """

    needs_frames: ClassVar[bool] = True
    whole_source: ClassVar[bool] = True
    weight: float

    def __post_init__(self) -> None:
        expect(self, "weight", Range(above=0, most=1))

    def join(self, step: StepFunction[S], state: S, task: Task) -> tuple[StepFunction[Any], Any]:
        """Score by CTC, too; see `Scorer.join`."""
        if task.frames is None:
            raise UserError(
                f"ctc_weight={self.weight}: needs a model with CTC; set it to 0, or train with "
                "model.auxiliary=lit_seq2seq.nn.CTC"
            )
        weight, xp = self.weight, task.xp

        def joint(tokens: Array, state: Joined) -> StepOutput[Joined]:
            own, prefixes = state.members
            output, prefixes = step(tokens, own), prefixes.extend(tokens)
            log_probs = weight * prefixes.continuations()
            if weight < 1:
                log_probs = log_probs + (1 - weight) * output.log_probs
            return StepOutput(xp.single(log_probs), Joined((output.state, prefixes)), output.attention, fresh=True)

        return joint, Joined((state, Prefixes.start(task.frames, task.specials)))
