"""The programs of a model that writes while it reads: its encoder in pieces, and what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lit_seq2seq.export.graphs import Graph, flatten, name_tensors, traced
from lit_seq2seq.nn import EncoderDecoder, TransducerDecoder
from lit_seq2seq.types import CellState, Encoded, Padded, Value

STATE = "state"
PARTS = ("pieces", "prediction", "joiner", "start")
_STREAMS, _PIECE = Dim("streams"), Dim("piece")


def named_state(state: Value) -> dict[str, Tensor]:
    """Name the tensors of a state, each of which has the streams as its first dimension."""
    found: dict[str, Tensor] = {}
    name_tensors(state, STATE, found)
    return found


def _filled(template: Any, tensors: Sequence[Tensor]) -> Any:
    """Make a state of tensors that come in the order of `named_state`."""
    parts = iter(tensors)
    return template.map(lambda _: next(parts))


class PiecesGraph(nn.Module):
    """A piece of each stream and the encoder's state in; new memory vectors and the next state out.

    Of a transducer what its joint layer reads takes the place of memory vectors.

    Args:
        network: the model, in evaluation mode.
    """

    def __init__(self, network: EncoderDecoder) -> None:
        super().__init__()
        self.network, self.template = network, network.encoder.begin(1)

    def forward(self, source: Tensor, lengths: Tensor, last: Tensor, *state: Tensor) -> dict[str, Tensor]:
        """Read `source (B, P)` or `(B, P, F)`, P >= 1, of `lengths (B,)`; `last (B,)` tells which streams end."""
        before = _filled(self.template, state)
        memory, after = self.network.encoder.extend(before, Padded(source, lengths), last)
        transducer = self.network.decoder.transducer
        memory = memory if transducer is None else transducer.frames(memory)
        found = {"memory": memory.values, "memory_lengths": memory.lengths.clone()}
        # a graph names each output once
        return found | {f"next.{name}": value.clone() for name, value in named_state(after).items()}


class StartGraph(nn.Module):
    """Memory vectors in; their mask and the first state of a decoder that knows nothing of the source's end out."""

    def __init__(self, network: EncoderDecoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, memory: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Start over `memory (B, S, M)`; see `flatten` for the names."""
        shape = self.network.encoder.shape
        final = CellState.of(memory.new_zeros(memory.shape[0], shape.final_layers, size) for size in shape.sizes)
        encoded = Encoded(Padded(memory, lengths), final)
        found = {"mask": encoded.memory.mask, **flatten(self.network.start(encoded), 1)}
        return {name: value.clone() for name, value in found.items()}


class PredictionGraph(nn.Module):
    """A token of each output and the state of a transducer's prediction network in; what `join` reads of it out."""

    def __init__(self, transducer: TransducerDecoder) -> None:
        super().__init__()
        self.transducer, self.template = transducer, transducer.begin(1)

    def forward(self, tokens: Tensor, *state: Tensor) -> dict[str, Tensor]:
        """Read `tokens (N,)`: `queries (N, J)` and the next state."""
        queries, after = self.transducer.read(tokens, _filled(self.template, state))
        return {"queries": queries} | {f"next.{name}": value.clone() for name, value in named_state(after).items()}


class JoinerGraph(nn.Module):
    """A frame and a query for each output in, log-probabilities of the next symbol out."""

    def __init__(self, transducer: TransducerDecoder) -> None:
        super().__init__()
        self.transducer = transducer

    def forward(self, frames: Tensor, queries: Tensor) -> dict[str, Tensor]:
        """Join `frames (N, J)` and `queries (N, J)`: `log_probs (N, V)`."""
        return {"log_probs": self.transducer.join(frames, queries)}


@torch.no_grad()
def trace_pieces(network: EncoderDecoder, source: Padded) -> dict[str, Graph]:
    """Trace a model that can write before its source has ended, with any number of streams and positions.

    Args:
        network: the model, in evaluation mode; see `EncoderDecoder.expect_early`.
        source: an example of at least two sources and two positions.

    Returns:
        By their names, the graphs of the encoder in pieces, and of a transducer its prediction network and joiner, of
        other models the decoder's start.
    """
    count = len(source.lengths)
    state = named_state(network.encoder.begin(count))
    example = source.values, source.lengths, torch.zeros(count, dtype=torch.bool), *state.values()
    rows = {0: _STREAMS}
    shapes: tuple[Any, ...] = (rows | {1: _PIECE}, rows, rows, (rows,) * len(state))
    pieces = PiecesGraph(network)
    found = {"pieces": traced(pieces, example, shapes, ["source", "lengths", "last", *state])}
    if network.decoder.transducer is None:
        memory = network.encode(source).memory
        shapes = (rows | {1: Dim.DYNAMIC}, rows)
        return found | {"start": traced(StartGraph(network), (memory.values, memory.lengths), shapes, list(_MEMORY))}
    transducer = network.decoder.transducer
    state = named_state(transducer.begin(count))
    tokens = torch.full((count,), network.specials.bos)
    inputs = ["tokens", *state]
    prediction = PredictionGraph(transducer)
    found["prediction"] = traced(prediction, (tokens, *state.values()), (rows, (rows,) * len(state)), inputs)
    both = torch.zeros(2, count, transducer.query.out_features)
    found["joiner"] = traced(JoinerGraph(transducer), (both[0], both[1]), (rows, rows), ["frames", "queries"])
    return found


_MEMORY = ("memory", "lengths")


@torch.no_grad()
def begins(network: EncoderDecoder) -> dict[str, Any]:
    """Return the arrays of the states before the first piece of a stream: of the encoder, and of a prediction."""
    found = {f"pieces.{name}": value.numpy() for name, value in named_state(network.encoder.begin(1)).items()}
    if network.decoder.transducer is None:
        return found
    prediction = named_state(network.decoder.transducer.begin(1))
    return found | {f"prediction.{name}": value.numpy() for name, value in prediction.items()}
