"""Images from files or bytes to pixels of one size, by Pillow."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_seq2seq.features.image import GREY
from lit_seq2seq.types import UserError

try:
    import PIL.Image
    from PIL import ImageOps
except ImportError as error:
    raise UserError("reading images needs Pillow: pip install pillow") from error

_LEAST_SIDE = 2
_KINDS: Any = (str, bytes, os.PathLike, PIL.Image.Image)
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""What is read; Pillow hands others, such as EPS, to programs outside, or decodes more than their header says."""


def open_image(raw: Any, max_pixels: int) -> PIL.Image.Image:
    """Open one image without decoding it.

    Args:
        raw: a path, bytes, a Pillow image, or a mapping with bytes or path.
        max_pixels: a larger one is refused.

    Raises:
        UserError: it is no image, or one too large or too small.
    """
    if isinstance(raw, Mapping):
        raw = raw.get("bytes") or raw.get("path")
    if not isinstance(raw, _KINDS):
        raise UserError(f"expected an image as a path, bytes or a Pillow image, but it is of type {type(raw).__name__}")
    name = "" if isinstance(raw, bytes | PIL.Image.Image) else f" '{raw}'"
    if name and not _exists(raw):
        raise UserError(f"expected an image at{name}, but there is no such file: give its full path")
    try:
        with warnings.catch_warnings():  # of sizes, which are checked below
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            image = _open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) if _is_file(raw) else raw
    except PIL.UnidentifiedImageError as error:
        raise UserError(
            f"expected an image, but{name or ' the bytes'} cannot be read as one: convert it to PNG or JPEG "
            f"(also read: {', '.join(FORMATS[2:])})"
        ) from error
    except PIL.Image.DecompressionBombError as error:
        raise UserError(f"the image{name} is too large: {error}: make it smaller") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"the image{name} is broken: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"expected an image of at most {max_pixels} pixels, but{name or ' it'} has {width} x {height}: "
            "make it smaller, or raise max_pixels"
        )
    if min(width, height) < _LEAST_SIDE:
        raise UserError(
            f"expected an image of at least {_LEAST_SIDE} x {_LEAST_SIDE} pixels, but{name or ' it'} has "
            f"{width} x {height}: leave the row out"
        )
    return image


def decode_image(raw: Any, max_pixels: int, enough: int) -> PIL.Image.Image:
    """Decode one image as RGB, upright, at its own size or, where its format can, at a fraction that is enough.

    Args:
        raw: see `open_image`.
        max_pixels: see `open_image`.
        enough: width and height that suffice.

    Raises:
        UserError: it cannot be read.
    """
    image = open_image(raw, max_pixels)
    name = "" if isinstance(raw, bytes | PIL.Image.Image | Mapping) else f" '{raw}'"
    try:
        if _is_file(raw):
            image.draft(None, (enough, enough))
        return _rgb(ImageOps.exif_transpose(image), image.mode.startswith("I;16") or image.format == "PPM")
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error) as error:
        raise UserError(f"the image{name} is broken: {error}: mend it, or leave the row out") from error


def fitted(image: PIL.Image.Image, edge: int, fit: str) -> PIL.Image.Image:
    """Make an image a square: `crop` its middle, `stretch` it, or `pad` it with grey."""
    square, (width, height) = (edge, edge), image.size
    if fit == "pad":
        width, height = (max(round(side / max(image.size) * edge), 1) for side in image.size)
        padded = PIL.Image.new("RGB", square, (GREY,) * 3)
        scaled = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
        padded.paste(scaled, (round((edge - width) / 2), round((edge - height) / 2)))
        return padded
    side = min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    box = (left, upper, left + side, upper + side) if fit == "crop" else (0, 0, width, height)
    return image.resize(square, PIL.Image.Resampling.BICUBIC, box=box)


def _exists(path: Any) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long, or with a null character: some other text
        return False


def _open(file: Any) -> PIL.Image.Image:
    PIL.Image.init()  # knows all formats, those of plugins too
    return PIL.Image.open(file, formats=[name for name in FORMATS if name in PIL.Image.OPEN])


def _is_file(raw: Any) -> bool:
    return not isinstance(raw, PIL.Image.Image)


def _rgb(image: PIL.Image.Image, sixteen: bool) -> PIL.Image.Image:
    """Convert any mode to RGB; what is transparent shows white. `sixteen` tells that integers have 16 bits."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, sixteen)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: PIL.Image.Image, sixteen: bool) -> PIL.Image.Image:
    """Convert integers of more than 8 bits, and floats, to 8 by the least scale on which all values lie."""
    values = np.asarray(image, dtype=np.float64)
    floats = image.mode == "F"
    scales, beyond = ((1.0, 255.0, 65535.0), 0.05) if floats else ((255.0, 65535.0, 2.0**31 - 1), 0.0)
    full = next((scale for scale in scales[sixteen and not floats :] if values.max() <= scale * (1 + beyond)), None)
    if full is None or not values.min() >= -beyond * full:
        raise UserError(
            f"expected pixels from 0 to {', 0 to '.join(f'{scale:.0f}' for scale in scales)}, but the image has some "
            f"from {values.min():.6g} to {values.max():.6g}: convert it to 8 bits"
        )
    values *= 255 / full  # in place, as these take eight times the image's memory
    np.clip(np.round(values, out=values), 0, 255, out=values)
    return PIL.Image.fromarray(values.astype(np.uint8))
