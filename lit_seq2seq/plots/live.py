"""Recordings of outputs that appear while their source comes: SVG that moves, of text and lines alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from lit_seq2seq.plots.common import writable
from lit_seq2seq.types import UserError

_WIDTH, _EDGE, _ROW, _LETTER = 720, 16, 24, 8.5  # pixels; a letter has 0.6 of the height of 14
_AFTER = 120  # pixels for what is written when the source has ended
_WAVE, _BARS = 56, 240  # pixels and number of the bars of a waveform
_HOLD, _FADE, _SYMBOL = 2.0, 0.2, 0.4  # seconds: of the whole, until a word is there, and of a symbol of a text
_STYLE = """
svg { --paper: #ffffff; --ink: #1f2328; --quiet: #8c959f; --new: #0550ae }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #e6edf3; --quiet: #7d8590; --new: #79c0ff } }
text { font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink); white-space: pre }
rect { fill: var(--paper) }
path { stroke: var(--quiet); stroke-width: 1.5 }
line { stroke: var(--new) }
.new { fill: var(--new); font-weight: bold }
.tick { fill: var(--quiet); font-size: 11px; text-anchor: middle }
"""


def plot_live(
    row: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    samples: NDArray[Any] | None = None,
    words: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw an output as it has appeared: its source along the time axis, and below it each word when it is written.

    Args:
        row: `prediction`, `delays` of its words or of its characters, and `source_length`: what `Live.row` returns, or
            a line of `lit-seq2seq stream --log`.
        path: where to save it, as SVG; `None` saves nothing.
        samples: `(N,)` of a source that is sound, whose delays are in milliseconds.
        words: of a source that is text, each with how much of the source has been read with it.

    Returns:
        The picture, which begins again when it has ended.

    Raises:
        UserError: the delays are those of neither words nor characters, or `path` is a folder.

    Example:
        >>> row = {"prediction": "a dog", "delays": [1, 3], "source_length": 3}
        >>> plot_live(row, words=[("ein", 1), ("Hund", 2)]).count("</text>")
        4
    """
    text, delays, length = str(row["prediction"]), row["delays"], float(row["source_length"])
    units = next((one for one in (text.split(), list(text)) if len(one) == len(delays)), None)
    if units is None:
        raise UserError(
            f"expected delays of words, or of characters, but got {len(delays)} for {text!r:.60}: give those of its row"
        )
    times = [0.0, *(time for _, time in words), length]
    widths = np.array([_width(word) + _LETTER for word, _ in words])
    inner = max(_WIDTH - 2 * _EDGE - _AFTER, widths.sum())
    ends = np.cumsum(widths) * inner / widths.sum() if words else []
    places = [_EDGE, *(_EDGE + end for end in ends), _EDGE + inner]
    film = Film(length * (_SYMBOL if samples is None else 1e-3), length)
    parts = [film.text(word, x, _EDGE + 14, time) for (word, time), x in zip(words, places, strict=False)]
    top = _EDGE + (_ROW if words else 0)
    if samples is not None:
        parts += [waveform(samples, inner), *ticks(film.seconds, inner)]
        top += _WAVE + 20
    gap = _LETTER if units == text.split() else 0.0
    sizes = [_width(unit) + gap for unit in units]
    begins, free = np.interp(delays, times, places).tolist(), 0.0
    for x, size in zip(begins, sizes, strict=True):
        free = max(x, free) + size
    right, free = inner + _EDGE + min(max(free - inner - _EDGE, _AFTER), 4 * _AFTER), 0.0
    for unit, x, size, delay in zip(units, begins, sizes, delays, strict=True):
        if max(x, free) + size - gap > right:
            top, free = top + _ROW, min(x, right - size)
        parts.append(film.text(unit, max(x, free), top + 14, delay, kind="new"))
        free = max(x, free) + size
    height = top + _ROW + _EDGE / 2
    area = f'viewBox="0 0 {right + _EDGE:.0f} {height:.0f}" width="{right + _EDGE:.0f}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {area} role="img">\n<title>{_plain(text)}</title>'
    paper = '<rect width="100%" height="100%" rx="8"/>'
    line = film.line(times, places, height, smooth=samples is not None)
    picture = "\n".join([head, f"<style>{_STYLE}</style>", paper, line, *parts, "</svg>\n"])
    if path is not None:
        writable(path).write_text(picture, encoding="utf-8")
    return picture


class Film:
    """What moves.

    Args:
        seconds: how long the source takes.
        length: of the source, in the unit of delays.
    """

    def __init__(self, seconds: float, length: float) -> None:
        self.seconds, self.length, self.whole = seconds, length, seconds + _HOLD

    def at(self, delay: float) -> float:
        """Return when a delay is reached, as a share of the whole."""
        return self.seconds * delay / max(self.length, 1e-9) / self.whole

    def text(self, text: str, x: float, y: float, delay: float, *, kind: str = "old") -> str:
        """Draw a text that appears."""
        begin = min(self.at(delay), 1 - _FADE / self.whole)
        moves = self._moves("0;0;1;1", [0, begin, begin + _FADE / self.whole, 1])
        shown = f'{_plain(text)}<animate attributeName="opacity" {moves}/>'
        return f'<text class="{kind}" x="{x:.1f}" y="{y:.0f}">{shown}</text>'

    def line(self, delays: Sequence[float], places: Sequence[float], height: float, smooth: bool) -> str:
        """Draw where the source has come to by now, from left to right."""
        values = ";".join(f"{place:.1f}" for place in [*places, places[-1]])
        mode = "linear" if smooth else "discrete"
        moves = self._moves(values, [*map(self.at, delays), 1]) + f' calcMode="{mode}"'
        ends = "".join(f'<animate attributeName="{name}" {moves}/>' for name in ("x1", "x2"))
        x = f"{places[-1]:.1f}"
        return f'<line x1="{x}" x2="{x}" y1="{_EDGE / 2:.0f}" y2="{height - _EDGE / 2:.0f}">{ends}</line>'

    def _moves(self, values: str, times: Sequence[float]) -> str:
        shares = ";".join(f"{time:.4f}".rstrip("0").rstrip(".") for time in times)
        return f'values="{values}" keyTimes="{shares}" dur="{self.whole:.2f}s" repeatCount="indefinite"'


def waveform(samples: NDArray[Any], width: float) -> str:
    """Draw bars as high as the loudest sample of each part."""
    loud = np.array([np.abs(part.astype(np.float64)).max(initial=0) for part in np.array_split(samples, _BARS)])
    heights = np.maximum(loud / max(loud.max(), 1e-9) * _WAVE, 1)
    places = _EDGE + (np.arange(_BARS) + 0.5) * width / _BARS
    middle = _EDGE + _WAVE / 2
    bars = (f"M{x:.1f} {middle - high / 2:.1f}v{high:.1f}" for x, high in zip(places, heights, strict=True))
    return f'<path d="{"".join(bars)}"/>'


def ticks(seconds: float, width: float) -> list[str]:
    """Write about ten times below a waveform."""
    step = next(one for one in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, seconds) if seconds <= 10 * one)
    return [
        f'<text class="tick" x="{_EDGE + width * time / seconds:.1f}" y="{_EDGE + _WAVE + 12}">{time:g} s</text>'
        for time in np.arange(step, seconds, step).round(1).tolist()
    ]


def _width(text: str) -> float:
    return sum(_LETTER * (1 + (unicodedata.east_asian_width(char) in "WF")) for char in text)


def _plain(text: str) -> str:
    return escape("".join(char if unicodedata.category(char)[0] != "C" else " " for char in text))
