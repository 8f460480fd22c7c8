"""Sequences of vectors: derivatives, normalisation, stacking."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lit_seq2seq.types import UserError

FloatArray = npt.NDArray[np.float32]
SMALLEST_DEVIATION = 1e-5


def check_frames(raw: Any, channels: int) -> FloatArray:
    """Read ready frames `(T, channels)`, T >= 1.

    Raises:
        UserError: they are not numbers, not finite, or of another shape.
    """
    try:
        array = np.asarray(raw, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(
            "expected an array of frames (T, F), or a list of lists of numbers, but it cannot be read as numbers: "
            f"{error}"
        ) from error
    if array.ndim != 2 or not len(array) or array.shape[1] != channels:
        raise UserError(
            f"expected frames (T, {channels}) with T >= 1, but got the shape {array.shape}: mend it, or set channels"
        )
    if not np.isfinite(array).all():
        raise UserError("expected finite numbers in the frames, but some are not")
    return array


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
    return np.ascontiguousarray(whole.reshape(len(whole) // stack, -1), dtype=np.float32)


def deltas(frames: FloatArray, width: int = 2) -> FloatArray:
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
    padded = np.pad(frames, ((width, width), (0, 0)), mode="edge")
    total = len(frames)
    slopes = sum(
        n * (padded[width + n : width + n + total] - padded[width - n : width - n + total]) for n in range(1, width + 1)
    )
    return np.asarray(slopes / (2 * sum(n * n for n in range(1, width + 1))), dtype=np.float32)
