"""Ways to write while the input is still coming: at frames, or by agreement of whole outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from lit_seq2seq.features import FeatureStream, Processor
from lit_seq2seq.features.feature import Array
from lit_seq2seq.search import GenerationConfig, check_scores, prefix_of
from lit_seq2seq.search.alignments import AlignmentSearch
from lit_seq2seq.types import Hypothesis, Padded, Sources, UserError


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
        processor: of what is read and written.
        config: options of generation.

    Raises:
        UserError: options or model look at a whole source.

    Attributes:
        grows: whether what is held of a stream grows with it.
        again: whether a piece gives all positions so far, not those that are new.
    """

    grows: bool = True
    again: ClassVar[bool] = False

    def __init__(self, processor: Processor, config: GenerationConfig) -> None:
        self.processor, self.config = processor, replace(config, details=())
        if processor.copy:
            raise UserError("this model copies from its whole source, and a stream has none: use lit-seq2seq generate")
        if config.replace_unknown:
            raise UserError("replace_unknown looks at the whole source, and a stream has none: leave it out")

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
        """Read on in each stream, and write what can be written; may be called again with the same if it fails.

        Args:
            states: of the streams.
            pieces: what their readers have returned since.
            last: whether a stream ends with that.
        """


class RowState(NamedTuple):
    """The state of one of the streams that were computed together, which are taken apart only where they part."""

    batch: Any
    place: int
    size: int


def rows(batch: Any, size: int) -> list[RowState]:
    """Return the states of the streams of a batch."""
    return [RowState(batch, place, size) for place in range(size)]


def joined(states: Sequence[RowState]) -> Any:
    """Put the states of streams together, taking those that were computed together in one go."""
    batches: dict[int, list[int]] = {}
    for at, state in enumerate(states):
        batches.setdefault(id(state.batch), []).append(at)
    parts = []
    for places in batches.values():
        first, wanted = states[places[0]], [states[at].place for at in places]
        whole = wanted == list(range(first.size))
        parts.append(first.batch if whole else first.batch.select(np.array(wanted)))
    made = parts[0] if len(parts) == 1 else parts[0].joined(parts)
    order = np.array([at for places in batches.values() for at in places])
    return made if len(parts) == 1 else made.select(order.argsort())


class Reader(Protocol):
    """An encoder that reads in pieces: in torch, or a graph."""

    def begin(self, batch_size: int) -> Any:
        """Make the state before the first piece of each stream; see `lit_seq2seq.nn.Encoder`."""

    def extend(self, state: Any, piece: Padded, last: Any) -> tuple[Padded, Any]:
        """Read on: arrays of NumPy in, memory vectors out; see `lit_seq2seq.nn.Encoder`."""


class EncodedRoad(Road):
    """Base of those whose encoder reads in pieces, of all streams together.

    Args:
        processor: see `Road`.
        config: see `Road`.
        encoder: what reads.
    """

    def __init__(self, processor: Processor, config: GenerationConfig, encoder: Reader) -> None:
        super().__init__(processor, config)
        self.encoder, self.first = encoder, rows(encoder.begin(1), 1)[0]

    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Let the source feature read in pieces."""
        return self.processor.source_feature.in_pieces(sampling_rate)

    def encode(
        self, states: Sequence[RowState], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> tuple[Padded, list[RowState]]:
        """Return the new memory vectors of streams, and the states of their encoders."""
        whole = [some[0] if len(some) == 1 else np.concatenate(some) for some in pieces]
        source = self.processor.source_feature.collate(whole)
        assert isinstance(source, Padded)
        memory, after = self.encoder.extend(joined(states), source, np.array(last))
        return memory, rows(after, len(states))


class Listening(NamedTuple):
    """Where a stream of a transducer stands: its encoder, the search, and what a way derived from this one keeps."""

    encoder: RowState
    search: RowState
    kept: Any = None


class FrameRoad(EncodedRoad):
    """Writes at each frame what a transducer has found so far in all its beams, of all streams together.

    Args:
        processor: see `Road`.
        config: see `Road`.
        encoder: what reads.
        search: of the transducer.
    """

    grows = False

    def __init__(
        self, processor: Processor, config: GenerationConfig, encoder: Reader, *, search: AlignmentSearch
    ) -> None:
        super().__init__(processor, config, encoder)
        self.search, self.start = search, rows(search.begin(1), 1)[0]

    def begin(self) -> Listening:
        """Start encoder and search."""
        return Listening(self.first, self.start)

    def frames(self, memory: Padded) -> Padded:
        """Return what the joint layer reads of memory vectors."""
        return memory

    def read(
        self, states: Sequence[Listening], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Encode and search; see `Road.read`."""
        memory, encoders = self.encode([one.encoder for one in states], pieces, last)
        searched = joined([one.search for one in states])
        searched = self.search.advance(searched, self.frames(memory), np.array(last))
        taken, after = self.search.take(searched)
        check_scores(after.open.log_probs.flatten().tolist())
        pairs = zip(states, encoders, rows(after, len(states)), strict=True)
        now = [Listening(encoder, search, one.kept) for one, encoder, search in pairs]
        found = [StreamOutput(*one) for one in zip(now, taken, last, strict=True)]
        return self.checked(states, found, memory, searched)

    def checked(
        self, before: Sequence[Listening], written: list[StreamOutput], memory: Padded, search: Any
    ) -> list[StreamOutput]:
        """Return what is written instead; `search` is where it stood before certain symbols were taken away."""
        return written


Write = Callable[[Padded | Sources, Array | None, GenerationConfig], list[list[Hypothesis]]]
"""Writes outputs of whole sources, arrays of NumPy, which begin with given ids `(B, P)`."""


class Agreement(Road):
    """Writes all that has been read anew, and keeps what several outputs in a row have begun with.

    Local agreement (Liu et al. 2020, https://arxiv.org/abs/2005.11185) for models that need their whole source: what is
    kept begins all later outputs. A longer input takes more time for each piece.

    Args:
        processor: see `Road`.
        config: see `Road`.
        write: what writes.
        outputs: how many have to agree, from 2.
    """

    again = True

    def __init__(self, processor: Processor, config: GenerationConfig, write: Write, outputs: int = 2) -> None:
        super().__init__(processor, replace(config, num_return_sequences=1))
        if outputs < 2:
            raise UserError(f"agreement={outputs}: must be at least 2 outputs")
        self.write, self.outputs = write, outputs
        given = prefix_of(config, None, processor.target, 1)
        self.prefix = [] if given is None else given[0].tolist()

    def reader(self, sampling_rate: int | None) -> FeatureStream:
        """Return what encodes again all that has been read."""
        return self.processor.source_feature.growing(sampling_rate)

    def begin(self) -> tuple[list[int], list[list[int]]]:
        """Nothing is certain yet, and there is no output before."""
        return [], []

    def read(
        self, states: Sequence[Any], pieces: Sequence[Sequence[Array]], last: Sequence[bool]
    ) -> list[StreamOutput]:
        """Write all outputs that lack as many tokens of `min_new_tokens` together; see `Road.read`."""
        begins, most = [known or self.prefix for known, _ in states], self.config.max_new_tokens + len(self.prefix)
        lacking = [max(0, self.config.min_new_tokens + len(self.prefix) - len(one)) for one in begins]
        found: dict[int, list[int]] = {}
        for least in sorted(set(lacking)):
            some = [place for place, lacks in enumerate(lacking) if lacks == least]
            prefix: Any = self.processor.target.collate([np.array(begins[place], np.int32) for place in some]).values
            source = self.processor.source_feature.collate([pieces[place][-1] for place in some])
            left = most - min(len(begins[place]) for place in some)
            config = replace(self.config, min_new_tokens=least, max_new_tokens=left)
            outputs = self.write(source, prefix if prefix.shape[1] else None, config)
            found |= {place: best.tokens.tolist()[:most] for place, [best] in zip(some, outputs, strict=True)}
        written = []
        for place, ((known, before), ends) in enumerate(zip(states, last, strict=True)):
            latest = [*before, found[place]][-self.outputs :]
            agreed = latest[-1] if ends else common(latest) if len(latest) == self.outputs else []
            sure = [*known, *agreed[len(known) :]]
            written.append(StreamOutput((sure, latest), sure[len(known) :], ends or len(sure) >= most))
        return written


def common(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the beginning that all sequences share.

    Example:
        >>> common([[4, 5, 6], [4, 5], [4, 5, 7]])
        [4, 5]
    """
    same = (len(set(column)) == 1 for column in zip(*sequences, strict=False))
    return sequences[0][: next((place for place, one in enumerate(same) if not one), min(map(len, sequences)))]
