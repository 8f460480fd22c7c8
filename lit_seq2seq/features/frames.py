"""Sequences of vectors, whole and in pieces: derivatives, normalisation, stacking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Stage = Callable[[FloatArray, bool], FloatArray]
"""Takes the next positions `(P, ...)`, P >= 0, and whether they are the last; returns what it makes of them."""
SMALLEST_DEVIATION = 1e-5
SLOPE = 2
"""Frames on either side by which a slope is measured."""
_PRIOR = 100  # frames that the training data count as


def with_deltas(frames: FloatArray, count: int) -> FloatArray:
    """Put `count` derivatives over time beside frames `(T, F)`: `(T, F * (1 + count))`."""
    parts = [frames]
    for _ in range(count):
        parts.append(deltas(parts[-1]))
    return np.concatenate(parts, axis=1)


def normalized(frames: FloatArray, statistics: tuple[list[float], list[float]] | None) -> FloatArray:
    """Bring every channel to mean 0 and variance 1.

    Args:
        frames: `(T, F)`.
        statistics: mean and deviation of each channel; those of the frames themselves if `None`.
    """
    if statistics is None:
        mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    else:
        mean, deviation = (np.array(numbers, dtype=np.float32) for numbers in statistics)
    return np.asarray((frames - mean) / np.maximum(deviation, SMALLEST_DEVIATION), dtype=np.float32)


def stacked(frames: FloatArray, stack: int) -> FloatArray:
    """Join each `stack` neighbouring frames, repeating the last one where some are missing.

    Example:
        >>> stacked(np.arange(3, dtype=np.float32)[:, None], 2).tolist()
        [[0.0, 1.0], [2.0, 2.0]]
    """
    missing = -len(frames) % stack
    whole = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    return np.ascontiguousarray(whole.reshape(len(whole) // stack, stack * frames.shape[1]), dtype=np.float32)


def deltas(frames: FloatArray, width: int = SLOPE) -> FloatArray:
    """Slope of each channel, `sum_n n (c_{t+n} - c_{t-n}) / (2 sum_n n^2)` for n up to `width`; edges are repeated.

    The regression of the HTK book (Young et al. 2006, equation 5.16).

    Args:
        frames: `(T, F)`.
        width: frames on either side, at least 1.

    Returns:
        `(T, F)`.

    Example:
        >>> deltas(np.arange(6, dtype=np.float32)[:, None])[2:4, 0].tolist()
        [1.0, 1.0]
    """
    return _slopes(np.pad(frames, ((width, width), (0, 0)), mode="edge"), width)


def _slopes(padded: FloatArray, width: int) -> FloatArray:
    """Compute `deltas` of frames that have `width` more on either side."""
    total = len(padded) - 2 * width
    slopes = sum(
        n * (padded[width + n : width + n + total] - padded[width - n : width - n + total]) for n in range(1, width + 1)
    )
    return np.asarray(slopes / (2 * sum(n * n for n in range(1, width + 1))), dtype=np.float32)


class Slopes:
    """A stage that puts beside frames the slope of their last `channels` values; see `deltas`.

    Args:
        channels: number of values.
        order: number of derivatives that the frames have already.
        width: frames on either side.
    """

    def __init__(self, channels: int, order: int, width: int = SLOPE) -> None:
        self.channels, self.width = channels, width
        self.held = np.zeros((0, channels * (1 + order)), np.float32)

    def __call__(self, frames: FloatArray, last: bool) -> FloatArray:
        """Turn `(P, F)` into `(P', F + channels)`."""
        width = self.width
        before = self.held if len(self.held) else np.repeat(frames[:1], width, axis=0)
        padded = np.concatenate([before, frames])
        if last:
            padded = np.concatenate([padded, np.repeat(padded[-1:], width, axis=0)])
        total = max(len(padded) - 2 * width, 0)
        self.held = padded[total:].copy()
        slopes = _slopes(padded[:, -self.channels :], width) if total else padded[:0, : self.channels]
        return np.concatenate([padded[width : width + total], slopes], axis=1)


class Stack:
    """A stage that joins neighbouring frames; see `stacked`.

    Args:
        size: number of values of a frame.
        stack: number of frames that become one.
    """

    def __init__(self, size: int, stack: int) -> None:
        self.stack, self.held = stack, np.zeros((0, size), np.float32)

    def __call__(self, frames: FloatArray, last: bool) -> FloatArray:
        """Turn `(P, F)` into `(P', stack * F)`."""
        held = np.concatenate([self.held, frames])
        whole = len(held) if last else len(held) // self.stack * self.stack
        self.held = held[whole:].copy()
        return stacked(held[:whole], self.stack)


class Running:
    """A stage that normalises each frame by all frames up to it; see `VectorFeature`.

    Args:
        statistics: mean and deviation of each channel in the training data.
    """

    def __init__(self, statistics: tuple[list[float], list[float]]) -> None:
        self.mean, deviation = np.array(statistics, np.float64)
        self.count = _PRIOR
        self.sums = _PRIOR * np.stack([np.zeros_like(deviation), deviation**2])  # of distances from the mean, squared

    def __call__(self, frames: FloatArray, last: bool) -> FloatArray:
        """Turn `(P, F)` into as many."""
        distances = frames - self.mean
        moments = np.concatenate([self.sums[None], np.stack([distances, distances**2], axis=1)])  # (1 + P, 2, F)
        sums = np.cumsum(moments, axis=0)
        counts = self.count + np.arange(len(sums))
        self.count, self.sums = int(counts[-1]), sums[-1].copy()
        mean, squares = np.moveaxis(sums[1:] / counts[1:, None, None], 1, 0)
        deviation = np.sqrt(np.maximum(squares - mean**2, SMALLEST_DEVIATION**2))
        return np.asarray((distances - mean) / deviation, dtype=np.float32)


class SampleWindows:
    """A stage that makes frames of overlapping windows of samples, all whole but where there is only one.

    Args:
        frames: makes frames of samples; see `log_mel`.
        channels: number of values of a frame.
        length: number of samples of a window.
        hop: number of samples from one window to the next.
    """

    def __init__(self, frames: Callable[[FloatArray], FloatArray], channels: int, length: int, *, hop: int) -> None:
        self.frames, self.channels, self.length, self.hop = frames, channels, length, hop
        self.held, self.skip, self.begun = np.zeros(0, np.float32), 0, False

    def __call__(self, samples: FloatArray, last: bool) -> FloatArray:
        """Turn `(N,)` into `(P', channels)`."""
        held = np.concatenate([self.held, samples])
        start = min(self.skip, len(held))
        held, self.skip = held[start:], self.skip - start
        count = max(0, 1 + (len(held) - self.length) // self.hop) or int(last and not self.begun)
        self.held, self.skip = held[count * self.hop :].copy(), self.skip + max(0, count * self.hop - len(held))
        self.begun = self.begun or count > 0
        return self.frames(held) if count else np.zeros((0, self.channels), np.float32)
