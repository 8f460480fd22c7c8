"""RNN sequence-to-sequence models on PyTorch Lightning and Hugging Face datasets."""

import importlib
import os
from typing import TYPE_CHECKING

# Batches come in many shapes, and the CPU kernels of torch are compiled for each: keep more than the default 1,024,
# but not so many that they fill the memory (each takes a megabyte or two).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "2048")

if TYPE_CHECKING:
    __version__: str
    from lit_seq2seq.cli.recipe import load_recipe
    from lit_seq2seq.data import Seq2SeqDataModule
    from lit_seq2seq.inference.model import Seq2SeqModel
    from lit_seq2seq.inference.pipelines import pipeline
    from lit_seq2seq.training.module import LitSeq2Seq

__all__ = ["LitSeq2Seq", "Seq2SeqDataModule", "Seq2SeqModel", "load_recipe", "pipeline"]

_HOMES = {
    "LitSeq2Seq": "training.module",
    "Seq2SeqDataModule": "data",
    "Seq2SeqModel": "inference.model",
    "load_recipe": "cli.recipe",
    "pipeline": "inference.pipelines",
}


def __getattr__(name: str) -> object:
    """Import the public names when they are asked for, so that `lit_seq2seq.runtime` needs no torch."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("lit_seq2seq")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_seq2seq.{_HOMES[name]}"), name)
