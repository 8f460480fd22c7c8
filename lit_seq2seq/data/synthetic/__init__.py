"""Data made on the machine, without download: one file a task."""

from lit_seq2seq.data.synthetic.base import BuiltinDataset
from lit_seq2seq.data.synthetic.docstrings import DocstringSummaries
from lit_seq2seq.data.synthetic.numbers import SpelledNumbers
from lit_seq2seq.data.synthetic.phrases import PhraseTranslation
from lit_seq2seq.data.synthetic.records import WeatherAndCalendar
from lit_seq2seq.data.synthetic.sequences import SequenceTask

__all__ = [
    "BuiltinDataset",
    "DocstringSummaries",
    "PhraseTranslation",
    "SequenceTask",
    "SpelledNumbers",
    "WeatherAndCalendar",
]
