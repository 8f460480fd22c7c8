"""Where a transducer writes: a row per symbol, from left to right the positions of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from lit_seq2seq.plots.attention import AttentionExample, checked_weights, number_positions
from lit_seq2seq.plots.common import Array, Picture, families, save, visible
from lit_seq2seq.types import UserError

_PATH = "tab:orange"


def plot_lattice(
    weights: Tensor | Array,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: str | Path | None = None,
    *,
    seconds: float | None = None,
    title: str = "",
) -> Figure:
    """Draw where a transducer writes each symbol, and the best path: on with a blank, up with a symbol.

    The lattice of Graves (2012, figure 1, https://arxiv.org/abs/1211.3711), shaded by probability.

    Args:
        weights: `(T, S)`, the `attention` of an output.
        source_tokens: S labels of the positions; none for a source without symbols.
        target_tokens: T labels.
        path: where to save it; the suffix chooses the format (png, pdf, svg). `None` saves nothing.
        seconds: how long the source lasts, if it does.
        title: shown above.

    Raises:
        UserError: if the weights are not `(T, S)`.
    """
    return plot_lattices([AttentionExample(weights, source_tokens, target_tokens, title, seconds)], path)


def plot_lattices(examples: Sequence[AttentionExample], path: str | Path | None = None) -> Figure:
    """Draw several lattices below each other, with one colour bar.

    Args:
        examples: what to draw; see `plot_lattice`.
        path: where to save it; `None` saves nothing.

    Raises:
        UserError: if there are no examples, or the weights of one do not fit its tokens.
    """
    if not examples:
        raise UserError("plot_lattices expects one or more examples, but got none")
    arrays = [checked_weights(example) for example in examples]
    heights = [max(0.24 * len(one.target_tokens), 1.0) + 0.7 + 0.3 * bool(one.title) for one in examples]
    figure = Picture(figsize=(8.0, sum(heights) + 0.3), layout="constrained")
    panels = list(figure.subplots(len(examples), 1, squeeze=False, height_ratios=heights).flat)
    fonts = families(text for one in examples for text in (*one.target_tokens, *one.source_tokens, one.title))
    images = [_draw(*panel, fonts) for panel in zip(panels, examples, arrays, strict=True)]
    figure.colorbar(images[0], ax=panels, label="probability of writing here", fraction=0.05, pad=0.02, aspect=25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def best_path(weights: Array) -> list[int]:
    """Return for each symbol where it is written on the most probable path, which never goes back.

    Args:
        weights: `(T, S)` from 0 to 1.

    Example:
        >>> best_path(np.array([[0.1, 0.8, 0.1], [0.6, 0.0, 0.4]]))
        [1, 2]
    """
    scores = np.log(np.maximum(weights, 1e-30))  # (T, S)
    best = scores[0]
    back = []
    for row in scores[1:]:
        reached = np.maximum.accumulate(best)  # (S,)
        back.append(np.maximum.accumulate(np.where(best == reached, np.arange(len(best)), 0)))
        best = reached + row
    found = [int(best.argmax())]
    for origin in reversed(back):
        found.append(int(origin[found[-1]]))
    return found[::-1]


def _draw(axes: Axes, example: AttentionExample, weights: Array, fonts: list[str]) -> AxesImage:
    symbols, positions = weights.shape
    width = positions if example.seconds is None else example.seconds
    image = axes.imshow(
        weights,
        cmap="Blues",
        vmin=0.0,
        vmax=1.0,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, width, -0.5, symbols - 0.5),
    )
    written = (np.array(best_path(weights)) + 0.5) * width / positions  # (T,)
    rows = np.arange(symbols)
    axes.hlines(rows, [0, *written[:-1]], written, color=_PATH, linewidth=1.2, label="blank: go on")
    axes.vlines(written[:-1], rows[:-1], rows[1:], color=_PATH, linewidth=1.2)
    axes.plot(written, rows, "o", color=_PATH, markersize=4, label="symbol: write it")
    axes.set_yticks(rows, [visible(one) for one in example.target_tokens], family=fonts, fontsize=9, parse_math=False)
    if example.source_tokens:
        labels = [visible(one) for one in example.source_tokens]
        turned = 90 if max(map(len, labels)) > 1 else 0
        axes.set_xticks(np.arange(positions) + 0.5, labels, rotation=turned, family=fonts, fontsize=9, parse_math=False)
    else:
        number_positions(axes, example)
    axes.tick_params(length=0, axis="y")
    if example.title:
        axes.set_title(example.title, family=fonts, parse_math=False, fontsize=11)
    return image
