"""Corpus-level scores of generated text, kept as exact sums that may be added over batches and processes."""

from importlib import import_module
from typing import TYPE_CHECKING

from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.metrics.cider import CIDErD
from lit_seq2seq.metrics.diversity import Distinct1, Distinct2
from lit_seq2seq.metrics.errors import CER, PER, WER, ExactMatch, SequenceErrorRate, edit_distance
from lit_seq2seq.metrics.overlap import BLEU, BLEU1, BLEU2, BLEU3, ChrF
from lit_seq2seq.metrics.rouge import ROUGE1, ROUGE2, ROUGEL, ROUGELsum
from lit_seq2seq.metrics.slots import SlotErrorRate
from lit_seq2seq.settings.arguments import check_constructors

if TYPE_CHECKING:
    from lit_seq2seq.metrics.emission import EmissionLag, Emissions
    from lit_seq2seq.metrics.lag import Lag
    from lit_seq2seq.metrics.scores import Scores
    from lit_seq2seq.metrics.sums import TokenAverage

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
    "EmissionLag",
    "Emissions",
    "ExactMatch",
    "Lag",
    "ROUGELsum",
    "Scores",
    "SequenceErrorRate",
    "SlotErrorRate",
    "TextMetric",
    "TokenAverage",
    "edit_distance",
]

check_constructors(__name__)


def __getattr__(name: str) -> object:
    """Import what sums up a split when it is asked for: beside an exported model it is not there."""
    if name not in ("EmissionLag", "Emissions", "Lag", "Scores", "TokenAverage"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("lit_seq2seq.metrics.scores"), name)
