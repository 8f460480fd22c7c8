"""The main job of every recipe script: fit, test, save, and show what came out."""

from __future__ import annotations

import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.cli import guarded
from lit_seq2seq.cli.commands import save_best
from lit_seq2seq.cli.fit import Seq2SeqCLI, spare_log_files
from lit_seq2seq.cli.summary import typed, write_summary
from lit_seq2seq.data import BuiltinDataset, Seq2SeqDataModule
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.training.logs import record_scores
from lit_seq2seq.training.module import LitSeq2Seq


@checked
def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Seq2SeqCLI:
    """Build everything that a YAML recipe describes, without running it.

    Args:
        path: the YAML file.
        overrides: command-line style settings, such as `["--trainer.max_epochs", "3"]`.

    Returns:
        An object with `.model`, `.datamodule` and `.trainer`.
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
    spare_log_files()
    cli = Seq2SeqCLI(arguments, run=False)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    started = time.monotonic()
    trainer.fit(model, datamodule=data, ckpt_path=cli.config.get("ckpt_path"))
    minutes = (time.monotonic() - started) / 60
    folder = save_best(trainer, model)
    scores = evaluate(trainer, model, data)
    if folder is not None:
        save_best(trainer, model, scores)
        if trainer.is_global_zero and scores:
            record_scores(folder.parent, _best(trainer), scores, data.origin[0])
        title = f"scores after {minutes:.1f} minutes of training"
        hints = _with_own_files(default) if isinstance(data.dataset, BuiltinDataset) else cli.next_commands()
        write_summary(model.model, data, folder, scores, title=title, commands=hints)


def evaluate(trainer: Trainer, model: LitSeq2Seq, data: Seq2SeqDataModule) -> dict[str, float]:
    """Score the test split; without one, say so and score the validation split, if there is one."""
    there = ", ".join(data.splits)
    if "test" in data.splits:
        score = trainer.test
    elif "validation" in data.splits:
        rank_zero_info(f"There is no test split, so the validation split is scored; the splits are {there}.")
        score, trainer.loggers = trainer.validate, []  # whose curves have this epoch already
    else:
        rank_zero_info(f"There is no test and no validation split, so nothing is scored; the splits are {there}.")
        return {}
    return {name: float(value) for name, value in score(model, datamodule=data, verbose=False)[0].items()}


def _best(trainer: Trainer) -> str:
    """Return the name of the checkpoint that became the model, if there is one."""
    return Path(getattr(trainer.checkpoint_callback, "best_model_path", "")).name


def _with_own_files(default: Path) -> list[str]:
    own = default.with_name("your_files.yaml")
    script, recipe = (shlex.quote(os.path.relpath(path)) for path in (default.parent.with_suffix(".py"), own))
    line = f"{typed('python')} {script} --config {recipe} --data.dataset YOUR_FOLDER"
    return [line] if own.is_file() else []
