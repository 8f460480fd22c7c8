"""What the command line does with trained models, and what every finished run leaves behind."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, get_type_hints

import docstring_parser
import torch
from jsonargparse import ArgumentParser
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tqdm import tqdm

from lit_seq2seq.callbacks import average_checkpoints
from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.files import format_of, is_file, local_path
from lit_seq2seq.hub import (
    add_loading,
    add_shortlist,
    load_checkpoint,
    load_folder,
    loading_of,
    push_folder,
    tensors_of,
)
from lit_seq2seq.lexicon import learn_shortlist
from lit_seq2seq.module import LitSeq2Seq
from lit_seq2seq.pipelines import load_model, override
from lit_seq2seq.predictor import Dtype, Output, Predictor
from lit_seq2seq.runtime.lines import counted, json_line, one_line, read_lines
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import UserError


def generate(parser: ArgumentParser, arguments: list[str]) -> None:
    """Read inputs line by line and write an output for each, in order: `lit-seq2seq generate`.

    Options of search that are left out are those that the model comes with.
    """
    parser.add_argument(
        "--model", type=str, nargs="+", required=True, help="model folder or hub id; several make an ensemble"
    )
    parser.add_argument(
        "--input",
        type=str,
        default="-",
        help="text file, one text (or path of a recording, image, ...) a line; - for standard input",
    )
    parser.add_argument("--output", type=str, default="-", help="output file; - for standard output")
    parser.add_argument(
        "--format",
        type=Literal["text", "jsonl"] | None,
        default=None,
        help="text: several outputs for an input end with an empty line; jsonl: a line an input, with scores; if left "
        "out, the ending of --output tells",
    )
    parser.add_argument(
        "--scores", type=bool, default=False, help="text format: put score and a tab before each output"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", type=Dtype, default="float32", help="what to compute in; int8: on CPUs")
    parser.add_argument("--max_tokens", type=int, default=8192, help="size of a batch in padded source positions")
    parser.add_argument(
        "--max_source_length",
        type=int | Literal["auto"] | None,
        default="auto",
        help="longer inputs are cut; auto: texts to 1,024 symbols",
    )
    add_loading(parser)
    names = _add_generation(parser)
    options = parser.parse_args(arguments)
    model = load_model(options.model, **loading_of(options))
    config = override(model.generation, {name: options[name] for name in names if options[name] is not None})
    dtype: torch.dtype = getattr(torch, options.dtype)
    predictor = Predictor(model, options.device, dtype, options.max_tokens, options.max_source_length)
    form = options.format or format_of(options.output)
    with _reader(options.input) as lines, _writer(options.output) as out:
        bar = tqdm(lines, desc="generate", unit="lines", file=sys.stderr, disable=None)
        for outputs in predictor.stream(bar, config):
            out.write(_render(outputs, form, options.scores))
            out.flush()
    if predictor.truncated:
        print(
            f"{counted(predictor.truncated, 'input')} cut to {predictor.max_source_length} positions", file=sys.stderr
        )


def _add_generation(parser: ArgumentParser) -> list[str]:
    """Add the options of search; return their names."""
    types = get_type_hints(GenerationConfig)
    options = docstring_parser.parse(GenerationConfig.__doc__ or "").params
    for option in options:
        about = " ".join((option.description or "").split())
        parser.add_argument(f"--{option.arg_name}", type=types[option.arg_name] | None, default=None, help=about)
    return [option.arg_name for option in options]


def _render(outputs: list[Output], form: str, scores: bool) -> str:
    if form == "jsonl":
        return json_line([{"text": output.text, "score": output.score} for output in outputs]) + "\n"
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
def _writer(name: str) -> Iterator[IO[str]]:
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


def average(parser: ArgumentParser, arguments: list[str]) -> None:
    """Average the weights of several checkpoints of one run into a model folder: `lit-seq2seq average`."""
    parser.add_argument(
        "--checkpoints", type=str, nargs="+", required=True, help=".ckpt files; of one, its own weights"
    )
    parser.add_argument("--output", type=str, required=True, help="model folder to write")
    options = parser.parse_args(arguments)
    weights = average_checkpoints(options.checkpoints)
    model = LitSeq2Seq.load_from_checkpoint(options.checkpoints[0], map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    model.save_pretrained(options.output)
    print(f"averaged {counted(len(options.checkpoints), 'checkpoint')} into {options.output}")


def push(parser: ArgumentParser, arguments: list[str]) -> None:
    """Put a model folder on the Hugging Face hub: `lit-seq2seq push`."""
    parser.add_argument("--model", type=str, required=True, help="model folder")
    parser.add_argument("--repo_id", type=str, required=True, help="user/name; made if needed")
    parser.add_argument("--private", type=bool | None, default=None, help="whether a new repository is private")
    parser.add_argument("--revision", type=str | None, default=None, help="branch, made if needed")
    parser.add_argument("--commit_message", type=str, default="Upload model", help="what the commit is called")
    parser.add_argument("--license", type=str | None, default=None, help="for the card: such as apache-2.0")
    parser.add_argument("--languages", type=str, nargs="*", default=[], help="for the card: ISO codes, such as de en")
    options = parser.parse_args(arguments)
    print(push_folder(options.pop("model"), **vars(options)))


def shortlist(parser: ArgumentParser, arguments: list[str]) -> None:
    """Learn from pairs of texts which symbols the translation of a text may need: `lit-seq2seq shortlist`."""
    parser.add_argument("--model", type=str, required=True, help="model folder; it gets the shortlist")
    parser.add_argument("--frequent", type=int, default=1000, help="symbols that are candidates for every source")
    parser.add_argument("--translations", type=int, default=40, help="candidates for each source symbol")
    parser.add_argument("--rows", type=int, default=1_000_000, help="greatest number of training rows to learn from")
    parser.add_argument("--trust", type=str, nargs="*", default=[], help="packages whose code the model may run")
    parser.add_class_arguments(Seq2SeqDataModule, "data", skip={"processor", "copy"})
    options = parser.parse_args(arguments)
    for name in ("frequent", "translations", "rows"):
        if options[name] < 1:
            raise UserError(f"{name} must be at least 1, got {options[name]}")
    if not Path(options.model).is_dir():
        raise UserError(f"there is no folder {options.model}: check --model; of a hub model give a downloaded folder")
    processor = load_folder(options.model, trust=options.trust).processor
    data: Seq2SeqDataModule = parser.instantiate_classes(options).data
    data.processor = processor
    learned = learn_shortlist(data, options.frequent, options.translations, options.rows)
    add_shortlist(options.model, learned, processor)
    print(f"{options.model} has a shortlist: use it with --shortlist true")


def save_best(trainer: Trainer, model: LitSeq2Seq, scores: dict[str, float] | None = None) -> Path | None:
    """Write the best checkpoint of a finished run (or its last weights) as the model folder `model/` of the run.

    To be called on every process; the first one writes.

    Args:
        trainer: after `fit`.
        model: the trained model; it ends with the saved weights.
        scores: measured figures for the model card; where absent, the score that made this checkpoint the best.

    Returns:
        The folder; `None` if the run keeps no files.
    """
    log_dir = trainer.log_dir
    if trainer.fast_dev_run or log_dir is None:  # type: ignore[attr-defined]
        return None
    folder, known = Path(log_dir) / "model", _scores(trainer)
    callback = trainer.checkpoint_callback
    if isinstance(callback, ModelCheckpoint) and callback.best_model_path and is_file(callback.best_model_path):
        best = load_checkpoint(callback.best_model_path)
        model.load_state_dict(tensors_of(best))
        known = _score_of(best, callback)
    if trainer.is_global_zero:
        model.save_pretrained(folder, scores or known)
    trainer.strategy.barrier("model saved")
    return folder


def _score_of(checkpoint: Mapping[str, Any], callback: ModelCheckpoint) -> dict[str, float]:
    """Return the score of the best checkpoint, as it says itself: the callback may have run in another process."""
    state = checkpoint.get("callbacks", {}).get(callback.state_key, {})
    score = state.get("best_model_score")
    return {} if score is None or callback.monitor is None else {callback.monitor: float(score)}


def _scores(trainer: Trainer) -> dict[str, float]:
    metrics = trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items() if name.startswith(("val_", "test_"))}
