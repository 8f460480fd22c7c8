"""Pictures of attention and of training curves; no global matplotlib state, so any thread and any backend will do."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from lit_seq2seq.features.schemes import JOINER
from lit_seq2seq.types import UserError

Array = NDArray[np.float64]
Series = tuple[Array, Array]

SCORES = {"bleu": "BLEU", "chrf": "chrF", "cider": "CIDEr-D", "exact_match": "exact match"}
SCORES |= {f"rouge{n}": f"ROUGE-{n}" for n in "12L"}
ERRORS = {"wer": "WER", "cer": "CER"}
_WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
_PLAIN_WIDTH = 4.0  # inches, of a panel whose source has no symbols
_INVISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", JOINER: None})  # the joiner is in no usual font


class AttentionExample(NamedTuple):
    """One panel of `plot_attention_grid`.

    Attributes:
        weights: `(T, S)` attention weights, each from 0 to 1.
        source_tokens: S tokens; none for a source without symbols, whose positions are then numbered.
        target_tokens: T tokens.
        title: what is written above the panel.
    """

    weights: Tensor | Array
    source_tokens: Sequence[str]
    target_tokens: Sequence[str]
    title: str = ""


def plot_attention(
    weights: Tensor | Array,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw the attention weight of every target token (rows) on every source token (columns).

    The alignment picture of Bahdanau et al. (2015, figure 3, https://arxiv.org/abs/1409.0473).

    Args:
        weights: `(T, S)`, each from 0 to 1.
        source_tokens: S tokens.
        target_tokens: T tokens.
        path: where to save it; the suffix chooses the format (png, pdf, svg). `None` saves nothing.
        title: what is written above.

    Returns:
        The figure.

    Raises:
        UserError: if the weights are not `(T, S)`.

    Example:
        >>> import torch
        >>> from lit_seq2seq.plots import plot_attention
        >>> figure = plot_attention(torch.eye(2), ["ein", "Haus"], ["a", "house"])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['ein', 'Haus']
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

    Example:
        >>> import torch
        >>> from lit_seq2seq.plots import AttentionExample, plot_attention_grid
        >>> example = AttentionExample(torch.eye(2), ["ein", "Haus"], ["a", "house"], title="1")
        >>> len(plot_attention_grid([example, example]).axes)  # two panels and the colour bar
        3
    """
    if not examples:
        raise UserError("plot_attention_grid expects one or more examples, but got none")
    arrays = [_weights(example) for example in examples]
    columns = min(columns, len(examples))
    rows = math.ceil(len(examples) / columns)
    widths = [max(_width(example) for example in examples[column::columns]) for column in range(columns)]
    heights = [
        max(_height(example) for example in examples[row * columns : (row + 1) * columns]) for row in range(rows)
    ]
    figure = Figure(figsize=(sum(widths) + 1.0, sum(heights) + 0.2), layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=widths, height_ratios=heights)
    used = list(panels.flat[: len(examples)])
    images = [_draw_attention(axes, *pair) for axes, pair in zip(used, zip(examples, arrays, strict=True), strict=True)]
    for axes in panels.flat[len(examples) :]:
        axes.remove()
    figure.colorbar(images[0], ax=used, label="attention weight", fraction=0.05, shrink=0.8, aspect=25, pad=0.02)
    return _save(figure, path)


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

    Example:
        >>> import numpy as np
        >>> example = CaptionExample(np.zeros((8, 8, 3), np.uint8), np.full((2, 4), 0.25), ["a", "dog"], "a dog")
        >>> [axes.get_title() for axes in plot_captions([example], columns=3).axes]
        ['', 'a', 'dog']
    """
    if not examples:
        raise UserError("plot_captions expects one or more examples, but got none")
    grids = [_grids(example) for example in examples]
    rows = [math.ceil((1 + len(grid)) / columns) for grid in grids]
    figure = Figure(figsize=(1.35 * columns, 1.65 * sum(rows) + 0.3 * len(rows)), layout="constrained")
    parts = np.atleast_1d(np.array(figure.subfigures(len(examples), 1, height_ratios=rows), dtype=object))
    for part, example, grid, count in zip(parts, examples, grids, rows, strict=True):
        part.suptitle(example.title, family=_families(), parse_math=False, fontsize=10, x=0.01, ha="left")
        panels = list(part.subplots(count, columns, squeeze=False).flat)
        panels[0].imshow(example.image)
        for axes, token, weights in zip(panels[1:], example.tokens, grid, strict=False):
            _draw_word(axes, example.image, token, weights)
        for axes in panels[: 1 + len(grid)]:
            axes.set_axis_off()
        for axes in panels[1 + len(grid) :]:
            axes.remove()
    return _save(figure, path)


def plot_curves(
    source: str | Path | Sequence[Mapping[str, str | float]],
    path: str | Path | None = None,
    smoothing: float | None = None,
) -> Figure:
    """Draw the training curves over optimizer steps: loss, scores, error rates and learning rate, where present.

    Args:
        source: the `metrics.csv` of Lightning's `CSVLogger`, or its rows; columns `step`, `train_loss`, `val_loss`,
            `val_<metric>` and `lr` or `lr-<optimizer>` are drawn.
        path: where to save it; `None` saves nothing.
        smoothing: from 0 (none) to below 1, weight of the past in the running mean of `train_loss`; by default the mean
            reaches over a twentieth of the points.

    Returns:
        The figure.

    Raises:
        UserError: if the file is missing or holds none of the columns.

    Example:
        >>> from lit_seq2seq.plots import plot_curves
        >>> rows = [{"step": 0, "train_loss": 3.0}, {"step": 9, "val_loss": 2.0, "val_bleu": 11.0}]
        >>> [axes.get_ylabel() for axes in plot_curves(rows).axes]
        ['loss', 'score (%)']
    """
    table = _read(source)
    train = _series(table, "train_loss", "train_loss_step")
    panels = {
        "loss": {"validation": _series(table, "val_loss")},
        "score (%)": {label: _series(table, f"val_{name}") for name, label in SCORES.items()},
        "error rate (%)": {label: _series(table, f"val_{name}") for name, label in ERRORS.items()},
        "learning rate": {name: _series(table, name) for name in _columns(table) if name.split("-")[0] == "lr"},
    }
    drawn = {
        label: curves
        for label, curves in panels.items()
        if any(len(steps) for steps, _ in curves.values()) or (label == "loss" and len(train[0]))
    }
    if not drawn:
        raise UserError(
            "plot_curves expects a column train_loss, val_loss, val_<metric> or lr, "
            f"but found {', '.join(_columns(table)) or 'none'}: log them with a CSVLogger"
        )
    figure = Figure(figsize=(5.2 * len(drawn), 3.8), layout="constrained")
    panes = figure.subplots(1, len(drawn), squeeze=False, sharex=True).flat
    for axes, (label, curves) in zip(panes, drawn.items(), strict=True):
        if label == "loss" and len(train[0]):
            _draw_train_loss(axes, train, smoothing)
        _draw_curves(axes, label, curves)
    return _save(figure, path)


def _grids(example: CaptionExample) -> Array:
    raw = example.weights
    weights = np.asarray(raw.detach().float().cpu() if isinstance(raw, Tensor) else raw, dtype=np.float64)
    side = math.isqrt(weights.shape[-1])
    if weights.shape != (len(example.tokens), side * side) or not weights.size:
        raise UserError(
            f"attention weights must be (tokens, cells of a square grid), with {len(example.tokens)} tokens, but are "
            f"{tuple(weights.shape)}: give one row per token of an encoder whose memory is a square grid"
        )
    return weights.reshape(-1, side, side)  # (T, side, side)


def _draw_word(axes: Axes, image: NDArray[np.generic], token: str, weights: Array) -> None:
    """Darken an image where the grid `(side, side)` has little weight."""
    height, width = image.shape[:2]
    axes.imshow(image)
    shadow = np.zeros((*weights.shape, 4))
    shadow[..., 3] = 0.85 * (1 - weights / weights.max())
    axes.imshow(shadow, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")
    axes.set_title(token.translate(_INVISIBLE), family=_families(), parse_math=False, fontsize=9)


def _weights(example: AttentionExample) -> Array:
    raw = example.weights
    weights = np.asarray(raw.detach().float().cpu() if isinstance(raw, Tensor) else raw, dtype=np.float64)
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


def _draw_attention(axes: Axes, example: AttentionExample, weights: Array) -> AxesImage:
    aspect: Literal["equal", "auto"] = "equal" if example.source_tokens else "auto"
    image = axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect=aspect, interpolation="nearest")
    axes.set_anchor("NW")
    axes.xaxis.tick_top()
    source = [token.translate(_INVISIBLE) for token in example.source_tokens]
    target = [token.translate(_INVISIBLE) for token in example.target_tokens]
    if source:
        axes.set_xticks(range(len(source)), source, rotation=90, family=_families(), fontsize=9, parse_math=False)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(target)), target, family=_families(), fontsize=9, parse_math=False)
    axes.tick_params(length=0)
    if example.title:
        axes.set_title(example.title, family=_families(), parse_math=False, fontsize=11)
    return image


def _draw_train_loss(axes: Axes, train: Series, smoothing: float | None) -> None:
    steps, loss = train
    if smoothing is None:
        smoothing = 1 - 1 / max(1, len(loss) / 20)
    smooth = np.empty_like(loss)
    mean, weight = 0.0, 0.0
    for position, value in enumerate(loss):
        mean, weight = smoothing * mean + (1 - smoothing) * value, smoothing * weight + (1 - smoothing)
        smooth[position] = mean / weight
    if smoothing > 0:
        axes.plot(steps, loss, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color="tab:blue", label="training" + " (running mean)" * (smoothing > 0))


def _draw_curves(axes: Axes, label: str, curves: Mapping[str, Series]) -> None:
    marker = "" if label == "learning rate" else "o"
    colours = ["tab:orange"] if label == "loss" else ["tab:green", "tab:purple", "tab:red", "tab:brown", "tab:pink"]
    present = [(name, series) for name, series in curves.items() if len(series[0])]
    for position, (name, (steps, values)) in enumerate(present):
        axes.plot(steps, values, marker=marker, markersize=3.5, color=colours[position % len(colours)], label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if label != "learning rate" or len(present) > 1:
        axes.legend(frameon=False)


def _read(source: str | Path | Sequence[Mapping[str, str | float]]) -> Sequence[Mapping[str, str | float]]:
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if not path.is_file():
        raise UserError(f"plot_curves expects the metrics.csv of a CSVLogger, but there is no file {path}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _columns(table: Sequence[Mapping[str, str | float]]) -> list[str]:
    return list(dict.fromkeys(name for row in table for name in row))


def _series(table: Sequence[Mapping[str, str | float]], *names: str) -> Series:
    """Steps and values of the first of the columns that has any."""
    for name in names:
        points = [(float(row["step"]), float(row[name])) for row in table if row.get(name, "") != ""]
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            return steps, values
    return np.empty(0), np.empty(0)


@cache
def _families() -> list[str]:
    """Fonts to look for a character in, in turn: those of the wide scripts only where installed."""
    return ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in font_manager.get_font_names())]


def _save(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
    return figure
