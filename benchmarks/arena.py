"""Runs programs in turns, a window each, and compares what the windows cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "benchmarks"


@dataclass
class Contender:
    """A program to be compared.

    Attributes:
        name: how it is called in the table.
        command: the process, which works in windows; see `Windows`.
        threads: number of threads it may use.
        windows: what its windows have cost, without the warm-up.
        root: the checkout whose package it runs.
    """

    name: str
    command: list[str]
    threads: int
    windows: list[dict[str, float]] = field(default_factory=list)
    root: Path = ROOT

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self._log = WORK / f"{self.name.replace(' ', '_').replace('/', '_')}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": str(self.root)}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=self.root,
            )
        self._hear()

    def window(self) -> dict[str, float]:
        """Let it run a window."""
        pipe = self._pipe(self._process.stdin)
        pipe.write("go\n")
        pipe.flush()
        return self._hear()

    def stop(self) -> None:
        """End the process."""
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _hear(self) -> dict[str, Any]:
        lines = iter(self._pipe(self._process.stdout).readline, "")
        line = next((line for line in lines if line.startswith("{")), "")  # a peer may print before its first window
        if not line:
            tail = "\n".join(self._log.read_text().splitlines()[-12:])
            raise RuntimeError(f"{self.name} has ended early; the end of {self._log}:\n{tail}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def rate(self, clock: str) -> float:
        """Tokens per second of `wall` or `cpu` time: the median over the windows."""
        return median(window["tokens"] / window[clock] for window in self.windows)

    @property
    def peak(self) -> float:
        """Greatest memory so far, in MiB."""
        return max(window["peak_mib"] for window in self.windows)


def alternate(contenders: list[Contender], windows: int, warmup: int) -> list[Contender]:
    """Run `warmup` windows of each program, then `windows` in turns; leave out, with a word, those that fail."""
    running = []
    for contender in contenders:
        try:
            contender.start()
            for _ in range(warmup):
                contender.window()
            running.append(contender)
        except (RuntimeError, BrokenPipeError) as error:
            print(contender.name, error, file=sys.stderr)
    for turn in range(windows):
        for contender in list(running):
            try:
                contender.windows.append(contender.window())
            except (RuntimeError, BrokenPipeError) as error:
                print(contender.name, error, file=sys.stderr)
                running.remove(contender)
        print(f"\r{turn + 1} of {windows} windows", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for contender in running:
        contender.stop()
    return [contender for contender in running if contender.windows]


def compare(workload: str, unit: str, contenders: list[Contender]) -> list[dict[str, object]]:
    """Compare each program with every other one by CPU time: rows for `latest.json`.

    The ratio is the median over the turns, as what ran in the same turn met the same machine.
    """
    rows: list[dict[str, object]] = []
    for one in contenders:
        base = {"workload": workload, "variant": one.name, "value": round(one.rate("wall"), 1), "unit": unit}
        base |= {"per_cpu_second": round(one.rate("cpu"), 1), "peak_mib": one.peak}
        others = [other for other in contenders if other is not one] or [None]
        for other in others:
            baseline = None if other is None else other.name
            ratio = None if other is None else round(_ratio(one, other, "cpu"), 3)
            wall = None if other is None else round(_ratio(one, other, "wall"), 3)
            rows.append({**base, "baseline": baseline, "ratio": ratio, "ratio_wall": wall})
    return rows


def _ratio(one: Contender, other: Contender, clock: str) -> float:
    pairs = zip(one.windows, other.windows, strict=False)
    return median((a["tokens"] / a[clock]) / (b["tokens"] / b[clock]) for a, b in pairs)
