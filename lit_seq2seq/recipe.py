"""The main job of every recipe script: fit, test, save, and show what came out."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_seq2seq.cli import Seq2SeqCLI, guarded
from lit_seq2seq.commands import save_best
from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.features import Feature, MultiSource, Records
from lit_seq2seq.module import LitSeq2Seq
from lit_seq2seq.pictures import attention_figure
from lit_seq2seq.plots import plot_curves
from lit_seq2seq.predictor import Output, Predictor

_LONGEST = 300
"""Characters of an input that are typed."""


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Seq2SeqCLI:
    """Build everything that a YAML recipe describes, without running it.

    Args:
        path: the YAML file.
        overrides: command-line style settings, such as `["--trainer.max_epochs", "3"]`.

    Returns:
        An object with `.model`, `.datamodule` and `.trainer`.

    Example:
        >>> recipe = load_recipe("recipes/translation/builtin.yaml", ["--trainer.max_epochs", "1"])
        >>> recipe.trainer.max_epochs
        1
    """
    return Seq2SeqCLI(["--config", str(path), *(overrides or [])], run=False)


def main(default: Path, argv: list[str] | None = None) -> int:
    """Run a recipe script with `default` as its YAML, unless `--config` names another; return the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not any(argument.split("=")[0] == "--config" for argument in arguments) and "--help" not in arguments:
        arguments = ["--config", str(default), *arguments]
    return guarded(partial(run, arguments, default))


def run(arguments: list[str], default: Path) -> None:
    """Fit, score the test split or, without one, the validation split, save and show."""
    cli = Seq2SeqCLI(arguments, run=False)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    started = time.monotonic()
    trainer.fit(model, datamodule=data, ckpt_path=cli.config.get("ckpt_path"))
    minutes = (time.monotonic() - started) / 60
    folder = save_best(trainer, model)
    scores = evaluate(trainer, model, data)
    if folder is not None:
        save_best(trainer, model, scores)
        show(trainer, model, data, scores, minutes, folder, default)


def evaluate(trainer: Trainer, model: LitSeq2Seq, data: Seq2SeqDataModule) -> dict[str, float]:
    """Score the test split; without one, say so and score the validation split, if there is one."""
    there = ", ".join(data.splits)
    if "test" in data.splits:
        score = trainer.test
    elif "validation" in data.splits:
        rank_zero_info(f"There is no test split, so the validation split is scored; the splits are {there}.")
        score = trainer.validate
    else:
        rank_zero_info(f"There is no test and no validation split, so nothing is scored; the splits are {there}.")
        return {}
    return {name: float(value) for name, value in score(model, datamodule=data, verbose=False)[0].items()}


@rank_zero_only
def show(
    trainer: Trainer,
    model: LitSeq2Seq,
    data: Seq2SeqDataModule,
    scores: dict[str, float],
    minutes: float,
    folder: Path,
    default: Path,
) -> None:
    """Print scores and samples, draw the pictures, and say what to type next."""
    console = Console()
    split = next((name for name in ("test", "validation") if name in data.splits), "train")
    rows, feature = data.first_rows(split, 10), model.processor.source_feature
    sources = [source for source, _ in rows]
    best = [outputs[0] for outputs in Predictor(model.cpu()).stream(sources, return_attention=True)]
    samples = Table(title=f"{'Ten' if len(rows) == 10 else len(rows)} outputs of the {split} split", show_lines=True)
    for column in ("source", "output", "reference"):
        samples.add_column(column, overflow="fold")
    for (source, reference), output in zip(rows, best, strict=True):
        samples.add_row(*map(escape, (feature.show(source), output.text, reference)))
    console.print(samples)
    if scores:
        console.print(_score_table(f"{split.capitalize()} scores after {minutes:.1f} minutes of training", scores))
    console.print(f"model     {folder}")
    for picture in _draw(sources, best, feature, folder.parent):
        console.print(f"picture   {picture}")
    console.print("\nNext:", style="bold")
    commands = [generate_command(sources[0], feature, model, folder), f"tensorboard --logdir {folder.parent.parent}"]
    own = default.with_name("your_files.yaml")
    if own.is_file():
        task = default.parent.name
        commands += [f"python recipes/{task}.py --config recipes/{task}/{own.name} --data.dataset YOUR_FOLDER"]
    for command in commands:
        console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)


def _score_table(title: str, scores: Mapping[str, float]) -> Table:
    table = Table(title=title)
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name.split("_", 1)[1], f"{value:.3f}" if name.endswith(("loss", "ppl")) else f"{value:.2f}")
    return table


def _draw(sources: Sequence[Any], outputs: Sequence[Output], feature: Feature, run: Path) -> list[Path]:
    """Draw attention and training curves, where there are any, into the folder of the run."""
    attention, curves = run / "attention.png", run / "curves.png"
    pictures = [] if attention_figure(sources, outputs, feature, attention) is None else [attention]
    if (run / "metrics.csv").is_file():
        plot_curves(run / "metrics.csv", path=curves)
        pictures.append(curves)
    return pictures


def generate_command(first: Any, feature: Feature, model: LitSeq2Seq, folder: Path) -> str:
    """Return the command that makes outputs: for `first` where it fits on a line, otherwise for files."""
    line = first
    if isinstance(feature, Records):
        line = feature.show(first)
    elif isinstance(first, Mapping) and isinstance(feature, MultiSource):
        typed = {name: value if isinstance(value, str | list) else "FILE" for name, value in first.items()}
        line = json.dumps(typed, ensure_ascii=False)
    if not isinstance(line, str):
        given = "ls FILES |"
    elif "\n" in line or len(line) > _LONGEST:
        given = "cat FILE |"  # an input a line
    else:
        given = f"echo {shlex.quote(line)} |"
    options = "--num_return_sequences 3" if model.generation.do_sample else "--num_beams 5"
    return f"{given} lit-seq2seq generate --model {folder} {options}"
