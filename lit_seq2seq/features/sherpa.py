"""Recordings to log-mel energies as sherpa-onnx computes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_seq2seq.features.audio import Recordings
from lit_seq2seq.features.augmentation import SpecAugment
from lit_seq2seq.features.frames import FloatArray, SampleWindows, Stage
from lit_seq2seq.features.recordings import MAX_SECONDS
from lit_seq2seq.features.speech import Normalization
from lit_seq2seq.types import UserError

RATE, HOP = 16_000, 160
_LENGTH, _POINTS = 400, 512
_LEAST, _MOST = 3, 128  # of more bands some would be empty
_BEFORE = (_LENGTH - HOP) // 2  # samples of the first frame before the sound
_PREEMPHASIS, _FLOOR = np.float32(0.97), np.finfo(np.float32).eps
_KNEE, _SLOPE = 1000.0, 27 / np.log(6.4)  # Slaney's mel scale is linear up to 1000 Hz, and logarithmic above


class SherpaLogMel(Recordings):
    """Log-mel energies as sherpa-onnx computes them for transducers with a recurrent prediction network.

    A model that reads them can be exported by `lit-seq2seq export --format sherpa-onnx`. Sound has 16 kHz. Frames of
    25 ms stand around the middle of every 10 ms, the sound being mirrored at its ends. In each, samples become
    `x_t - 0.97 x_{t-1}`, under a periodic Hann window; bands are triangles over the power spectrum that are linear in
    hertz, equally spaced from 0 to 8 kHz on Slaney's mel scale, and of the same area; `log(max(energy, 1.19e-7))`. For
    what a recording may be see `LogMel`.

    Args:
        n_mels: number of bands.
        max_seconds: longer recordings are refused before they are decoded.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        n_mels: int = 80,
        normalize: Normalization = "global",
        stack: int = 1,
        spec_augment: SpecAugment | None = None,
        *,
        store: bool = True,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        if not _LEAST <= n_mels <= _MOST:
            raise UserError(f"n_mels must be from {_LEAST} to {_MOST}, but is {n_mels}")
        if not max_seconds > 0:
            raise UserError(f"max_seconds must be above 0, but is {max_seconds}")
        own = {"n_mels": n_mels, "max_seconds": max_seconds}
        super().__init__(0, normalize, stack, spec_augment, store=store, **own)
        del self.config["deltas"]

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return RATE

    @property
    def milliseconds(self) -> float:
        """The time between two stacks of frames."""
        return 1000 * HOP * self._stack / RATE

    @property
    def channels(self) -> int:
        """Number of bands."""
        return int(self.config["n_mels"])

    def frames(self, raw: Any) -> FloatArray:
        """Compute the energies of one recording: `(T, n_mels)`."""
        return self._energies(Mirrored()(self.samples(raw), True))

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count positions from the headers of files, without decoding them."""
        return [-(-_count(round(self._seconds(value) * RATE)) // self._stack) for value in raw]

    def _energies(self, samples: FloatArray) -> FloatArray:
        frames = np.lib.stride_tricks.sliding_window_view(samples, _LENGTH)[::HOP]  # (T, length)
        before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_LENGTH) / _LENGTH)).astype(np.float32)
        spectrum = np.fft.rfft((frames - _PREEMPHASIS * before) * window, _POINTS, axis=1)
        energies = np.abs(spectrum) ** 2 @ mel_filters(self.channels)
        return np.asarray(np.log(np.maximum(energies, _FLOOR)), dtype=np.float32)

    def _windows(self) -> Stage:
        mirrored, windows = Mirrored(), SampleWindows(self._energies, self.channels, _LENGTH, hop=HOP)
        return lambda samples, last: windows(mirrored(samples, last), last)


class Mirrored:
    """A stage that mirrors sound at its ends, so that it has whole frames around the middle of every `HOP` samples.

    Example:
        >>> len(Mirrored()(np.zeros(1600, np.float32), True)) == 400 + 9 * 160
        True
    """

    def __init__(self) -> None:
        self.total, self.recent = 0, np.zeros(0, np.float32)
        self.begun = False

    def __call__(self, samples: FloatArray, last: bool) -> FloatArray:
        """Turn `(N,)` into `(N',)`."""
        self.total += len(samples)
        recent, made = np.concatenate([self.recent, samples]), samples
        if not self.begun:
            if self.total < _BEFORE and not last:
                self.recent = recent
                return made[:0]
            self.begun, made = True, np.pad(recent, (_BEFORE, 0), mode="symmetric")
        if last:
            after = (_count(self.total) - 1) * HOP + _LENGTH - _BEFORE - self.total
            made = np.concatenate([made, np.pad(recent, (0, after), mode="symmetric")[len(recent) :]])
        self.recent = recent[-_LENGTH:]
        return made


def _count(samples: int) -> int:
    """Count frames."""
    return max(1, (samples + HOP // 2) // HOP)


@cache
def mel_filters(bands: int) -> npt.NDArray[np.float32]:
    """Weights `(257, bands)` of triangles that are linear in hertz and equally spaced on Slaney's mel scale."""
    top = 15 + _SLOPE * np.log(RATE / 2 / _KNEE)
    mel = np.linspace(0, top, bands + 2)
    edges = np.where(mel <= 15, mel * 200 / 3, _KNEE * np.exp((mel - 15) / _SLOPE))  # in hertz
    hertz = np.arange(_POINTS // 2 + 1)[:, None] * (RATE / _POINTS)
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    weights = np.maximum(np.minimum(rising, falling), 0) * 2 / (edges[2:] - edges[:-2])
    return np.asarray(weights, dtype=np.float32)
