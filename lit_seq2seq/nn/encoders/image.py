"""Encoders of images: a grid of vectors to attend to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import dropout
from lit_seq2seq.types import CellState, Encoded, Padded


def encode_grid(grid: Tensor) -> Encoded:
    """Make a memory of a grid of vectors `(B, H, W, M)`, row by row, with their mean as the final state."""
    memory = grid.flatten(1, 2)  # (B, H * W, M)
    lengths = torch.full((memory.shape[0],), memory.shape[1], device=memory.device)
    return Encoded(Padded(memory, lengths), CellState(memory.mean(dim=1, keepdim=True)))


def coordinates(grid: Tensor) -> Tensor:
    """Return a grid `(B, C, H, W)` with two more channels, the place down and across, from -1 to 1.

    They let attention ask for places as well as for contents (Liu et al. 2018, https://arxiv.org/abs/1807.03247).
    """
    batch, _, height, width = grid.shape
    down = torch.linspace(-1, 1, height, device=grid.device, dtype=grid.dtype)[:, None].expand(height, width)
    across = torch.linspace(-1, 1, width, device=grid.device, dtype=grid.dtype)[None, :].expand(height, width)
    return torch.cat([grid, torch.stack([down, across]).expand(batch, 2, height, width)], dim=1)


class ConvEncoder(Encoder):
    """A small residual network over pixels (He et al. 2016, https://arxiv.org/abs/1512.03385), trained from scratch.

    Every stage begins by halving width and height, so that n stages make a grid of `size / 2^n` in square: 8 x 8
    vectors of 128 pixels with the default four. The last layer projects each, with its place beside it, to
    `hidden_size`. Batch normalisation takes away what all images have in common, such as the level of a background;
    group normalisation, which does not, needed twice the steps for drawn shapes (docs/results.md). On several devices
    set `trainer.sync_batchnorm` where each has few images.

    Args:
        channels: number of channels of a pixel.
        hidden_size: size of the memory vectors and of the final state.
        widths: number of channels of each stage.
        blocks: residual blocks of two 3 x 3 convolutions in each stage after the first, which is a single convolution.
        dropout: probability of dropping units of the memory vectors.

    Raises:
        ValueError: no stage, or a width or number of blocks below 1.
    """

    dimensions = 4

    def __init__(
        self,
        channels: int,
        hidden_size: int = 512,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: int = 2,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be at least one number, each at least 1, got {list(widths)}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        stages: list[nn.Module] = [_Unit(channels, widths[0], stride=2)]
        for before, width in pairwise(widths):
            stages += [_Block(before, width, stride=2), *(_Block(width, width) for _ in range(blocks - 1))]
        self.stages = nn.Sequential(*stages)
        self.project = Linear(widths[-1] + 2, hidden_size)
        self.dropout = dropout
        self.shape = EncoderShape(hidden_size, 1, hidden_size)

    def forward(self, source: Padded) -> Encoded:
        """Encode pixels `(B, H, W, C)`, all of one size."""
        grid = coordinates(self.stages(source.values.permute(0, 3, 1, 2)))  # (B, D + 2, H', W')
        vectors = torch.tanh(self.project(grid.permute(0, 2, 3, 1)))  # (B, H', W', M)
        return encode_grid(dropout(vectors, self.dropout, self.training))


class _Unit(nn.Module):
    """Convolution 3 x 3, batch normalisation and, unless told otherwise, ReLU."""

    def __init__(self, before: int, width: int, stride: int = 1, active: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.active = active
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Transform `(B, C, H, W)`."""
        x = self.norm(self.convolution(x))
        return F.relu(x) if self.active else x


class _Block(nn.Module):
    """`relu(x + f(x))` with two convolutions in f; where the shape changes, x is averaged and projected."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _Unit(before, width, stride)
        self.second = _Unit(width, width, active=False)
        same = stride == 1 and before == width
        pooled = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Identity() if same else nn.Sequential(pooled, nn.Conv2d(before, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Transform `(B, C, H, W)`."""
        return F.relu(self.shortcut(x) + self.second(self.first(x)))
