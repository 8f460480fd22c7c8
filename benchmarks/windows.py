"""Work done in windows, each when it is asked for. Needs nothing but Python: peers import it in their environments."""

from __future__ import annotations

import json
import os
import resource
import sys
import time


class Windows:
    """Lets a training or decoding loop run one window at a time, and reports what each has cost.

    Programs to be compared run as processes that wait for a line on their standard input; the one that is asked runs
    a window, so that all meet the same disturbances of the machine. What the loop prints goes to standard error.

    Args:
        steps: steps in a window.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._done = self._tokens = 0

    def start(self) -> None:
        """Say that all is ready, and wait for the first window."""
        self._tell({"ready": True})
        self._wait()

    def step(self, tokens: int) -> None:
        """Count a step and its tokens; at the end of a window report and wait for the next."""
        self._done += 1
        self._tokens += tokens
        if self._done == self._steps:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            self._tell({"tokens": self._tokens, "wall": wall, "cpu": cpu, "peak_mib": round(peak)})
            self._wait()

    def _tell(self, message: dict[str, object]) -> None:
        print(json.dumps(message), file=self._out, flush=True)

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # the arena has seen enough: loops of peers know no other way to stop
        self._done = self._tokens = 0
        self._wall, self._cpu = time.perf_counter(), time.process_time()
