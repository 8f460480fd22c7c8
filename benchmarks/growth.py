"""How the training rate changes with sizes, and what loading costs: `python -m benchmarks.growth`; tables and plots.

One thing at a time is changed from a small model; batches are generated, without padding, so that only the network is
measured. Rates are target symbols per second of CPU time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import torch
from torch import nn

from benchmarks.arena import WORK
from benchmarks.corpus import SPECIALS, prepare
from lit_seq2seq import Seq2SeqDataModule
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.nn import EncoderDecoder, GeneralAttention, ParallelDecoder, TextEncoder
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.training import CrossEntropy
from lit_seq2seq.types import Padded

BASE = {"hidden_size": 256, "num_layers": 1, "batch_size": 32, "source_length": 16, "vocabulary": 4000}
TARGET_LENGTH = 16
VALUES = {
    "hidden_size": [64, 128, 256, 512, 1024],
    "num_layers": [1, 2, 3, 4],
    "batch_size": [1, 4, 16, 64, 256],
    "source_length": [4, 16, 64, 256, 1024],
    "vocabulary": [1000, 4000, 16_000, 64_000],
}


def rate(sizes: dict[str, int], steps: int) -> float:
    """Target symbols per CPU second of training steps of a network of these sizes, in bf16 where the CPU has it."""
    shared = {"embedding_dim": 256, "hidden_size": sizes["hidden_size"], "num_layers": sizes["num_layers"]}
    vocabulary, batch = sizes["vocabulary"], sizes["batch_size"]
    decoder = partial(ParallelDecoder, **shared, attention=GeneralAttention)
    network = EncoderDecoder(vocabulary, vocabulary, partial(TextEncoder, **shared), decoder)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    source, target = (
        Padded(torch.randint(len(SPECIALS), vocabulary, (batch, length)), torch.full((batch,), length))
        for length in (sizes["source_length"], TARGET_LENGTH)
    )
    taken = []
    for _ in range(steps + 1):
        begin = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=computes_in(torch.bfloat16, "cpu")):
            loss = CrossEntropy().of(network, source, target).total
        optimizer.zero_grad()
        (loss / target.total).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        taken.append(time.process_time() - begin)
    return batch * TARGET_LENGTH / median(taken[1:])


def repeated(rows: int) -> Path:
    """Write the generated training data over and over, until there are so many rows."""
    base = prepare(WORK / "data", "translation", None)
    folder = WORK / "data" / f"growth_{rows}"
    folder.mkdir(exist_ok=True)
    for side in ("src", "tgt"):
        text = (base / f"train.{side}").read_text()
        lines = text.count("\n")
        with (folder / f"train.{side}").open("w") as file:
            for _ in range(rows // lines):
                file.write(text)
            file.write("".join(text.splitlines(keepends=True)[: rows % lines]))
    return folder


def load(rows: int, batches: int) -> dict[str, float]:
    """Stream so many rows from files: seconds to the first batch, symbols per CPU second after that, memory."""
    columns = {"source_column": "src", "target_column": "tgt"}
    tokenizer = Tokenizer("word", vocab_size=8000, pretokenized=True, normalization="none")
    learn = {"source_tokenizer": tokenizer, "tokenizer_rows": 20_000}
    begin = time.process_time()
    data = Seq2SeqDataModule(
        str(WORK / "data" / f"growth_{rows}"),
        **columns,
        **learn,
        batch_size=64,
        streaming=True,
        validation_size=0,
        test_size=0,
    )
    data.prepare_data()
    data.setup("fit")
    loader = iter(data.train_dataloader())
    next(loader)
    started, symbols, places = time.process_time() - begin, 0, 0
    cpu = time.process_time()
    for batch in islice(loader, batches):
        symbols += int(batch.target.total)
        places += batch.target.values.numel()
    cpu = time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"start_s": started, "per_cpu_second": symbols / cpu, "peak_mib": peak, "padding": 1 - symbols / places}


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[30_000, 300_000, 3_000_000])
    parser.add_argument("--load", type=int, help="only stream so many rows, and print what it costs")
    parser.add_argument("--output", type=Path, default=WORK / "growth.json")
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load(arguments.load, batches=400)))
        return
    found: dict[str, dict[str, float]] = {}
    for name, values in VALUES.items():
        found[name] = {str(value): rate({**BASE, name: value}, arguments.steps) for value in values}
        print(name, {value: round(per_second) for value, per_second in found[name].items()}, flush=True)
    draw(found, arguments.output.with_suffix(".png"))
    streams = {}
    for rows in arguments.rows:  # each in a process of its own, for its peak memory
        repeated(rows)
        command = [sys.executable, "-m", "benchmarks.growth", "--load", str(rows)]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        streams[str(rows)] = json.loads(made.stdout.splitlines()[-1])
        print(rows, {name: round(value, 3) for name, value in streams[str(rows)].items()}, flush=True)
    arguments.output.write_text(json.dumps({"rates": found, "streams": streams}, indent=1) + "\n")


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """Draw a plot for each size."""
    figure, axes = plt.subplots(1, len(found), figsize=(2 * len(found), 2.5), sharey=True, layout="constrained")
    for axis, (name, rates) in zip(axes, found.items(), strict=True):
        axis.loglog([int(value) for value in rates], list(rates.values()), marker="o", markersize=4)
        axis.set_xticks([int(value) for value in rates], [_short(int(value)) for value in rates])
        axis.minorticks_off()
        axis.set(xlabel=name.replace("_", " "))
        axis.grid(alpha=0.3)
    axes[0].set_yticks([1000, 2000, 5000, 10_000, 20_000], ["1k", "2k", "5k", "10k", "20k"])
    axes[0].set(ylabel="target symbols\nper CPU second")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _short(number: int) -> str:
    return f"{number // 1000}k" if number % 1000 == 0 else str(number)


if __name__ == "__main__":
    main()
