"""Search for the outputs of transducers frame by frame, as the frames of many streams come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.scores import best_reachable, length_divisor, normalize
from lit_seq2seq.search.task import Host, OutputVocabulary, Task
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.types import Hypothesis, Padded, SpecialIds, StepFunction, StepOutput, UserError, Value

_WITHOUT = (
    *("do_sample", "bad_words", "force_words", "constraints", "no_repeat_ngram_size", "repetition_penalty", "prefix"),
    *("min_new_tokens", "coverage_penalty", "ctc_weight", "num_beam_groups", "shortlist"),
)
_ROOM = 16  # by how many tokens the space for outputs grows


class Transducer(Protocol):
    """What this search asks of a model, whose blank is EOS, and whose state is a value with a row for each output."""

    def begin(self, count: int) -> Any:
        """Make the state of `count` outputs before BOS."""

    def read(self, tokens: Array, state: Any) -> tuple[Array, Any]:
        """Read a token for each output, `(N,)`: what `join` reads of it, `(N, J)`, and the state after."""

    def join(self, frames: Array, queries: Array) -> Array:
        """Compute the log-probabilities of tokens and blank, `(N, V)`, from a frame and a query each."""


@dataclass(frozen=True)
class AlignedOutputs(Value):
    """K outputs of each of B streams, the most probable first.

    Attributes:
        path: `(B, K, U, 3)` numbers of 64 bits: each token, the frame at which it was written, its log-probability.
        lengths: `(B, K)` numbers of tokens.
        log_probs: `(B, K)` summed over alignments, of 64 bits; minus infinity where there is no output.
        told: `(B, K)` what of it belongs to tokens already.
    """

    path: Array
    lengths: Array
    log_probs: Array
    told: Array

    @property
    def tokens(self) -> Array:
        """`(B, K, U)` ids, -1 after the last."""
        return self.path[..., 0]

    def gather(self, index: Array, others: AlignedOutputs | None = None) -> Self:
        """Take the outputs `index (B, K')` of each stream, counted on in others that there may be."""
        xp = arrays.of(index)
        found = []
        for name in self.__dataclass_fields__:
            all_of_it = xp.concat([getattr(one, name) for one in (self, others) if one is not None], 1)
            found.append(xp.gather(all_of_it, index.reshape(*index.shape, *[1] * (all_of_it.ndim - 2)), 1))
        return type(self)(*found)

    def append(self, writes: Array, tokens: Array, frames: Array) -> Self:
        """Append tokens `(B, K)` to those that write one."""
        xp = arrays.of(tokens)
        here = writes[..., None] & (xp.arange(self.path.shape[2]) == self.lengths[..., None])  # (B, K, U)
        new = xp.concat([xp.double(one)[..., None] for one in (tokens, frames, self.log_probs - self.told)], 2)
        path = xp.where(here[..., None], new[:, :, None], self.path)
        return replace(self, path=path, lengths=self.lengths + writes, told=xp.where(writes, self.log_probs, self.told))

    def moved(self, by: Array, room: int) -> Self:
        """Drop the first `by (B,)` tokens of each stream's outputs, and make room for `room` of them."""
        xp = arrays.of(self.path)
        path = xp.concat([self.path, xp.full_like(self.path[:, :, :1], -1)], 2)
        places = (xp.arange(room) + by[:, None]).clip(0, path.shape[2] - 1)  # (B, room)
        return replace(self, path=xp.gather(path, places[:, None, :, None], 2), lengths=self.lengths - by[:, None])


@dataclass(frozen=True)
class Heard(Value):
    """What model and scorers have made of N = B * K outputs.

    Attributes:
        queries: `(N, J)` what the joint layer reads of each.
        state: the model's.
        scores: `(N, V)` what scorers say of the token that is next; `None` without scorers.
        scorers: their state.
    """

    queries: Array
    state: Any
    scores: Array | None = None
    scorers: Any = None

    def select(self, index: Array) -> Self:
        """Reorder outputs by `index (B', K')`."""
        alone = Value.select(replace(self, state=None, scorers=None), index.flatten())
        scorers = None if self.scorers is None else self.scorers.select(index)
        return replace(alone, state=self.state.select(index.flatten()), scorers=scorers)


@dataclass(frozen=True)
class Alignments(Value):
    """Where the search stands in B streams.

    Attributes:
        frames: `(B, R, F)` the last frames.
        passed: `(B,)` how many there were before these.
        ended: `(B,)` whether no more will come.
        open: K outputs each.
        at: `(B, K)` which of `frames` each reads next.
        written: `(B, K)` how many tokens each has written there.
        heard: what model and scorers have made of them.
        closed: the best K outputs that have come to the end.
        taken: `(B,)` how many tokens `AlignmentSearch.take` has taken away.
        step: the scorers' step function.
    """

    frames: Padded
    passed: Array
    ended: Array
    open: AlignedOutputs
    at: Array
    written: Array
    heard: Any
    closed: AlignedOutputs
    taken: Array
    step: StepFunction[Any] | None

    @classmethod
    def joined(cls, values: Sequence[Self]) -> Self:
        """Return the streams of all `values`, which may have read more or less and written more or less."""
        room = max(one.path.shape[2] for value in values for one in (value.open, value.closed))
        shape = [max(value.frames.values.shape[place] for value in values) for place in (1, 2)]
        return super().joined([value._wider(room, *shape) for value in values])

    def _wider(self, room: int, width: int, size: int) -> Self:
        """Make room for tokens and frames."""
        xp, values = arrays.of(self.at), self.frames.values
        wide = xp.full_like(self.at[:, :1, None], 0.0) + xp.full((1, width, size), 0.0)
        if values.shape[1]:
            wide[:, : values.shape[1]] = values
        outputs = (one.moved(0 * self.taken, room) for one in (self.open, self.closed))
        return replace(self, frames=replace(self.frames, values=wide), open=next(outputs), closed=next(outputs))

    def select(self, index: Array) -> Self:
        """Return the streams named by `index`, `(B',)` integers."""
        rows = index[:, None] * self.at.shape[1] + arrays.of(index).arange(self.at.shape[1])  # (B', K)
        return replace(Value.select(replace(self, heard=None), index), heard=self.heard.select(rows))

    @property
    def finished(self) -> Array:
        """Which streams have ended and been searched to the end, `(B,)`."""
        return self.ended & (self.open.log_probs == -np.inf).all(1)

    @property
    def certain(self) -> Array:
        """With how many tokens any later output begins, as all do that are open, `(B,)`."""
        xp, tokens = arrays.of(self.at), self.open.tokens
        same = (tokens == tokens[:, :1]) | (self.open.log_probs == -np.inf)[..., None]  # (B, K, U)
        apart = ~same.all(1) | (tokens[:, 0] < 0)  # (B, U)
        apart = xp.concat([apart, apart[:, :1] | True], 1)
        return xp.where(self.finished, self.closed.lengths[:, 0], xp.first(apart))


class AlignmentSearch:
    """Searches for the outputs of a transducer, alignments of one length at a time (Saon et al. 2020).

    An output of u tokens that has read s frames has made u + s steps; after each step the `num_beams` most probable
    outputs are kept (https://ieeexplore.ieee.org/document/9053040, algorithm 2). Equal ones, which have then read as
    many frames, become one: a beam wide enough has the exact probability of every output, summed over alignments. A
    step waits for the frames that it needs, so that the result does not depend on the pieces they come in. One beam is
    greedy search. Each of the streams is at a step of its own.

    Scorers, whose states must be values, judge tokens, and EOS at the end; blanks are the model's alone.

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

    @checked
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

    def begin(self, batch_size: int) -> Alignments:
        """Stand before the first frame of each stream."""
        xp, beams = self.xp, self.config.num_beams
        with xp.quiet():
            zeros = xp.full((batch_size, beams), 0)
            none = -np.inf + xp.double(zeros)
            path = xp.double(xp.full((batch_size, beams, 1, 3), -1))
            first = AlignedOutputs(path, zeros, xp.where(xp.arange(beams) == 0, 0.0, none), 0 * xp.double(zeros))
            step, scorers = self._scorers(batch_size) if self.config.scorers else (None, None)
            scorers = None if scorers is None else scorers.select(xp.arange(batch_size)[:, None] + zeros)
            bos = zeros.flatten() + self.specials.bos
            heard = self._hear(bos, Heard(bos, self.model.begin(len(bos)), None, scorers), step)
            count, frames = zeros[:, 0], Padded(xp.full((batch_size, 0, 1), 0.0), zeros[:, 0])
            closed = replace(first, log_probs=none)
            return Alignments(frames, count, count < 0, first, zeros, zeros, heard, closed, count, step)

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

    def advance(self, streams: Alignments, frames: Padded, last: Array) -> Alignments:
        """Read more frames, and make all steps that they allow.

        Args:
            streams: where they stand.
            frames: `(B, P, F)` new frames of each stream, with their numbers, which may be 0.
            last: `(B,)` whether the stream ends with them.
        """
        with self.xp.quiet():
            streams = _longer(replace(streams, ended=streams.ended | last), frames)
            while True:
                streams, lengths = self._close(streams), streams.frames.lengths[:, None]
                alive = streams.open.log_probs != -np.inf
                ready = alive.any(1) & ((streams.at < lengths) | ~alive).all(1)
                if not bool(ready.any()):
                    return replace(streams, at=self.xp.where(alive, streams.at, lengths))
                streams = self._step(streams, ready)

    def take(self, streams: Alignments) -> tuple[list[Hypothesis], Alignments]:
        """Take away the tokens that are certain; see `Alignments.certain`. What is left does not grow with time."""
        certain = streams.certain
        taken = [row[0] for row in self.outputs(streams, self.xp.host(certain).tolist())]
        room = max(1, int((streams.open.lengths - certain[:, None]).max()))
        left = (one.moved(certain, room) for one in (streams.open, streams.closed))
        return taken, replace(streams, open=next(left), closed=next(left), taken=streams.taken + certain)

    def outputs(self, streams: Alignments, stops: list[int] | None = None) -> list[list[Hypothesis]]:
        """List the best outputs of each stream so far, best first: `num_return_sequences`, or fewer.

        Args:
            streams: where they stand.
            stops: after how many tokens the outputs of each stream are cut off.
        """
        host, found = self.xp.host, []
        for stream, done in enumerate(host(streams.finished).tolist()):
            outputs = (streams.closed if done else streams.open).map(lambda one, row=stream: host(one[row]))  # type: ignore[misc]
            ranks = host(self._ranks(streams.closed if done else streams.open, streams.taken)[stream]).tolist()
            end, row = int(streams.passed[stream] + streams.frames.lengths[stream]), []
            for place, rank in enumerate(ranks[: self.config.num_return_sequences]):
                stop = int(outputs.lengths[place]) if stops is None else stops[stream]
                path, log_prob = np.asarray(outputs.path[place, :stop]), float(outputs.log_probs[place])
                scores, delays = path[:, 2], path[:, 1] + 1
                if done and stops is None:
                    scores, delays = np.append(scores, log_prob - outputs.told[place]), np.append(delays, end)
                tokens, delays = (arrays.of(outputs.path).array(one.astype(int)) for one in (path[:, 0], delays))
                scores = arrays.of(outputs.path).array(scores.astype(np.float32))
                if rank > -np.inf:
                    row.append(Hypothesis(tokens, rank, log_prob, scores, delays=delays))
            found.append(row)
        return found

    def _ranks(self, outputs: AlignedOutputs, taken: Array) -> Array:
        """Compute what outputs are ranked by, `(B, K)`."""
        lengths = self.xp.double(outputs.lengths + taken[:, None] + 1)
        divisor = length_divisor(lengths, self.config.length_normalization, self.config.length_penalty)
        return self.xp.where(outputs.log_probs == -np.inf, -np.inf, normalize(outputs.log_probs, divisor))

    def _hear(self, tokens: Array, heard: Heard, step: StepFunction[Any] | None) -> Heard:
        """Let the model and the scorers read a token of each output, `(N,)`."""
        queries, state = self.model.read(tokens, heard.state)
        if step is None:
            return Heard(queries, state)
        made = step(tokens, heard.scorers)
        return Heard(queries, state, self.xp.double(made.log_probs), made.state)

    def _step(self, streams: Alignments, ready: Array) -> Alignments:
        """Make one step in the streams that are ready; others stay as they are."""
        xp, eos, (batch, beams) = self.xp, self.specials.eos, streams.at.shape
        longest = int(streams.open.lengths.max())
        if longest >= streams.open.path.shape[2]:
            wider = (one.moved(0 * streams.taken, longest + _ROOM) for one in (streams.open, streams.closed))
            streams = replace(streams, open=next(wider), closed=next(wider))
        known, heard = streams.open.log_probs, streams.heard
        places = streams.at.clip(0, streams.frames.values.shape[1] - 1)
        frames = xp.gather(streams.frames.values, places[..., None], 1)  # (B, K, F)
        log_probs = xp.double(self.model.join(frames.reshape(batch * beams, -1), heard.queries))  # (N, V)
        stays = known + xp.where(ready[:, None], log_probs[:, eos].reshape(batch, beams), 0.0)
        log_probs = log_probs if heard.scores is None else log_probs + heard.scores
        writes = known[..., None] + log_probs.reshape(batch, beams, -1)  # (B, K, V)
        writes = xp.where((ready[:, None] & (streams.written < self.most))[..., None], writes, -np.inf)
        writes[..., [self.specials.pad, self.specials.bos, eos]] = -np.inf
        values, sources, tokens = xp.top(_merged(streams.open, stays, writes, eos), 0 * streams.at, beams)  # (B, K)
        going = ready[:, None] & (values != -np.inf)
        write, go = going & (tokens != eos), going & (tokens == eos)
        at, written = xp.gather(streams.at, sources), xp.gather(streams.written, sources)
        outputs = replace(streams.open.gather(sources), log_probs=values)
        heard = heard.select(sources + beams * xp.arange(batch)[:, None])
        if bool(write.any()):
            new = self._hear(xp.where(write, tokens, self.specials.bos).flatten(), heard, streams.step)
            rows = xp.arange(batch * beams).reshape(batch, beams)
            heard = Heard.joined([heard, new]).select(rows + batch * beams * write)
        return replace(
            streams,
            open=outputs.append(write, tokens, at + streams.passed[:, None]),
            at=at + go,
            written=xp.where(go, 0, written + write),
            heard=heard,
        )

    def _close(self, streams: Alignments) -> Alignments:
        """Move the outputs that have read all frames of a stream that has ended to those that are closed."""
        xp, config, outputs, left = self.xp, self.config, streams.open, streams.frames.lengths[:, None] - streams.at
        over = (outputs.log_probs != -np.inf) & streams.ended[:, None] & (left <= 0)
        if not bool(over.any()):
            return streams
        scores = streams.heard.scores
        ends = outputs.log_probs + (0.0 if scores is None else scores[:, self.specials.eos].reshape(over.shape))
        ended = replace(outputs, log_probs=xp.where(over, ends, -np.inf))
        ranks = [self._ranks(one, streams.taken) for one in (streams.closed, ended)]
        ranks, order = xp.sort_down(xp.concat(ranks, 1))
        closed = streams.closed.gather(order[:, : config.num_beams], ended)
        log_probs = xp.where(over, -np.inf, outputs.log_probs)
        if all(one.bounded for one in config.scorers):  # what can no longer be among the best need not go on
            lengths = xp.double(outputs.lengths + streams.taken[:, None] + 1)
            kind, longest = config.length_normalization, lengths + self.most * (left + 1)
            reachable = best_reachable(log_probs, lengths, longest, kind, penalty=config.length_penalty)
            worst = ranks[:, config.num_return_sequences - 1, None]
            log_probs = xp.where(xp.amax(reachable, 1, keepdims=True) <= worst, -np.inf, log_probs)
        return replace(streams, open=replace(outputs, log_probs=log_probs), closed=closed)


def emission(places: Sequence[int], frames: int) -> dict[str, int]:
    """Count how a transducer spends its frames on an output.

    Args:
        places: `(T,)` the frame at which each symbol is written, from 0, in their order.
        frames: number of frames.

    Returns:
        `frames`, `symbols`, `blank_frames` (those at which nothing is written), `longest_blank` (the most of them in a
        row) and `most_per_frame` (symbols).

    Example:
        >>> emission([2, 2, 5], 8)
        {'frames': 8, 'symbols': 3, 'blank_frames': 6, 'longest_blank': 2, 'most_per_frame': 2}
    """
    there = Counter(places)
    runs = (after - before - 1 for before, after in pairwise([-1, *sorted(there), frames]))
    return {
        "frames": frames,
        "symbols": len(places),
        "blank_frames": frames - len(there),
        "longest_blank": max(runs),
        "most_per_frame": max(there.values(), default=0),
    }


@dataclass(frozen=True)
class _Nothing(Value):
    """The state of what has none."""


def _merged(outputs: AlignedOutputs, stays: Array, writes: Array, eos: int) -> Array:
    """Add up the probabilities of steps that lead to the same output, `(B, K, V)`; at EOS stand blanks.

    An output stays by a blank, or is reached from the one that lacks its last token; the more probable of the two steps
    has the sum, the other nothing.

    Args:
        outputs: the K outputs before the step, all different.
        stays: `(B, K)` log-probability of each after a blank.
        writes: `(B, K, V)` after a token.
        eos: id of EOS.
    """
    xp, tokens, lengths, size = arrays.of(stays), outputs.tokens, outputs.lengths, writes.shape[2]
    ends = xp.arange(tokens.shape[2]) == lengths[..., None] - 1  # (B, K, U)
    last = xp.integers(xp.where(ends, tokens, 0).sum(2))  # (B, K)
    there = outputs.log_probs != -np.inf
    same = there[..., None] & (there & (lengths > 0))[:, None]  # (B, J, K)
    same = same & (tokens[:, :, None] == xp.where(ends, -1, tokens)[:, None]).all(3)  # k is j and a token more
    ways = xp.where(same, xp.gather(writes, last[:, None] + 0 * lengths[..., None], 2), -np.inf)
    comes, nothing = xp.amax(ways, 1), xp.full_like(stays, -np.inf)  # (B, K)
    total = xp.logaddexp(stays, comes)
    wide = xp.concat([writes, nothing[..., None]], 2)  # a column more, for those that are not the same
    moved = xp.where(comes > stays, total, nothing)[:, None] + xp.full_like(ways, 0)
    wide = xp.put(wide, xp.where(same, last[:, None], size), moved)
    wide[..., eos] = xp.where(comes > stays, nothing, total)
    return wide[..., :size]


def _longer(streams: Alignments, new: Padded) -> Alignments:
    """Append frames to those that some output has still to read, and drop the others."""
    xp, old = arrays.of(new.values), streams.frames
    read = -xp.amax(-streams.at, 1)[:, None]  # (B, 1)
    left, width = old.lengths[:, None] - read, old.values.shape[1]
    lengths = left[:, 0] + new.lengths
    places = xp.arange(int(lengths.max())) + 0 * left  # (B, R)
    values = xp.concat([old.values, new.values], 1) if width else new.values
    index = xp.where(places < left, places + read, places - left + width).clip(0, max(0, values.shape[1] - 1))
    frames = Padded(xp.gather(values, index[..., None], 1), lengths)
    return replace(streams, frames=frames, passed=streams.passed + read[:, 0], at=streams.at - read)
