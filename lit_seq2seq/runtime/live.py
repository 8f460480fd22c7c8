"""Exported models that write while they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lit_seq2seq.arrays import Array
from lit_seq2seq.files.untrusted import check_archive, undamaged
from lit_seq2seq.runtime.network import BEGINS, GraphState, Named, Network, Session, Start
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Hypothesis, Padded, StepOutput, Value


@dataclass(frozen=True)
class StreamState(Value):
    """The state of a graph, by the names of its inputs."""

    values: Mapping[str, Array]


class Pieces:
    """The graphs of a model that reads in pieces; see `lit_seq2seq.live.roads.Reader`, and `Transducer` of search.

    Args:
        folder: what `lit-seq2seq export` has written.
        variant: see `Network`.
        threads: see `Network`.
    """

    def __init__(self, folder: Path, variant: str, threads: int) -> None:
        with undamaged(folder / BEGINS):
            check_archive(folder / BEGINS)
            with np.load(folder / BEGINS) as values:
                self.first: Named = dict(values)
        self._folder, self._variant, self._threads = folder, variant, threads
        self.graph = self.open("pieces")

    def open(self, part: str) -> Session:
        """Open another graph."""
        return Session(self._folder / f"{part}.{self._variant}.onnx", self._threads)

    def first_of(self, part: str, count: int) -> StreamState:
        """Return the first state of a graph for `count` rows."""
        parts = {name.partition(".")[2]: value for name, value in self.first.items() if name.startswith(f"{part}.")}
        return StreamState({name: np.repeat(value, count, axis=0) for name, value in parts.items()})

    def begin(self, batch_size: int) -> StreamState:
        """Make the state of the encoder before the first piece."""
        return self.first_of("pieces", batch_size)

    def extend(self, state: StreamState, piece: Padded, last: Any) -> tuple[Padded, StreamState]:
        """Read on."""
        given: Any = piece.values
        if not given.shape[1]:
            given = np.zeros((len(given), 1, *given.shape[2:]), given.dtype)
        lengths = np.asarray(piece.lengths, np.int64)
        found = self.graph({**state.values, "source": given, "lengths": lengths, "last": np.asarray(last)})
        after = StreamState({name: found[f"next.{name}"] for name in state.values})
        memory: Any = found["memory"]
        return Padded(memory, found["memory_lengths"]), after


class PredictionGraphs:
    """A transducer's prediction network and joint layer; see `lit_seq2seq.search.alignments.Transducer`.

    Args:
        pieces: the other graphs.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._predict, self._joiner = pieces.open("prediction"), pieces.open("joiner")

    def begin(self, count: int) -> StreamState:
        """Make the state of outputs before BOS."""
        return self._pieces.first_of("prediction", count)

    def read(self, tokens: Array, state: StreamState) -> tuple[Array, StreamState]:
        """Read a token for each output."""
        found = self._predict({**state.values, "tokens": tokens})
        return found["queries"], StreamState({name: found[f"next.{name}"] for name in state.values})

    def join(self, frames: Array, queries: Array) -> Array:
        """Compute log-probabilities of symbols."""
        return self._joiner({"frames": frames, "queries": queries})["log_probs"]


@dataclass(frozen=True)
class GraphPast(StreamState):
    """What a decoder has made of outputs, apart from their sources; `(B, 1, ...)`."""

    @classmethod
    def joined(cls, values: Sequence[Self]) -> Self:
        """Return the rows of all, which may have seen more or less of their sources."""
        size = max(
            array.shape[2] if _placed(name, array) else 0 for one in values for name, array in one.values.items()
        )
        wide = [
            {name: _wide(array, size) if _placed(name, array) else array for name, array in one.values.items()}
            for one in values
        ]
        return super().joined([cls(one) for one in wide])

    def over(self, start: Named, seen: list[int]) -> Named:
        """Go on over sources of which more is known: from `seen` positions on as before the first step."""
        found = dict(start)
        for name, new in start.items():
            if name in self.values:
                found[name] = old = self.values[name]
                if _placed(name, new):
                    there = np.arange(new.shape[2]) < np.array(seen)[:, None, None]  # (B, 1, S)
                    there = there.reshape(*there.shape, *[1] * (new.ndim - 3))
                    found[name] = np.where(there, _wide(old, new.shape[2]), new)
        return found


def _placed(name: str, array: Array) -> bool:
    """Tell whether an array has a value for each position of the source."""
    return name.startswith("attention.") and array.ndim > 2


def _wide(array: Array, size: int) -> Array:
    """Cut or pad the positions of an array `(B, 1, S, ...)`."""
    missing = max(0, size - array.shape[2])
    return np.pad(array[:, :, :size], [(0, 0), (0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 3))


class GraphDecoder:
    """The decoder of an exported model; see `lit_seq2seq.live.policies.Deciding`.

    Args:
        network: its other graphs.
        pieces: those that read in pieces.
        empty: a piece without positions.
        search: searches for outputs of sources that are encoded.
    """

    def __init__(
        self,
        network: Network,
        pieces: Pieces,
        empty: Padded,
        search: Callable[[Start, GenerationConfig], list[list[Hypothesis]]],
    ) -> None:
        self._network, self._graph, self._search = network, pieces.open("start"), search
        memory, _ = pieces.extend(pieces.begin(1), empty, np.array([False]))
        self.nothing = np.asarray(memory.values)[0, :0]

    def _begin(self, memories: list[Array]) -> Start:
        lengths = np.array([len(one) for one in memories])
        memory = np.stack([np.pad(one, ((0, lengths.max() - len(one)), (0, 0))) for one in memories])
        found = self._graph({"memory": memory, "lengths": lengths})
        state = {name: found[name] for name in self._network.decoder.inputs if name != "tokens"}
        return Start(GraphState(state), found["mask"], None)

    def _past(self, state: GraphState) -> GraphPast:
        return GraphPast(
            {name: value for name, value in state.values.items() if not name.startswith(("memory", "summary"))}
        )

    def start(self) -> GraphPast:
        """Start over a source of which nothing is known."""
        return self._past(self._begin([np.zeros((1, self.nothing.shape[1]), np.float32)]).state)

    def step(
        self, memories: list[Array], past: GraphPast, seen: list[int], last: list[int]
    ) -> tuple[StepOutput[Any], GraphPast]:
        """Read the last tokens."""
        state = past.over(self._begin(memories).state.values, seen)
        made = self._network.step(np.array(last), GraphState(state))
        return made, self._past(made.state)

    def decode(self, memories: list[Array], config: GenerationConfig) -> list[list[Hypothesis]]:
        """Search."""
        return self._search(self._begin(memories), config)
