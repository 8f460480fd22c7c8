"""What the command line does with trained models, and what every finished run leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, Literal

import torch
from jsonargparse import ArgumentParser
from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from lit_seq2seq.callbacks import average_checkpoints
from lit_seq2seq.hub import load_checkpoint, tensors_of
from lit_seq2seq.module import LitSeq2Seq
from lit_seq2seq.predictor import Output, Predictor, override
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import UserError


def generate(arguments: list[str]) -> None:
    """Read texts line by line and write an output for each, in order: `lit-seq2seq generate`."""
    parser = ArgumentParser(prog="lit-seq2seq generate", description=generate.__doc__)
    parser.add_argument("--model", type=str, required=True, help="model folder or hub id")
    parser.add_argument("--input", type=str, default="-", help="text file, one input a line; - for standard input")
    parser.add_argument("--output", type=str, default="-", help="output file; - for standard output")
    parser.add_argument("--format", type=Literal["text", "jsonl"], default="text", help="jsonl: with scores and n-best")
    parser.add_argument(
        "--scores", type=bool, default=False, help="text format: put score and a tab before each output"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--bf16", type=bool, default=False, help="compute in bfloat16")
    parser.add_argument("--max_tokens", type=int, default=8192, help="size of a batch in padded source symbols")
    parser.add_argument("--max_source_length", type=int | None, default=1024, help="longer inputs are cut")
    parser.add_argument("--revision", type=str | None, default=None, help="branch, tag or commit on the hub")
    for field in fields(GenerationConfig):
        parser.add_argument(f"--{field.name}", type=str | None, default=None, help=f"see GenerationConfig.{field.name}")
    options = parser.parse_args(arguments)
    model = LitSeq2Seq.from_pretrained(options.model, options.revision)
    chosen = {f.name: options[f.name] for f in fields(GenerationConfig) if options[f.name] is not None}
    config = override(model.generation, {name: _plain(value) for name, value in chosen.items()})
    dtype = torch.bfloat16 if options.bf16 else None
    predictor = Predictor(model, options.device, dtype, options.max_tokens, options.max_source_length)
    with _reader(options.input) as lines, _writer(options.output) as out:
        bar = tqdm(lines, desc="generate", unit="lines", file=sys.stderr, disable=None)
        for outputs in predictor.stream(bar, config):
            out.write(_render(outputs, options.format, options.scores))
            out.flush()
    if predictor.truncated:
        print(f"{predictor.truncated} inputs were cut to {options.max_source_length} symbols", file=sys.stderr)


def _plain(text: str) -> object:
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except json.JSONDecodeError:
        return text


def _render(outputs: list[Output], form: str, scores: bool) -> str:
    if form == "jsonl":
        rows = [{"text": output.text, "score": output.score} for output in outputs]
        return json.dumps(rows, ensure_ascii=False) + "\n"
    lines = [output.text.replace("\n", " ") for output in outputs]
    if scores:
        lines = [f"{output.score:.4f}\t{line}" for output, line in zip(outputs, lines, strict=True)]
    return "".join(line + "\n" for line in lines)


@contextlib.contextmanager
def _reader(name: str) -> Iterator[Iterator[str]]:
    """Open an input and yield its lines, refusing what is not UTF-8."""
    if name != "-" and not Path(name).is_file():
        raise UserError(f"there is no input file {name}: check --input")
    with contextlib.ExitStack() as stack:
        raw: IO[bytes] = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        yield _decode(raw, "standard input" if name == "-" else name)


def _decode(raw: IO[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(raw, start=1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number} is not UTF-8: convert the file, e.g. with iconv") from error


@contextlib.contextmanager
def _writer(name: str) -> Iterator[IO[str]]:
    """Open an output; a file appears under its name only when it is complete."""
    if name == "-":
        yield sys.stdout
        return
    path = Path(name)
    part = path.with_name(path.name + ".part")
    try:
        handle = part.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}: choose another --output") from error
    with handle:
        yield handle
    part.replace(path)


def average(arguments: list[str]) -> None:
    """Average the weights of several checkpoints of one run into a model folder: `lit-seq2seq average`."""
    parser = ArgumentParser(prog="lit-seq2seq average", description=average.__doc__)
    parser.add_argument("--checkpoints", type=list[str], nargs="+", required=True, help="two or more .ckpt files")
    parser.add_argument("--output", type=str, required=True, help="model folder to write")
    options = parser.parse_args(arguments)
    model = LitSeq2Seq.load_from_checkpoint(options.checkpoints[0], map_location="cpu", weights_only=True)
    model.load_state_dict(average_checkpoints(options.checkpoints))
    model.save_pretrained(options.output)
    print(f"averaged {len(options.checkpoints)} checkpoints into {options.output}")


@rank_zero_only
def save_best(trainer: Trainer, model: LitSeq2Seq, scores: dict[str, float] | None = None) -> Path | None:
    """Write the best checkpoint of a finished run (or its last weights) as the model folder `model/` of the run.

    Args:
        trainer: after `fit`.
        model: the trained model; it ends with the saved weights.
        scores: measured figures for the model card.

    Returns:
        The folder; `None` if the run keeps no files.
    """
    if trainer.fast_dev_run or not trainer.log_dir:  # type: ignore[attr-defined]
        return None
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best and os.path.exists(best):  # noqa: PTH110
        model.load_state_dict(tensors_of(load_checkpoint(best)))
    folder = Path(trainer.log_dir) / "model"
    known = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(("val_", "test_"))
    }
    model.save_pretrained(folder, scores or known)
    return folder
