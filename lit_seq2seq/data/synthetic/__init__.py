"""Data made on the machine, without download: one file a task."""

from lit_seq2seq.data.synthetic.base import BuiltinDataset
from lit_seq2seq.data.synthetic.phrases import PhraseTranslation
from lit_seq2seq.data.synthetic.telephone import TelephoneKeys

__all__ = ["BuiltinDataset", "PhraseTranslation", "TelephoneKeys"]
