"""Quality against lag of wait-k models, on a split: `python -m benchmarks.lag --model DIR [DIR ...] --data FOLDER`.

One model decodes with each k, and whole sentences; several, such as one for each seed, give means and deviations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.arena import WORK
from lit_seq2seq.cli import guarded
from lit_seq2seq.data import open_dataset
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import BLEU
from lit_seq2seq.metrics.lag import Lag
from lit_seq2seq.search import WaitK
from lit_seq2seq.types import UserError

Row = dict[str, Any]


def measure(predictor: Predictor, pairs: Sequence[tuple[str, str]], k: int | None, **options: Any) -> Row:
    """Return BLEU, lowercased, and the lag in tokens, EOS left out, as `lit-seq2seq test` has them.

    Args:
        predictor: the model.
        pairs: sources and references.
        k: of the policy; `None`: whole sentences.
        **options: other fields of `GenerationConfig`.
    """
    config = predictor.model.generation.changed({**options, "policy": None if k is None else WaitK(k)})
    sources, references = zip(*pairs, strict=True)
    outputs = [best for best, *_ in predictor.stream(sources, config)]
    bleu, lag = BLEU(lowercase=True), Lag()
    processor, specials = predictor.model.processor, predictor.model.processor.target.specials
    form = processor.target.form
    bleu.update([form(one.text) for one in outputs], [[form(one)] for one in references])
    lengths = [len(ids) - len(processor.source_feature.marks[:1]) for ids in processor.source_feature.encode(sources)]
    wanted = [sum(index != specials.eos for index in ids) for ids in processor.target.encode(references)]
    eos = processor.target.symbols[specials.eos]
    counts = [sum(token != eos for token in one.tokens) for one in outputs]
    known = zip(outputs, counts, lengths, strict=True)
    delays = [[min(one, length) for one in found.delays[:count] or [length] * count] for found, count, length in known]
    lag.update(delays, lengths, wanted)
    return {"k": k, "bleu": float(bleu.compute()), **{name: float(value) for name, value in lag.compute().items()}}


def read(place: str, split: str, columns: tuple[str, str]) -> list[tuple[str, str]]:
    """Read the pairs of a split; a file that is none of several splits is the one that is asked for."""
    splits = open_dataset(place, columns=columns, train_split=split)
    if split not in splits:
        raise UserError(f"there is no split {split!r}: choose with --split among {', '.join(splits)}")
    there = splits[split].column_names or []
    for name, option in zip(columns, ("--source", "--target"), strict=True):
        if name not in there:
            raise UserError(f"there is no column {name!r}: choose with {option} among {', '.join(there)}")
    source, target = columns
    return [(row[source], row[target]) for row in splits[split]]


def curve(rows: Iterable[Row]) -> list[Row]:
    """Return mean and deviation over models for each k, the whole sentence last."""
    found = list(rows)
    points = []
    for k in sorted({row["k"] for row in found}, key=lambda k: (k is None, k)):
        own = [row for row in found if row["k"] == k]
        point: Row = {"k": k, "models": len(own)}
        for name in ("bleu", "al"):
            values = [row[name] for row in own]
            point |= {name: mean(values), f"{name}_deviation": stdev(values) if len(values) > 1 else 0.0}
        points.append(point)
    return points


def draw(points: Sequence[Row], path: Path) -> None:
    """Draw BLEU over AL, a point for each k and a line for whole sentences; bars are deviations over models."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    early = [point for point in points if point["k"] is not None]
    columns = {name: [point[name] for point in early] for name in ("al", "bleu", "al_deviation", "bleu_deviation")}
    bars = {"xerr": columns["al_deviation"], "yerr": columns["bleu_deviation"]} if early[0]["models"] > 1 else {}
    axes.errorbar(
        columns["al"], columns["bleu"], **bars, marker="o", markersize=5, capsize=3, color="tab:blue", label="wait-k"
    )
    for point in early:
        place = {"xytext": (6, -11), "textcoords": "offset points", "fontsize": 9}
        axes.annotate(f"k={point['k']}", (point["al"], point["bleu"]), **place)
    for point in points:
        if point["k"] is None:
            axes.axhline(point["bleu"], color="tab:orange", linestyle="--", label="whole sentence")
            low, high = (point["bleu"] + sign * point["bleu_deviation"] for sign in (-1, 1))
            axes.axhspan(low, high, color="tab:orange", alpha=0.15, linewidth=0)
    axes.set(xlabel="average lagging (source tokens)", ylabel="BLEU")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="folders of models, one for each seed")
    parser.add_argument("--data", required=True, help="folder or file of the data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--source", default="de", help="column")
    parser.add_argument("--target", default="en", help="column")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3, 5, 7, 9])
    parser.add_argument("--beams", type=int, help="those of the model unless set")
    parser.add_argument("--rows", type=int, help="only so many")
    parser.add_argument("--output", type=Path, default=WORK / "lag.json", help="the picture lies beside it")
    parser.add_argument("--picture", type=Path, help="PNG or SVG")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pairs = read(given.data, given.split, (given.source, given.target))[: given.rows]
    options = {} if given.beams is None else {"num_beams": given.beams}
    rows = []
    for place in given.model:
        predictor = Predictor(load_model(place))
        for k in (*given.k, None):
            rows.append({"model": str(place), **measure(predictor, pairs, k, **options)})
            print(rows[-1], flush=True)
    about = {"split": given.split, "rows": len(pairs), **options}
    points = curve(rows)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({**about, "points": points, "models": rows}, indent=1) + "\n")
    draw(points, given.picture or given.output.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(guarded(main))
