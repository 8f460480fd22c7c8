"""What the command line does with trained models, and what every finished run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_seq2seq.callbacks import average_checkpoints
from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.files.lines import counted
from lit_seq2seq.files.paths import is_file
from lit_seq2seq.hub.folder import add_shortlist, load_checkpoint, load_folder, push_folder, tensors_of
from lit_seq2seq.inference.lexicon import learn_shortlist
from lit_seq2seq.training.module import LitSeq2Seq
from lit_seq2seq.types import UserError


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

    To be called after `fit` on every process; the first one writes. The model ends with the saved weights. Without
    scores, the card has the score that chose this checkpoint. Returns the folder; `None` if the run keeps no files.
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
        if found := scores or known:
            model.model.provenance = replace(model.model.provenance, scores=dict(found))
        model.save_pretrained(folder)
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
