"""Datasets to batches: rows from anywhere, length buckets, and the Lightning data module."""

from lit_seq2seq.builtin import BuiltinDataset
from lit_seq2seq.data.batching import Batches
from lit_seq2seq.data.examples import Limits
from lit_seq2seq.data.joining import JoinedRecordings
from lit_seq2seq.data.module import Seq2SeqDataModule
from lit_seq2seq.data.rows import Columns
from lit_seq2seq.data.sources import open_dataset
from lit_seq2seq.data.splits import SplitSettings

__all__ = [
    "Batches",
    "BuiltinDataset",
    "Columns",
    "JoinedRecordings",
    "Limits",
    "Seq2SeqDataModule",
    "SplitSettings",
    "open_dataset",
]
