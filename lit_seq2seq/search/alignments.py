"""Search for the outputs of transducers frame by frame, as the frames of many streams come in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.scores import best_reachable, length_divisor, normalize
from lit_seq2seq.search.task import Host, OutputVocabulary, Task
from lit_seq2seq.types import Padded, SpecialIds, StepFunction, StepOutput, UserError, Value

_WITHOUT = (
    *("do_sample", "bad_words", "force_words", "constraints", "no_repeat_ngram_size", "repetition_penalty", "prefix"),
    *("min_new_tokens", "coverage_penalty", "ctc_weight", "num_beam_groups", "shortlist"),
)
_ROOM = 16  # by how many tokens the space for outputs grows


class Transducer(Protocol):
    """What this search asks of a model; its blank is EOS. A state has a row for each of N outputs."""

    def begin(self, count: int) -> tuple[Array, Any]:
        """Read BOS for `count` outputs: queries `(N, J)` and the state after."""

    def read(self, tokens: Array, state: Any) -> tuple[Array, Any]:
        """Read a token for each output, `(N,)`: queries `(N, J)` and the state after."""

    def join(self, frames: Array, queries: Array) -> Array:
        """Compute the log-probabilities of symbols and blank, `(N, V)`, from a frame `(N, F)` and a query each."""


class Written(NamedTuple):
    """An output, or a part of one.

    Attributes:
        tokens: `(T,)` ids without EOS.
        times: `(T,)` the frame, counted from 0, at which each was written.
        token_scores: `(T,)` the log-probability of each, summed over alignments, and what scorers gave it.
        score: what outputs are ranked by; 0 for a part.
    """

    tokens: Array
    times: Array
    token_scores: Array
    score: float = 0.0


@dataclass(frozen=True)
class Outputs(Value):
    """K outputs of each of B streams, the best first.

    Attributes:
        tokens: `(B, K, U)` ids, padded.
        times: `(B, K, U)` the frame at which each was written.
        token_scores: `(B, K, U)`.
        lengths: `(B, K)`.
        log_probs: `(B, K)` summed over alignments, of 64 bits; minus infinity where there is no output.
        told: `(B, K)` what of it is in `token_scores`.
    """

    tokens: Array
    times: Array
    token_scores: Array
    lengths: Array
    log_probs: Array
    told: Array

    def gather(self, index: Array) -> Self:
        """Take the outputs `index (B, K')` of each stream."""
        xp = arrays.of(index)
        return self.map(lambda one: xp.gather(one, index if one.ndim == 2 else index[..., None], 1))

    def beside(self, other: Self) -> Self:
        """Put the outputs of both side by side, which have room for as many tokens."""
        mine, others = ([getattr(one, name) for name in self.__dataclass_fields__] for one in (self, other))
        return type(self)(*(arrays.of(a).concat([a, b], 1) for a, b in zip(mine, others, strict=True)))

    def append(self, writes: Array, tokens: Array, times: Array) -> Self:
        """Append tokens `(B, K)` to the outputs that write one."""
        xp = arrays.of(tokens)
        here = writes[..., None] & (xp.arange(self.tokens.shape[2]) == self.lengths[..., None])  # (B, K, U)
        return replace(
            self,
            tokens=xp.where(here, tokens[..., None], self.tokens),
            times=xp.where(here, times[..., None], self.times),
            token_scores=xp.where(here, (self.log_probs - self.told)[..., None], self.token_scores),
            lengths=self.lengths + writes,
            told=xp.where(writes, self.log_probs, self.told),
        )

    def moved(self, pad: int, by: Array, room: int) -> Self:
        """Drop the first `by (B,)` tokens of each stream's outputs, and have room for `room` tokens."""
        xp = arrays.of(self.tokens)
        places = xp.arange(room) + by[:, None, None] + 0 * self.lengths[..., None]  # (B, K, room)
        kept, places = places < self.lengths[..., None], places.clip(0, max(0, self.tokens.shape[2] - 1))

        def move(one: Array, fill: float) -> Array:
            padded = one if one.shape[2] else xp.full_like(places[..., :1], fill)
            return xp.where(kept, xp.gather(padded, places), fill)

        tokens, times, scores = move(self.tokens, pad), move(self.times, 0), move(self.token_scores, 0.0)
        return replace(self, tokens=tokens, times=times, token_scores=scores, lengths=self.lengths - by[:, None])

    def row(self, stream: int, place: int, start: int = 0, stop: int | None = None) -> Written:
        """Return the tokens of an output from `start` to `stop`, on the CPU."""
        host = arrays.of(self.tokens).host
        stop = int(self.lengths[stream, place]) if stop is None else stop
        parts = (self.tokens, self.times, self.token_scores)
        return Written(*(host(one[stream, place, start:stop]) for one in parts))


@dataclass(frozen=True)
class Streams(Value):
    """Where the search stands in B streams: a value, whose rows are streams.

    Attributes:
        frames: `(B, R, F)` those that some output has still to read.
        passed: `(B,)` how many frames there were before these.
        ended: `(B,)` whether no more will come.
        open: K outputs each.
        at: `(B, K)` the frame of `frames` at which each of them is.
        written: `(B, K)` how many tokens each has written there.
        queries: `(B, K, J)` what the joint layer reads of each.
        state: the model's, of the B * K outputs.
        scores: `(B, K, V)` what scorers say of the token that is next; `None` without scorers.
        scorers: their state.
        step: their step function.
        closed: the best outputs that have come to the end.
        ranks: `(B, K)` what these are ranked by.
        taken: `(B,)` how many tokens `take` has taken away.
    """

    frames: Padded
    passed: Array
    ended: Array
    open: Outputs
    at: Array
    written: Array
    queries: Array
    state: Any
    scores: Array | None
    scorers: Any
    step: StepFunction[Any] | None
    closed: Outputs
    ranks: Array
    taken: Array

    def select(self, index: Array) -> Self:
        """Return the streams named by `index`, `(B',)` integers."""
        rows = index[:, None] * self.at.shape[1] + arrays.of(index).arange(self.at.shape[1])  # (B', K)
        apart = replace(self, state=None, scorers=None)
        state = self.state.select(rows.flatten())
        return replace(
            Value.select(apart, index), state=state, scorers=None if self.step is None else self.scorers.select(rows)
        )

    @property
    def finished(self) -> Array:
        """Which streams have ended and been searched to their end, `(B,)`."""
        return self.ended & (self.open.log_probs == -np.inf).all(1)

    @property
    def best(self) -> list[Written]:
        """The best output of each stream so far."""
        closed = arrays.of(self.ended).host(self.finished)
        scores = arrays.of(self.ranks).host(self.ranks[:, 0])
        return [
            self.closed.row(stream, 0)._replace(score=float(scores[stream])) if done else self.open.row(stream, 0)
            for stream, done in enumerate(closed.tolist())
        ]

    @property
    def certain(self) -> Array:
        """How many tokens of the best output nothing can change any more, `(B,)`: all open outputs begin with them."""
        xp, tokens = arrays.of(self.at), self.open.tokens
        same = (tokens == tokens[:, :1]) | (self.open.log_probs == -np.inf)[..., None]  # (B, K, U)
        places = xp.arange(tokens.shape[2])
        apart = ~same.all(1) | (places >= self.open.lengths[:, :1])  # (B, U)
        apart = xp.concat([apart, xp.full((len(apart), 1), True)], 1)
        return xp.where(self.finished, self.closed.lengths[:, 0], xp.first(apart))


class AlignmentSearch:
    """Searches for outputs of a transducer along all alignments of one length at a time (Saon et al. 2020).

    Outputs of u tokens at frame s have made u + s steps; after each step the `num_beams` best are kept
    (https://ieeexplore.ieee.org/document/9053040, algorithm 2). Those with the same tokens are at the same frame, and
    are joined: their probabilities add up, so that a beam wide enough has the exact probability of every output. A step
    is made once the frames have come that it reads: the result is the same whatever pieces they come in, and one beam
    is greedy search. Streams are searched together, each at its own step.

    Scorers, such as a `LanguageModel`, judge tokens, and EOS at the end; blanks are the model's alone.

    Args:
        model: the transducer.
        config: of its options `num_beams`, `num_return_sequences`, `scorers` and those of the score count. There is no
            limit on the length of outputs.
        specials: ids of the special symbols.
        device: of tensors; `None`: arrays of NumPy.
        most: tokens written at one frame at most.
        vocabulary: of the outputs, for scorers.
        host: the model, for scorers.

    Raises:
        UserError: an option that this search does not have.
    """

    def __init__(
        self,
        model: Transducer,
        config: GenerationConfig,
        specials: SpecialIds,
        *,
        device: Any = "cpu",
        most: int = 16,
        vocabulary: OutputVocabulary | None = None,
        host: Host | None = None,
    ) -> None:
        named = next((name for name in _WITHOUT if getattr(config, name) != getattr(GenerationConfig(), name)), None)
        if named is not None:
            raise UserError(f"{named}: a search frame by frame does not have it: leave it out, or search the whole")
        self.model, self.config, self.specials, self.most = model, config, specials, most
        self.xp, self.vocabulary, self.host = arrays.on(device), vocabulary, host

    def begin(self, batch_size: int) -> Streams:
        """Stand before the first frame of each stream."""
        xp, beams = self.xp, self.config.num_beams
        with xp.quiet():
            zeros = xp.full((batch_size, beams), 0)
            first = xp.where(xp.arange(beams) == 0, 0.0, -np.inf) + xp.double(zeros)
            nothing = xp.full((batch_size, beams, 0), 0)
            outputs = Outputs(nothing, nothing, xp.double(nothing), zeros, first, xp.double(zeros))
            queries, state = self.model.begin(batch_size * beams)
            step, scorers, scores = None, None, None
            if self.config.scorers:
                step, scorers = self._scorers(batch_size)
                scorers = scorers.select(xp.arange(batch_size)[:, None] + zeros)
                made = step(xp.full(zeros.flatten().shape, self.specials.bos), scorers)
                scorers, scores = made.state, xp.double(made.log_probs).reshape(batch_size, beams, -1)
            none = replace(outputs, log_probs=xp.full_like(first, -np.inf))
            count = zeros[:, 0]
            frames = Padded(xp.full((batch_size, 0, 1), 0.0), count)
            return Streams(
                *(frames, count, count != 0, outputs, zeros, zeros, queries.reshape(batch_size, beams, -1), state),
                *(scores, scorers, step, none, none.log_probs, count),
            )

    def _scorers(self, batch_size: int) -> tuple[StepFunction[Any], Any]:
        """Join the scorers to a model to which all tokens are alike."""
        task = Task(batch_size, self.specials, self.xp, vocabulary=self.vocabulary, host=self.host)
        size = len(task.words)

        def alike(tokens: Array, state: _Nothing) -> StepOutput[_Nothing]:
            return StepOutput(self.xp.full((len(tokens), size), 0.0), state)

        step: StepFunction[Any] = alike
        state: Any = _Nothing()
        for scorer in self.config.scorers:
            step, state = scorer.join(step, state, task)
        return step, state

    def advance(self, streams: Streams, frames: Padded, last: Array) -> Streams:
        """Read more frames, and make all steps that they allow.

        Args:
            streams: where they stand.
            frames: `(B, P, F)` new frames of each stream, with their numbers, which may be 0.
            last: `(B,)` whether the stream ends with them.
        """
        xp = self.xp
        with xp.quiet():
            streams = replace(streams, frames=_joined(streams.frames, frames), ended=streams.ended | last)
            while True:
                streams = self._close(streams)
                alive = streams.open.log_probs != -np.inf
                ready = alive.any(1) & ((streams.at < streams.frames.lengths[:, None]) | ~alive).all(1)
                if not bool(ready.any()):
                    break
                streams = self._step(streams, ready)
            read = -xp.amax(xp.where(alive, -streams.at, -streams.frames.lengths[:, None]), 1)  # (B,)
            kept = streams.frames.lengths - read
            places = (xp.arange(max(1, int(kept.max()))) + read[:, None]).clip(0, streams.frames.values.shape[1] - 1)
            values = xp.gather(streams.frames.values, places[..., None], 1) if streams.frames.values.shape[1] else None
            left = streams.frames if values is None else Padded(values, kept)
            return replace(streams, frames=left, passed=streams.passed + read, at=streams.at - read[:, None])

    def take(self, streams: Streams) -> tuple[list[Written], Streams]:
        """Take away the tokens that are certain; see `Streams.certain`. What is left does not grow with time."""
        xp = self.xp
        certain, finished = streams.certain, xp.host(streams.finished).tolist()
        counts = xp.host(certain).tolist()
        rows = [
            (streams.closed if done else streams.open).row(stream, 0, 0, count)
            for stream, (done, count) in enumerate(zip(finished, counts, strict=True))
        ]
        room = max(0, int((streams.open.lengths - certain[:, None]).max()))
        both = (one.moved(self.specials.pad, certain, room) for one in (streams.open, streams.closed))
        return rows, replace(streams, open=next(both), closed=next(both), taken=streams.taken + certain)

    def outputs(self, streams: Streams) -> list[list[Written]]:
        """List the `num_return_sequences` best outputs of streams that have ended, best first."""
        ranks = self.xp.host(streams.ranks)[:, : self.config.num_return_sequences].tolist()
        return [
            [streams.closed.row(stream, place)._replace(score=rank) for place, rank in enumerate(row) if rank > -np.inf]
            for stream, row in enumerate(ranks)
        ]

    def _step(self, streams: Streams, ready: Array) -> Streams:
        """Make one step in the streams that are ready; the outputs of others stay as they are."""
        xp, eos, (batch, beams) = self.xp, self.specials.eos, streams.at.shape
        longest = int(streams.open.lengths.max())
        if longest >= streams.open.tokens.shape[2]:
            both = (
                one.moved(self.specials.pad, 0 * streams.taken, longest + _ROOM)
                for one in (streams.open, streams.closed)
            )
            streams = replace(streams, open=next(both), closed=next(both))
        places = streams.at.clip(0, streams.frames.values.shape[1] - 1)
        frames = xp.gather(streams.frames.values, places[..., None], 1)  # (B, K, F)
        made = self.model.join(frames.reshape(batch * beams, -1), streams.queries.reshape(batch * beams, -1))
        log_probs = xp.double(made).reshape(batch, beams, -1)  # (B, K, V)
        known = streams.open.log_probs
        stays = known + xp.where(ready[:, None], log_probs[..., eos], 0.0)  # (B, K)
        writes = known[..., None] + (log_probs if streams.scores is None else log_probs + streams.scores)
        writes = xp.where((ready[:, None] & (streams.written < self.most))[..., None], writes, -np.inf)
        writes[..., [self.specials.pad, self.specials.bos, eos]] = -np.inf
        total = _merged(streams.open, stays, writes, pad=self.specials.pad, eos=eos)
        values, sources, tokens = xp.top(total, xp.full_like(known, 0), beams)  # (B, K) each
        going = ready[:, None] & (values != -np.inf)
        write, go = going & (tokens != eos), going & (tokens == eos)
        at, written = xp.gather(streams.at, sources), xp.gather(streams.written, sources)
        outputs = replace(streams.open.gather(sources), log_probs=values)
        rows = sources + beams * xp.arange(batch)[:, None]
        scores = streams.scores
        streams = replace(
            streams,
            open=outputs.append(write, tokens, at + streams.passed[:, None]),
            at=at + go,
            written=xp.where(go, 0, written + write),
            queries=xp.gather(streams.queries, sources[..., None], 1),
            state=streams.state.select(rows.flatten()),
            scores=None if scores is None else xp.gather(scores, sources[..., None], 1),
            scorers=None if streams.step is None else streams.scorers.select(rows),
        )
        return self._read(streams, write, xp.where(write, tokens, self.specials.bos)) if bool(write.any()) else streams

    def _read(self, streams: Streams, write: Array, tokens: Array) -> Streams:
        """Let the model and the scorers read the tokens `(B, K)` of the outputs that have written one."""
        xp, flat = self.xp, write.flatten()
        queries, state = self.model.read(tokens.flatten(), streams.state)
        queries = xp.where(write[..., None], queries.reshape(streams.queries.shape), streams.queries)
        streams = replace(streams, queries=queries, state=_where(flat, state, streams.state))
        if streams.step is None or streams.scores is None:
            return streams
        made = streams.step(tokens.flatten(), streams.scorers)
        scores = xp.double(made.log_probs).reshape(streams.scores.shape)
        scores = xp.where(write[..., None], scores, streams.scores)
        return replace(streams, scores=scores, scorers=_where(flat, made.state, streams.scorers))

    def _close(self, streams: Streams) -> Streams:
        """Move the outputs that have read all frames of a stream that has ended to those that are closed."""
        xp, config, outputs = self.xp, self.config, streams.open
        over = (outputs.log_probs != -np.inf) & streams.ended[:, None] & (streams.at >= streams.frames.lengths[:, None])
        if not bool(over.any()):
            return streams
        ends = (
            outputs.log_probs if streams.scores is None else outputs.log_probs + streams.scores[..., self.specials.eos]
        )
        lengths = xp.double(outputs.lengths + streams.taken[:, None] + 1)
        kind, penalty = config.length_normalization, config.length_penalty
        ranks = xp.where(over, normalize(ends, length_divisor(lengths, kind, penalty)), -np.inf)
        ranks, order = xp.sort_down(xp.concat([streams.ranks, ranks], 1))
        ranks, order = ranks[:, : config.num_beams], order[:, : config.num_beams]
        closed = streams.closed.beside(replace(outputs, log_probs=ends)).gather(order)
        left = xp.where(over, -np.inf, outputs.log_probs)
        if all(one.bounded for one in config.scorers):
            longest = lengths + self.most * (streams.frames.lengths[:, None] - streams.at + 1)
            reachable = best_reachable(left, lengths, longest, kind, penalty=penalty)
            worst = ranks[:, config.num_return_sequences - 1]  # (B,)
            left = xp.where((xp.amax(reachable, 1) <= worst)[:, None], -np.inf, left)
        return replace(streams, open=replace(outputs, log_probs=left), closed=closed, ranks=ranks)


@dataclass(frozen=True)
class _Nothing(Value):
    """The state of what has none."""


def _merged(outputs: Outputs, stays: Array, writes: Array, *, pad: int, eos: int) -> Array:
    """Add up the probabilities of steps that lead to the same output, `(B, K, V)`; at EOS stand blanks.

    An output stays what it is by a blank, or is reached from the one that lacks its last token. The more probable of
    the two steps has the sum, the other nothing.

    Args:
        outputs: the K outputs before the step, all different.
        stays: `(B, K)` log-probability of each after a blank.
        writes: `(B, K, V)` after a token.
        pad: the padding.
        eos: id of EOS.
    """
    xp, tokens, lengths, size = arrays.of(stays), outputs.tokens, outputs.lengths, writes.shape[2]
    last = xp.gather(tokens, (lengths - 1).clip(0)[..., None])[..., 0]  # (B, K)
    shorter = xp.where(xp.arange(tokens.shape[2]) == lengths[..., None] - 1, pad, tokens)  # (B, K, U)
    there = outputs.log_probs != -np.inf
    both = there[..., None] & (there & (lengths > 0))[:, None]  # (B, J, K)
    same = (tokens[:, :, None] == shorter[:, None]).all(3) & both  # k is j and a token
    ways = xp.where(same, xp.gather(writes, last[:, None] + 0 * lengths[..., None], 2), -np.inf)  # (B, J, K)
    comes = xp.amax(ways, 1)  # (B, K)
    total, comes_first = xp.logaddexp(stays, comes), comes > stays
    nothing = xp.full_like(stays, -np.inf)
    wide = xp.concat([writes, nothing[..., None]], 2)  # a column more, for what is not the same
    index = xp.where(same, last[:, None], size)
    wide = xp.put(wide, index, xp.where(comes_first, total, nothing)[:, None] + xp.full_like(ways, 0))
    wide[..., eos] = xp.where(comes_first, nothing, total)
    return wide[..., :size]


def _joined(old: Padded, new: Padded) -> Padded:
    """Append new frames to those of each stream."""
    if not old.values.shape[1]:
        return new
    xp, before = arrays.of(new.values), old.lengths[:, None]
    lengths = old.lengths + new.lengths
    places = xp.arange(int(lengths.max())) + 0 * before  # (B, R)
    width = old.values.shape[1]
    index = xp.where(places < before, places, places - before + width).clip(0, width + new.values.shape[1] - 1)
    return Padded(xp.gather(xp.concat([old.values, new.values], 1), index[..., None], 1), lengths)


def _where(chosen: Array, new: Any, old: Any) -> Any:
    """Take rows of a new state where they are chosen, `(N,)`, and of the old one elsewhere."""
    before: list[Array] = []

    def note(array: Array) -> Array:
        before.append(array)
        return array

    old.map(note)
    parts = iter(before)

    def choose(array: Array) -> Array:
        kept = next(parts)
        if len(array) != len(chosen):  # it belongs to the sources, and stays
            return array
        return arrays.of(chosen).where(chosen.reshape(-1, *[1] * (array.ndim - 1)), array, kept)

    return new.map(choose)
