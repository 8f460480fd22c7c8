"""Programs of the arena: this package through Lightning, its network in a bare loop, and plain PyTorch."""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn

from benchmarks.models import callbacks, make_data, make_model
from benchmarks.plain import PlainModel
from benchmarks.windows import Windows
from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule
from lit_seq2seq.callbacks import Checkpoint
from lit_seq2seq.cli.commands import save_best
from lit_seq2seq.data.batching import BucketBatchSampler
from lit_seq2seq.hub.folder import add_shortlist
from lit_seq2seq.inference.lexicon import learn_shortlist
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.types import Batch

CLIP = 5.0


class Ticks(Callback):
    """Ends a window after its number of training steps."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first window."""
        self.windows.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Count the target tokens of a step, EOS with them, padding not."""
        assert batch.target is not None
        self.windows.step(int(batch.target.total))


def train(arguments: argparse.Namespace, windows: Windows) -> None:
    """Train through Lightning, as a recipe would."""
    model, data = make_model(arguments.workload, arguments.feeding), _data(arguments)
    trainer = _trainer(arguments, Ticks(windows), max_epochs=1000, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, datamodule=data)


def loop(arguments: argparse.Namespace, windows: Windows) -> None:
    """Train in a bare loop: this package's network, or with `--mode plain` one of plain PyTorch."""
    model, data = make_model(arguments.workload, arguments.feeding), _data(arguments)
    data.setup("fit")
    model.attach(data.processor)
    network: nn.Module = model.net
    if arguments.mode == "plain":
        sizes = data.processor.source_feature.size, data.processor.target.size
        network = PlainModel(arguments.workload, *sizes, feeding=arguments.feeding)
    if arguments.precision == "bf16-true":
        network.bfloat16()
    step = torch.compile(network.loss, dynamic=True) if arguments.compile else network.loss
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)
    batches = data.train_dataloader()
    sampler = cast(BucketBatchSampler, batches.sampler)
    windows.start()
    for epoch in count():
        sampler.set_epoch(epoch)
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.precision == "bf16-mixed"):
                loss, _ = step(batch.source, batch.target)
            optimizer.zero_grad()
            (loss / batch.target.total).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            windows.step(int(batch.target.total))


def decode(arguments: argparse.Namespace, windows: Windows) -> None:
    """Decode the test sentences with a trained model, all in each window; tokens are sentences here."""
    model = LitSeq2Seq.from_pretrained(arguments.model)
    sources = (arguments.data / "test.src").read_text().splitlines()
    predictor = Predictor(model, dtype=getattr(torch, arguments.dtype))
    options = {"num_beams": arguments.beams, "max_new_tokens": 60, "early_stopping": True}
    config = model.model.generation.changed(options | {"shortlist": arguments.shortlist})
    windows.start()
    while True:
        outputs = [output[0].text for output in predictor.stream(sources, config)]
        if arguments.output:
            arguments.output.write_text("\n".join(outputs) + "\n")
        windows.step(len(sources))


def shortlist(arguments: argparse.Namespace) -> None:
    """Learn the shortlist of a trained model, as the command does."""
    data = _data(arguments)
    data.processor = LitSeq2Seq.from_pretrained(arguments.model).processor
    add_shortlist(arguments.model, learn_shortlist(data, frequent=1000, translations=40), data.processor)


def quality(arguments: argparse.Namespace) -> None:
    """Train for some epochs, save the best of them and print its scores on validation, with what training took."""
    model, data = make_model(arguments.workload, arguments.feeding), _data(arguments)
    wall, cpu = time.perf_counter(), time.process_time()
    monitor, mode = ("val_sequence_error_rate", "min") if arguments.workload == "w3" else ("val_bleu", "max")
    folder = arguments.model.with_name(f"{arguments.model.name}_run")
    checkpoint = Checkpoint(monitor, mode, every_n_minutes=None)
    trainer = _trainer(arguments, checkpoint, max_epochs=arguments.epochs, default_root_dir=folder)
    trainer.fit(model, datamodule=data)
    print(f"{time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU", flush=True)
    save_best(trainer, model)
    for beams in (1, 5):
        model.model.generation = model.model.generation.changed({"num_beams": beams})
        scores = trainer.validate(model, datamodule=data, verbose=False)[0]
        print(f"beam {beams}:", {name: round(score, 3) for name, score in scores.items()}, flush=True)
    model.save_pretrained(arguments.model)


def _data(arguments: argparse.Namespace) -> Seq2SeqDataModule:
    return make_data(arguments.data, arguments.workload)


def _trainer(arguments: argparse.Namespace, callback: Callback, **settings: Any) -> Trainer:
    return Trainer(
        precision=arguments.precision,
        gradient_clip_val=CLIP,
        callbacks=[callback, *callbacks(arguments.workload)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **settings,
    )


def main() -> None:
    """Run one program."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--mode", choices=["lightning", "loop", "plain", "decode", "quality", "shortlist"], required=True
    )
    parser.add_argument("--workload", default="w1", choices=["w1", "w3", "gnmt"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20, help="of a window")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed", "bf16-true"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "int8"], help="of decoding")
    parser.add_argument("--feeding", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--model", type=Path, help="folder of a trained model")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--shortlist", action="store_true", help="decode with the shortlist of the model")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    seed_everything(1, verbose=False)
    if arguments.mode in ("quality", "shortlist"):
        {"quality": quality, "shortlist": shortlist}[arguments.mode](arguments)
        return
    windows = Windows(arguments.steps)
    {"lightning": train, "loop": loop, "plain": loop, "decode": decode}[arguments.mode](arguments, windows)


if __name__ == "__main__":
    main()
