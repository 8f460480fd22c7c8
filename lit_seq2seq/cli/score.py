"""`lit-seq2seq score`."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from lit_seq2seq.cli.prediction import add_prediction, check_readable, prediction_of, tell_cut, written
from lit_seq2seq.files.lines import counted, json_line, one_line, read_lines
from lit_seq2seq.files.paths import format_of
from lit_seq2seq.files.untrusted import is_number
from lit_seq2seq.search.config import GenerationConfig, search_options
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from lit_seq2seq.types import Generated

OPTIONS = ("length_normalization", "length_penalty", "coverage_penalty", "details")
"""Options of search by which targets are scored."""


class Target(NamedTuple):
    """A text to score, and the score that it may have already."""

    text: str
    score: float | None = None


class Row(NamedTuple):
    """A source with the texts to score for it."""

    source: Any
    targets: list[Target]


def score(parser: ArgumentParser, arguments: list[str]) -> None:
    """Score given texts as if the model had written them, and order lists of them: `lit-seq2seq score`.

    The pairs are in one table (--input), or line by line in two files (--sources, --targets). The last words, on
    standard error, are the log-probability and the perplexity of all.
    """
    about = "csv, tsv or jsonl with sources and targets; in a jsonl a target may be a list of texts, with scores or not"
    parser.add_argument("--input", type=str | None, default=None, help=about)
    about = "its column of sources; `source` if left out, which a table for a language model need not have"
    parser.add_argument("--source_column", type=str | None, default=None, help=about)
    parser.add_argument("--target_column", type=str, default="target", help="its column of targets")
    about = "text file, one input of the model a line; leave it out for a language model"
    parser.add_argument("--sources", type=str | None, default=None, help=about)
    about = "text file, one target a line; or a jsonl, such as generate writes, with a list of outputs a line"
    parser.add_argument("--targets", type=str | None, default=None, help=about)
    parser.add_argument("--output", type=str, default="-", help="output file; - for standard output")
    about = (
        "text: score, tab and text of each target, and an empty line after those of one source if they are several; "
        "jsonl: a line a source; if left out, the ending of --output tells"
    )
    parser.add_argument("--format", type=Literal["text", "jsonl"] | None, default=None, help=about)
    about = "of the model's score where a target has a score already: they are ranked by that + weight * the model's"
    parser.add_argument("--weight", type=float, default=1.0, help=about)
    found = [one for one in search_options() if one.name in OPTIONS]
    add_prediction(parser, found)
    options = parser.parse_args(arguments)
    _check(options)
    predictor, config, form = prediction_of(options, found)
    begins = predictor.model.processor.source_feature.begins_output
    if options.targets is not None and options.sources is None and not begins:
        raise UserError("--targets alone is for language models: give --sources, one line for each target")
    rows, again = itertools.tee(_rows(options, begins))
    scored = predictor.score(((row.source, target.text) for row in rows for target in row.targets), config)
    totals, symbols, several = [], 0, False
    with written(options.output) as out:
        for row in again:
            outputs = [next(scored) for _ in row.targets]
            totals += [math.fsum(one.token_scores) for one in outputs]
            prompt = [row.source] if begins and row.source and outputs else []
            given = sum(map(len, predictor.model.processor.target.encode_batch(prompt)))
            symbols += sum(len(one.token_scores) - given for one in outputs)
            several = several or len(outputs) > 1
            out.write(_render(_ranked(row.targets, outputs, options.weight, config), form))
    tell_cut(predictor)
    total = math.fsum(totals)
    said = f"{counted(len(totals), 'text')}, {counted(symbols, 'symbol')}: log-probability {total:.4f}"
    if symbols and not several:
        said += f", perplexity {math.exp(min(-total / symbols, 700)):.4f}"
    print(said, file=sys.stderr)


def _ranked(
    targets: Sequence[Target], outputs: Sequence[Generated], weight: float, config: GenerationConfig
) -> list[dict[str, Any]]:
    """Return what is known of the targets of a source, best first; equal ones keep their order."""
    found = []
    for target, output in zip(targets, outputs, strict=True):
        told = output.told(("score", *config.details)) | {"log_prob": math.fsum(output.token_scores)}
        if target.score is not None:
            ours = told["score"]
            told |= {"score": target.score + weight * ours, "model_score": ours, "given_score": target.score}
        found.append(told)
    return sorted(found, key=lambda told: -told["score"])


def _render(found: list[dict[str, Any]], form: str) -> str:
    if form == "jsonl":
        return json_line(found) + "\n"
    lines = [f"{told['score']:.4f}\t{one_line(told['text'])}\n" for told in found]
    return "".join(lines) + ("\n" if len(lines) > 1 else "")


def _check(options: Namespace) -> None:
    if (options.input is None) == (options.targets is None):
        raise UserError("give the pairs either as one table by --input, or as --sources and --targets")
    if options.input is not None and options.sources is not None:
        raise UserError("--sources goes with --targets: leave it out beside --input")
    for name in ("input", "sources", "targets"):
        if options[name] is not None:
            check_readable(options[name], name)


def _rows(options: Namespace, begins: bool) -> Iterator[Row]:
    if options.input is not None:
        wanted = options.source_column or "source"
        yield from _table(options.input, wanted, options.target_column, optional=begins and not options.source_column)
        return
    targets = _lists(options.targets)
    if options.sources is None:
        yield from (Row(None, own) for own in targets)
        return
    pairs = itertools.zip_longest(_lines(options.sources), targets)
    for number, (source, own) in enumerate(pairs):
        if source is None or own is None:
            longer = number + 1 + sum(1 for _ in pairs)
            sizes = (number, longer) if source is None else (longer, number)
            raise UserError(
                f"{options.sources} has {counted(sizes[0], 'line')}, but {options.targets} has {sizes[1]}: align them"
            )
        yield Row(source, own)


def _table(name: str, source: str, target: str, *, optional: bool) -> Iterator[Row]:
    """Read the rows of a table, which may be without sources if these are `optional`."""
    from lit_seq2seq.data.objects import read_objects
    from lit_seq2seq.data.tables import Form, read_table

    if format_of(name) == "jsonl":
        rows: Iterator[dict[str, Any]] = read_objects(_lines(name), name)
    else:
        header, fields = read_table(_lines(name), name, Form())
        rows = (dict(zip(header, row, strict=True)) for row in fields)
    for number, row in enumerate(rows, start=1):
        for column, setting in ((target, "target"), (source, "source")):
            if column not in row and not (optional and column == source):
                where = name if number == 1 else f"row {number} of {name}"
                raise UserError(
                    f"{where} has no column {column!r}, but {', '.join(row)}: name it by --{setting}_column"
                )
        yield Row(row.get(source), _targets(row[target], f"row {number} of {name}"))


def _lists(name: str) -> Iterator[list[Target]]:
    """Read the targets of each line."""
    from lit_seq2seq.data.objects import parsed

    for number, line in enumerate(_lines(name), start=1):
        if format_of(name) == "text":
            yield [Target(line)]
        else:
            yield _targets(parsed(line, name, number), f"line {number} of {name}")


def _targets(value: Any, where: str) -> list[Target]:
    """Read a text, a mapping of `text` and perhaps `score`, or a list of these."""
    if isinstance(value, list):
        found = [target for one in value for target in _targets(one, where)]
        if len({target.score is None for target in found}) > 1:
            raise UserError(f"{where}: some of the texts have scores, and others none: give each one, or none")
        return found
    given = value if isinstance(value, dict) else {"text": value}
    text, score = given.get("text"), given.get("score")
    number = score is None or (is_number(score) and math.isfinite(score))
    if not isinstance(text, str) or not number:
        raise UserError(f"{where}: expected a text, or a list of texts or of {{'text': ..., 'score': number}}")
    return [Target(text, None if score is None else float(score))]


def _lines(name: str) -> Iterator[str]:
    with Path(name).open("rb") as file:
        yield from read_lines(file, name)
