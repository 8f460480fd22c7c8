"""What all pictures share."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib import font_manager
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lit_seq2seq.features.schemes import JOINER
from lit_seq2seq.types import UserError

Array = NDArray[np.float64]

_USUAL = "DejaVu Sans"
_INVISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", JOINER: None})  # the joiner is in no usual font


def as_array(weights: Tensor | Array) -> Array:
    """Return weights, wherever they are and in whatever precision, as a NumPy array."""
    return np.asarray(weights.detach().float().cpu() if isinstance(weights, Tensor) else weights, dtype=np.float64)


def visible(token: str) -> str:
    """Return a token with white space shown."""
    return token.translate(_INVISIBLE).encode(errors="replace").decode()  # half a surrogate pair has no glyph


def families(texts: Iterable[str]) -> list[str]:
    """Choose fonts that have the characters of some texts between them, the usual one first; say which none has."""
    missing = {ord(char) for text in texts for char in visible(text) if unicodedata.category(char)[0] != "C"}
    chosen, fonts = [_USUAL], _fonts()
    missing -= _characters(fonts[_USUAL])
    while missing:
        best = max(fonts, key=lambda name: len(missing & _characters(fonts[name])))
        if not missing & _characters(fonts[best]):
            shown = "".join(map(chr, sorted(missing)[:9]))
            rank_zero_warn(
                f"{len(missing)} characters are drawn as boxes, as no installed font has them ({shown}): install one, "
                f"such as Noto Sans CJK, and delete the fontlist in {matplotlib.get_cachedir()}"
            )
            break
        chosen.append(best)
        missing -= _characters(fonts[best])
    return chosen


@cache
def _fonts() -> dict[str, str]:
    """The file of each installed font, if possible upright and of usual weight; without the font of boxes."""
    entries = sorted(font_manager.fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400))
    return {font.name: font.fname for font in reversed(entries) if not font.name.startswith("Last Resort")}


@cache
def _characters(path: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(path).get_charmap())


class Picture(Figure):
    """A figure that does not repeat, glyph by glyph, what `families` has said in one line."""

    __module__ = Figure.__module__  # by which gradio tells figures of matplotlib from others

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """Write the figure; see `Figure.savefig`."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            super().savefig(*args, **kwargs)


def writable(path: str | Path) -> Path:
    """Return where a picture is to be written, in folders made if needed.

    Raises:
        UserError: it is a folder.
    """
    if Path(path).is_dir():
        raise UserError(f"cannot write a picture to {path}: it is a folder: give a file, such as {path}/picture.png")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)


def save(figure: Figure, path: str | Path | None) -> Figure:
    """Write the figure to `path`, in folders made if needed; `None` writes nothing.

    Raises:
        UserError: it is a folder, or its ending names no kind of picture.
    """
    if path is not None:
        try:
            figure.savefig(writable(path), dpi=150, bbox_inches="tight")
        except ValueError as error:
            raise UserError(f"cannot write a picture to {path}: {error}") from error
    return figure
