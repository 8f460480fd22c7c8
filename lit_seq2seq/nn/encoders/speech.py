"""Encoder of long sequences of vectors, such as speech."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.ops import dropout
from lit_seq2seq.nn.recurrent import CellFactory, RecurrentStack
from lit_seq2seq.types import CellState, Encoded, Padded

_STRIDE = 2


class PyramidalEncoder(Encoder):
    """Bidirectional layers that join neighbouring outputs of the layer below (Chan et al. 2016, section 3.1).

    `h^j_i = BLSTM(h^j_{i-1}, [h^{j-1}_{2i}; h^{j-1}_{2i+1}])` (https://arxiv.org/abs/1508.01211, equation 5), so that
    the attention has fewer positions to look at. A source of S positions gives `ceil(S / f)` for every factor f.

    Args:
        input_size: size F of the source vectors.
        hidden_size: size of the memory vectors, half of it for either direction.
        factors: per recurrent layer, how many neighbours are joined before it; 1 joins nothing.
        convolutions: number of 3 x 3 convolutions over time and channels before the layers, each of which halves both.
        filters: number of filters of each convolution.
        cell: kind of cell.
        dropout: probability of dropping units of each layer's output.
        layer_norm: normalise each layer's output (Ba et al. 2016).

    Raises:
        ValueError: a size is out of its range.
    """

    dimensions = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 512,
        factors: Sequence[int] = (1, 2, 2),
        convolutions: int = 0,
        *,
        filters: int = 32,
        cell: CellName | CellFactory = "lstm",
        dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if not factors or min(factors) < 1:
            raise ValueError(f"factors must have a number of at least 1 for each layer, got {list(factors)}")
        if convolutions < 0 or filters < 1:
            raise ValueError(f"convolutions must be at least 0 and filters at least 1, got {convolutions}, {filters}")
        self.factors, self.dropout = tuple(factors), dropout
        self.convolutions = nn.ModuleList(
            nn.Conv2d(filters if index else 1, filters, kernel_size=3, stride=_STRIDE, padding=1)
            for index in range(convolutions)
        )
        size = input_size
        for _ in range(convolutions):
            size = -(-size // _STRIDE)
        sizes = [size * filters if convolutions else size] + [hidden_size] * (len(factors) - 1)
        stacks = [
            RecurrentStack(width * factor, hidden_size, 1, cell, bidirectional=True, layer_norm=layer_norm)
            for width, factor in zip(sizes, self.factors, strict=True)
        ]
        self.layers = nn.ModuleList(stacks)
        self.shape = EncoderShape(hidden_size, len(factors), hidden_size, stacks[0].others)

    def forward(self, source: Padded) -> Encoded:
        """Encode vectors `(B, S, F)`."""
        source = self._convolve(_cleared(source))
        finals = []
        for factor, layer in zip(self.factors, self.layers, strict=True):
            joined = join_neighbours(source, factor)
            outputs, final = layer(joined.values, lengths=joined.lengths)  # (B, S', H)
            source = _cleared(Padded(dropout(outputs, self.dropout, self.training), joined.lengths))
            finals.append(final)
        parts = zip(*(final.values for final in finals), strict=True)
        return Encoded(source, CellState.of(torch.cat(part, dim=1) for part in parts))  # (B, L, H)

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


def _cleared(padded: Padded) -> Padded:
    """Put zeros at padding."""
    return Padded(padded.values.masked_fill(~padded.mask[..., None], 0), padded.lengths)


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
