"""Data made on the machine, without download: one file a task."""

from lit_seq2seq.builtin.base import BuiltinDataset
from lit_seq2seq.builtin.dialogues import Dialogues
from lit_seq2seq.builtin.docstrings import DocstringSummaries
from lit_seq2seq.builtin.ellipsis import SceneTranslation
from lit_seq2seq.builtin.numbers import SpelledNumbers
from lit_seq2seq.builtin.phrases import PhraseTranslation
from lit_seq2seq.builtin.records import WeatherAndCalendar
from lit_seq2seq.builtin.scenes import ShapeScenes
from lit_seq2seq.builtin.sequences import SequenceTask
from lit_seq2seq.builtin.telephone import TelephoneKeys

__all__ = [
    "BuiltinDataset",
    "Dialogues",
    "DocstringSummaries",
    "PhraseTranslation",
    "SceneTranslation",
    "SequenceTask",
    "ShapeScenes",
    "SpelledNumbers",
    "TelephoneKeys",
    "WeatherAndCalendar",
]
