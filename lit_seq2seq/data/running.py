"""The targets of a split as running text, whose batches go on where those before have ended."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from lit_seq2seq.data.batching import EpochSampler, Ints, Position
from lit_seq2seq.data.examples import Examples
from lit_seq2seq.features.feature import Array
from lit_seq2seq.types import Batch, UserError


class RunningText(torch.utils.data.Dataset[Batch]):
    """Streams of text, read side by side in pieces; the batch of a number has that piece of each stream.

    The targets follow each other in their order, each with its EOS, and are cut into streams of equal length, or one
    symbol more (Zaremba et al. 2014, section 4.1). Every symbol is in one piece of one stream: the last piece has what
    is left of each, so that it alone has padding.

    Args:
        examples: the split.
        streams: their number, over all processes; an evaluation of fewer symbols has as many as there are symbols.
        length: symbols of a piece.
        rank: which of the processes this is.
        world_size: number of processes, each of which has as many streams.

    Raises:
        UserError: there are fewer symbols than streams.
    """

    def __init__(self, examples: Examples, streams: int, length: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.examples, self.length = examples, length
        _, lengths = examples.encoded.lengths()
        self.ends = lengths.cumsum(dtype=np.int64)
        total = int(self.ends[-1])
        if not examples.training:
            streams = min(streams, max(1, total // world_size) * world_size)
        if total < streams:
            raise UserError(
                f"expected at least as many symbols as streams, but there are {total} for {streams}: lower batches.size"
            )
        self.shortest = total // streams
        bounds = np.arange(streams + 1) * self.shortest + np.minimum(np.arange(streams + 1), total % streams)
        mine = np.arange(streams).reshape(world_size, -1)[rank]
        self.spans = list(zip(bounds[mine].tolist(), bounds[mine + 1].tolist(), strict=True))

    def __len__(self) -> int:
        return -(-self.shortest // self.length)

    def __getitem__(self, number: int) -> Batch:
        examples, processor = self.examples, self.examples.encoder.processor
        first, last = number * self.length, number == len(self) - 1
        places = [(start + first, end if last else start + first + self.length) for start, end in self.spans]
        nothing = processor.source_feature.nothing()
        begun = np.searchsorted(self.ends, [start for start, _ in places], "right")
        return Batch(
            source=processor.source_feature.collate([nothing] * len(places)),
            target=processor.target.collate([self._symbols(*place) for place in places]),
            rows=torch.tensor(self._rows(begun)),
            references=() if examples.training else tuple(self._ended(*place) for place in places),
            piece=number,
        )

    @cached_property
    def _chunks(self) -> list[Array]:
        column = self.examples.encoded.examples.data.column("target")
        return [chunk.flatten().to_numpy() for chunk in column.chunks]

    @cached_property
    def _chunk_ends(self) -> Ints:
        return np.cumsum([len(chunk) for chunk in self._chunks])

    def _symbols(self, start: int, end: int) -> Array:
        """Return symbols by their places in the whole text."""
        first, last = np.searchsorted(self._chunk_ends, [start, end - 1], "right").tolist()
        chunks = self._chunks[first : last + 1]
        before = int(self._chunk_ends[first]) - len(chunks[0])
        whole = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        return whole[start - before : end - before]

    def _ended(self, start: int, end: int) -> tuple[str, ...]:
        """Return the texts whose EOS is among the symbols from `start` to before `end`."""
        first, last = np.searchsorted(self.ends, [start, end], "right").tolist()
        there = np.arange(first, last)
        there = there[np.diff(self.ends, prepend=0)[there] > 0]
        if not len(there):
            return ()
        raw = self.examples.raw[self._rows(there).tolist()]
        return tuple(text for row in self.examples.encoder.references(raw) for text in row)

    def _rows(self, places: Ints) -> Ints:
        """Return the row of each of some examples."""
        found: Ints = self.examples.encoded.examples.data.column("row").take(places).to_numpy()
        return found


class PieceSampler(EpochSampler[int]):
    """The numbers of the pieces, in their order in each epoch; an interrupted epoch goes on at the next.

    Args:
        count: of pieces.
        start: where an interrupted run goes on.
        world_size: number of processes.

    Raises:
        UserError: other processes than those that were interrupted have no state to go on from.
    """

    def __init__(self, count: int, start: Position, world_size: int) -> None:
        super().__init__(start)
        if start.batches and start.world_size != world_size:
            raise UserError(
                f"the run was interrupted within running text that {start.world_size} processes read: resume it with "
                "as many, or from a checkpoint of the end of an epoch"
            )
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        yield from range(self.batches_done if self.epoch == self.start.epoch else 0, self._count)

    @property
    def batches_done(self) -> int:
        """Number of pieces that are read in the epoch it starts with."""
        return self.start.batches
