"""Training curves from the log of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_seq2seq.plots.common import Array, Picture, families, save
from lit_seq2seq.types import UserError

Rows = Sequence[Mapping[str, str | float]]
Series = tuple[Array, Array]

SCORES = {"bleu": "BLEU", "chrf": "chrF", "cider": "CIDEr-D", "exact_match": "exact match"}
SCORES |= {f"bleu{n}": f"BLEU-{n}" for n in "123"} | {f"distinct{n}": f"distinct-{n}" for n in "12"}
SCORES |= {f"rouge{n}": f"ROUGE-{n}" for n in ("1", "2", "L", "Lsum")}
ERRORS = {"wer": "WER", "cer": "CER", "per": "PER", "sequence_error_rate": "sequence error rate"}
ERRORS |= {"slot_error_rate": "slot error rate"}
_PANELS = {"score (%)": SCORES, "error rate (%)": ERRORS}


def plot_curves(
    source: str | Path | Rows,
    path: str | Path | None = None,
    smoothing: float | None = None,
) -> Figure:
    """Draw the training curves over optimizer steps: loss, scores, error rates and learning rate, where present.

    A metric of your own has a panel of its own, as its scale is not known. The scores of raw texts are left out.

    Args:
        source: the `metrics.csv` of Lightning's `CSVLogger`, or its rows; columns `step`, `train_loss`, `val_loss`,
            `val_<metric>` and `lr` or `lr-<optimizer>` are drawn.
        path: where to save it; `None` saves nothing.
        smoothing: from 0 (none) to below 1, weight of the past in the running mean of `train_loss`; by default the mean
            reaches over a twentieth of the points.

    Returns:
        The figure.

    Raises:
        UserError: if the file is missing, holds none of the columns, or something else than numbers.

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
        **_score_panels(table),
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
    fonts = families([text for label, curves in drawn.items() for text in (label, *curves)])
    figure = Picture(figsize=(5.2 * len(drawn), 3.8), layout="constrained")
    panes = figure.subplots(1, len(drawn), squeeze=False, sharex=True).flat
    for axes, (label, curves) in zip(panes, drawn.items(), strict=True):
        if label == "loss" and len(train[0]):
            _draw_train_loss(axes, train, smoothing)
        _draw_curves(axes, label, curves, fonts)
    return save(figure, path)


def _score_panels(table: Rows) -> dict[str, dict[str, Series]]:
    """Group the metrics by panel, each with its label; `bleu_lc` is a kind of `bleu`."""
    panels: dict[str, dict[str, Series]] = {panel: {} for panel in _PANELS}
    logged = [name.removeprefix("val_") for name in _columns(table) if name.startswith("val_")]
    for name in logged:
        if name in ("loss", "ppl") or name.removesuffix("_raw") in set(logged) - {name}:
            continue
        kinds = [
            (panel, known)
            for panel, labels in _PANELS.items()
            for known in labels
            if f"{name}_".startswith(f"{known}_")
        ]
        panel, known = kinds[0] if kinds else (name, name)
        label = _PANELS.get(panel, {}).get(known, name) + name.removeprefix(known).replace("_", " ")
        panels.setdefault(panel, {})[label] = _series(table, f"val_{name}")
    return panels


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


def _draw_curves(axes: Axes, label: str, curves: Mapping[str, Series], fonts: list[str]) -> None:
    marker = "" if label == "learning rate" else "o"
    colours = ["tab:orange"] if label == "loss" else ["tab:green", "tab:purple", "tab:red", "tab:brown", "tab:pink"]
    present = [(name, series) for name, series in curves.items() if len(series[0])]
    for position, (name, (steps, values)) in enumerate(present):
        axes.plot(steps, values, marker=marker, markersize=3.5, color=colours[position % len(colours)], label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label, fontfamily=fonts)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if label != "learning rate" or len(present) > 1:
        axes.legend(frameon=False, prop={"family": fonts})


def _read(source: str | Path | Rows) -> Rows:
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if not path.is_file():
        raise UserError(f"plot_curves expects the metrics.csv of a CSVLogger, but there is no file {path}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _columns(table: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in table for name in row))


def _series(table: Rows, *names: str) -> Series:
    """Steps and values of the first of the columns that has any."""
    for name in names:
        try:
            points = [(float(row["step"]), float(row[name])) for row in table if row.get(name) not in ("", None)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"plot_curves expects numbers in the columns step and {name}, but not all are: {error}"
            ) from error
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            return steps, values
    return np.empty(0), np.empty(0)
