"""RNN sequence-to-sequence models on PyTorch Lightning and Hugging Face datasets."""

import os

# Batches come in many shapes, and the CPU kernels of torch are compiled for each: keep more than the default 1,024,
# but not so many that they fill the memory (each takes a megabyte or two).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "2048")

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.module import LitSeq2Seq
from lit_seq2seq.predictor import pipeline
from lit_seq2seq.recipe import load_recipe

__all__ = ["LitSeq2Seq", "Seq2SeqDataModule", "load_recipe", "pipeline"]
