"""`lit-seq2seq generate`."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lit_seq2seq.files.lines import counted, json_line, one_line, read_lines
from lit_seq2seq.files.paths import format_of, local_path
from lit_seq2seq.search.config import GenerationConfig, search_options
from lit_seq2seq.settings import Dtype
from lit_seq2seq.settings.options import add_loading, loading_of
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    import torch

    from lit_seq2seq.types import Generated


def generate(parser: ArgumentParser, arguments: list[str]) -> None:
    """Read inputs line by line and write an output for each, in order: `lit-seq2seq generate`.

    Options of search that are left out are those that the model comes with.
    """
    parser.add_argument(
        "--model", type=str, nargs="+", required=True, help="model folder or hub id; several make an ensemble"
    )
    about = "text file, one text (or path of a recording, image, ...) a line; - for standard input"
    parser.add_argument("--input", type=str, default="-", help=about)
    parser.add_argument("--output", type=str, default="-", help="output file; - for standard output")
    about = (
        "text: as many outputs for each input, also for an empty one, and an empty line after them if they are "
        "several; jsonl: a line an input, with scores and what --details asks for; if left out, the ending of "
        "--output tells"
    )
    parser.add_argument("--format", type=Literal["text", "jsonl"] | None, default=None, help=about)
    parser.add_argument(
        "--scores", type=bool, default=False, help="text format: put score and a tab before each output"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", type=Dtype, default="float32", help="what to compute in; int8: on CPUs")
    parser.add_argument("--max_tokens", type=int, default=8192, help="size of a batch in padded source positions")
    about = "longer inputs are cut; auto: texts to 1,024 symbols"
    parser.add_argument("--max_source_length", type=int | Literal["auto"] | None, default="auto", help=about)
    add_loading(parser)
    found = search_options()
    for one in found:
        parser.add_argument(f"--{one.name}", type=one.kind | None, default=None, help=one.about)
    options = parser.instantiate_classes(parser.parse_args(arguments))

    import torch

    from lit_seq2seq.inference.pipelines import load_model
    from lit_seq2seq.inference.predictor import Predictor

    model = load_model(options.model, **loading_of(options))
    config = model.generation.changed({one.name: options[one.name] for one in found if options[one.name] is not None})
    dtype: torch.dtype = getattr(torch, options.dtype)
    limits = {name: options[name] for name in ("max_tokens", "max_source_length")}
    predictor = Predictor(model, options.device, dtype, **limits)
    form = options.format or format_of(options.output)
    if options.details and form == "text":
        raise UserError("details: texts have no place for them: set --format jsonl")
    with _reader(options.input) as lines, written(options.output) as out:
        bar = tqdm(lines, desc="generate", unit="lines", file=sys.stderr, disable=None)
        for outputs in predictor.stream(bar, config):
            out.write(_render(outputs, form, options.scores, config))
            out.flush()
    if predictor.truncated:
        print(
            f"{counted(predictor.truncated, 'input')} cut to {predictor.max_source_length} positions", file=sys.stderr
        )


def _render(outputs: list[Generated], form: str, scores: bool, config: GenerationConfig) -> str:
    if form == "jsonl":
        return json_line([output.told(("score", *config.details)) for output in outputs]) + "\n"
    lines = [one_line(output.text) for output in outputs]
    if scores:
        lines = [f"{output.score:.4f}\t{line}" for output, line in zip(outputs, lines, strict=True)]
    return "".join(line + "\n" for line in lines) + ("\n" if len(lines) > 1 else "")


@contextlib.contextmanager
def _reader(name: str) -> Iterator[Iterator[str]]:
    """Open an input and yield its lines, refusing what is not UTF-8."""
    if name != "-" and not Path(name).is_file():
        raise UserError(f"there is no input file {name}: check --input")
    with contextlib.ExitStack() as stack:
        raw: IO[bytes] = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        yield read_lines(raw, "standard input" if name == "-" else name)


@contextlib.contextmanager
def written(name: str) -> Iterator[IO[str]]:
    """Open an output; a file appears under its name only when it is complete."""
    if name == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    path = local_path(name, "--output")
    part = path.with_name(path.name + ".part")
    if path.is_dir():
        raise UserError(f"cannot write {name}: it is a folder: choose another --output")
    try:
        handle = part.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}: choose another --output") from error
    with handle:
        yield handle
    part.replace(path)
