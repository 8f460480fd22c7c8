"""Samples of the microphone, as they come."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_seq2seq.types import UserError, install


def microphone(rate: int, size: int) -> Iterator[NDArray[np.int16]]:
    """Yield samples of the default microphone until Ctrl-C ends the recording; pressed again it ends the program.

    They are recorded by the sounddevice package, or by the arecord command where that cannot be used.

    Args:
        rate: samples a second.
        size: samples in a piece.

    Raises:
        UserError: nothing here can record, or not at this rate.
    """
    try:
        import sounddevice
    except (ImportError, OSError):  # it is not there, or the library that it needs is not
        sounddevice = None
    for some in _by_command(rate, size) if sounddevice is None else _by_package(rate, size):
        yield np.frombuffer(some, "<i2", len(some) // 2)


def _by_package(rate: int, size: int) -> Iterator[Any]:
    import sounddevice

    try:
        with sounddevice.RawInputStream(rate, size, channels=1, dtype="int16") as stream, on_interrupt() as interrupted:
            while not interrupted.is_set():
                yield stream.read(size)[0]
            yield stream.read(stream.read_available)[0]
    except sounddevice.PortAudioError as error:
        raise _unusable(rate, error) from error


def _by_command(rate: int, size: int) -> Iterator[bytes]:
    program = shutil.which("arecord")
    if program is None:
        raise UserError(
            f"nothing here can record from a microphone: {install('microphone')}, or install arecord (alsa-utils)"
        )
    call = [program, "-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", str(rate)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # in a session of its own, which Ctrl-C does not reach: what it has recorded by then is still read
    with (
        subprocess.Popen(call, start_new_session=True, **pipes) as process,
        on_interrupt(process.terminate) as interrupted,
    ):
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            while some := process.stdout.read(2 * size):
                yield some
        finally:
            process.terminate()
        if process.wait() > 0 and not interrupted.is_set():
            raise _unusable(rate, process.stderr.read().decode(errors="replace"))


def _unusable(rate: int, reason: object) -> UserError:
    told = " ".join(str(reason).split())
    return UserError(f"the microphone cannot be used at {rate} Hz ({told}): set another --sampling_rate")


@contextmanager
def on_interrupt(stop: Callable[[], object] = lambda: None) -> Iterator[Event]:
    """Call `stop` when Ctrl-C is pressed, and set the event that is returned; pressed again it interrupts as usual."""
    interrupted = Event()

    def once(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        interrupted.set()
        stop()

    before = signal.signal(signal.SIGINT, once)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
