"""Datasets to batches: rows from anywhere, length buckets, and the Lightning data module."""

from lit_seq2seq.builtin import BuiltinDataset
from lit_seq2seq.data.joining import JoinedRecordings
from lit_seq2seq.data.module import Seq2SeqDataModule
from lit_seq2seq.data.sources import open_dataset

__all__ = ["BuiltinDataset", "JoinedRecordings", "Seq2SeqDataModule", "open_dataset"]
