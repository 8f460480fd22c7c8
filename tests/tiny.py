"""A model and a data set small enough to be trained in a second, for tests of the whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule
from lit_seq2seq.callbacks import Checkpoint
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.metrics import BLEU, ExactMatch
from lit_seq2seq.nn import GeneralAttention, ParallelDecoder, TextEncoder
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Batch

DIGITS = dict(zip(["eins", "zwei", "drei", "vier", "fünf"], ["one", "two", "three", "four", "five"], strict=True))


needs_bfloat16 = pytest.mark.skipif(
    not computes_in(torch.bfloat16, "cpu"), reason="this CPU has no kernels for bfloat16 recurrent layers"
)


def pairs(count: int, seed: int = 0) -> dict[str, list[str]]:
    """Spell out numbers of one to four digits, in German and in English."""
    generator = torch.Generator().manual_seed(seed)
    words = list(DIGITS)
    sources = []
    for _ in range(count):
        length = int(torch.randint(1, 5, (), generator=generator))
        sources.append([words[i] for i in torch.randint(len(words), (length,), generator=generator).tolist()])
    return {
        "source": [" ".join(row) for row in sources],
        "target": [" ".join(DIGITS[word] for word in row) for row in sources],
    }


def rows(train: int = 40, validation: int = 12, test: int = 10) -> datasets.DatasetDict:
    sizes = {"train": train, "validation": validation, "test": test}
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_dict(pairs(n, seed)) for seed, (split, n) in enumerate(sizes.items())}
    )


def make_data(dataset: datasets.DatasetDict | None = None, **options: object) -> Seq2SeqDataModule:
    tokenizer = None if "processor" in options else Tokenizer("word")
    options = {"source_tokenizer": tokenizer, "batch_size": 8, **options}
    return Seq2SeqDataModule(rows() if dataset is None else dataset, **options)


SIZES = {"embedding_dim": 8, "hidden_size": 12}


def make_model(**options: object) -> LitSeq2Seq:
    torch.manual_seed(1)
    defaults = {
        "encoder": partial(TextEncoder, **SIZES),
        "decoder": partial(ParallelDecoder, **SIZES, attention=GeneralAttention),
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "generation": GenerationConfig(max_new_tokens=6),
        "metrics": [BLEU, ExactMatch],
    }
    return LitSeq2Seq(**{**defaults, **options})


def loss_of(model: LitSeq2Seq, loader: Iterable[Batch]) -> float:
    """Compute the negative log-likelihood of a token by hand."""
    batches = list(loader)
    with torch.no_grad():
        total = sum(float(-model.net.score(batch.source, batch.target).sum()) for batch in batches)
    return total / sum(int(batch.target.total) for batch in batches)


def make_trainer(folder: Path, *callbacks: Callback, **options: object) -> Trainer:
    defaults = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), default_root_dir=folder, **{**defaults, **options})


def check_resumed(folder: Path, **options: object) -> None:
    """Compare a run of two epochs with one that was interrupted after the first, bit by bit."""

    def fit(epochs: int, path: Path | None = None) -> LitSeq2Seq:
        model = make_model(**options)
        checkpoint = Checkpoint(dirpath=folder / str(epochs), save_last=True)
        trainer = make_trainer(folder, checkpoint, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, datamodule=make_data(), ckpt_path=path)
        return model

    whole = fit(2)
    fit(1)
    torch.testing.assert_close(fit(2, folder / "1" / "last.ckpt").state_dict(), whole.state_dict(), rtol=0, atol=0)


def write_csv(path: Path, columns: dict[str, list[str]]) -> Path:
    lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    recipe: Path
    run: Path

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def last(self) -> Path:
        return self.run / "checkpoints" / "last.ckpt"


def write_recipe(folder: Path) -> Path:
    """Write a data set and a recipe for it, to be trained by the command line."""
    for seed, (split, count) in enumerate({"train": 40, "validation": 12, "test": 10}.items()):
        write_csv(folder / f"{split}.csv", pairs(count, seed))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return path


RECIPE = """\
seed_everything: 1
data:
  dataset: {{train: {folder}/train.csv, validation: {folder}/validation.csv, test: {folder}/test.csv}}
  source_tokenizer: {{model: word}}
  batches: {{size: 8}}
model:
  encoder:
    class_path: lit_seq2seq.nn.TextEncoder
    init_args: {{embedding_dim: 8, hidden_size: 12}}
  decoder:
    class_path: lit_seq2seq.nn.ParallelDecoder
    init_args: {{embedding_dim: 8, hidden_size: 12, attention: lit_seq2seq.nn.GeneralAttention}}
  optimizer:
    class_path: torch.optim.Adam
    init_args: {{lr: 0.01}}
  lr_scheduler: lit_seq2seq.schedules.OneCycle
  generation: {{max_new_tokens: 6}}
  metrics: [lit_seq2seq.metrics.BLEU, lit_seq2seq.metrics.ExactMatch]
checkpoint: {{monitor: val_bleu, mode: max}}
trainer:
  default_root_dir: {folder}/runs
  max_epochs: 2
  accelerator: cpu
  num_sanity_val_steps: 0
  log_every_n_steps: 5
  enable_model_summary: false
"""
