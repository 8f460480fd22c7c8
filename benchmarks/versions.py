"""Compare this checkout with another commit, in one run: `python -m benchmarks.versions COMMIT [--data FOLDER]`.

Training (W1), decoding (W2) and the start of commands. Programs of both run in turns, so that they meet the same
disturbances of the machine; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.arena import ROOT, WORK, Contender, alternate, compare
from benchmarks.corpus import prepare

STEPS = 15
SENTENCE = "from lit_seq2seq import pipeline\npipeline('translation', {model!r})(['a man in a blue shirt .'])"
STARTS = {
    "import torch": ["-c", "import torch"],
    "--help": ["-m", "lit_seq2seq", "--help"],
    "a wrong command": ["-m", "lit_seq2seq", "generat"],
    "generate --help": ["-m", "lit_seq2seq", "generate", "--help"],
    "one sentence": ["-c", SENTENCE],
}


def programs(trees: dict[str, Path], data: Path, model: Path, threads: int) -> dict[str, list[Contender]]:
    """List what is compared: per workload, a program of each checkout."""
    decode = ["--mode", "decode", "--model", str(model), "--steps", "1"]
    workloads = {
        f"training {precision}": ["--mode", "lightning", "--steps", str(STEPS), "--precision", precision]
        for precision in ("32-true", "bf16-mixed")
    } | {
        f"decoding {dtype}, {'greedy' if beams == 1 else 'beam 5'}": [*decode, "--dtype", dtype, "--beams", str(beams)]
        for beams in (1, 5)
        for dtype in ("float32", "bfloat16", "int8")
    }
    base = [sys.executable, "-m", "benchmarks.ours", "--data", str(data)]
    return {
        workload: [Contender(name, [*base, *options], threads, root=tree) for name, tree in trees.items()]
        for workload, options in workloads.items()
    }


def start_of(tree: Path, arguments: list[str]) -> float:
    """Run Python once with a checkout's package; return the CPU seconds that it took."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=environment, cwd=tree, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starts(trees: dict[str, Path], model: Path, turns: int) -> list[dict[str, object]]:
    """Measure how long commands take to start, in turns."""
    rows: list[dict[str, object]] = []
    for name, arguments in STARTS.items():
        given = [argument.format(model=str(model)) for argument in arguments]
        taken: dict[str, list[float]] = {one: [] for one in trees}
        for turn in range(turns + 1):
            for one, tree in trees.items():
                cost = start_of(tree, given)
                if turn:  # the first one compiles modules
                    taken[one].append(cost)
        rows += [{"workload": name, "variant": one, "cpu_seconds": round(median(taken[one]), 2)} for one in trees]
    return rows


def main() -> None:
    """Measure, print, and write the rows to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--data", type=Path, help="folder with multi30k; generated if unset")
    parser.add_argument("--model", type=Path, help="a model trained by `benchmarks.ours --mode quality`; made if unset")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=WORK / "versions.json")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    other = WORK / "trees" / arguments.commit
    if not other.exists():
        subprocess.run(["git", "worktree", "add", "--detach", str(other), arguments.commit], cwd=ROOT, check=True)
    trees = {arguments.commit: other, "here": ROOT}
    data = prepare(WORK / "data", "translation", arguments.data)
    model = arguments.model or WORK / f"model_{data.name}"
    if not model.exists():
        make = [sys.executable, "-m", "benchmarks.ours", "--mode", "quality", "--epochs", "2", "--data", str(data)]
        environment = {**os.environ, "PYTHONPATH": str(other)}
        subprocess.run([*make, "--model", str(model)], env=environment, cwd=other, check=True)
    rows = starts(trees, model, arguments.windows)
    for workload, group in programs(trees, data, model, arguments.threads).items():
        unit = "sentences/s" if workload.startswith("decoding") else "target tokens/s"
        rows += compare(workload, unit, alternate(group, arguments.windows, warmup=2))
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


def show(rows: list[dict[str, object]]) -> None:
    """Print a line for each program."""
    table = Table(title="CPU time; ratio of rates to the other checkout")
    for column in ("workload", "checkout", "CPU s to start", "per CPU s", "ratio", "MiB"):
        table.add_column(column)
    for row in rows:
        cells = (
            row.get(key, "") for key in ("workload", "variant", "cpu_seconds", "per_cpu_second", "ratio", "peak_mib")
        )
        table.add_row(*map(str, cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
