"""Models that write while they read: inputs that come in pieces, side by side, and their outputs as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import RLock
from typing import Any

from lit_seq2seq.features.feature import Array
from lit_seq2seq.live.growing import GrowingText
from lit_seq2seq.live.roads import Road, StreamOutput
from lit_seq2seq.types import UserError

LONGEST = 10_000
"""Characters or frames, or thousands of samples, of an input that is held as a whole."""
_CONTEXT = 16  # symbols that decide how the next one is written


class Stream:
    """One input that comes in pieces, and its output so far; `Streams.open` makes it.

    Attributes:
        text: what has been written; it only grows.
        ids: the symbols that have been written.
        ended: whether the input has ended.
        done: whether the output has; what is fed after that is not read.
        error: what has ended the stream, if it failed.
        delays: for each time that the text has grown how much had come by then, in milliseconds of sound or in
            positions of another source; the same with the time of computing, of sound; and the length of the text.
    """

    def __init__(self, streams: Streams, sampling_rate: int | None) -> None:
        self._streams, road = streams, streams.road
        self._reader, self._state = road.reader(sampling_rate), road.begin()
        self._rate = sampling_rate or getattr(road.processor.source_feature, "sampling_rate", None)
        self._waiting: list[Array] = []
        self._positions, self._busy = 0, 0.0
        self.delays: list[tuple[float, float, int]] = []
        self.ids: list[int] = []
        self._growing, self._latest = GrowingText(road.processor.target.settled), list[int]()
        self.text, self._read = "", 0
        self.ended = self.done = False
        self.error: Exception | None = None
        if prefix := road.processor.source_prefix:
            self.feed(prefix)

    def feed(self, raw: Any) -> None:
        """Take the next piece: some text, samples `(N,)` or frames `(P, F)`; it may be empty.

        Raises:
            UserError: it cannot be read, or the input has ended, or has become too long.
        """
        with self._streams.lock:
            self.check()
            piece, most = self._reader.feed(raw), self._streams.longest * (1000 if self._rate else 1)
            if self._streams.road.grows and self._reader.taken > most:
                raise UserError(
                    f"the input has become longer than {most:,} {'samples' if self._rate else 'characters or frames'}, "
                    "and this model holds all of it: end it, and begin another one"
                )
            if len(piece):
                self._wait(piece)

    def finish(self) -> None:
        """End the input.

        Raises:
            UserError: there was nothing to read, or the input has ended before.
        """
        with self._streams.lock:
            self.check()
            self._wait(self._reader.finish())
            self.ended = True

    def check(self) -> None:
        """Raise what has ended the stream, if it failed."""
        if self.error is not None:
            raise self.error

    def _wait(self, piece: Array) -> None:
        if not self.done:
            self._waiting.append(piece)
        self._positions = len(piece) + (0 if self._streams.road.again else self._positions)

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

        delays, elapsed, lengths = zip(*self.delays, strict=True) if self.delays else ((), (), ())
        texts = [self.text[:length] for length in lengths]
        units, late = (unit_delays(one, texts, split) for one in (delays, elapsed))
        return lag_row(self.text, units, self.length, elapsed=late if self._rate else None)

    def read(self) -> str:
        """Return the text that is new since the last call."""
        new = self.text[self._read :]
        self._read += len(new)
        return new

    def _take(self, written: StreamOutput, seconds: float) -> None:
        before, new = len(self.text), ""
        self._busy += 1000 * seconds
        self._state, self.done = written.state, written.done or self.ended
        for index in written.ids:
            new += self._grow(index)
        self.ids += written.ids
        if self.done:
            new += self._growing.end()
        self.text += new
        if len(self.text) > before:
            self.delays.append((self.length, self.length + self._busy, len(self.text)))

    def _grow(self, index: int) -> str:
        decode = self._streams.road.processor.target.decode
        self._latest.append(index)
        new = self._growing.grow(decode(self._latest))
        if len(self._latest) > 2 * _CONTEXT and self._growing.shorten(decode(self._latest[-_CONTEXT:])):
            del self._latest[:-_CONTEXT]
        return new


class Streams:
    """Inputs that come in pieces, side by side, and what a model writes of each as it comes; any thread may use them.

    Args:
        road: the way in which the model writes.
        running: what it computes in.
        longest: greatest length of an input that is held as a whole, in characters or frames, or thousands of samples.
    """

    def __init__(
        self, road: Road, running: Callable[[], AbstractContextManager[object]] = nullcontext, longest: int = LONGEST
    ) -> None:
        self.road, self.longest, self.lock, self._running = road, longest, RLock(), running

    def open(self, sampling_rate: int | None = None) -> Stream:
        """Begin a stream.

        Args:
            sampling_rate: of the pieces in hertz, where they are samples; that of the feature if `None`.
        """
        return Stream(self, sampling_rate)

    def compute(self, streams: Sequence[Stream]) -> None:
        """Read what streams have been fed since, together, and write; one that fails ends alone, with an `error`."""
        with self.lock:
            self._compute([one for one in streams if one._waiting and not one.done])

    def _compute(self, streams: list[Stream]) -> None:
        if not streams:
            return
        started = time.monotonic()
        try:
            with self._running():
                found = self.road.read(
                    [one._state for one in streams], [one._waiting for one in streams], [one.ended for one in streams]
                )
        except Exception as error:
            if len(streams) > 1:
                for one in streams:
                    self._compute([one])
                return
            streams[0].error, streams[0].done, found = error, True, []
        seconds = time.monotonic() - started
        for one, written in zip(streams, found, strict=False):
            one._take(written, seconds)
        for one in streams:
            one._waiting = []


class Live:
    """A function of one input that comes in pieces: `feed` some, `read` what is new, `finish`; from any thread.

    Args:
        streams: what computes.
        sampling_rate: see `Streams.open`.
    """

    def __init__(self, streams: Streams, sampling_rate: int | None = None) -> None:
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
        self._compute()

    def read(self) -> str:
        """Return the text that is new since the last call."""
        return self._stream.read()

    def finish(self) -> str:
        """End the input, and return the rest of the text."""
        self._stream.finish()
        self._compute()
        return self.read()

    def _compute(self) -> None:
        self._streams.compute([self._stream])
        self._stream.check()
