"""Models that write while they read: inputs that come in pieces, side by side, and their outputs as they grow."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lit_seq2seq.features import FeatureStream
from lit_seq2seq.features.feature import Array
from lit_seq2seq.inference.growing import GrowingText
from lit_seq2seq.inference.model import ModelHost, Seq2SeqModel
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import DecoderState
from lit_seq2seq.reranking import reranked
from lit_seq2seq.search import GenerationConfig, check_scores, stream
from lit_seq2seq.search.alignments import Alignments, AlignmentSearch
from lit_seq2seq.search.rules import Options
from lit_seq2seq.types import CellState, Encoded, Hypothesis, Padded, StepOutput, UserError, Value

V = TypeVar("V", bound=Value)


class StreamOutput(NamedTuple):
    """What a stream has written after a piece of its input.

    Attributes:
        state: of the stream.
        ids: symbols that are new, and final.
        done: whether the output has ended.
    """

    state: Any
    ids: Sequence[int] = ()
    done: bool = False


class Road(ABC):
    """A way to write while the input is still coming.

    Args:
        model: what reads and writes.
        config: options of generation.

    Attributes:
        grows: whether what is held of a stream grows with it.
        again: whether a piece gives all positions so far, not those that are new.
    """

    grows: bool = True
    again: ClassVar[bool] = False

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        self.model, self.config = model, config

    @abstractmethod
    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Return what turns the pieces of one input into arrays."""

    @abstractmethod
    def begin(self) -> Any:
        """Return the state of a stream of which nothing has been read."""

    @abstractmethod
    def read(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Read on in each stream, and write what can be written.

        Args:
            states: of the streams.
            pieces: what their readers have returned since.
            last: whether a stream ends with that.
        """


class EncodedRoad(Road):
    """Base of those whose encoder reads in pieces, of all streams together."""

    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Let the source feature read in pieces."""
        return self.model.processor.source_feature.in_pieces(sampling_rate)

    def encode(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> tuple[Padded, Tensor, list[Any]]:
        """Return the new memory vectors of streams, which of them end, and the states of their encoders."""
        feature, device = self.model.processor.source_feature, self.model.device
        nothing = feature.nothing()[:0]
        source = feature.collate([np.concatenate([nothing, *some]) for some in pieces]).to(device)
        assert isinstance(source, Padded)
        ends = torch.tensor(list(last), device=device)
        memory, after = self.model.net.encoder.extend(joined(states), source, ends)
        return memory, ends, apart(after, torch.arange(len(states), device=device))


def joined(states: Sequence[V]) -> V:
    """Put the states of streams together."""
    return states[0] if len(states) == 1 else states[0].joined(states)


def apart(states: V, rows: Tensor) -> list[V]:
    """Take the states of streams `rows (B,)` apart."""
    return [states] if len(rows) == 1 else [states.select(row[None]) for row in rows]


class PolicyRoad(EncodedRoad):
    """Writes as `generation.policy` allows; the output is that of the whole input.

    Raises:
        UserError: the model cannot write before its source has ended.
    """

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        super().__init__(model, config)
        model.searched.expect_early("generation.policy")

    def begin(self) -> tuple[Any, PolicyWriter]:
        """Start encoder and writer."""
        return self.model.net.encoder.begin(1), PolicyWriter(self.model, self.config)

    def read(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Encode together, write one by one; see `Road.read`."""
        memory, _, encoders = self.encode([encoder for encoder, _ in states], pieces, last)
        found = []
        for row, (encoder, (_, writer), ends) in enumerate(zip(encoders, states, last, strict=True)):
            new = memory.values[row : row + 1, : int(memory.lengths[row])]
            found.append(StreamOutput((encoder, writer), writer.write(new, ends), writer.done))
        return found


class PolicyWriter:
    """Writes the output of one stream token by token, each by what the policy has read before it."""

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        assert config.policy is not None
        self.model, self.config, self.policy = model, config, config.policy
        self.memory: Tensor | None = None  # (1, S, M)
        self.done = self.ended = False
        self.ids: list[int] = []
        self._state: DecoderState | None = None
        self._ahead: StepOutput[DecoderState] | None = None
        options: Options = {
            "batch_size": 1,
            "specials": model.searched.specials,
            "config": replace(config.quick(1), policy=None),
            "device": model.device,
            "vocabulary": model.processor.target,
        }
        first: Any = None
        self._tokens = stream(self._step, first, **options)

    def write(self, new: Tensor, ends: bool) -> list[int]:
        """Read new memory vectors `(1, P, M)`, and whether no more will come; return the tokens that follow."""
        self.memory = new if self.memory is None else torch.cat([self.memory, new], dim=1)
        self.ended, before = ends, len(self.ids)
        while not self.done and self._ready():
            token = None if ends and self.config.num_beams > 1 else next(self._tokens, None)
            self.done = token is None
            if token is not None:
                self.ids.append(token)
        if ends and self.config.num_beams > 1:
            [[best, *_]] = self.model.decode(unknown(self.model, self.memory), self.config)
            self.ids = best.tokens.tolist()
        return self.ids[before:]

    def _ready(self) -> bool:
        """Tell whether what has been read is enough for the next token."""
        assert self.memory is not None
        if self.ended or not self.policy.attends:
            return self.ended or self.memory.shape[1] >= self._reach()
        if self.memory.shape[1]:
            self._ahead = self._read(self.memory)
        looked = None if self._ahead is None else self._ahead.attention
        return looked is not None and bool(looked.any())

    def _reach(self) -> int:
        return int(self.policy.reach(torch.tensor([len(self.ids)]))[0])

    def _step(self, tokens: Tensor, state: Any) -> StepOutput[Any]:
        """Do what `stream` asks for: read the last token, seeing what the policy shows."""
        assert self.memory is not None
        output = self._ahead or self._read(self.memory if self.policy.attends else self.memory[:, : self._reach()])
        self._ahead, self._state = None, output.state
        check_scores([float(output.log_probs.max())])
        return output

    def _read(self, memory: Tensor) -> StepOutput[DecoderState]:
        """Read the last token, seeing some of the memory."""
        network = self.model.net
        fresh = network.start(unknown(self.model, memory))
        state = fresh if self._state is None else self._state.over(fresh)
        last = torch.tensor([self.ids[-1] if self.ids else network.specials.bos], device=memory.device)
        return network.step(last, state)


def unknown(model: Seq2SeqModel, memory: Tensor) -> Encoded:
    """Return a source of whose end nothing is known, but memory vectors `(1, S, M)`."""
    shape, lengths = model.net.encoder.shape, torch.tensor([memory.shape[1]], device=memory.device)
    final = CellState.of(memory.new_zeros(1, shape.final_layers, size) for size in shape.sizes)
    return Encoded(Padded(memory, lengths), final)


class Listening(NamedTuple):
    """Where a stream of a transducer stands.

    Attributes:
        encoder: state of the encoder.
        search: of the search.
        memory: the memory vectors so far, `(1, P, M)` of each piece, if outputs will be rescored.
        ids: the symbols that have been written, likewise.
    """

    encoder: Any
    search: Alignments
    memory: tuple[Tensor, ...] = ()
    ids: tuple[int, ...] = ()


class FrameRoad(EncodedRoad):
    """Writes at each frame what a transducer has found so far in all its beams, of all streams together.

    Where the model's reranker asks for other parts of the model, as `Rescoring` does, what is not certain before the
    source has ended is written by it: the memory is then kept.
    """

    grows = False

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig) -> None:
        super().__init__(model, config)
        model.searched.expect_early("a stream")
        self.decoder = model.net.decoder.transducer
        target, like = model.processor.target, next(model.net.parameters())
        host = ModelHost(model, unknown(model, like.new_zeros(1, 1, model.net.encoder.shape.memory_size)))
        self.reranker, wanted = reranked(config, model.reranker)
        if self.reranker is None or not self.reranker.passes:
            self.reranker, wanted = None, config
        self.grows = self.reranker is not None
        self.search = AlignmentSearch(
            self.decoder, wanted, target.specials, device=model.device, vocabulary=target, host=host
        )

    def begin(self) -> Listening:
        """Start encoder and search."""
        return Listening(self.model.net.encoder.begin(1), self.search.begin(1))

    def read(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Encode and search; see `Road.read`."""
        memory, ends, encoders = self.encode([one.encoder for one in states], pieces, last)
        searched = joined([one.search for one in states])
        searched = self.search.advance(searched, self.decoder.frames(memory), ends)
        beams = self.search.outputs(searched) if self.reranker is not None and any(last) else []
        taken, after = self.search.take(searched)
        searches = apart(after, torch.arange(len(states), device=ends.device))
        found = []
        for row, (state, encoder, search) in enumerate(zip(states, encoders, searches, strict=True)):
            ids, now = taken[row].tokens.tolist(), Listening(encoder, search)
            if self.reranker is not None:
                new = memory.values[row : row + 1, : int(memory.lengths[row])]
                now = now._replace(memory=(*state.memory, new), ids=(*state.ids, *ids))
                ids = self._rescored(state.ids, beams[row], now) if last[row] and len(beams[row]) > 1 else ids
            found.append(StreamOutput(now, ids, last[row]))
        return found

    def _rescored(self, before: tuple[int, ...], beam: list[Hypothesis], state: Listening) -> list[int]:
        """Return what follows symbols that have been written in the output that the reranker finds the best."""
        assert self.reranker is not None
        known, scores = torch.tensor(before, dtype=torch.long), torch.zeros(len(before))
        whole = [
            replace(
                one,
                tokens=torch.cat([known, one.tokens.cpu()]),
                token_scores=torch.cat([scores, one.token_scores.cpu()]),
            )
            for one in beam
        ]
        values = torch.cat(state.memory, dim=1)  # (1, S, M)
        lengths = torch.tensor([values.shape[1]], device=values.device)
        encoded = Encoded(Padded(values, lengths), self.model.net.encoder.final_state(state.encoder))
        [rated] = self.model.rated(encoded, [whole], self.reranker.passes)
        best: list[int] = self.reranker.order(rated, None, self.config)[0].tokens.tolist()
        return best[len(before) :]


class Agreement(Road):
    """Writes all that has been read anew, and keeps what several outputs in a row have begun with.

    Local agreement (Liu et al. 2020, https://arxiv.org/abs/2005.11185) for models that need their whole source: what is
    kept begins all later outputs. A longer input takes more time for each piece.

    Args:
        outputs: how many have to agree, from 2.
    """

    again = True

    def __init__(self, model: Seq2SeqModel, config: GenerationConfig, outputs: int = 2) -> None:
        super().__init__(model, replace(config, num_return_sequences=1))
        if outputs < 2:
            raise UserError(f"agreement={outputs}: must be at least 2 outputs")
        self.outputs = outputs

    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Return what encodes again all that has been read."""
        return self.model.processor.source_feature.growing(sampling_rate)

    def begin(self) -> tuple[list[int], list[list[int]]]:
        """Nothing is certain yet, and there is no output before."""
        return [], []

    def read(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Write all outputs together; see `Road.read`."""
        sure = [known for known, _ in states]
        target, device = self.model.processor.target, self.model.device
        prefix = target.collate([np.array(one, np.int32) for one in sure]).to(device).values
        source = self.model.processor.source_feature.collate([some[-1] for some in pieces]).to(device)
        found = self.model.generate(source, self.config, prefix if prefix.shape[1] else None)
        written = []
        for (known, before), [best], ends in zip(states, found, last, strict=True):
            outputs = [*before, best.tokens.tolist()][-self.outputs :]
            agreed = outputs[-1] if ends else common(outputs) if len(outputs) == self.outputs else []
            new = agreed[len(known) :]
            written.append(StreamOutput(([*known, *new], outputs), new, ends))
        return written


def common(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the beginning that all sequences share.

    Example:
        >>> common([[4, 5, 6], [4, 5], [4, 5, 7]])
        [4, 5]
    """
    same = (len(set(column)) == 1 for column in zip(*sequences, strict=False))
    return sequences[0][: next((place for place, one in enumerate(same) if not one), min(map(len, sequences)))]


def road_of(model: Seq2SeqModel, config: GenerationConfig, agreement: int) -> Road:
    """Return the way in which a model writes while it reads."""
    if model.searched.transducer is not None:
        return FrameRoad(model, config)
    return Agreement(model, config, agreement) if config.policy is None else PolicyRoad(model, config)


class Stream:
    """One input that comes in pieces, and its output so far; `LiveStreams.open` makes it.

    Attributes:
        text: what has been written; it only grows.
        ids: the symbols that have been written.
        ended: whether the input has ended.
        done: whether the output has.
        delays: for each time that the text has grown how much had come by then, in milliseconds of sound or in
            positions of another source; the same with the time of computing, of sound; and the text.
    """

    def __init__(self, road: Road, sampling_rate: int | None) -> None:
        self._road, self._reader, self._state = road, road.reader(sampling_rate), road.begin()
        self._rate = sampling_rate or getattr(road.model.processor.source_feature, "sampling_rate", None)
        self._waiting: list[Array] = []
        self._positions, self._busy = 0, 0.0
        self.delays: list[tuple[float, float, str]] = []
        self.ids: list[int] = []
        self._growing = GrowingText(road.model.processor.target.settled)
        self.text, self._read = "", 0
        self.ended = self.done = False
        if prefix := road.model.processor.source_prefix:
            self.feed(prefix)

    def feed(self, raw: Any) -> None:
        """Take the next piece: some text, samples `(N,)` or frames `(P, F)`; it may be empty.

        Raises:
            UserError: it cannot be read, or the input has ended.
        """
        piece = self._reader.feed(raw)
        if len(piece):
            self._wait(piece)

    def finish(self) -> None:
        """End the input."""
        self._wait(self._reader.finish())
        self.ended = True

    def _wait(self, piece: Array) -> None:
        self._waiting.append(piece)
        self._positions = len(piece) + (0 if self._road.again else self._positions)

    @property
    def length(self) -> float:
        """How much has come: milliseconds of sound, or positions of another source."""
        return 1000 * self._reader.taken / self._rate if self._rate else self._positions

    def row(self, split: Callable[[str], Sequence[str]] = str.split) -> dict[str, Any]:
        """Return text and delays of an output that is done as a line that OmniSTEval reads; see `lag_row`.

        Args:
            split: returns the units that are delayed: `str.split` words, `list` characters.
        """
        from lit_seq2seq.metrics.lag import lag_row, unit_delays

        delays, elapsed, texts = zip(*self.delays, strict=True) if self.delays else ((), (), ())
        units, late = (unit_delays(one, texts, split) for one in (delays, elapsed))
        return lag_row(self.text, units, self.length, elapsed=late if self._rate else None)

    def read(self) -> str:
        """Return the text that is new since the last call."""
        new = self.text[self._read :]
        self._read = len(self.text)
        return new

    def _take(self, written: StreamOutput, seconds: float) -> None:
        target, before = self._road.model.processor.target, len(self.text)
        self._busy += 1000 * seconds
        self._state, self.done = written.state, written.done or self.ended
        for index in written.ids:
            self.ids.append(index)
            self.text += self._growing.grow(target.decode(self.ids))
        if self.done:
            self.text += self._growing.end()
        if len(self.text) > before:
            self.delays.append((self.length, self.length + self._busy, self.text))


class LiveStreams:
    """Inputs that come in pieces, side by side, and what a model writes of each as it comes.

    Args:
        predictor: the model.
        config: options of generation; those of the model if `None`.
        agreement: for models that need their whole source, how many outputs have to agree; see `Agreement`.
    """

    def __init__(self, predictor: Predictor, config: GenerationConfig | None = None, agreement: int = 2) -> None:
        model = predictor.fast
        config = model.generation if config is None else config
        self.road = road_of(model, config, agreement)
        self._running = predictor.running

    def open(self, sampling_rate: int | None = None) -> Stream:
        """Begin a stream.

        Args:
            sampling_rate: of the pieces in hertz, where they are samples; that of the feature if `None`.
        """
        return Stream(self.road, sampling_rate)

    def compute(self, streams: Sequence[Stream]) -> None:
        """Read what streams have been fed since, all together, and write."""
        due = [one for one in streams if one._waiting and not one.done]
        if not due:
            return
        pieces, started = [one._waiting for one in due], time.monotonic()
        with torch.inference_mode(), self._running():
            found = self.road.read([one._state for one in due], pieces, [one.ended for one in due])
        seconds = time.monotonic() - started
        for one, written in zip(due, found, strict=True):
            one._waiting = []
            one._take(written, seconds)


class Live:
    """A function of one input that comes in pieces: `feed` some, `read` what is new, `finish`.

    Args:
        streams: what computes.
        sampling_rate: see `LiveStreams.open`.
    """

    def __init__(self, streams: LiveStreams, sampling_rate: int | None = None) -> None:
        self._streams, self._stream = streams, streams.open(sampling_rate)

    @property
    def text(self) -> str:
        """What has been written; it only grows."""
        return self._stream.text

    def row(self, split: Callable[[str], Sequence[str]] = str.split) -> dict[str, Any]:
        """Return the text with the delays of its words; see `Stream.row`."""
        return self._stream.row(split)

    def feed(self, raw: Any) -> None:
        """Read a piece; see `Stream.feed`."""
        self._stream.feed(raw)
        self._streams.compute([self._stream])

    def read(self) -> str:
        """Return the text that is new since the last call."""
        return self._stream.read()

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        self._stream.finish()
        self._streams.compute([self._stream])
        return self.read()
