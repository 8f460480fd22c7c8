"""Scorers of continuations beside the model that searches, named in `generation.scorers`."""

from lit_seq2seq.search.scorers.base import Scorer as Scorer
from lit_seq2seq.search.scorers.ctc import JointCTC as JointCTC
from lit_seq2seq.search.scorers.ensemble import JointModels as JointModels
from lit_seq2seq.search.scorers.language_model import LanguageModel as LanguageModel
