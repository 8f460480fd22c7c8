"""Recordings to log-mel energies."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from datasets import Audio, LargeList, List, Value

from lit_seq2seq.features.speech import FloatArray, Normalization, SpecAugment, VectorFeature
from lit_seq2seq.types import UserError

_EXTRA = "pip install 'lit_seq2seq[audio]'"


class LogMel(VectorFeature):
    """Logarithm of the energy in triangular bands that are equally wide on the mel scale, `2595 log10(1 + f / 700)`.

    The filter bank of Davis & Mermelstein (1980) as Kaldi computes it, with a Hann window and without dithering,
    pre-emphasis or removal of the mean: frames that lie wholly inside the signal, zero-padded to a power of two; the
    power spectrum; triangles that are linear in mel; `log(max(energy, log_floor))`.

    A recording is a path, the bytes of a file (anything that `soundfile` reads), an array of samples at
    `sampling_rate`, or a mapping with `array` (or `raw`) and `sampling_rate`, or with `bytes` or `path`, as `datasets`
    and `transformers` give them. Several channels are averaged, other sampling rates are converted by `soxr`.

    Args:
        sampling_rate: in hertz.
        n_mels: number of bands.
        window: length of a frame in seconds.
        hop: time between frames in seconds.
        fmin: lower edge of the lowest band in hertz.
        fmax: upper edge of the highest band in hertz; half of `sampling_rate` if unset.
        log_floor: smallest energy, above 0, of samples from -1 to 1.
        deltas: see `VectorFeature`.
        normalize: see `VectorFeature`.
        stack: see `VectorFeature`.
        spec_augment: see `VectorFeature`.
        store: see `VectorFeature`.

    Raises:
        UserError: a setting is out of its range.

    Example:
        >>> import numpy as np
        >>> feature = LogMel(sampling_rate=8000, n_mels=40)
        >>> feature.encode([np.sin(np.arange(8000) / 3)])[0].shape
        (98, 40)
    """

    column_kind: ClassVar[str] = "audio (a recording, the bytes or the path of one, or samples)"
    input_kind: ClassVar[str] = "a recording: its path, its bytes, samples, or a mapping with array and sampling_rate"

    def __init__(
        self,
        sampling_rate: int = 16_000,
        n_mels: int = 80,
        window: float = 0.025,
        hop: float = 0.01,
        fmin: float = 20.0,
        fmax: float | None = None,
        log_floor: float = 1e-10,
        deltas: int = 0,
        normalize: Normalization = "utterance",
        stack: int = 1,
        spec_augment: SpecAugment | None = None,
        store: bool = True,
    ) -> None:
        highest = sampling_rate / 2 if fmax is None else fmax
        if n_mels < 1:
            raise UserError(f"n_mels must be at least 1, but is {n_mels}")
        if min(window, hop) * sampling_rate < 1:
            raise UserError(f"window and hop must be at least one sample, but are {window} and {hop} seconds")
        if not 0 <= fmin < highest <= sampling_rate / 2:
            raise UserError(
                f"fmin and fmax must satisfy 0 <= fmin < fmax <= {sampling_rate / 2}, but are {fmin} and {highest}"
            )
        if not log_floor > 0:
            raise UserError(f"log_floor must be above 0, but is {log_floor}")
        own: dict[str, Any] = {"sampling_rate": sampling_rate, "n_mels": n_mels, "window": window, "hop": hop}
        own |= {"fmin": fmin, "fmax": fmax, "log_floor": log_floor}
        super().__init__(deltas, normalize, stack, spec_augment, store, **own)
        self._length, self._hop = round(window * sampling_rate), round(hop * sampling_rate)
        self._points = 1 << (self._length - 1).bit_length()
        self._range = (float(fmin), float(highest))

    @property
    def channels(self) -> int:
        """Number of bands."""
        return int(self.config["n_mels"])

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return int(self.config["sampling_rate"])

    def accepts_column(self, column: object) -> bool:
        """Tell whether a column holds recordings, files, paths or samples."""
        if isinstance(column, List | LargeList):
            return isinstance(column.feature, Value) and column.feature.dtype.startswith(("float", "int"))
        if isinstance(column, dict):
            return {"array", "sampling_rate"} <= column.keys() or bool(column.keys() & {"bytes", "path"})
        return isinstance(column, Audio) or (isinstance(column, Value) and column.dtype in ("binary", "string"))

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is one recording."""
        return isinstance(raw, str | Path | bytes | Mapping) or (isinstance(raw, np.ndarray) and raw.ndim == 1)

    def is_missing(self, raw: object) -> bool:
        """Tell whether a row has no recording."""
        return raw is None or (isinstance(raw, Mapping) and all(raw.get(key) is None for key in _SAMPLES + _FILES))

    def show(self, raw: Any) -> str:
        """Return the duration, with the name of the file where there is one."""
        if self.is_missing(raw):
            return "no recording"
        path = raw.get("path") if isinstance(raw, Mapping) else raw if isinstance(raw, str | Path) else None
        duration = f"{self._seconds(raw):.2f} s"
        return f"{Path(path).name}, {duration}" if path else duration

    def frames(self, raw: Any) -> FloatArray:
        """Compute the energies of one recording: `(T, n_mels)`."""
        samples = read_audio(raw, self.sampling_rate)
        if len(samples) < self._length:
            samples = np.pad(samples, (0, self._length - len(samples)))
        starts = np.lib.stride_tricks.sliding_window_view(samples, self._length)[:: self._hop]  # (T, length)
        spectrum = np.fft.rfft(starts * np.hanning(self._length).astype(np.float32), self._points, axis=1)
        energies = np.abs(spectrum) ** 2 @ mel_filters(self.channels, self._points, self.sampling_rate, *self._range)
        return np.asarray(np.log(np.maximum(energies, self.config["log_floor"])), dtype=np.float32)

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count positions from the headers of files, without decoding them."""
        stack = int(self.config["stack"])
        samples = [round(self._seconds(value) * self.sampling_rate) for value in raw]
        return [-(-(1 + max(count - self._length, 0) // self._hop) // stack) for count in samples]

    def _seconds(self, raw: Any) -> float:
        found = _samples(raw, self.sampling_rate)
        if found is not None:
            return len(found[0]) / found[1]
        with _open(raw) as sound:
            return float(sound.frames / sound.samplerate)


@cache
def mel_filters(bands: int, points: int, sampling_rate: int, fmin: float, fmax: float) -> npt.NDArray[np.float32]:
    """Weights `(points / 2 + 1, bands)` of triangles that are linear and equally spaced in mel.

    Args:
        bands: number of triangles.
        points: size of the Fourier transform.
        sampling_rate: in hertz.
        fmin: lower edge of the lowest triangle in hertz.
        fmax: upper edge of the highest triangle in hertz.

    Example:
        >>> mel_filters(10, 256, 8000, 20.0, 4000.0).shape
        (129, 10)
    """
    edges = np.linspace(_mel(fmin), _mel(fmax), bands + 2)
    mel = _mel(np.arange(points // 2 + 1) * sampling_rate / points)[:, None]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(np.minimum(rising, falling), 0), dtype=np.float32)


def _mel(hertz: Any) -> Any:
    return 2595 * np.log10(1 + np.asarray(hertz, dtype=np.float64) / 700)


_SAMPLES, _FILES = ("array", "raw"), ("bytes", "path")


def read_audio(raw: Any, sampling_rate: int) -> FloatArray:
    """Read a recording as samples from -1 to 1 at `sampling_rate`, `(N,)`; see `LogMel` for what it may be.

    Raises:
        UserError: it cannot be read, or is empty.

    Example:
        >>> import numpy as np
        >>> read_audio({"array": np.array([0, 16384], dtype=np.int16), "sampling_rate": 8000}, 8000).tolist()
        [0.0, 0.5]
    """
    found = _samples(raw, sampling_rate)
    if found is None:
        with _open(raw) as sound:
            found = sound.read(dtype="float32", always_2d=True).mean(axis=1), sound.samplerate
    samples, rate = found
    if not len(samples):
        raise UserError(f"expected a recording, but {_name(raw)} has no samples")
    if not np.isfinite(samples).all():
        raise UserError(f"expected finite samples, but some of {_name(raw)} are not")
    if rate != sampling_rate:
        try:
            import soxr
        except ImportError as error:
            raise UserError(f"converting {rate} Hz to {sampling_rate} Hz needs soxr: {_EXTRA}") from error
        samples = soxr.resample(samples, rate, sampling_rate)
    return np.asarray(samples, dtype=np.float32)


def _samples(raw: Any, sampling_rate: int) -> tuple[FloatArray, int] | None:
    """Return samples and their rate; `None` where `raw` is a file."""
    rate, values = sampling_rate, raw
    if isinstance(raw, Mapping):
        values = next((raw[key] for key in _SAMPLES if raw.get(key) is not None), None)
        rate = int(raw.get("sampling_rate") or sampling_rate)
    if values is None or isinstance(values, str | Path | bytes):
        return None
    array = np.asarray(values)
    if array.dtype == np.int64:  # what the integers of a column become: 16-bit samples
        array = array.astype(np.int16)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.number):
        raise UserError(f"expected samples (N,), but got an array of shape {array.shape} and type {array.dtype}")
    scale = np.iinfo(array.dtype).max + 1 if np.issubdtype(array.dtype, np.integer) else 1
    return (array / scale).astype(np.float32), rate


def _open(raw: Any) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise UserError(f"reading recordings from files needs soundfile: {_EXTRA}") from error
    inside = (raw.get("bytes") or raw.get("path")) if isinstance(raw, Mapping) else raw
    if inside is None:
        raise UserError("expected a recording with array, bytes or path, but it has none of them")
    if not isinstance(inside, bytes) and not Path(inside).is_file():
        raise UserError(f"there is no recording '{inside}': check the path")
    try:
        return soundfile.SoundFile(io.BytesIO(inside) if isinstance(inside, bytes) else os.fspath(inside))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{_name(raw)} is not a recording that soundfile can read: {reason}") from error


def _name(raw: Any) -> str:
    if isinstance(raw, Mapping):
        raw = raw.get("path") or raw.get("bytes")
    return f"'{raw}'" if isinstance(raw, str | Path) else f"{len(raw)} bytes" if isinstance(raw, bytes) else "the array"
