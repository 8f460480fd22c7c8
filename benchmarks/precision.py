"""The loss of W1 in each precision, as a table and a plot: `python -m benchmarks.precision [--data FOLDER]`."""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice, product
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import matplotlib.pyplot as plt
import torch
from lightning import seed_everything
from torch import nn

from benchmarks.arena import WORK
from benchmarks.corpus import prepare
from benchmarks.models import make_data, make_model
from benchmarks.ours import CLIP
from lit_seq2seq.data.batching import BucketBatchSampler
from lit_seq2seq.training import CrossEntropy

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
"""As Lightning names them: in single precision; products alone in bf16; weights, gradients and optimizer in it too."""
SMOOTHED = 50
"""Steps over which the curve is averaged."""


def curve(data: Path, precision: str, steps: int, seed: int) -> dict[str, Any]:
    """Train for so many steps; give the losses, the validation loss in single precision and the CPU seconds."""
    seed_everything(seed, verbose=False)
    model, module = make_model("w1"), make_data(data, "w1")
    module.setup("fit")
    model.attach(module.processor)
    network = model.net.bfloat16() if precision == "bf16-true" else model.net
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)
    batches, seconds = module.train_dataloader(), 0.0
    losses: list[float] = []
    sampler = cast(BucketBatchSampler, batches.sampler)
    while len(losses) < steps:
        sampler.set_epoch(len(losses) // len(batches))
        for batch in islice(batches, steps - len(losses)):
            begin = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = CrossEntropy().of(network, batch.source, batch.target).total
            loss = loss / batch.target.total
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            seconds += time.process_time() - begin
            losses.append(loss.item())
    network.float().eval()
    with torch.no_grad():
        held_out = list(module.val_dataloader())
        total = sum(float(network.nll(batch.source, batch.target)) for batch in held_out)
    tokens = sum(int(batch.target.total) for batch in held_out)
    found = {"precision": precision, "seed": seed, "val_loss": total / tokens, "cpu_seconds": seconds}
    return {**found, "losses": losses}


def main() -> None:
    """Run all, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=WORK / "precision.json")
    arguments = parser.parse_args()
    data = prepare(WORK / "data", "translation", arguments.data)
    rows = []
    for seed, precision in product(range(1, arguments.seeds + 1), PRECISIONS):
        rows.append(curve(data, precision, arguments.steps, seed))
        row = rows[-1]
        last = fmean(row["losses"][-SMOOTHED:])
        print(f"| {precision} | {seed} | {last:.3f} | {row['val_loss']:.3f} | {row['cpu_seconds']:.0f} |", flush=True)
        arguments.output.write_text(json.dumps(rows))
    draw(rows, arguments.output.with_suffix(".png"))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the curves, smoothed."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        losses: list[float] = row["losses"]
        smooth = [fmean(losses[max(0, step - SMOOTHED) : step]) for step in range(1, len(losses) + 1)]
        color = f"C{PRECISIONS.index(row['precision'])}"
        axes.plot(
            smooth,
            color=color,
            linewidth=1,
            linestyle=":" if row["seed"] != 1 else "-",
            label=row["precision"] if row["seed"] == 1 else None,
        )
    axes.set(xlabel="step", ylabel=f"training loss (mean of {SMOOTHED} steps)")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
