"""Pretrained encoders of images, from the package `transformers`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.encoders.image import coordinates, encode_grid
from lit_seq2seq.nn.ops import dropout
from lit_seq2seq.nn.parts import longest_list
from lit_seq2seq.types import Encoded, Padded, UserError


class VisionBackbone(Encoder):
    """An image model of `transformers`, without its head; a linear layer projects its last vectors, places beside them.

    Convolutional models give a grid `(B, D, H, W)`, which is taken as it is; transformers give `(B, 1 + H W, D)` or
    `(B, H W, D)`, of which the patches are taken. Needs `pip install "lit_seq2seq[vision]"`.

    Args:
        channels: number of channels of a pixel: 3.
        name: hub id or folder, such as `facebook/convnext-tiny-224`; a loaded model needs its configuration, too.
        hidden_size: size of the memory vectors and of the final state.
        trainable_blocks: so many of the last blocks learn; 0 freezes the whole, -1 frees it.
        dropout: probability of dropping units of the memory vectors.
        pretrained: start from the weights of `name`; otherwise from random ones.

    Raises:
        UserError: transformers is not installed, there is no such model, or it is none of images.
    """

    def __init__(
        self,
        channels: int,
        name: str,
        hidden_size: int = 512,
        trainable_blocks: int = 0,
        dropout: float = 0.0,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = _load(name, pretrained)
        freeze(self.backbone, trainable_blocks)
        self.project = nn.Linear(_width(self.backbone.config) + 2, hidden_size)
        self.dropout = dropout
        self._shape = EncoderShape(hidden_size, 1, hidden_size, has_c=False)

    @property
    def shape(self) -> EncoderShape:
        """Sizes of what `forward` returns."""
        return self._shape

    def train(self, mode: bool = True) -> VisionBackbone:
        """Switch between training and evaluation; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def forward(self, source: Padded) -> Encoded:
        """Encode pixels `(B, H, W, 3)`, all of one size."""
        pixels = source.values.permute(0, 3, 1, 2).contiguous()  # (B, 3, H, W)
        learns = any(parameter.requires_grad for parameter in self.backbone.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            states: Tensor = self.backbone(pixel_values=pixels).last_hidden_state
        grid = coordinates(as_grid(states))  # (B, D + 2, H', W')
        vectors = torch.tanh(self.project(grid.permute(0, 2, 3, 1)))  # (B, H', W', M)
        return encode_grid(dropout(vectors, self.dropout, self.training))


def as_grid(states: Tensor) -> Tensor:
    """Bring last states `(B, D, H, W)` or `(B, extra + n * n, D)` into a grid `(B, D, H, W)`.

    Example:
        >>> as_grid(torch.zeros(2, 1 + 9, 5)).shape
        torch.Size([2, 5, 3, 3])
    """
    if states.dim() == 4:
        return states
    side = int(states.shape[1] ** 0.5)
    patches = states[:, states.shape[1] - side * side :]  # (B, n * n, D), without class and register tokens
    return patches.transpose(1, 2).reshape(len(states), -1, side, side)


def freeze(model: nn.Module, trainable_blocks: int) -> None:
    """Freeze a model but for its last blocks, the members of its longest list of layers; -1 frees all."""
    model.requires_grad_(trainable_blocks < 0)
    blocks = longest_list(model)
    if trainable_blocks > len(blocks):
        raise UserError(f"trainable_blocks must be at most {len(blocks)}, as many as there are, got {trainable_blocks}")
    for block in blocks[len(blocks) - max(trainable_blocks, 0) :]:
        block.requires_grad_(True)


def _width(config: Any) -> int:
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)


def _load(name: str, pretrained: bool) -> Any:
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise UserError('VisionBackbone needs a package that is not here: pip install "lit_seq2seq[vision]"') from error
    try:
        config = AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", config)
        model = AutoModel.from_pretrained(name) if pretrained else cast(Any, AutoModel).from_config(config)
    except (OSError, ValueError) as error:
        raise UserError(f"the image model '{name}' cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise UserError(f"expected a model of images, but '{name}' reads {getattr(model, 'main_input_name', 'text')}")
    return model
