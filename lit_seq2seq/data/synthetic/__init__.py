"""Data made on the machine, without download: one file a task."""

from lit_seq2seq.data.synthetic.base import BuiltinDataset
from lit_seq2seq.data.synthetic.dialogues import Dialogues
from lit_seq2seq.data.synthetic.docstrings import DocstringSummaries
from lit_seq2seq.data.synthetic.ellipsis import SceneTranslation
from lit_seq2seq.data.synthetic.numbers import SpelledNumbers
from lit_seq2seq.data.synthetic.phrases import PhraseTranslation
from lit_seq2seq.data.synthetic.records import WeatherAndCalendar
from lit_seq2seq.data.synthetic.scenes import ShapeScenes
from lit_seq2seq.data.synthetic.sequences import SequenceTask
from lit_seq2seq.data.synthetic.telephone import TelephoneKeys

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
