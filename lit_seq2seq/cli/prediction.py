"""What the commands share that run a model over files: its options, the model ready to run, the file written."""

from __future__ import annotations

import contextlib
import io
import sys
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_seq2seq.files.lines import counted
from lit_seq2seq.files.paths import format_of, is_special, local_path
from lit_seq2seq.search.config import GenerationConfig, SearchOption
from lit_seq2seq.settings.options import add_running, loading_of
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from lit_seq2seq.inference.predictor import Predictor


def add_prediction(parser: ArgumentParser, search: Sequence[SearchOption]) -> None:
    """Add the options that name a model, say how to run it, and set these options of search."""
    add_running(parser)
    parser.add_argument("--max_tokens", type=int, default=8192, help="size of a batch in padded source positions")
    about = "longer inputs are cut; auto: texts to 1,024 symbols"
    parser.add_argument("--max_source_length", type=int | Literal["auto"] | None, default="auto", help=about)
    add_search(parser, search)


def add_search(parser: ArgumentParser, search: Sequence[SearchOption]) -> None:
    """Add options of search, which are absent from what is parsed where they are left out."""
    for one in search:
        parser.add_argument(f"--{one.name}", type=one.kind, default=SUPPRESS, help=one.about)


def searched(own: GenerationConfig, options: Namespace, search: Sequence[SearchOption]) -> GenerationConfig:
    """Return a model's own options of search with those changed that are given."""
    return own.changed({one.name: options[one.name] for one in search if one.name in options})


def prediction_of(options: Namespace, search: Sequence[SearchOption]) -> tuple[Predictor, GenerationConfig, str]:
    """Load the model that the options name; return it ready to run, its options of search, and the output's format.

    Raises:
        UserError: the model cannot be loaded or run so, or the format has no place for the details asked for.
    """
    import torch

    from lit_seq2seq.inference.pipelines import load_model
    from lit_seq2seq.inference.predictor import Predictor

    form = options.format or format_of(options.output)
    if options.get("details") and form == "text":
        raise UserError("details: texts have no place for them: set --format jsonl")
    model = load_model(options.model, **loading_of(options))
    config = searched(model.generation, options, search)
    limits = {name: options[name] for name in ("max_tokens", "max_source_length")}
    return Predictor(model, options.device, getattr(torch, options.dtype), **limits), config, form


def check_readable(name: str, setting: str) -> None:
    """Refuse what is neither a file nor a pipe or the like, before a model is loaded."""
    if not Path(name).exists() or Path(name).is_dir():
        raise UserError(f"there is no file {name}: check --{setting}")


def tell_cut(predictor: Predictor) -> None:
    """Say how many inputs were too long."""
    if predictor.truncated:
        print(
            f"{counted(predictor.truncated, 'input')} cut to {predictor.max_source_length} positions", file=sys.stderr
        )


@contextlib.contextmanager
def written(name: str) -> Iterator[IO[str]]:
    """Open an output; a file, or the target of a link, appears only when it is complete."""
    if name == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    path = local_path(name, "--output")
    if path.is_dir():
        raise UserError(f"cannot write {name}: it is a folder: choose another --output")
    if is_special(path):
        part = path
    else:
        path = path.resolve()
        part = path.with_name(path.name + ".part")
    try:
        handle = part.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}: choose another --output") from error
    with handle:
        yield handle
    if part != path:
        part.replace(path)
