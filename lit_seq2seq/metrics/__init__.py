"""Corpus-level scores of generated text, kept as exact sums that may be added over batches and processes."""

from lit_seq2seq.metrics.base import TextMetric, TokenAverage
from lit_seq2seq.metrics.errors import CER, PER, WER, ExactMatch, SequenceErrorRate, edit_distance
from lit_seq2seq.metrics.overlap import BLEU, ChrF
from lit_seq2seq.metrics.rouge import ROUGE1, ROUGE2, ROUGEL, ROUGELsum

__all__ = [
    "BLEU",
    "CER",
    "PER",
    "ROUGE1",
    "ROUGE2",
    "ROUGEL",
    "WER",
    "ChrF",
    "ExactMatch",
    "ROUGELsum",
    "SequenceErrorRate",
    "TextMetric",
    "TokenAverage",
    "edit_distance",
]
