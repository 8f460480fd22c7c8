"""Search for the outputs of transducers frame by frame, as the frames of many streams come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import NUMPY, Array
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.scores import best_reachable, length_divisor, normalize
from lit_seq2seq.search.task import Host, OutputVocabulary, Task
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.types import Hypothesis, Padded, SpecialIds, StepFunction, StepOutput, UserError, Value

_WITHOUT = (
    *("do_sample", "bad_words", "force_words", "constraints", "no_repeat_ngram_size", "repetition_penalty", "prefix"),
    *("min_new_tokens", "coverage_penalty", "ctc_weight", "num_beam_groups", "shortlist", "policy"),
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
    """K outputs of each of B streams, the most probable first; arrays of NumPy.

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

    @property
    def alive(self) -> Array:
        """`(B, K)` where there is an output."""
        return self.log_probs != -np.inf

    def gather(self, index: Array, others: AlignedOutputs | None = None) -> Self:
        """Take the outputs `index (B, K')` of each stream, counted on in others that there may be."""
        rows, given = np.arange(len(index))[:, None], [one for one in (self, others) if one is not None]
        fields = zip(*((one.path, one.lengths, one.log_probs, one.told) for one in given), strict=True)
        return type(self)(*(np.concatenate(parts, 1)[rows, index] for parts in fields))

    def append(self, writes: Array, tokens: Array, frames: Array) -> Self:
        """Append tokens `(B, K)` to those that write one."""
        path, (rows, places) = self.path.copy(), np.nonzero(writes)
        new = np.stack([tokens, frames, self.log_probs - self.told], 2)  # (B, K, 3)
        path[rows, places, self.lengths[rows, places]] = new[rows, places]
        return replace(self, path=path, lengths=self.lengths + writes, told=np.where(writes, self.log_probs, self.told))

    def moved(self, by: Array, room: int) -> Self:
        """Drop the first `by (B,)` tokens of each stream's outputs, and make room for `room` of them."""
        path = np.concatenate([self.path, np.full_like(self.path[:, :, :1], -1)], 2)
        places = (np.arange(room) + by[:, None]).clip(0, path.shape[2] - 1)  # (B, room)
        return replace(
            self, path=path[np.arange(len(by))[:, None], :, places].swapaxes(1, 2), lengths=self.lengths - by[:, None]
        )


@dataclass(frozen=True)
class Heard(Value):
    """What model and scorers have made of N = B * K outputs; arrays of theirs.

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
    """Where the search stands in B streams; but for frames and what the model has made, arrays of NumPy.

    Attributes:
        frames: `(B, R, F)` the last frames.
        lengths: `(B,)` how many these are of each stream.
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

    frames: Array
    lengths: Array
    passed: Array
    ended: Array
    open: AlignedOutputs
    at: Array
    written: Array
    heard: Heard
    closed: AlignedOutputs
    taken: Array
    step: StepFunction[Any] | None

    @classmethod
    def joined(cls, values: Sequence[Self]) -> Self:
        """Return the streams of all `values`, which may have read more or less and written more or less."""
        room = max(one.path.shape[2] for value in values for one in (value.open, value.closed))
        shape = [max(value.frames.shape[place] for value in values) for place in (1, 2)]
        return super().joined([value._wider(room, *shape) for value in values])

    def _wider(self, room: int, width: int, size: int) -> Self:
        """Make room for tokens and frames."""
        frames = arrays.of(self.frames).full((len(self.at), width, size), 0.0)
        if self.frames.shape[1]:
            frames[:, : self.frames.shape[1]] = self.frames
        none = 0 * self.taken
        return replace(self, frames=frames, open=self.open.moved(none, room), closed=self.closed.moved(none, room))

    def select(self, index: Array) -> Self:
        """Return the streams named by `index`, `(B',)` integers."""
        index = _numpy(index)
        rows = index[:, None] * self.at.shape[1] + np.arange(self.at.shape[1])  # (B', K)
        xp = arrays.of(self.frames)
        frames, heard = xp.take(self.frames, xp.integers(index)), self.heard.select(xp.integers(rows))
        nothing: Any = None
        alone = Value.select(replace(self, frames=nothing, heard=nothing), index)
        return replace(alone, frames=frames, heard=heard)

    @property
    def finished(self) -> Array:
        """Which streams have ended and been searched to the end, `(B,)`."""
        return self.ended & ~self.open.alive.any(1)

    @property
    def certain(self) -> Array:
        """With how many tokens any later output begins, as all do that are open, `(B,)`."""
        tokens = self.open.tokens
        same = (tokens == tokens[:, :1]) | ~self.open.alive[..., None]  # (B, K, U)
        apart = ~same.all(1) | (tokens[:, 0] < 0)  # (B, U)
        apart = np.concatenate([apart, np.ones_like(apart[:, :1])], 1)
        return np.where(self.finished, self.closed.lengths[:, 0], apart.argmax(1))


class AlignmentSearch:
    """Searches for the outputs of a transducer, alignments of one length at a time (Saon et al. 2020).

    An output of u tokens that has read s frames has made u + s steps; after each step the `num_beams` most probable
    outputs are kept (https://ieeexplore.ieee.org/document/9053040, algorithm 2). Equal ones, which have then read as
    many frames, become one: a beam wide enough has the exact probability of every output, summed over alignments. A
    step waits for the frames that it needs, so that the result does not depend on the pieces they come in. One beam is
    greedy search. Each of the streams is at a step of its own.

    An output writes `most` tokens at a frame at most, and then goes on to the next one, however probable another token
    is; so a stream takes a bounded time for each frame.

    Scorers, whose states must be values, judge tokens, and EOS at the end; blanks are the model's alone. What the model
    and the scorers compute is on their device, all the rest in NumPy.

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
        """Stand before the first frame of each stream.

        Raises:
            UserError: the model needs the end of its source, or a scorer's state is no value.
        """
        xp, beams = self.xp, self.config.num_beams
        with xp.quiet(), NUMPY.quiet():
            zeros = np.zeros((batch_size, beams), np.int64)
            none = np.full(zeros.shape, -np.inf)
            path = np.full((batch_size, beams, 1, 3), -1.0)
            first = AlignedOutputs(path, zeros, np.where(np.arange(beams) == 0, 0.0, none), np.zeros(zeros.shape))
            step, scorers = self._scorers(batch_size) if self.config.scorers else (None, None)
            rows = xp.integers(np.arange(batch_size)[:, None] + zeros)
            scorers = None if scorers is None else scorers.select(rows)
            bos = xp.integers(zeros.flatten() + self.specials.bos)
            heard = self._hear(bos, Heard(bos, self.model.begin(len(bos)), None, scorers), step)
            count, frames = zeros[:, 0], xp.full((batch_size, 0, 1), 0.0)
            closed = replace(first, log_probs=none)
            return Alignments(frames, count, count, count < 0, first, zeros, zeros, heard, closed, count, step)

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
            if not isinstance(state, Value):
                raise UserError(
                    f"{type(scorer).__name__}: streams join and part, so that the state of a scorer has to be a "
                    f"lit_seq2seq.types.Value, but it is of type {type(state).__name__}: derive it, or leave it out"
                )
        return step, state

    def advance(self, streams: Alignments, frames: Padded, last: Array) -> Alignments:
        """Read more frames, and make all steps that they allow.

        Args:
            streams: where they stand.
            frames: `(B, P, F)` new frames of each stream, with their numbers, which may be 0.
            last: `(B,)` whether the stream ends with them.
        """
        with self.xp.quiet(), NUMPY.quiet():
            streams = _longer(replace(streams, ended=streams.ended | _numpy(last)), frames)
            while True:
                streams = self._close(streams)
                alive, behind = streams.open.alive, streams.at < streams.lengths[:, None]
                ready = alive.any(1) & (behind | ~alive).all(1)
                if not ready.any():
                    return _read(replace(streams, at=np.where(alive, streams.at, streams.lengths[:, None])))
                streams = self._step(streams, ready)

    def take(self, streams: Alignments) -> tuple[list[list[int]], Alignments]:
        """Take away the tokens that are certain; see `Alignments.certain`. What is left does not grow with time."""
        certain = streams.certain
        if not certain.any():
            return [[] for _ in certain], streams
        best = np.where(streams.finished[:, None], streams.closed.tokens[:, 0], streams.open.tokens[:, 0])  # (B, U)
        taken = [row[:stop].astype(int).tolist() for row, stop in zip(best, certain, strict=True)]
        room = max(1, int((streams.open.lengths - certain[:, None]).max()))
        left, closed = (one.moved(certain, room) for one in (streams.open, streams.closed))
        return taken, replace(streams, open=left, closed=closed, taken=streams.taken + certain)

    def outputs(self, streams: Alignments) -> list[list[Hypothesis]]:
        """List the best outputs of each stream so far, best first: `num_return_sequences`, or fewer; in NumPy."""
        found = []
        for stream, done in enumerate(streams.finished):
            kept = streams.closed if done else streams.open
            ranks, end, row = (
                self._ranks(kept, streams.taken),
                int(streams.passed[stream] + streams.lengths[stream]),
                [],
            )
            for place, rank in enumerate(ranks[stream, : self.config.num_return_sequences].tolist()):
                path = kept.path[stream, place, : kept.lengths[stream, place]]
                log_prob = float(kept.log_probs[stream, place])
                scores, delays = path[:, 2], path[:, 1] + 1
                if done:
                    scores, delays = np.append(scores, log_prob - kept.told[stream, place]), np.append(delays, end)
                if rank > -np.inf:
                    tokens: Any = path[:, 0].astype(int)
                    own: Any = scores.astype(np.float32), delays.astype(int)
                    row.append(Hypothesis(tokens, rank, log_prob, own[0], delays=own[1]))
            found.append(row)
        return found

    def _ranks(self, outputs: AlignedOutputs, taken: Array) -> Array:
        """Compute what outputs are ranked by, `(B, K)`."""
        lengths = (outputs.lengths + taken[:, None] + 1).astype(float)
        divisor = length_divisor(lengths, self.config.length_normalization, self.config.length_penalty)
        return np.where(outputs.alive, normalize(outputs.log_probs, divisor), -np.inf)

    def _hear(self, tokens: Array, heard: Heard, step: StepFunction[Any] | None) -> Heard:
        """Let the model and the scorers read a token of each output, `(N,)`."""
        queries, state = self.model.read(tokens, heard.state)
        if step is None:
            return Heard(queries, state)
        made = step(tokens, heard.scorers)
        return Heard(queries, state, self.xp.double(made.log_probs), made.state)

    def _step(self, streams: Alignments, ready: Array) -> Alignments:
        """Make one step in the streams that are ready; others stay as they are."""
        xp, (batch, beams) = self.xp, streams.at.shape
        pad, bos, eos = self.specials.pad, self.specials.bos, self.specials.eos
        longest = int(streams.open.lengths.max())
        if longest >= streams.open.path.shape[2]:
            streams = streams._wider(longest + _ROOM, *streams.frames.shape[1:])
        known, heard, width = streams.open.log_probs, streams.heard, streams.frames.shape[1]
        rows = np.arange(batch)[:, None]  # (B, 1)
        places = rows * width + streams.at.clip(0, width - 1)  # (B, K)
        frames = xp.take(streams.frames.reshape(batch * width, -1), xp.integers(places.flatten()))  # (N, F)
        made = xp.double(self.model.join(frames, heard.queries))  # (N, V)
        log_probs = _numpy(made).reshape(batch, beams, -1)  # (B, K, V)
        stays = known + np.where(ready[:, None], log_probs[..., eos], 0.0)
        if heard.scores is not None:
            log_probs = _numpy(made + heard.scores).reshape(log_probs.shape)
        may = ready[:, None] & (streams.written < self.most)
        writes = np.where(may[..., None], known[..., None] + log_probs, -np.inf)
        writes[..., [pad, bos, eos]] = -np.inf
        values, sources, tokens = NUMPY.top(_merged(streams.open, stays, writes, eos), 0 * streams.at, beams)  # (B, K)
        going = ready[:, None] & (values != -np.inf)
        write, go = going & (tokens != eos), going & (tokens == eos)
        at, written = streams.at[rows, sources], streams.written[rows, sources]
        outputs = replace(streams.open.gather(sources), log_probs=values)
        if beams > 1:
            heard = heard.select(xp.integers(rows * beams + sources))
        if write.any():
            new = self._hear(xp.integers(np.where(write, tokens, bos).flatten()), heard, streams.step)
            both = np.arange(batch * beams).reshape(batch, beams) + batch * beams * write
            heard = new if write.all() else Heard.joined([heard, new]).select(xp.integers(both))
            outputs = outputs.append(write, tokens, at + streams.passed[:, None])
        return replace(streams, open=outputs, at=at + go, written=np.where(go, 0, written + write), heard=heard)

    def _close(self, streams: Alignments) -> Alignments:
        """Move the outputs that have read all frames of a stream that has ended to those that are closed."""
        config, outputs, left = self.config, streams.open, streams.lengths[:, None] - streams.at
        over = outputs.alive & streams.ended[:, None] & (left <= 0)
        if not over.any():
            return streams
        scores = streams.heard.scores
        ends = 0.0 if scores is None else _numpy(scores[:, self.specials.eos]).reshape(over.shape)
        ended = replace(outputs, log_probs=np.where(over, outputs.log_probs + ends, -np.inf))
        ranks = [self._ranks(one, streams.taken) for one in (streams.closed, ended)]
        sorted_ranks, order = NUMPY.sort_down(np.concatenate(ranks, 1))
        closed = streams.closed.gather(order[:, : config.num_beams], ended)
        log_probs = np.where(over, -np.inf, outputs.log_probs)
        if all(one.bounded for one in config.scorers):  # what can no longer be among the best need not go on
            lengths = (outputs.lengths + streams.taken[:, None] + 1).astype(float)
            kind, longest = config.length_normalization, lengths + self.most * (left + 1)
            reachable = best_reachable(log_probs, lengths, longest, kind, penalty=config.length_penalty)
            worst = sorted_ranks[:, config.num_return_sequences - 1, None]
            log_probs = np.where(reachable.max(1, keepdims=True) <= worst, -np.inf, log_probs)
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
    if stays.shape[1] == 1:
        writes[..., eos] = stays
        return writes
    tokens, lengths, size = outputs.tokens, outputs.lengths, writes.shape[2]
    ends = np.arange(tokens.shape[2]) == lengths[..., None] - 1  # (B, K, U)
    last = np.where(ends, tokens, 0).sum(2).astype(int)  # (B, K)
    same = outputs.alive[..., None] & (outputs.alive & (lengths > 0))[:, None]  # (B, J, K)
    same = same & (tokens[:, :, None] == np.where(ends, -1, tokens)[:, None]).all(3)  # k is j and a token more
    index = np.broadcast_to(last[:, None], same.shape)
    ways = np.where(same, np.take_along_axis(writes, index, 2), -np.inf)
    comes = ways.max(1)  # (B, K)
    total = NUMPY.logaddexp(stays, comes)
    moved = np.where(same, np.where(comes > stays, total, -np.inf)[:, None], -np.inf)
    wide = np.concatenate(
        [writes, np.full_like(stays, -np.inf)[..., None]], 2
    )  # a column more, for what is not the same
    np.put_along_axis(wide, np.where(same, index, size), moved, 2)
    wide[..., eos] = np.where(comes > stays, -np.inf, total)
    return wide[..., :size]


def _numpy(array: Array) -> Array:
    return np.asarray(arrays.of(array).host(array))


def _longer(streams: Alignments, new: Padded) -> Alignments:
    """Append frames to those that some output has still to read."""
    xp, added, width = arrays.of(new.values), _numpy(new.lengths), streams.frames.shape[1]
    if not width:
        return replace(streams, frames=new.values, lengths=added)
    left = streams.lengths[:, None]
    lengths = left[:, 0] + added
    places = np.arange(int(lengths.max())) + 0 * left  # (B, R)
    values = xp.concat([streams.frames, new.values], 1)
    index = np.where(places < left, places, places - left + width).clip(0, values.shape[1] - 1)
    return replace(streams, frames=xp.gather(values, xp.integers(index)[..., None], 1), lengths=lengths)


def _read(streams: Alignments) -> Alignments:
    """Drop the frames that all outputs have read."""
    read, longest = streams.at.min(1), int((streams.lengths - streams.at.min(1)).max())
    if not read.any():
        return streams
    places = (read[:, None] + np.arange(longest)).clip(0, streams.frames.shape[1] - 1)  # (B, R)
    xp = arrays.of(streams.frames)
    frames = xp.gather(streams.frames, xp.integers(places)[..., None], 1) if longest else streams.frames[:, :0]
    left, at = streams.lengths - read, streams.at - read[:, None]
    return replace(streams, frames=frames, lengths=left, passed=streams.passed + read, at=at)
