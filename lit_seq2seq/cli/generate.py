"""`lit-seq2seq generate`."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lit_seq2seq.cli.prediction import add_prediction, check_readable, prediction_of, tell_cut, written
from lit_seq2seq.files.lines import json_line, one_line, read_lines
from lit_seq2seq.search.config import GenerationConfig, search_options

if TYPE_CHECKING:
    from lit_seq2seq.types import Generated


def generate(parser: ArgumentParser, arguments: list[str]) -> None:
    """Read inputs line by line and write an output for each, in order: `lit-seq2seq generate`.

    Options of search that are left out are those that the model comes with.
    """
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
    found = search_options()
    add_prediction(parser, found)
    if any(one.startswith("--reranker") for one in arguments):  # which it may name plainly, with a metric
        for room in ("lit_seq2seq.metrics", "lit_seq2seq.reranking"):
            importlib.import_module(room)
    options = parser.instantiate_classes(parser.parse_args(arguments))
    predictor, config, form = prediction_of(options, found)
    with _reader(options.input) as lines, written(options.output) as out:
        bar = tqdm(lines, desc="generate", unit="lines", file=sys.stderr, disable=None)
        for outputs in predictor.stream(bar, config):
            out.write(_render(outputs, form, options.scores, config))
            out.flush()
    tell_cut(predictor)


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
    if name != "-":
        check_readable(name, "input")
    with contextlib.ExitStack() as stack:
        raw: IO[bytes] = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        yield read_lines(raw, "standard input" if name == "-" else name)
