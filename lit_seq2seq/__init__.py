"""RNN sequence-to-sequence models on PyTorch Lightning and Hugging Face datasets."""

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.module import LitSeq2Seq
from lit_seq2seq.predictor import pipeline
from lit_seq2seq.recipe import load_recipe

__all__ = ["LitSeq2Seq", "Seq2SeqDataModule", "load_recipe", "pipeline"]
