"""What all pictures share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lit_seq2seq.features.schemes import JOINER

Array = NDArray[np.float64]

_WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
_INVISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", JOINER: None})  # the joiner is in no usual font


def as_array(weights: Tensor | Array) -> Array:
    """Return weights, wherever they are and in whatever precision, as a NumPy array."""
    return np.asarray(weights.detach().float().cpu() if isinstance(weights, Tensor) else weights, dtype=np.float64)


def visible(token: str) -> str:
    """Return a token with white space shown.

    Example:
        >>> visible("a b")
        'a␣b'
    """
    return token.translate(_INVISIBLE)


@cache
def families() -> list[str]:
    """Fonts to look for a character in, in turn: those of the wide scripts only where installed."""
    return ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in font_manager.get_font_names())]


def save(figure: Figure, path: str | Path | None) -> Figure:
    """Write the figure to `path`, in folders made if needed; `None` writes nothing."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
    return figure
