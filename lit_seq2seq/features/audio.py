"""Recordings to log-mel energies, or as they are."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lit_seq2seq.features.augmentation import Band, SpecAugment, mel
from lit_seq2seq.features.feature import Array, Medium, is_column
from lit_seq2seq.features.frames import SLOPE, FloatArray, SampleWindows, Stage
from lit_seq2seq.features.recordings import MAX_SECONDS, open_audio, read_audio, read_piece, resampler, samples_of
from lit_seq2seq.features.speech import Normalization, VectorFeature
from lit_seq2seq.types import Padded, Sources, UserError

# The samples of a row come as a list, which does not tell integers of 8 bits, or unsigned ones, from those of 16.
_SAMPLES = ("float16", "float32", "float64", "int16", "int32", "int64")
_FRAME, _WEIGHTS, _OVERLAP = 2**17, 2**24, 1000
_SETTINGS = ("sampling_rate", "n_mels", "window", "hop", "fmin", "fmax", "log_floor")


class Recordings(VectorFeature):
    """Base of features of recordings, as `LogMel` describes them.

    `sampling_rate` and `max_seconds` are in their configuration.
    """

    medium: ClassVar[Medium | None] = "audio"
    column_kind: ClassVar[str] = "audio (a recording, the bytes or the path of one, or samples)"
    input_kind: ClassVar[str] = "a recording: its path, its bytes, samples, or a mapping with array and sampling_rate"

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return int(self.config["sampling_rate"])

    def samples(self, raw: Any) -> FloatArray:
        """Read one recording: `(N,)` from -1 to 1."""
        return read_audio(raw, self.sampling_rate, float(self.config["max_seconds"]))

    def frames_in_pieces(self, sampling_rate: int | None) -> tuple[Callable[[Any], FloatArray], list[Stage]]:
        """Read samples at `sampling_rate`, and convert them to that of the feature."""
        rate = self.sampling_rate if sampling_rate is None else sampling_rate
        stages = [] if rate == self.sampling_rate else [resampler(rate, self.sampling_rate)]
        return partial(read_piece, sampling_rate=rate), [*stages, self._windows()]

    @abstractmethod
    def _windows(self) -> Stage:
        """Return what makes frames of samples that come in pieces."""

    def accepts_column(self, column: object) -> bool:
        """Tell whether a column holds recordings, files, paths or samples."""
        if is_column(column, "List", "LargeList"):
            return is_column(column.feature, "Value") and column.feature.dtype in _SAMPLES
        if isinstance(column, dict):
            samples = "sampling_rate" in column and self.accepts_column(column.get("array"))
            return samples or bool(column.keys() & {"bytes", "path"})
        return is_column(column, "Audio") or (is_column(column, "Value") and column.dtype in ("binary", "string"))

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is one recording."""
        return isinstance(raw, str | Path | bytes | Mapping) or (isinstance(raw, np.ndarray) and raw.ndim == 1)

    def show(self, raw: Any) -> str:
        """Return the duration, with the name of the file where there is one."""
        if self.is_missing(raw):
            return "no recording"
        path = raw.get("path") if isinstance(raw, Mapping) else raw if isinstance(raw, str | Path) else None
        duration = f"{self._seconds(raw):.2f} s"
        return f"{Path(path).name}, {duration}" if path else duration

    def _seconds(self, raw: Any) -> float:
        found = samples_of(raw, self.sampling_rate)
        if found is not None:
            return len(found[0]) / found[1]
        with open_audio(raw) as sound:
            return float(sound.frames / sound.samplerate)


class LogMel(Recordings):
    """Logarithm of the energy in triangular bands that are equally wide on the mel scale, `2595 log10(1 + f / 700)`.

    The filter bank of Davis & Mermelstein (1980) as Kaldi computes it, with a Hann window and without dithering,
    pre-emphasis or removal of the mean: frames that lie wholly inside the signal, zero-padded to a power of two; the
    power spectrum; triangles that are linear in mel; `log(max(energy, log_floor))`.

    A recording is a path, the bytes of a file (anything that `soundfile` reads), an array of samples at
    `sampling_rate`, or a mapping with `array` (or `raw`) and `sampling_rate`, or with `bytes` or `path`, as `datasets`
    and `transformers` give them. Several channels are averaged, unless they cancel each other out: then the loudest one
    is taken. Other sampling rates are converted by `soxr`. Samples are floats from -1 to 1, or integers: those of 8 and
    16 bits by their type (unsigned ones have their zero in the middle), lists and longer integers as samples of 16, 24
    or 32 bits, the fewest that hold all of them.

    Args:
        sampling_rate: in hertz.
        n_mels: number of bands.
        window: length of a frame in seconds.
        hop: time between frames in seconds.
        fmin: lower edge of the lowest band in hertz.
        fmax: upper edge of the highest band in hertz; half of `sampling_rate` if unset.
        log_floor: smallest energy, above 0, of samples from -1 to 1.
        max_seconds: longer recordings are refused before they are decoded.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        sampling_rate: int = 16_000,
        n_mels: int = 80,
        window: float = 0.025,
        hop: float = 0.01,
        *,
        fmin: float = 20.0,
        fmax: float | None = None,
        log_floor: float = 1e-10,
        deltas: int = 0,
        normalize: Normalization = "utterance",
        stack: int = 1,
        spec_augment: SpecAugment | None = None,
        store: bool = True,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        highest = sampling_rate / 2 if fmax is None else fmax
        if n_mels < 1:
            raise UserError(f"n_mels must be at least 1, but is {n_mels}")
        if not 1 <= min(window, hop) * sampling_rate <= max(window, hop) * sampling_rate < math.inf:
            raise UserError(f"window and hop must be at least one sample, but are {window} and {hop} seconds")
        check_bands(sampling_rate, n_mels, window, hop)
        if not 0 <= fmin < highest <= sampling_rate / 2:
            raise UserError(
                f"fmin and fmax must satisfy 0 <= fmin < fmax <= {sampling_rate / 2}, but are {fmin} and {highest}"
            )
        if not 0 < log_floor < math.inf:
            raise UserError(f"log_floor must be above 0 and finite, but is {log_floor}")
        own: dict[str, Any] = {"sampling_rate": sampling_rate, "n_mels": n_mels, "window": window, "hop": hop}
        own |= {"fmin": fmin, "fmax": fmax, "log_floor": log_floor, "max_seconds": _duration(max_seconds)}
        super().__init__(deltas, normalize, stack, spec_augment, store=store, **own)
        self._length, self._hop = round(window * sampling_rate), round(hop * sampling_rate)

    @property
    def channels(self) -> int:
        """Number of bands."""
        return int(self.config["n_mels"])

    @property
    def band(self) -> Band:
        """`fmin` and `fmax`."""
        fmin, fmax = self.config["fmin"], self.config["fmax"]
        return fmin, self.sampling_rate / 2 if fmax is None else fmax

    def time(self, count: int, length: int) -> float:
        """Count the samples of frames, also of those behind by which slopes are measured; see `Feature.time`."""
        frames = min(count * self._stack + SLOPE * self._order, length * self._stack)
        return 1000 * (self._length + (frames - 1) * self._hop) / self.sampling_rate

    def frames(self, raw: Any) -> FloatArray:
        """Compute the energies of one recording: `(T, n_mels)`."""
        return self._energies(self.samples(raw))

    def _energies(self, samples: FloatArray) -> FloatArray:
        return log_mel(samples, **{name: self.config[name] for name in _SETTINGS})

    def _windows(self) -> Stage:
        return SampleWindows(self._energies, self.channels, self._length, hop=self._hop)

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count positions from the headers of files, without decoding them."""
        samples = [round(self._seconds(value) * self.sampling_rate) for value in raw]
        return [-(-(1 + max(count - self._length, 0) // self._hop) // self._stack) for count in samples]


class Waveform(Recordings):
    """The samples themselves, for encoders that read them, such as `lit_seq2seq.nn.SpeechBackbone`.

    wav2vec 2.0 and its kin expect `normalize: utterance`. A position is a sample: limits and budgets of the data count
    them. See `LogMel` for what a recording may be.

    Args:
        sampling_rate: in hertz, that of the encoder's training.
        max_seconds: longer recordings are refused before they are decoded.
    """

    def __init__(
        self,
        sampling_rate: int = 16_000,
        normalize: Normalization = "utterance",
        store: bool = False,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        if sampling_rate < 1:
            raise UserError(f"sampling_rate must be at least 1, but is {sampling_rate}")
        own: dict[str, Any] = {"sampling_rate": sampling_rate, "max_seconds": _duration(max_seconds)}
        super().__init__(normalize=normalize, store=store, **own)
        self.config = {name: self.config[name] for name in (*own, "normalize", "store")}

    @property
    def channels(self) -> int:
        """A sample is one value."""
        return 1

    @property
    def size(self) -> int:
        """A sample is one value."""
        return 1

    def time(self, count: int, length: int) -> float:
        """Count samples; see `Feature.time`."""
        return 1000 * count / self.sampling_rate

    def frames(self, raw: Any) -> FloatArray:
        """Return the samples `(T, 1)`."""
        return self.samples(raw)[:, None]

    def _windows(self) -> Stage:
        return lambda samples, last: samples[:, None]

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn recordings into samples `(T, 1)` float32."""
        return [self._normalized(self.frames(value)) for value in raw]

    def random(self, count: int, length: int, generator: np.random.Generator) -> Padded | Sources:
        """Draw recordings of up to `length` times 40 ms."""
        return super().random(count, length * (self.sampling_rate // 25), generator)

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count samples from the headers of files, without decoding them."""
        return [round(self._seconds(value) * self.sampling_rate) for value in raw]


def _duration(seconds: float) -> float:
    if not seconds > 0:
        raise UserError(f"max_seconds must be above 0, but is {seconds}")
    return seconds


def log_mel(
    samples: FloatArray,
    sampling_rate: int,
    n_mels: int,
    window: float,
    *,
    hop: float,
    fmin: float,
    fmax: float | None,
    log_floor: float,
) -> FloatArray:
    """Compute log-mel energies `(T, n_mels)` of samples `(N,)`, T >= 1; see `lit_seq2seq.features.LogMel`."""
    length, step = round(window * sampling_rate), round(hop * sampling_rate)
    points = 1 << (length - 1).bit_length()
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    starts = np.lib.stride_tricks.sliding_window_view(samples, length)[::step]  # (T, length)
    spectrum = np.fft.rfft(starts * np.hanning(length).astype(np.float32), points, axis=1)
    highest = sampling_rate / 2 if fmax is None else fmax
    energies = np.abs(spectrum) ** 2 @ mel_filters(n_mels, points, sampling_rate, float(fmin), fmax=float(highest))
    return np.asarray(np.log(np.maximum(energies, log_floor)), dtype=np.float32)


def check_bands(sampling_rate: int, n_mels: int, window: float, hop: float) -> None:
    """Refuse settings of `log_mel` that no recording is for, and that take all memory.

    Raises:
        UserError: a frame is longer than 131,072 samples, or 1,000 times as long as the time to the next, or the
            filters have more than 16,777,216 weights.

    Example:
        >>> check_bands(sampling_rate=1_000_000, n_mels=80, window=60.0, hop=0.01)
        Traceback (most recent call last):
        lit_seq2seq.types.UserError: a frame of 60.0 s at 1000000 Hz has 60,000,000 samples, more than ...
    """
    length = round(window * sampling_rate)
    if length > _FRAME:
        raise UserError(
            f"a frame of {window} s at {sampling_rate} Hz has {length:,} samples, more than the {_FRAME:,} that are "
            "allowed: set a shorter window"
        )
    if n_mels * length > _WEIGHTS:
        raise UserError(
            f"{n_mels} bands of {length:,} samples need more than the {_WEIGHTS:,} weights that are allowed: set fewer "
            "n_mels or a shorter window"
        )
    if window > _OVERLAP * hop:
        raise UserError(f"frames of {window} s every {hop} s overlap more than {_OVERLAP:,} times: set a longer hop")


@cache
def mel_filters(bands: int, points: int, sampling_rate: int, fmin: float, *, fmax: float) -> npt.NDArray[np.float32]:
    """Weights `(points / 2 + 1, bands)` of triangles that are linear and equally spaced in mel.

    Args:
        bands: number of triangles.
        points: size of the Fourier transform.
        sampling_rate: in hertz.
        fmin: lower edge of the lowest triangle in hertz.
        fmax: upper edge of the highest triangle in hertz.
    """
    edges = np.linspace(mel(fmin), mel(fmax), bands + 2)
    bins = mel(np.arange(points // 2 + 1) * sampling_rate / points)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(np.minimum(rising, falling), 0), dtype=np.float32)
