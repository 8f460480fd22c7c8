"""Images: from files, bytes or a column of them, to pixels of one size."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lit_seq2seq.features.augmentation import drawn
from lit_seq2seq.features.feature import Array, Feature, Medium, batch_of, is_column
from lit_seq2seq.types import Padded, UserError

if TYPE_CHECKING:
    import PIL.Image

Fit = Literal["crop", "stretch", "pad"]
Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels

GREY = 128
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PATCH = 16  # so many pixels squared count as one position


class Image(Feature):
    """Images as RGB pixels of one size, `(B, size, size, 3)` float32, `(v / 255 - mean) / std`.

    Images are decoded when a batch is made, and not kept. PNG, JPEG, GIF, BMP, WebP, TIFF, PPM, JPEG 2000 and AVIF are
    read, and HEIF where a plugin of Pillow reads it. Palettes, CMYK, grey, 16 bits and transparency (laid on white)
    become RGB, the first frame of an animation counts, and a camera's orientation is followed. Pixels of 32 bits are
    integers from 0 to 255, 65,535 or 2^31 - 1, or floats from 0 to 1, 255 or 65,535: the least of these that holds all
    values of the image. The file of a large JPEG is decoded at a fraction of its size, a Pillow image as it is: the
    pixels of the two may differ a little. Training may take random parts (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842,
    section 6) and mirror images.

    Args:
        size: width and height in pixels.
        fit: how other shapes become a square: `crop` the middle, `stretch`, or `pad` with grey.
        mean: of each channel, from 0 to 1; ImageNet's by default, as most backbones expect.
        std: of each channel, above 0.
        smallest_crop: least share of the area that a random part of an image takes when training, above 0 and up to 1;
            1 takes the whole, as `fit` says.
        flip: mirror half of the images when training. Leave it off where captions tell left from right.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UserError: a setting is out of its range.
    """

    medium: ClassVar[Medium | None] = "image"
    column_kind: ClassVar[str] = "images (an Image column, bytes or paths)"
    input_kind: ClassVar[str] = "an image: a path, bytes, a Pillow image, or a mapping with bytes or path"
    random_settings: ClassVar[tuple[str, ...]] = ("smallest_crop", "flip")
    rows_at_once: ClassVar[int] = 100
    one_size: ClassVar[bool] = True

    def __init__(
        self,
        size: int = 128,
        fit: Fit = "crop",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        smallest_crop: float = 1.0,
        flip: bool = False,
        max_pixels: int = 50_000_000,
    ) -> None:
        if size < 8:
            raise UserError(f"size of an image must be at least 8 pixels, but is {size}")
        if fit not in ("crop", "stretch", "pad"):
            raise UserError(f"fit must be crop, stretch or pad, but is {fit!r}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(f"mean and std must be 3 numbers each, std above 0, but are {mean} and {std}")
        if not 0 < smallest_crop <= 1:
            raise UserError(f"smallest_crop must be above 0 and up to 1, but is {smallest_crop}")
        self.edge, self.fit = size, fit
        self.mean, self.std = mean, std
        self.smallest_crop, self.flip, self.max_pixels = smallest_crop, flip, max_pixels
        numbers = {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
        self.config = {"size": size, "fit": fit, **numbers}
        self.config |= {"smallest_crop": smallest_crop, "flip": flip, "max_pixels": max_pixels}

    # ---------------------------------------------------------------------------------------------- what it reads

    def accepts_column(self, column: object) -> bool:
        """Tell whether a column holds image files, bytes, paths, or mappings of these."""
        if isinstance(column, Mapping):
            return bool(column.keys() & {"bytes", "path"})
        return is_column(column, "Image") or getattr(column, "dtype", None) in (
            "binary",
            "large_binary",
            "string",
            "large_string",
        )

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is one image."""
        if isinstance(raw, Mapping):
            return bool(raw.keys() & {"bytes", "path"})
        import PIL.Image

        return isinstance(raw, PIL.Image.Image | bytes | str | os.PathLike)

    def show(self, raw: Any) -> str:
        """Return the path, or the width and height."""
        if self.is_missing(raw):
            return "no image"
        if isinstance(raw, str | os.PathLike):
            return str(raw)
        from lit_seq2seq.features.pixels import open_image

        try:
            width, height = open_image(raw, self.max_pixels).size
        except UserError:
            return "an image that cannot be read"
        return f"image of {width} x {height} pixels"

    def picture(self, raw: Any) -> Array:
        """Return the pixels that the model reads."""
        return self.nothing() if self.is_missing(raw) else self.encode([raw])[0]

    # ---------------------------------------------------------------------------------------------- encoding

    @property
    def size(self) -> int:
        """Number of channels."""
        return 3

    @property
    def augments(self) -> bool:
        """Whether training takes random parts or mirrors."""
        return self.smallest_crop < 1 or self.flip

    def decode(self, raw: Any) -> PIL.Image.Image:
        """Decode one image as RGB, upright; see `decode_image`."""
        from lit_seq2seq.features.pixels import decode_image

        return decode_image(raw, self.max_pixels, math.ceil(2 * self.edge / math.sqrt(self.smallest_crop)))

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn images into pixels `(size, size, 3)` uint8, a random part of each when training."""
        return [np.asarray(self._fitted(self.decode(value), training)) for value in raw]

    def augment(self, array: Array) -> Array:
        """Mirror half of the images, if so configured."""
        return array[:, ::-1] if self.flip and drawn() < 0.5 else array

    def positions(self, array: Array) -> int:
        """Count a position for every 16 x 16 pixels."""
        return math.ceil(self.edge / _PATCH) ** 2

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count positions without decoding."""
        return [math.ceil(self.edge / _PATCH) ** 2] * len(raw)

    def nothing(self) -> Array:
        """Return a grey image."""
        return np.full((self.edge, self.edge, 3), GREY, dtype=np.uint8)

    def truncate(self, array: Array, length: int) -> Array:
        """Return the image as it is: all have one size."""
        return array

    def collate(self, arrays: Sequence[Array]) -> Padded:
        """Normalise into float32 `values (B, size, size, 3)`."""
        pixels = np.stack(arrays) if arrays else np.empty((0, self.edge, self.edge, 3), np.uint8)
        values = (pixels.astype(np.float32) / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return batch_of(values, [self.edge] * len(arrays))

    def _fitted(self, image: PIL.Image.Image, training: bool) -> PIL.Image.Image:
        import PIL.Image

        from lit_seq2seq.features.pixels import fitted

        if not training or self.smallest_crop == 1:
            return fitted(image, self.edge, self.fit)
        box = _part(*image.size, self.smallest_crop)
        return image.resize((self.edge, self.edge), PIL.Image.Resampling.BILINEAR, box=box)


def _part(width: int, height: int, smallest: float) -> Box:
    """Draw a part of at least a share of `smallest` of the area, its sides in a ratio from 3/4 to 4/3."""
    share, ratio, across, down = (drawn() for _ in range(4))
    area = width * height * (smallest + (1 - smallest) * share)
    stretch = math.sqrt(math.exp((2 * ratio - 1) * math.log(4 / 3)))
    part_width = min(width, math.sqrt(area) * stretch)
    part_height = min(height, area / part_width)
    left, upper = across * (width - part_width), down * (height - part_height)
    return left, upper, left + part_width, upper + part_height
