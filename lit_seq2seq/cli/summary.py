"""The last words of a training run: where the model is, what it does, and what to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.features import Feature
from lit_seq2seq.files.lines import counted
from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.inference.pictures import attention_figure
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.inference.roads import writes_early
from lit_seq2seq.plots import plot_curves
from lit_seq2seq.types import Generated

_LONGEST = 300
"""Characters of an input that are typed."""


@rank_zero_only
def write_summary(
    model: Seq2SeqModel,
    data: Seq2SeqDataModule,
    folder: Path,
    scores: Mapping[str, float] | None = None,
    *,
    title: str = "scores",
    commands: Sequence[str] = (),
) -> None:
    """Print outputs and scores, draw the pictures into the run's folder, and say what to type next.

    The scores are those of the test split, or of the validation split; without them no outputs are shown. The commands
    are what can be typed besides.
    """
    console = Console()
    scored = ("test", "validation") if scores is not None else ("validation",)  # what is encoded already
    split = next((name for name in scored if name in data.splits), "train")
    rows, feature = data.first_rows(split, 10), model.processor.source_feature
    sources = [source for source, _ in rows]
    best = [outputs[0] for outputs in Predictor(model.cpu()).stream(sources, return_attention=True)]
    if scores is not None:
        references = [reference for _, reference in rows]
        shown = zip(map(feature.show, sources), (output.text for output in best), references, strict=True)
        console.print(
            _samples(
                f"{'Ten outputs' if len(rows) == 10 else counted(len(rows), 'output')} of the {split} split", [*shown]
            )
        )
    if scores:
        console.print(_score_table(f"{split.capitalize()} {title}", scores))
    console.print(f"model     {folder}", soft_wrap=True, highlight=False, markup=False)
    for picture in _draw(sources, best, model, folder.parent):
        console.print(f"picture   {picture}", soft_wrap=True, highlight=False, markup=False)
    console.print("\nNext:", style="bold")
    logs = f"{typed('tensorboard')} --logdir {shlex.quote(str(folder.parent.parent))}"
    events = [logs] if any(folder.parent.glob("events.*")) else []
    using = generate_command(sources[0], feature, model, folder), *stream_command(sources[0], feature, model, folder)
    for command in (*using, *events, *commands):
        console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)


def typed(command: str, modules: Iterable[str] = ()) -> str:
    """Return how a command of this environment is typed here, which may not be on the path.

    Of the modules that it imports, those of the user's that lie beside a recipe are on no path either.
    """
    own = Path(sys.executable).with_name(command)
    found = shutil.which(command)
    if own.exists() and (found is None or not Path(found).samefile(own)):
        here = os.path.relpath(own)
        command = shlex.quote(str(own) if here.startswith("..") else here)
    if folders := _own_folders(modules):
        more = ["$PYTHONPATH"] if os.environ.get("PYTHONPATH") else []
        command = f"PYTHONPATH={':'.join([*folders, *more])} {command}"
    return command


def _own_folders(modules: Iterable[str]) -> list[str]:
    """Return the folders of modules that are neither installed nor in the working folder."""
    files = [getattr(sys.modules.get(name.split(".")[0]), "__file__", None) for name in modules]
    found = {Path(file.removesuffix("/__init__.py")).parent for file in files if file}
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    own = {folder for folder in found if not any(map(folder.is_relative_to, installed))}
    return sorted(shlex.quote(os.path.relpath(folder)) for folder in own - {Path.cwd(), Path(__file__).parents[2]})


def _samples(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True, min_width=len(title))
    for column in ("source", "output", "reference"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _score_table(title: str, scores: Mapping[str, float]) -> Table:
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(
            name.split("_", 1)[1], f"{value:.3f}" if name.endswith(("loss", "ppl", "bpc")) else f"{value:.2f}"
        )
    return table


def _draw(sources: Sequence[Any], outputs: Sequence[Generated], model: Seq2SeqModel, run: Path) -> list[Path]:
    """Draw attention and training curves, where there are any, into the folder of the run."""
    attention, curves = run / "attention.png", run / "curves.png"
    pictures = [] if attention_figure(sources, outputs, model, attention) is None else [attention]
    if (run / "metrics.csv").is_file():
        plot_curves(run / "metrics.csv", path=curves)
        pictures.append(curves)
    return pictures


def generate_command(first: Any, feature: Feature, model: Seq2SeqModel, folder: Path) -> str:
    """Return the command that makes outputs: for `first` where it fits on a line, otherwise for files."""
    line = feature.typed(first)
    if line is None:
        given = "ls FILES |"
    elif "\n" in line or len(line) > _LONGEST:
        given = "cat FILE |"  # an input a line
    else:
        given = f"echo {shlex.quote(line)} |"
    options = "--num_return_sequences 3" if model.generation.do_sample else "--num_beams 5"
    return f"{given} {_command('generate', model, folder, options)}"


def stream_command(first: Any, feature: Feature, model: Seq2SeqModel, folder: Path) -> list[str]:
    """Return the command that makes an output while its input comes, if the model is made for that."""
    if not writes_early(model):
        return []
    if feature.medium == "audio":
        return [_command("stream", model, folder, "--input FILE --pace true")]
    line = feature.typed(first) if feature.medium == "text" else None
    given = line is not None and "\n" not in line and len(line) <= _LONGEST
    return [f"echo {shlex.quote(str(line))} | {_command('stream', model, folder)}"] if given else []


def _command(name: str, model: Seq2SeqModel, folder: Path, options: str = "") -> str:
    trust = shlex.join(["--trust", *others]) if (others := model.others()) else ""
    words = [typed("lit-seq2seq", model.others()), name, "--model", shlex.quote(str(folder)), options, trust]
    return " ".join(filter(None, words))
