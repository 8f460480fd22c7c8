"""Attention as a table: a row per target token, a column per source token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lit_seq2seq.plots.common import Array, Picture, as_array, families, save, visible
from lit_seq2seq.types import UserError

_PLAIN_WIDTH = 4.0  # inches, of a panel whose source has no symbols


class AttentionExample(NamedTuple):
    """One panel of `plot_attention_grid` or `plot_lattices`.

    Attributes:
        weights: `(T, S)` attention weights, each from 0 to 1.
        source_tokens: S tokens; none for a source without symbols, whose positions are then numbered.
        target_tokens: T tokens.
        title: what is written above the panel.
        seconds: how long the source lasts, if it does; its axis is then that of time.
    """

    weights: Tensor | Array
    source_tokens: Sequence[str]
    target_tokens: Sequence[str]
    title: str = ""
    seconds: float | None = None


def plot_attention(
    weights: Tensor | Array,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: str | Path | None = None,
    *,
    title: str = "",
) -> Figure:
    """Draw the attention weight of every target token (rows) on every source token (columns).

    The alignment picture of Bahdanau et al. (2015, figure 3, https://arxiv.org/abs/1409.0473).

    Args:
        weights: `(T, S)`, from 0 to 1.
        source_tokens: S labels.
        target_tokens: T labels.
        path: where to save it; the suffix chooses the format (png, pdf, svg). `None` saves nothing.
        title: shown above.

    Raises:
        UserError: if the weights are not `(T, S)`.
    """
    return plot_attention_grid([AttentionExample(weights, source_tokens, target_tokens, title)], path, columns=1)


def plot_attention_grid(
    examples: Sequence[AttentionExample], path: str | Path | None = None, columns: int = 2
) -> Figure:
    """Draw the attention of several examples in one picture, with one colour bar.

    Args:
        examples: what to draw, row by row; see `AttentionExample`.
        path: where to save it; `None` saves nothing.
        columns: panels beside each other.

    Returns:
        The figure.

    Raises:
        UserError: if there are no examples, or the weights of one do not fit its tokens.
    """
    if not examples:
        raise UserError("plot_attention_grid expects one or more examples, but got none")
    arrays = [checked_weights(example) for example in examples]
    columns = min(columns, len(examples))
    rows = math.ceil(len(examples) / columns)
    widths = [max(_width(example) for example in examples[column::columns]) for column in range(columns)]
    heights = [
        max(_height(example) for example in examples[row * columns : (row + 1) * columns]) for row in range(rows)
    ]
    figure = Picture(figsize=(sum(widths) + 1.0, sum(heights) + 0.2), layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=widths, height_ratios=heights)
    used = list(panels.flat[: len(examples)])
    fonts = families(text for e in examples for text in (*e.source_tokens, *e.target_tokens, e.title))
    images = [_draw_attention(*panel, fonts) for panel in zip(used, examples, arrays, strict=True)]
    for axes in panels.flat[len(examples) :]:
        axes.remove()
    figure.colorbar(images[0], ax=used, label="attention weight", fraction=0.05, shrink=0.8, aspect=25, pad=0.02)
    return save(figure, path)


def checked_weights(example: AttentionExample) -> Array:
    """Return the weights of a panel, `(T, S)`, if they fit its tokens."""
    weights = as_array(example.weights)
    columns = len(example.source_tokens) or weights.shape[-1]
    expected = (len(example.target_tokens), columns)
    if weights.shape != expected or 0 in expected:
        raise UserError(
            f"attention weights must be (target tokens, source tokens) = {expected}, but are {tuple(weights.shape)}: "
            "give one row per target token and one column per source token"
        )
    return weights  # (T, S)


def _width(example: AttentionExample) -> float:
    """Inches that a panel and its row labels need."""
    columns = 0.27 * len(example.source_tokens) if example.source_tokens else _PLAIN_WIDTH
    return max(columns, 1.4) + 0.09 * max(map(len, example.target_tokens)) + 0.4


def _height(example: AttentionExample) -> float:
    """Inches that a panel, its column labels and its title need."""
    labels = 0.09 * max(map(len, example.source_tokens), default=2)
    return max(0.27 * len(example.target_tokens), 1.2) + labels + 0.4 + 0.3 * bool(example.title)


def _draw_attention(axes: Axes, example: AttentionExample, weights: Array, fonts: list[str]) -> AxesImage:
    aspect: Literal["equal", "auto"] = "equal" if example.source_tokens else "auto"
    rows, columns = weights.shape
    width = columns if example.seconds is None else example.seconds
    sides = None if example.source_tokens else (0, width, rows - 0.5, -0.5)
    image = axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect=aspect, interpolation="nearest", extent=sides)
    axes.set_anchor("NW")
    axes.xaxis.tick_top()
    source = [visible(token) for token in example.source_tokens]
    target = [visible(token) for token in example.target_tokens]
    if source:
        axes.set_xticks(range(len(source)), source, rotation=90, family=fonts, fontsize=9, parse_math=False)
    else:
        number_positions(axes, example)
    axes.set_yticks(range(len(target)), target, family=fonts, fontsize=9, parse_math=False)
    axes.tick_params(length=0)
    if example.title:
        axes.set_title(example.title, family=fonts, parse_math=False, fontsize=11)
    return image


def number_positions(axes: Axes, example: AttentionExample) -> None:
    """Label the positions of a source without symbols, by seconds where it has them."""
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=example.seconds is None))
    axes.set_xlabel("position" if example.seconds is None else "seconds", fontsize=9)
    axes.tick_params(labelsize=9)
