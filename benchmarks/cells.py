"""Compare cells: `python -m benchmarks.cells quality|speed|lengths|pages [--data FOLDER]`; what docs/cells.md shows.

One encoder-decoder with each cell, as wide as makes the number of parameters that of the LSTM. `quality` trains and
scores it by the recipes' own command, `speed` measures training and decoding in turns, `lengths` a training step on
longer and longer sources. Each puts what it has found into `docs/cells.json`, from which `pages` makes table and plot.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn

import lit_seq2seq.nn
from benchmarks.arena import ROOT, WORK, Contender, alternate
from benchmarks.corpus import SPECIALS
from benchmarks.windows import Windows
from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import EncoderDecoder, GeneralAttention, ParallelDecoder, TextEncoder
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.training import CrossEntropy
from lit_seq2seq.types import Padded

FOUND = ROOT / "docs" / "cells.json"
CELLS = {
    "LSTM": "lstm",
    "GRU": "gru",
    "Elman (tanh)": "rnn_tanh",
    "sLSTM": "lit_seq2seq.nn.SLSTM",
    "SRU": "lit_seq2seq.nn.SRU",
    "minGRU": "lit_seq2seq.nn.MinGRU",
    "minLSTM": "lit_seq2seq.nn.MinLSTM",
    "RG-LRU": "lit_seq2seq.nn.RGLRU",
}
TASKS = {
    "translation": ("multi30k", ("bleu",)),
    "g2p": ("sigmorphon2020_g2p/dut", ("sequence_error_rate", "per")),
}
WORKS = {"training": 15, "greedy": 1, "beam": 1}  # and steps of a window
LENGTHS = (64, 256, 1024, 4096, 16_384)
PARAMETERS = ("encoder", "decoder")


def settings(task: str, data: Path) -> list[str]:
    """Return the recipe of a task and what is changed in it: smaller or shorter, as there are many runs."""
    folder = str(data / TASKS[task][0])
    if task == "g2p":
        recipe = str(ROOT / "recipes/transduction/g2p.yaml")
        return ["--config", recipe, f"--data.dataset={folder}", "--trainer.max_epochs=16"]
    changes = {"data.columns.source": "de", "data.columns.target": "en", "trainer.max_epochs": 6}
    changes |= {f"model.{part}.init_args.embedding_dim": 128 for part in PARAMETERS}
    changes |= {f"model.{part}.init_args.hidden_size": 256 for part in PARAMETERS}
    base = ["--config", str(ROOT / "recipes/translation/multi30k_quick.yaml"), f"--data.dataset={folder}"]
    return base + [f"--{name}={value}" for name, value in changes.items()]


def with_cell(cell: str, hidden_size: int) -> list[str]:
    """Return the settings of a cell and its size."""
    values = {"cell": cell, "hidden_size": hidden_size}
    return [f"--model.{part}.init_args.{name}={value}" for part in PARAMETERS for name, value in values.items()]


def widths(task: str, data: Path) -> tuple[dict[str, int], int]:
    """Find for each cell the width at which the network has as many parameters as with LSTMs; and how many."""
    given = settings(task, data)
    recipe = load_recipe(given[1], given[2:])
    recipe.datamodule.prepare_data()
    recipe.datamodule.setup("fit")
    sizes = recipe.datamodule.processor.source_feature.size, recipe.datamodule.processor.target.size
    made = recipe.model.model.make_network.keywords

    def network_of(cell: str, hidden_size: int) -> EncoderDecoder:
        kind = cell.rpartition(".")[2]
        changed = {"cell": getattr(lit_seq2seq.nn, kind, kind), "hidden_size": hidden_size}
        return EncoderDecoder(*sizes, **{**made, **{part: partial(made[part], **changed) for part in PARAMETERS}})

    return equal(network_of, 256)


def equal(network_of: Callable[[str, int], EncoderDecoder], width: int) -> tuple[dict[str, int], int]:
    """Find for each cell the greatest even width that gives no more parameters than LSTMs of `width`; and how many."""

    def count(cell: str, hidden_size: int) -> int:
        return sum(parameter.numel() for parameter in network_of(cell, hidden_size).parameters())

    wanted, found = count("lstm", width), {}
    for name, cell in CELLS.items():
        low, high = 16, 2048
        while high - low > 2:
            middle = (low + high) // 4 * 2
            low, high = (middle, high) if count(cell, middle) <= wanted else (low, middle)
        found[name] = low
    return found, wanted


def quality(arguments: argparse.Namespace) -> None:
    """Train with each cell by the recipe's command, score the test split, and keep scores, time and memory."""
    for task in arguments.tasks or TASKS:
        folder, scores = TASKS[task]
        sizes, parameters = widths(task, arguments.data)
        for seed in arguments.seeds:
            for name in arguments.only or CELLS:
                run = WORK / "cells" / task / name.replace(" ", "_") / str(seed)
                kept = run / "result.json"
                if not kept.is_file():
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(train(task, name, sizes[name], seed, run, arguments.data)) + "\n")
                result = {"parameters": parameters, "data": folder, **json.loads(kept.read_text())}
                print({key: value for key, value in result.items() if key.removeprefix("test_") in (*scores, "cell")})
                keep("quality", result, ("task", "cell", "seed"))


def train(task: str, name: str, hidden_size: int, seed: int, run: Path, data: Path) -> dict[str, Any]:
    """Run the recipe once."""
    script = ROOT / "recipes" / ("transduction.py" if task == "g2p" else "translation.py")
    command = [sys.executable, str(script), *settings(task, data), *with_cell(CELLS[name], hidden_size)]
    command += [f"--seed_everything={seed}", f"--trainer.default_root_dir={run}", "--ckpt_path=last"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = os.times()
    with (run / "log.txt").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=True, env=environment)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    config = json.loads(next(run.glob("*/model/config.json")).read_text())
    shown = {f"test_{score}": round(config["scores"][f"test_{score}"], 3) for score in TASKS[task][1]}
    about = {"task": task, "cell": name, "hidden_size": hidden_size, "seed": seed}
    return {**about, **shown, "cpu_minutes": round(spent / 60, 1), "date": f"{datetime.now(UTC):%Y-%m-%d}"}


def speed(arguments: argparse.Namespace) -> None:
    """Let programs train and decode in turns, one for each cell, and keep rates per second of CPU time and memory."""
    WORK.mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks or TASKS:
        sizes, _ = widths(task, arguments.data)
        for work, steps in WORKS.items():
            group = []
            for name in arguments.only or CELLS:
                command = [sys.executable, "-m", "benchmarks.cells", "program", "--data", str(arguments.data)]
                command += ["--tasks", task, "--only", name, "--work", work, "--steps", str(steps)]
                group.append(Contender(name, [*command, "--width", str(sizes[name])], threads=1))
            for one in alternate(group, windows=3, warmup=1):
                row = {"task": task, "cell": one.name, "work": work, "mib": round(one.peak)}
                keep("speed", {**row, "per_cpu_second": round(one.rate("cpu"), 1)}, ("task", "cell", "work"))


def program(arguments: argparse.Namespace) -> None:
    """Train, or decode the test split with the first trained model, in windows; `speed` starts it."""
    (task,), (name,) = arguments.tasks, arguments.only
    windows = Windows(arguments.steps)
    given = [*settings(task, arguments.data), *with_cell(CELLS[name], arguments.width)]
    if arguments.work == "training":
        recipe = load_recipe(given[1], given[2:])
        recipe.datamodule.prepare_data()
        recipe.datamodule.setup("fit")
        train_in_windows(recipe.model, recipe.datamodule, windows)
    with gzip.open(arguments.data / TASKS[task][0] / "test.jsonl.gz", "rt") as lines:
        sources = [json.loads(line)["de" if task == "translation" else "orthography"] for line in lines][:300]
    folder = next((WORK / "cells" / task / name.replace(" ", "_") / "1").glob("*/model"))
    loaded = load_model(folder)
    config = loaded.generation.changed({"num_beams": 1 if arguments.work == "greedy" else 5})
    predictor = Predictor(loaded)
    windows.start()
    while True:
        windows.step(len(list(predictor.stream(sources, config))))


def train_in_windows(model: LitSeq2Seq, data: Seq2SeqDataModule, windows: Windows) -> None:
    """Train in a bare loop, epoch after epoch."""
    model.attach(data.processor)
    network = model.model.network
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    batches = data.train_dataloader()
    windows.start()
    for epoch in count():
        batches.sampler.set_epoch(epoch)
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=computes_in(torch.bfloat16, "cpu")):
                loss = CrossEntropy().of(network, batch.source, batch.target).total
            optimizer.zero_grad()
            (loss / batch.target.total).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            windows.step(int(batch.target.total))


def lengths(arguments: argparse.Namespace) -> None:
    """Time a training step on sources of growing length, in 32 bits; keep the CPU seconds."""
    torch.set_num_threads(1)
    vocabulary, batch, target_length = 1000, 4, 16

    def network_of(cell: str, hidden_size: int) -> EncoderDecoder:
        kind = cell.rpartition(".")[2]
        shared = {"embedding_dim": 256, "hidden_size": hidden_size, "cell": getattr(lit_seq2seq.nn, kind, kind)}
        decoder = partial(ParallelDecoder, **shared, attention=GeneralAttention)
        return EncoderDecoder(vocabulary, vocabulary, partial(TextEncoder, **shared), decoder)

    sizes, _ = equal(network_of, 512)
    for length in LENGTHS:
        source, target = (
            Padded(torch.randint(len(SPECIALS), vocabulary, (batch, size)), torch.full((batch,), size))
            for size in (length, target_length)
        )
        for name in arguments.only or CELLS:
            network, taken = network_of(CELLS[name], sizes[name]), []
            for _ in range(4 if length < 4096 else 2):
                begin = time.process_time()
                loss = CrossEntropy().of(network, source, target).total
                loss.backward()
                taken.append(time.process_time() - begin)
            row = {"cell": name, "length": length, "cpu_seconds": round(min(taken), 4)}
            print(row, flush=True)
            keep("lengths", row, ("cell", "length"))


def keep(kind: str, row: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Put a row into `docs/cells.json`, in place of the one with the same keys."""
    found = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    rows = [old for old in found.get(kind, []) if any(old[key] != row[key] for key in keys)]
    found[kind] = [*rows, row]
    lines = (
        f'"{key}": [\n' + ",\n".join(f"  {json.dumps(one)}" for one in rows) + "\n]" for key, rows in found.items()
    )
    FOUND.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def pages(arguments: argparse.Namespace) -> None:
    """Rewrite the tables of `docs/cells.md`, and draw the plot."""
    found = json.loads(FOUND.read_text())
    page = ROOT / "docs" / "cells.md"
    text = page.read_text()
    for name, table in (("quality", quality_table(found)), ("lengths", lengths_table(found))):
        text = re.sub(
            rf"(<!-- cells: {name} -->\n).*?(<!-- cells: end -->)", rf"\g<1>{table}\n\2", text, flags=re.DOTALL
        )
    page.write_text(text)
    draw(found["lengths"])


def draw(found: list[dict[str, Any]]) -> None:
    """Draw the time of a training step by source length."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in CELLS:
        rows = [row for row in found if row["cell"] == name]
        axis.loglog([row["length"] for row in rows], [row["cpu_seconds"] for row in rows], marker="o", label=name)
    axis.set(xlabel="source length", ylabel="seconds of a training step")
    axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(ROOT / "docs" / "pictures" / "cells.png", dpi=90)


def quality_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table with a row for each cell and task."""
    head = [
        "task",
        "cell",
        "width",
        "score, each seed",
        "training, tokens",
        "greedy, sentences",
        "beam 5, sentences",
        "MiB",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task, (_, scores) in TASKS.items():
        for name in CELLS:
            runs = [row for row in found["quality"] if (row["task"], row["cell"]) == (task, name)]
            speeds = {row["work"]: row for row in found["speed"] if (row["task"], row["cell"]) == (task, name)}
            shown = " / ".join(f"{row[f'test_{scores[0]}']:.1f}" for row in sorted(runs, key=lambda row: row["seed"]))
            rates = [f"{speeds[work]['per_cpu_second']:,.0f}" for work in WORKS]
            cells = [task, name, str(runs[0]["hidden_size"]), shown, *rates, str(speeds["training"]["mib"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def lengths_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table of the seconds of a training step by source length."""
    lines = [f"| cell | {' | '.join(f'{length:,}' for length in LENGTHS)} |", "|---|" + "---|" * len(LENGTHS)]
    for name in CELLS:
        seconds = {row["length"]: row["cpu_seconds"] for row in found["lengths"] if row["cell"] == name}
        lines.append(f"| {name} | {' | '.join(f'{seconds[length]:.3g}' for length in LENGTHS)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed", "lengths", "pages", "program"])
    parser.add_argument("--data", type=Path, help="folder with multi30k and sigmorphon2020_g2p")
    parser.add_argument("--only", nargs="+", default=[], choices=list(CELLS), metavar="CELL")
    parser.add_argument("--tasks", nargs="+", default=[], choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--work", choices=list(WORKS), help="of a program")
    parser.add_argument("--steps", type=int, help="of a window of a program")
    parser.add_argument("--width", type=int, help="of the network of a program")
    arguments = parser.parse_args()
    what = {"quality": quality, "speed": speed, "lengths": lengths, "pages": pages, "program": program}
    what[arguments.what](arguments)


if __name__ == "__main__":
    main()
