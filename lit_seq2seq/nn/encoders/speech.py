"""Encoder of long sequences of vectors, such as speech."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.ops import dropout
from lit_seq2seq.nn.pieces import Windows, cleared
from lit_seq2seq.nn.recurrent import CellFactory, RecurrentStack, StackReading
from lit_seq2seq.types import CellState, Encoded, Padded, Value

_STRIDE = 2
_PLANES = Windows(_STRIDE, before=1)


@dataclass(frozen=True)
class PyramidReading(Value):
    """Where a `PyramidalEncoder` is in recordings that come in pieces.

    Attributes:
        planes: what waits for each convolution.
        neighbours: what waits to be joined before each layer.
        layers: each layer's state.
    """

    planes: tuple[Padded, ...]
    neighbours: tuple[Padded, ...]
    layers: tuple[StackReading, ...]


class PyramidalEncoder(Encoder):
    """Recurrent layers that join neighbouring outputs of the layer below (Chan et al. 2016, section 3.1).

    `h^j_i = BLSTM(h^j_{i-1}, [h^{j-1}_{2i}; h^{j-1}_{2i+1}])` (https://arxiv.org/abs/1508.01211, equation 5), so that
    the attention has fewer positions to look at. A source of S positions gives `ceil(S / f)` for every factor f.

    Args:
        input_size: size F of the source vectors.
        hidden_size: size of the memory vectors; with `bidirectional`, half of it goes to either direction.
        factors: per recurrent layer, how many neighbours are joined before it; 1 joins nothing.
        convolutions: number of 3 x 3 convolutions over time and channels before the layers, each of which halves both.
        filters: number of filters of each convolution.
        cell: kind of cell.
        bidirectional: read in both directions.
        dropout: probability of dropping units of each layer's output.
        layer_norm: normalise each layer's output (Ba et al. 2016).
        backward_chunk: see `RecurrentStack`; in source positions, and a multiple of those that make a memory vector.
        backward_lookahead: see `RecurrentStack`; in source positions.

    Raises:
        ValueError: a size is out of its range.
    """

    dimensions = 3
    cure = "set bidirectional: false or backward_chunk"

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 512,
        factors: Sequence[int] = (1, 2, 2),
        convolutions: int = 0,
        *,
        filters: int = 32,
        cell: CellName | CellFactory = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.0,
        layer_norm: bool = False,
        backward_chunk: int | None = None,
        backward_lookahead: int = 0,
    ) -> None:
        super().__init__()
        if not factors or min(factors) < 1:
            raise ValueError(f"factors must have a number of at least 1 for each layer, got {list(factors)}")
        if convolutions < 0 or filters < 1:
            raise ValueError(f"convolutions must be at least 0 and filters at least 1, got {convolutions}, {filters}")
        self.factors, self.dropout = tuple(factors), dropout
        self.convolutions: Sequence[nn.Conv2d] = nn.ModuleList(  # type: ignore[assignment]
            nn.Conv2d(filters if index else 1, filters, kernel_size=3, stride=_STRIDE, padding=1)
            for index in range(convolutions)
        )
        self.planes: list[tuple[int, int]] = []  # what convolutions read of a position
        for index in range(convolutions):
            self.planes.append((filters if index else 1, input_size))
            input_size = -(-input_size // _STRIDE)
        sizes = [input_size * filters if convolutions else input_size] + [hidden_size] * (len(factors) - 1)
        reductions = list(accumulate(self.factors, operator.mul, initial=_STRIDE**convolutions))[1:]
        if backward_chunk is not None and backward_chunk % reductions[-1]:
            raise ValueError(
                f"backward_chunk must be a multiple of {reductions[-1]}, as so many positions make a memory vector, "
                f"got {backward_chunk}"
            )
        stacks = [
            RecurrentStack(
                width * factor,
                hidden_size,
                cell=cell,
                bidirectional=bidirectional,
                layer_norm=layer_norm,
                backward_chunk=None if backward_chunk is None else backward_chunk // reduction,
                backward_lookahead=-(-backward_lookahead // reduction),
            )
            for width, factor, reduction in zip(sizes, self.factors, reductions, strict=True)
        ]
        self.layers: Sequence[RecurrentStack] = nn.ModuleList(stacks)  # type: ignore[assignment]
        self.shape = EncoderShape(hidden_size, len(factors), hidden_size, stacks[0].others)

    def forward(self, source: Padded) -> Encoded:
        """Encode vectors `(B, S, F)`."""
        source = self._convolve(cleared(source))
        finals = []
        for factor, layer in zip(self.factors, self.layers, strict=True):
            joined = join_neighbours(source, factor)
            outputs, final = layer(joined.values, lengths=joined.lengths)  # (B, S', H)
            source = cleared(Padded(dropout(outputs, self.dropout, self.training), joined.lengths))
            finals.append(final)
        return Encoded(source, _stacked(finals))

    def reach(self, count: int) -> int | None:
        """Tell what layers and convolutions need; see `Encoder.reach`."""
        for factor, layer in reversed(list(zip(self.factors, self.layers, strict=True))):
            needed = layer.reach(count)
            if needed is None:
                return None
            count = needed * factor
        for _ in self.convolutions:
            count *= _STRIDE
        return count

    def span(self, count: int) -> int:
        """Count the neighbours that are joined; see `Encoder.span`."""
        return count * math.prod(self.factors) * int(_STRIDE ** len(self.convolutions))

    def begin(self, batch_size: int) -> Value:
        """Make the state before the first piece; see `Encoder.begin`."""
        if self.lookahead is None:
            return super().begin(batch_size)
        like, joins = next(self.parameters()), zip(self.factors, self.layers, strict=True)
        return PyramidReading(
            tuple(_PLANES.begin(like.new_zeros(batch_size, *shape)) for shape in self.planes),
            tuple(Windows(f).begin(like.new_zeros(batch_size, layer.input_sizes[0] // f)) for f, layer in joins),
            tuple(layer.begin(batch_size) for layer in self.layers),
        )

    @torch.no_grad()
    def extend(self, state: PyramidReading, piece: Padded, last: Tensor) -> tuple[Padded, PyramidReading]:
        """Read on; see `Encoder.extend`."""
        planes, neighbours, layers = [], [], []
        values = piece.values[:, :, None] if self.convolutions else piece.values  # (B, P, 1, F) or (B, P, F)
        piece = Padded(values, piece.lengths)
        for convolution, waiting in zip(self.convolutions, state.planes, strict=True):
            cut, waiting = _PLANES.extend(waiting, piece, last)
            planes.append(waiting)
            piece = Padded(_convolved(convolution, cut.values), cut.windows)  # (B, W, filters, F')
        for factor, layer, waiting, reading in zip(
            self.factors, self.layers, state.neighbours, state.layers, strict=True
        ):
            cut, waiting = Windows(factor).extend(waiting, Padded(piece.values.flatten(2), piece.lengths), last)
            neighbours.append(waiting)
            piece, reading = layer.extend(reading, Padded(cut.values.flatten(2), cut.windows), last)
            layers.append(reading)
        return piece, PyramidReading(tuple(planes), tuple(neighbours), tuple(layers))

    def final_state(self, state: PyramidReading) -> CellState:
        """Return the final states; see `Encoder.final_state`."""
        return _stacked([reading.cells for reading in state.layers])

    def _convolve(self, source: Padded) -> Padded:
        for index, convolution in enumerate(self.convolutions):
            planes = source.values[:, None] if index == 0 else source.values  # (B, filters, S, F)
            values = F.relu(convolution(planes))  # (B, filters, ceil(S / 2), ceil(F / 2))
            lengths = -(-source.lengths // _STRIDE)
            real = torch.arange(values.shape[2], device=values.device) < lengths[:, None]  # (B, S')
            source = Padded(values * real[:, None, :, None], lengths)
        if not self.convolutions:
            return source
        return Padded(source.values.transpose(1, 2).flatten(2), source.lengths)  # (B, S', filters * F')


def _convolved(convolution: nn.Conv2d, windows: Tensor) -> Tensor:
    """Convolve windows of three positions `(B, W, 3, C, F)`: `(B, W, filters, ceil(F / 2))`."""
    planes = windows.flatten(0, 1).transpose(1, 2)  # (B W, C, 3, F)
    made = F.conv2d(planes, convolution.weight, convolution.bias, _STRIDE, padding=(0, 1))[:, :, 0]
    return F.relu(made).view(*windows.shape[:2], *made.shape[1:])


def _stacked(states: Sequence[CellState]) -> CellState:
    """Put the states of layers on top of each other: `(B, L, H)`."""
    parts = zip(*(state.values for state in states), strict=True)
    return CellState.of(torch.cat(part, dim=1) for part in parts)


def join_neighbours(padded: Padded, factor: int) -> Padded:
    """Concatenate each `factor` neighbours, zeros where the last ones are missing.

    Args:
        padded: `(B, S, D)`, zero at padding.
        factor: at least 1.

    Returns:
        `(B, ceil(S / factor), factor * D)`.

    Example:
        >>> joined = join_neighbours(Padded(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([3])), 2)
        >>> joined.values.tolist(), joined.lengths.tolist()
        ([[[1.0, 2.0], [3.0, 0.0]]], [2])
    """
    if factor == 1:
        return padded
    batch, total, size = padded.values.shape
    groups = (total + factor - 1) // factor  # ONNX divides towards zero: no negative numbers here
    values = F.pad(padded.values, (0, 0, 0, groups * factor - total))
    joined: Tensor = values.reshape(batch, groups, factor * size)
    return Padded(joined, -(-padded.lengths // factor))
