"""Corpus-level scores of generated text, kept as exact sums that may be added over batches and processes."""

from lit_seq2seq.metrics.base import TextMetric, TokenAverage
from lit_seq2seq.metrics.cider import CIDErD
from lit_seq2seq.metrics.diversity import Distinct1, Distinct2
from lit_seq2seq.metrics.errors import CER, PER, WER, ExactMatch, SequenceErrorRate, edit_distance
from lit_seq2seq.metrics.overlap import BLEU, BLEU1, BLEU2, BLEU3, ChrF
from lit_seq2seq.metrics.rouge import ROUGE1, ROUGE2, ROUGEL, ROUGELsum
from lit_seq2seq.metrics.scores import Scores
from lit_seq2seq.metrics.slots import SlotErrorRate
from lit_seq2seq.settings.arguments import check_constructors

__all__ = [
    "BLEU",
    "BLEU1",
    "BLEU2",
    "BLEU3",
    "CER",
    "PER",
    "ROUGE1",
    "ROUGE2",
    "ROUGEL",
    "WER",
    "CIDErD",
    "ChrF",
    "Distinct1",
    "Distinct2",
    "ExactMatch",
    "ROUGELsum",
    "Scores",
    "SequenceErrorRate",
    "SlotErrorRate",
    "TextMetric",
    "TokenAverage",
    "edit_distance",
]

check_constructors(__name__)
