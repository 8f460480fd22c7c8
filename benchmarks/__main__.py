"""Compare speed: `python -m benchmarks [w1 w1-feeding w2 w3 gnmt] [--data FOLDER]`; `make bench` runs all."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.arena import ROOT, WORK, Contender, alternate, compare
from benchmarks.corpus import prepare
from lit_seq2seq.hub.folder import SHORTLIST

PEERS = ROOT / "build" / "peers"
PROGRAMS = Path(__file__).parent / "peers"
STEPS = {"w1": 15, "w1-feeding": 15, "w3": 15, "gnmt": 2}
TASKS = {"w3": "g2p"}
DTYPES = {"bf16-true": "bf16", "bf16-mixed": "bf16", "32-true": "fp32"}
"""Precisions of training, as Lightning names them, and what eole calls their type."""


def ours(name: str, workload: str, data: Path, arguments: argparse.Namespace, *options: str) -> Contender:
    """Return a program of this package; see `ours.py`."""
    steps = str(STEPS.get(workload, 1))
    feeding = ["--feeding"] if workload.endswith("-feeding") else []
    command = [sys.executable, "-m", "benchmarks.ours", "--workload", workload.split("-")[0], "--data", str(data)]
    return Contender(name, [*command, "--steps", steps, *feeding, *options], arguments.threads)


def filled(template: str, name: str, **values: object) -> Path:
    """Write a peer's settings with values in place of `@NAME@`."""
    text = (PROGRAMS / template).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key.upper()}@", str(value))
    path = WORK / f"{name}.yaml"
    path.write_text(text)
    return path


def eole(workload: str, data: Path, arguments: argparse.Namespace, precision: str) -> list[Contender]:
    """Return eole's training, if it is installed."""
    name, dtype, amp = f"eole {precision}", DTYPES[precision], precision.endswith("mixed")
    python, feed = PEERS / "eole/bin/python", int(workload.endswith("-feeding"))
    if not python.exists():
        return []
    model = WORK / f"{name}_{workload}"
    options = {"data": data, "feed": feed, "model": model, "dtype": dtype, "amp": str(amp).lower(), "steps": 1_000_000}
    settings = filled("eole_train.yaml", f"{name}_{workload}".replace(" ", "_"), **options)
    command = [str(python), str(PROGRAMS / "eole_program.py"), "train", str(settings), str(STEPS[workload])]
    return [Contender(name, command, arguments.threads)]


def yoyodyne(data: Path, arguments: argparse.Namespace) -> list[Contender]:
    """Return yoyodyne's training of W3, if it is installed."""
    python = PEERS / "yoyodyne/bin/python"
    if not python.exists():
        return []
    for split in ("train", "valid"):
        sides = [(data / f"{split}.{side}").read_text().splitlines() for side in ("src", "tgt")]
        lines = [f"{''.join(source.split())}\t{target}" for source, target in zip(*sides, strict=True)]
        (WORK / f"yoyodyne_{split}.tsv").write_text("\n".join(lines) + "\n")
    settings = filled("yoyodyne_w3.yaml", "yoyodyne_w3", work=WORK)
    command = [str(python), str(PROGRAMS / "yoyodyne_program.py"), str(settings), str(STEPS["w3"])]
    return [Contender("yoyodyne 32-true", command, arguments.threads)]


def training(workload: str, data: Path, arguments: argparse.Namespace) -> list[Contender]:
    """Return all that train a workload: through Lightning, in a bare loop, in plain PyTorch, and the peers."""
    found = []
    for precision in DTYPES:
        if workload == "w3" and precision == "bf16-true":
            continue  # its moving average needs weights of 32 bits
        found += [
            ours(f"{name} {precision}", workload, data, arguments, "--mode", mode, "--precision", precision)
            for name, mode in (("lit_seq2seq", "lightning"), ("bare loop", "loop"), ("plain PyTorch", "plain"))
        ]
        if workload.startswith("w1"):
            found += eole(workload, data, arguments, precision)
    return found + (yoyodyne(data, arguments) if workload == "w3" else [])


def decoding(data: Path, arguments: argparse.Namespace, beams: int) -> list[Contender]:
    """Return all that decode with models of W1, which are trained here where there are none yet."""
    model, theirs = trained(data, arguments)
    search = "greedy" if beams == 1 else f"beam {beams}"
    found = []
    for dtype, theirs_dtype in (("float32", "fp32"), ("bfloat16", "bf16"), ("int8", "int8")):
        options = ["--mode", "decode", "--model", str(model), "--beams", str(beams), "--dtype", dtype]
        for name, more in (("", []), (" shortlist", ["--shortlist"])):
            output = str(WORK / f"ours_{theirs_dtype}{name.replace(' ', '_')}_{beams}.txt")
            given = [*options, *more, "--output", output]
            found.append(ours(f"lit_seq2seq {search} {theirs_dtype}{name}", "w1-decode", data, arguments, *given))
        if theirs is not None and theirs_dtype != "int8":  # eole 0.6.4 fails in int8
            command = [str(PEERS / "eole/bin/python"), str(PROGRAMS / "eole_program.py"), "decode", str(theirs)]
            output = str(WORK / f"eole_{theirs_dtype}_{beams}.txt")
            command += [str(WORK / "eole_test.src"), str(beams), output, theirs_dtype]
            found.append(Contender(f"eole {search} {theirs_dtype}", command, arguments.threads))
    return found


def trained(data: Path, arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Train the model that decodes, once, unless one is given; give its weights to eole's, if that is installed."""
    model, theirs, python = WORK / f"model_{data.name}", WORK / f"eole_model_{data.name}", PEERS / "eole/bin/python"
    if not model.exists() and arguments.model is not None:
        shutil.copytree(arguments.model, model)  # conversion changes it
    if not model.exists():
        program = ours(
            "training", "w1", data, arguments, "--mode", "quality", "--precision", "bf16-mixed", "--epochs", "4"
        )
        subprocess.run([*program.command, "--model", str(model)], check=True, cwd=ROOT)
    if not (model / SHORTLIST).exists():
        program = ours("shortlist", "w1", data, arguments, "--mode", "shortlist", "--model", str(model))
        subprocess.run(program.command, check=True, cwd=ROOT)
    if not python.exists():
        return model, None
    if not theirs.exists():
        options = {"data": data, "feed": 0, "model": theirs, "dtype": "fp32", "amp": "false", "steps": 1}
        settings = filled("eole_train.yaml", "eole_decode", **options)
        subprocess.run([str(python), str(PROGRAMS / "eole_program.py"), "train", str(settings), "0"], check=True)
        command = [sys.executable, "-m", "benchmarks.convert", "--model", str(model), "--eole", str(theirs)]
        subprocess.run(command, check=True, cwd=ROOT)
    sources = (data / "test.src").read_text().splitlines()
    (WORK / "eole_test.src").write_text("".join(f"{line} </s>\n" for line in sources))  # as this package reads them
    return model, theirs


def bleu(data: Path) -> dict[str, float]:
    """Score what the decoding programs have written, as it stands: tokenised and lowercased."""
    import sacrebleu

    references = [(data / "test.tgt").read_text().splitlines()]
    return {
        path.stem: round(sacrebleu.corpus_bleu(path.read_text().splitlines(), references, tokenize="none").score, 2)
        for path in sorted([*WORK.glob("ours_*_?.txt"), *WORK.glob("eole_*_?.txt")])
    }


def main() -> None:
    """Run the workloads, print a table, and keep the rows; those of other workloads stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=["w1", "w1-feeding", "w2", "w3", "gnmt"])
    parser.add_argument("--data", type=Path, help="folder with multi30k and sigmorphon2020_g2p; generated if unset")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=3, help="windows that do not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=Path, help="w2: a model trained by `benchmarks.ours --mode quality` before")
    parser.add_argument("--only", default="", help="run only the programs whose name this regular expression finds")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "latest.json")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for workload in arguments.workloads:
        data = prepare(WORK / "data", TASKS.get(workload, "translation"), arguments.data)
        decodes = workload == "w2"
        groups = (
            [decoding(data, arguments, beams) for beams in (1, 5)] if decodes else [training(workload, data, arguments)]
        )
        for group in groups:
            contenders = [one for one in group if re.search(arguments.only, one.name)]
            finished = alternate(contenders, arguments.windows, arguments.warmup)
            rows += compare(workload, "sentences/s" if decodes else "target tokens/s", finished)
        show(workload, rows)
        if decodes:
            print("BLEU, tokenised and lowercased:", bleu(data))
    about = {"date": date.today().isoformat(), "threads": arguments.threads, "machine": platform.processor()}
    about["data"] = "generated" if arguments.data is None else "real"
    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    kept = [row for row in known if row["workload"] not in arguments.workloads]
    arguments.output.write_text(json.dumps([*kept, *({**about, **row} for row in rows)], indent=1) + "\n")


def show(workload: str, rows: list[dict[str, object]]) -> None:
    """Print the rows of a workload, a line for each program, with its ratio to each other."""
    mine = [row for row in rows if row["workload"] == workload]
    names = list(dict.fromkeys(str(row["variant"]) for row in mine))
    table = Table(title=f"{workload}: {mine[0]['unit'] if mine else ''}; ratios of CPU time, line to column")
    for column in (
        "program",
        "of the clock",
        "of CPU time",
        "MiB",
        *(f"/{place}" for place in range(1, len(names) + 1)),
    ):
        table.add_column(column, justify="left" if column == "program" else "right")
    for place, name in enumerate(names, start=1):
        own = {row["baseline"]: row for row in mine if row["variant"] == name}
        first = next(iter(own.values()))
        ratios = [f"{own[other]['ratio']:.2f}" if other in own else "" for other in names]
        table.add_row(f"{place} {name}", *(str(first[key]) for key in ("value", "per_cpu_second", "peak_mib")), *ratios)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
