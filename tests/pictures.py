"""A source that is not text, not stored and random when training: small grey pictures, and an encoder of them."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn

from lit_seq2seq.features import Feature
from lit_seq2seq.features.feature import Array
from lit_seq2seq.nn import Encoder, EncoderShape
from lit_seq2seq.types import CellState, Encoded, Padded, UserError

SIDE, MARGIN = 4, 1


class Pictures(Feature):
    """Square grey pictures from bytes; training takes one of four crops.

    Args:
        mirror: whether training mirrors at random.
    """

    column_kind: ClassVar[str] = "pictures"
    input_kind: ClassVar[str] = "the bytes of a picture"
    random_settings: ClassVar[tuple[str, ...]] = ("mirror",)
    rows_at_once: ClassVar[int] = 3

    encoded: ClassVar[list[int]] = []  # how many pictures each call of `encode` read

    def __init__(self, mirror: bool = False) -> None:
        self.config = {"mirror": mirror}

    @property
    def size(self) -> int:
        return 1

    @property
    def augments(self) -> bool:
        return True

    def accepts_column(self, column: object) -> bool:
        return getattr(column, "dtype", None) == "binary"

    def accepts(self, raw: object) -> bool:
        return isinstance(raw, bytes)

    def show(self, raw: Any) -> str:
        return f"{len(raw)} bytes"

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        self.encoded.append(len(raw))
        return [self._crop(value, training) for value in raw]

    def _crop(self, raw: bytes, training: bool) -> Array:
        side = SIDE + MARGIN
        if len(raw) != side * side:
            raise UserError(f"expected {side * side} bytes, but got {len(raw)}")
        picture = np.frombuffer(raw, np.uint8).reshape(side, side, 1)
        top, left = torch.randint(MARGIN + 1, (2,)).tolist() if training else (0, 0)
        return picture[top : top + SIDE, left : left + SIDE]

    def augment(self, array: Array) -> Array:
        return array[:, ::-1] if self.config["mirror"] and torch.rand(()) < 0.5 else array

    def positions(self, array: Array) -> int:
        return SIDE * SIDE

    def measure(self, raw: Sequence[Any]) -> list[int]:
        return [SIDE * SIDE] * len(raw)

    def nothing(self) -> Array:
        return np.zeros((SIDE, SIDE, 1), np.uint8)

    def truncate(self, array: Array, length: int) -> Array:
        return array

    def collate(self, arrays: Sequence[Array]) -> Padded:
        return Padded(torch.from_numpy(np.stack(arrays)), torch.full((len(arrays),), SIDE))


class PixelEncoder(Encoder):
    """One memory vector per pixel; sizes are not those of the source."""

    def __init__(self, channels: int, hidden_size: int = 12) -> None:
        super().__init__()
        self.project = nn.Linear(channels, hidden_size)
        self.hidden_size = hidden_size

    @property
    def shape(self) -> EncoderShape:
        return EncoderShape(self.hidden_size, 1, self.hidden_size)

    def forward(self, source: Padded) -> Encoded:
        pixels: Tensor = source.values.float().flatten(1, 2) / 255  # (B, H * W, C)
        memory = torch.tanh(self.project(pixels))
        lengths = source.lengths * source.values.shape[2]
        return Encoded(Padded(memory, lengths), CellState(memory.mean(1, keepdim=True)))


def picture(value: int) -> bytes:
    return bytes([value % 256] * (SIDE + MARGIN) ** 2)


def rows(train: int = 8, validation: int = 4, test: int = 3) -> DatasetDict:
    """Pictures with two captions each."""
    sizes, splits, start = {"train": train, "validation": validation, "test": test}, {}, 0
    for split, count in sizes.items():
        numbers = range(start, start + count)
        columns = {
            "image": [picture(number) for number in numbers],
            "caption": [[f"a {number}", f"the {number}"] for number in numbers],
        }
        splits[split], start = Dataset.from_dict(columns), start + count
    return DatasetDict(splits)
