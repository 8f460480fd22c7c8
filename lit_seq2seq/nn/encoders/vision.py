"""Pretrained encoders of images, from the package `transformers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_seq2seq.nn.encoders.image import coordinates, encode_grid
from lit_seq2seq.nn.encoders.pretrained import PretrainedEncoder
from lit_seq2seq.nn.ops import dropout
from lit_seq2seq.types import Encoded, Padded


class VisionBackbone(PretrainedEncoder):
    """An image model of `transformers`, without its head; a linear layer projects its last vectors, places beside them.

    Convolutional models give a grid `(B, D, H, W)`, which is taken as it is; transformers give `(B, 1 + H W, D)` or
    `(B, H W, D)`, of which the patches are taken. Such as `facebook/convnext-tiny-224`; the arguments are those of
    `PretrainedEncoder`. Needs `pip install -e ".[vision]"`.

    Raises:
        UserError: transformers is not installed, there is no such model, or it is none of images.
    """

    dimensions = 4

    reads = "pixel_values"
    of = "image"
    extra = 2

    def part(self, model: Any) -> Any:
        """Return the part of a model that sees."""
        return getattr(model, "vision_model", model)

    def forward(self, source: Padded) -> Encoded:
        """Encode pixels `(B, H, W, 3)`, all of one size."""
        pixels = source.values.permute(0, 3, 1, 2).contiguous()  # (B, 3, H, W)
        grid = coordinates(as_grid(self.states(pixel_values=pixels)))  # (B, D + 2, H', W')
        vectors = torch.tanh(self.project(grid.permute(0, 2, 3, 1)))  # (B, H', W', M)
        return encode_grid(dropout(vectors, self.dropout, self.training))


def as_grid(states: Tensor) -> Tensor:
    """Bring last states `(B, D, H, W)` or `(B, extra + n * n, D)` into a grid `(B, D, H, W)`."""
    if states.dim() == 4:
        return states
    side = int(states.shape[1] ** 0.5)
    patches = states[:, states.shape[1] - side * side :]  # (B, n * n, D), without class and register tokens
    return patches.transpose(1, 2).reshape(states.shape[0], -1, side, side)
