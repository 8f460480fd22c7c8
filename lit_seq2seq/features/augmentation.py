"""Changes by chance to sequences of vectors while training: SpecAugment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lit_seq2seq.types import UserError

Array = npt.NDArray[np.float32]
Band = tuple[float, float]
_GRID = 40  # bands by which cepstra are warped


@dataclass(frozen=True)
class SpecAugment:
    """Masks blocks of frames and of channels when training (Park et al. 2019, https://arxiv.org/abs/1904.08779, 2).

    Masked values become the mean of their channel. There is no time warping, which the paper finds to matter least;
    an utterance as a whole can become slower or faster, its pitch unchanged, or sound as from another speaker.

    Args:
        time_masks: number of masks over time.
        time_width: greatest number of positions of one, drawn uniformly from 0; positions are counted after stacking.
        time_share: greatest share of an utterance that one masks, above 0 and up to 1.
        channel_masks: number of masks over channels.
        channel_width: greatest number of neighbouring channels of one; all derivatives of a channel go with it.
        stretch: the duration is multiplied by a factor drawn uniformly from `1 - stretch` to `1 + stretch`, from 0 to
            below 1; frames are interpolated linearly.
        warp: frequencies are multiplied by a factor drawn uniformly from `1 - warp` to `1 + warp`, from 0 to below 1,
            as by a vocal tract of another length (Jaitly & Hinton 2013, VTLP; 0.1 is usual). Needs channels of known
            frequencies: `LogMel`, or `Frames` with `cepstra`.

    Raises:
        UserError: a value is out of its range.
    """

    time_masks: int = 2
    time_width: int = 20
    time_share: float = 0.2
    channel_masks: int = 2
    channel_width: int = 8
    stretch: float = 0.0
    warp: float = 0.0

    def __post_init__(self) -> None:
        for name in ("time_masks", "time_width", "channel_masks", "channel_width"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} of spec_augment must be at least 0, but is {getattr(self, name)}")
        if not 0 < self.time_share <= 1:
            raise UserError(f"time_share of spec_augment must be above 0 and up to 1, but is {self.time_share}")
        for name in ("stretch", "warp"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} of spec_augment must be at least 0 and below 1, but is {getattr(self, name)}")

    def __call__(self, array: Array, channels: int, warped: Callable[[Array, float], Array] | None = None) -> Array:
        """Return a stretched, warped and masked copy.

        Args:
            array: `(T, F)`, where F is a multiple of `channels`: the same channels, over and over.
            channels: number of channels.
            warped: multiplies frequencies by a factor, for `warp`.
        """
        masked = stretched(array, 1 + self.stretch * (2 * drawn() - 1)) if self.stretch else array.copy()
        if self.warp and warped is not None:
            masked = warped(masked, 1 + self.warp * (2 * drawn() - 1))
        mean = masked.mean(axis=0)
        longest = min(self.time_width, int(self.time_share * len(masked)))
        for _ in range(self.time_masks):
            start, stop = _block(len(masked), longest)
            masked[start:stop] = mean
        groups = masked.reshape(len(masked), -1, channels)  # (T, F / channels, channels), a view
        for _ in range(self.channel_masks):
            start, stop = _block(channels, min(self.channel_width, channels))
            groups[:, :, start:stop] = mean.reshape(-1, channels)[:, start:stop]
        return masked


def stretched(array: Array, factor: float) -> Array:
    """Make a sequence longer or shorter by linear interpolation between its frames.

    Args:
        array: `(T, F)`.
        factor: of the duration, above 0.

    Returns:
        A new array `(max(1, round(factor * T)), F)` that begins and ends as the given one.

    Example:
        >>> stretched(np.array([[0.0], [2.0], [4.0]], dtype=np.float32), 5 / 3)[:, 0].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    places = np.linspace(0, len(array) - 1, max(1, round(factor * len(array))))
    before = places.astype(np.int64)
    after = np.minimum(before + 1, len(array) - 1)
    share = (places - before).astype(np.float32)[:, None]
    return (1 - share) * array[before] + share * array[after]


def warping(factor: float, channels: int, band: Band, cepstral: bool) -> npt.NDArray[np.float64]:
    """Multiply frequencies by a factor, by linear interpolation between bands that are equally spaced in mel.

    Of cepstra `c_k = sum_j e_j cos(pi k (j + 1/2) / M) / M` that is done by way of the log-energies `e_j` of M bands
    (Pitz & Ney 2005, https://doi.org/10.1109/TSA.2005.848881), as smooth as the cepstra leave them.

    Args:
        factor: of the frequencies, above 0.
        channels: number of bands, or of cepstra.
        band: lowest and highest edge of the bands in hertz.
        cepstral: whether the channels are cepstra.

    Returns:
        A matrix `(channels, channels)` that makes new values of old ones.
    """
    count = max(_GRID, channels) if cepstral else channels
    low, high = (float(mel(edge)) for edge in band)
    centres = np.linspace(low, high, count + 2)[1:-1]
    moved = np.interp(mel(factor * hertz(centres)), centres, np.arange(count))  # (M,)
    matrix: npt.NDArray[np.float64] = np.maximum(1 - np.abs(moved[:, None] - np.arange(count)), 0)  # (M, M)
    if not cepstral:
        return matrix
    order = np.arange(channels)
    cosines = np.cos(np.pi * order[:, None] * (np.arange(count) + 0.5) / count)  # (C, M)
    return np.asarray(cosines / count @ matrix @ (np.where(order, 2, 1)[:, None] * cosines).T)


def mel(frequency: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn hertz into mel, `2595 log10(1 + f / 700)`."""
    return np.asarray(2595 * np.log10(1 + np.asarray(frequency, dtype=np.float64) / 700))


def hertz(value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn mel into hertz; see `mel`."""
    return np.asarray(700 * (10 ** (np.asarray(value, dtype=np.float64) / 2595) - 1))


def drawn() -> float:
    """Draw a number from 0 to below 1, as all that changes examples for training, by the random state of torch."""
    import torch

    return float(torch.rand(()))


def _block(size: int, longest: int) -> tuple[int, int]:
    """Draw a block of up to `longest` places among `size`."""
    import torch

    width = int(torch.randint(longest + 1, ()))
    start = int(torch.randint(size - width + 1, ()))
    return start, start + width
