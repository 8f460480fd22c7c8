"""Reads recordings: files, bytes or samples, at the sampling rate that is asked for."""

from __future__ import annotations

import io
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_seq2seq.features.frames import FloatArray, Stage
from lit_seq2seq.types import UserError

_LOUD = 10.0  # decimals that are, were never divided
_LOUDEST = 2.0**31  # whole numbers of 32 bits pass, what overflows when squared and summed does not
_MAX_RATIO = 100  # between the sampling rate of a recording and the one it is converted to
_LEAST_LEFT = 0.01  # of the energy that the average of unrelated channels has: with less they cancel each other out
_BLOCK = 1 << 20  # values that are decoded at once
MAX_SECONDS = 600.0
_INSTALL = "pip install soundfile soxr"


SAMPLES, FILES = ("array", "raw"), ("bytes", "path")


def read_audio(raw: Any, sampling_rate: int, max_seconds: float = MAX_SECONDS) -> FloatArray:
    """Read a recording as samples from -1 to 1 at `sampling_rate`, `(N,)`; see `LogMel` for what it may be.

    Args:
        raw: the recording.
        sampling_rate: in hertz.
        max_seconds: a longer one is refused, before it is decoded where its header says so.

    Raises:
        UserError: it cannot be read, is empty or too long, or has a sampling rate of another order.

    Example:
        >>> read_audio({"array": np.array([0, 16384], dtype=np.int16), "sampling_rate": 8000}, 8000).tolist()
        [0.0, 0.5]
    """
    found = samples_of(raw, sampling_rate)
    if found is None:
        with open_audio(raw) as sound:
            _check(raw, sound.frames, sound.samplerate, sampling_rate, max_seconds)
            try:
                found = _decode(raw, sound, max_seconds), sound.samplerate
            except (RuntimeError, MemoryError, ValueError) as error:  # soundfile's own are RuntimeErrors
                raise UserError(
                    f"{_name(raw)} is a broken recording: {_reason(error)}: mend it, or leave the row out"
                ) from error
    samples, rate = found
    _check(raw, len(samples), rate, sampling_rate, max_seconds)
    if not len(samples):
        raise UserError(f"expected a recording, but {_name(raw)} has no samples")
    _check_loudness(raw, samples)
    return np.asarray(samples if rate == sampling_rate else resampler(rate, sampling_rate)(samples, True), np.float32)


def read_piece(raw: Any, sampling_rate: int) -> FloatArray:
    """Read a piece of a recording as samples from -1 to 1, `(N,)`, N >= 0.

    Args:
        raw: an array of samples, or a mapping with `array` and `sampling_rate`.
        sampling_rate: of all pieces, in hertz.

    Raises:
        UserError: it holds no samples, or some at another rate, or ones whose scale only the whole would tell.
    """
    found = samples_of(raw, sampling_rate)
    if found is None:
        raise UserError(f"expected a piece of sound as samples (N,), but it is {_name(raw)}: decode it first")
    samples, rate = found
    if rate != sampling_rate:
        raise UserError(
            f"expected a piece of sound at {sampling_rate} Hz, but it has {rate} Hz: begin with "
            f"in_pieces(sampling_rate={rate})"
        )
    if (kind := np.asarray(_values(raw)).dtype) in (np.int32, np.int64) and len(samples):
        raise UserError(f"expected a piece of sound as int16 or as floats from -1 to 1, but it has the type {kind}")
    _check_loudness(raw, samples)
    return samples


def resampler(rate: int, wanted: int) -> Stage:
    """Return what converts samples that come in pieces to another sampling rate.

    Raises:
        UserError: soxr is not installed, or the rates are too far apart.
    """
    _check(None, 0, rate, wanted, math.inf)
    try:
        import soxr
    except ImportError as error:
        raise UserError(f"converting {rate} Hz to {wanted} Hz needs soxr: {_INSTALL}") from error
    convert: Stage = soxr.ResampleStream(rate, wanted, 1, dtype="float32").resample_chunk
    return convert


def _check_loudness(raw: Any, samples: FloatArray) -> None:
    if (peak := np.abs(samples).max(initial=0)) > _LOUD:
        warnings.warn(
            "some recordings have samples far beyond -1 to 1: divide whole numbers, or give them as such", stacklevel=3
        )
    if not peak < _LOUDEST:
        raise UserError(f"expected samples from -1 to 1, but some of {_name(raw)} are not finite or far beyond")


def _check(raw: Any, samples: int, rate: int, wanted: int, max_seconds: float) -> None:
    if rate < 1 or max(rate, wanted) > _MAX_RATIO * min(rate, wanted):
        raise UserError(
            f"{_name(raw)} has a sampling rate of {rate} Hz, too far from the model's {wanted} Hz: convert it"
        )
    if samples > max_seconds * rate:
        raise UserError(
            f"{_name(raw)} lasts {samples / rate:.0f} seconds, and at most {max_seconds:g} are allowed: cut it, or "
            "raise max_seconds of the source feature"
        )


def _decode(raw: Any, sound: Any, max_seconds: float) -> FloatArray:
    """Average the channels; where they cancel each other out, as with opposed phases, take the loudest one instead.

    Blocks are decoded one by one, so that neither a header that lies nor many channels cost memory.
    """

    def blocks() -> Iterator[FloatArray]:
        count = 0
        while len(block := sound.read(max(_BLOCK // sound.channels, 1), dtype="float32", always_2d=True)):
            count += len(block)
            _check(raw, count, sound.samplerate, sound.samplerate, max_seconds)
            yield block

    means, sums, squares = [np.zeros(0, np.float32)], np.zeros(sound.channels), np.zeros(sound.channels)
    for block in blocks():
        means.append(block.mean(axis=1))
        sums += block.sum(axis=0, dtype=np.float64)
        squares += np.square(block, dtype=np.float64).sum(axis=0)
    mean = np.concatenate(means)
    if not len(mean):
        return mean
    energies = squares - sums**2 / len(mean)  # without a constant offset, which is no sound
    if len(mean) * mean.var(dtype=np.float64) >= _LEAST_LEFT * energies.mean() / sound.channels:
        return mean
    sound.seek(0)
    return np.concatenate([block[:, energies.argmax()] for block in blocks()])


def samples_of(raw: Any, sampling_rate: int) -> tuple[FloatArray, int] | None:
    """Return samples and their rate; `None` where `raw` is a file."""
    rate, values = sampling_rate, _values(raw)
    if isinstance(raw, Mapping):
        given = raw.get("sampling_rate")
        if values is not None and given is None and raw.keys() - {*SAMPLES, *FILES, "sampling_rate"}:
            raise UserError(
                f"expected the sampling_rate beside the samples, but there are only {', '.join(map(str, raw))}"
            )
        try:
            rate = sampling_rate if given is None else int(given)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"expected a sampling rate in hertz, but it is {given!r}") from error
    if values is None or isinstance(values, str | Path | bytes):
        return None
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of different lengths, tensors of other devices
        raise UserError(
            f"expected samples (N,), but they are no array of numbers: {' '.join(str(error).split())}"
        ) from error
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise UserError(f"expected samples (N,), but got an array of shape {array.shape} and type {array.dtype}")
    _check(raw, 0, rate, sampling_rate, math.inf)
    return array.astype(np.float32) if array.dtype.kind == "f" else _scaled(array), rate


def _values(raw: Any) -> Any:
    """Return the samples of a mapping, `None` where it has none, and anything else as it is."""
    return next((raw[key] for key in SAMPLES if raw.get(key) is not None), None) if isinstance(raw, Mapping) else raw


def _scaled(array: npt.NDArray[Any]) -> FloatArray:
    """Bring whole numbers to -1 to 1 by the bits of their type; unsigned ones have their zero in the middle.

    A list becomes integers of 64 bits, and an array of 32 may come from one: their samples have 16, 24 or 32 bits, the
    fewest that hold them all.
    """
    bits, unsigned = 8 * array.dtype.itemsize, array.dtype.kind == "u"
    largest = np.abs(array.astype(np.float64)).max(initial=0)
    if bits == 64 and (unsigned or largest > 2**31):
        raise UserError("expected whole-number samples of at most 32 bits, but these have more: divide them to -1 to 1")
    if bits > 16 and not unsigned:
        bits = next(bits for bits in (16, 24, 32) if largest <= 2 ** (bits - 1))
    full = 2.0 ** (bits - 1)
    return ((array - full * unsigned) / full).astype(np.float32)


def open_audio(raw: Any) -> Any:
    """Open a recording that is a file or the bytes of one as a `soundfile.SoundFile`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        import soundfile
    except ImportError as error:
        raise UserError(f"reading recordings from files needs soundfile: {_INSTALL}") from error
    inside = (raw.get("bytes") or raw.get("path")) if isinstance(raw, Mapping) else raw
    if inside is None:
        raise UserError("expected a recording with array, bytes or path, but it has none of them")
    if not isinstance(inside, bytes) and not Path(inside).is_file():
        raise UserError(f"there is no recording '{inside}': check the path")
    try:
        return _from_memory(soundfile, inside) if isinstance(inside, bytes) else soundfile.SoundFile(os.fspath(inside))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{_name(raw)} is not a recording that soundfile can read: {_reason(error)}") from error


def _from_memory(soundfile: Any, data: bytes) -> Any:
    try:
        return soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:  # libsndfile 1.2.2 refuses many MP3 files in memory that it reads from disk
        with tempfile.NamedTemporaryFile() as copy:
            copy.write(data)
            copy.flush()
            return soundfile.SoundFile(copy.name)


def _reason(error: Exception) -> str:
    """Say what an error of soundfile says, without the object it reads from."""
    return " ".join(str(getattr(error, "error_string", error)).split())


def _name(raw: Any) -> str:
    if isinstance(raw, Mapping):
        raw = raw.get("path") or raw.get("bytes")
    return f"'{raw}'" if isinstance(raw, str | Path) else f"{len(raw)} bytes" if isinstance(raw, bytes) else "the array"
