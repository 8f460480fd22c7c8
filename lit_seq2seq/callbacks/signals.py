"""Signals that ask a training run to stop, noted until it can stop without losing anything."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from types import FrameType

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


class StopSignals:
    """Notes SIGINT, SIGTERM and, in a SLURM job, SIGUSR1; a second SIGINT stops at once.

    Handlers of the user's own are called, too; who handles SIGUSR1 keeps it.

    Attributes:
        received: number of the first signal, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}
        self._users: Mapping[int, object] = {}
        self._interrupt = signal.getsignal(signal.SIGINT)

    def install(self, users: Mapping[int, object]) -> None:
        """Listen, in place of who listened before; only the main thread can.

        Args:
            users: the handlers that were there before the trainer's.
        """
        self.received, self._users = 0, dict(users)
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        wanted = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ and not callable(users.get(signal.SIGUSR1)):
            wanted.append(signal.SIGUSR1)
        for number in wanted:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def remove(self) -> None:
        """Let those listen who did before, unless somebody else has put other handlers in place since."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def listen_to_interrupts(self) -> None:
        """Let SIGINT through again: Lightning ignores it from a `KeyboardInterrupt` on, for ever if before training."""
        if threading.current_thread() is threading.main_thread() and self._interrupt is not None:
            signal.signal(signal.SIGINT, self._interrupt)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        own = self._users.get(number)
        if callable(own) and own is not signal.default_int_handler:
            own(number, frame)


def requeue() -> None:
    """Ask SLURM to start this job again."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    name = job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", name], check=True)
        rank_zero_info(f"SLURM job {name} is queued again")
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"SLURM job {name} could not be queued again ({error}): submit it once more")
