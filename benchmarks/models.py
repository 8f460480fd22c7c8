"""The models of the workloads."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch.callbacks import Callback

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule
from lit_seq2seq.callbacks import EMA
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.metrics import BLEU, SequenceErrorRate
from lit_seq2seq.nn import GeneralAttention, InputFeedingDecoder, ParallelDecoder, TextEncoder
from lit_seq2seq.schedules import OneCycle
from lit_seq2seq.search import GenerationConfig

SIZES = {
    "w1": {"embedding_dim": 256, "hidden_size": 512, "dropout": 0.3},
    "w3": {"embedding_dim": 128, "hidden_size": 512, "dropout": 0.5},
    "gnmt": {"embedding_dim": 1024, "hidden_size": 1024, "num_layers": 4, "dropout": 0.2},
}
"""Sizes that encoder and decoder share."""
TRAINING: dict[str, dict[str, Any]] = {
    "w3": {
        "label_smoothing": 0.1,
        "optimizer": partial(torch.optim.Adam, lr=0.004, fused=True),
        "lr_scheduler": partial(OneCycle, warmup=0.1),
    }
}
"""Settings other than a constant rate of 0.001: those of W3 were chosen on its validation split."""


def make_data(folder: Path, workload: str, batch_size: int = 64) -> Seq2SeqDataModule:
    """Read the prepared texts; symbols stand between spaces."""
    splits = {"train": "train", "validation": "valid", "test": "test"}
    rows = DatasetDict(
        {
            split: Dataset.from_dict(
                {side: (folder / f"{file}.{end}").read_text().splitlines() for side, end in _SIDES.items()}
            )
            for split, file in splits.items()
        }
    )
    least = 1 if workload == "w3" else 2
    tokenizer = Tokenizer("word", vocab_size=32_000, min_frequency=least, pretokenized=True, normalization="none")
    return Seq2SeqDataModule(rows, source_tokenizer=tokenizer, batch_size=batch_size)


def make_model(workload: str, feeding: bool = False) -> LitSeq2Seq:
    """Make the model of a workload: bidirectional LSTM encoder, LSTM decoder with general attention."""
    sizes = SIZES[workload]
    decoder = InputFeedingDecoder if feeding else ParallelDecoder
    extra = {"attention_after": "first", "residual": True} if workload == "gnmt" else {}
    metric = SequenceErrorRate if workload == "w3" else partial(BLEU, tokenize="none")
    return LitSeq2Seq(
        partial(TextEncoder, **sizes),
        partial(decoder, **sizes, **extra, attention=GeneralAttention),
        **{"optimizer": partial(torch.optim.Adam, lr=0.001, fused=True), **TRAINING.get(workload, {})},
        generation=GenerationConfig(max_new_tokens=60),
        metrics=[metric],
    )


def callbacks(workload: str) -> list[Callback]:
    """Make what training of a workload takes beside its model."""
    return [EMA(0.995)] if workload == "w3" else []


_SIDES = {"source": "src", "target": "tgt"}
