"""Attention over an image, word by word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from lit_seq2seq.plots.common import Array, Picture, as_array, families, save, visible
from lit_seq2seq.types import UserError


class CaptionExample(NamedTuple):
    """One image of `plot_captions`.

    Attributes:
        image: `(H, W, 3)` pixels from 0 to 255.
        weights: `(T, S)` attention weights over the cells of a square grid, row by row.
        tokens: T tokens.
        title: what is written over the image.
    """

    image: NDArray[np.generic]
    weights: Tensor | Array
    tokens: Sequence[str]
    title: str = ""


def plot_captions(examples: Sequence[CaptionExample], path: str | Path | None = None, columns: int = 8) -> Figure:
    """Draw each image, and for each word of its caption where attention looked: bright places have weight.

    The pictures of Xu et al. (2015, figure 2, https://arxiv.org/abs/1502.03044).

    Args:
        examples: what to draw; see `CaptionExample`.
        path: where to save it; `None` saves nothing.
        columns: panels beside each other.

    Returns:
        The figure.

    Raises:
        UserError: if there are no examples, or the weights of one are not those of a square grid for each token.
    """
    if not examples:
        raise UserError("plot_captions expects one or more examples, but got none")
    grids = [_grids(example) for example in examples]
    rows = [math.ceil((1 + len(grid)) / columns) for grid in grids]
    figure = Picture(figsize=(1.35 * columns, 1.65 * sum(rows) + 0.3 * len(rows)), layout="constrained")
    parts = np.atleast_1d(np.array(figure.subfigures(len(examples), 1, height_ratios=rows), dtype=object))
    fonts = families(text for example in examples for text in (*example.tokens, example.title))
    for part, example, grid, count in zip(parts, examples, grids, rows, strict=True):
        part.suptitle(example.title, family=fonts, parse_math=False, fontsize=10, x=0.01, ha="left")
        panels = list(part.subplots(count, columns, squeeze=False).flat)
        panels[0].imshow(example.image)
        for axes, token, weights in zip(panels[1:], example.tokens, grid, strict=False):
            _draw_word(axes, example.image, weights)
            axes.set_title(visible(token), family=fonts, parse_math=False, fontsize=9)
        for axes in panels[: 1 + len(grid)]:
            axes.set_axis_off()
        for axes in panels[1 + len(grid) :]:
            axes.remove()
    return save(figure, path)


def _grids(example: CaptionExample) -> Array:
    weights = as_array(example.weights)
    side = math.isqrt(weights.shape[-1])
    if weights.shape != (len(example.tokens), side * side) or not weights.size:
        raise UserError(
            f"attention weights must be (tokens, cells of a square grid), with {len(example.tokens)} tokens, but are "
            f"{tuple(weights.shape)}: give one row per token of an encoder whose memory is a square grid"
        )
    return weights.reshape(-1, side, side)  # (T, side, side)


def _draw_word(axes: Axes, image: NDArray[np.generic], weights: Array) -> None:
    """Darken an image where the grid `(side, side)` has little weight."""
    height, width = image.shape[:2]
    axes.imshow(image)
    shadow = np.zeros((*weights.shape, 4))
    shadow[..., 3] = 0.85 * (1 - weights / weights.max())
    axes.imshow(shadow, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")
