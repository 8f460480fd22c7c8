"""Constraints on outputs, named in `generation.constraints`."""

from lit_seq2seq.search.constraints.automaton import Lexicon as Lexicon
from lit_seq2seq.search.constraints.automaton import Pattern as Pattern
from lit_seq2seq.search.constraints.base import Constraint as Constraint
from lit_seq2seq.search.constraints.base import ConstraintState as ConstraintState
from lit_seq2seq.search.constraints.base import all_met as all_met
from lit_seq2seq.search.constraints.repetition import NoRepeatedNGrams as NoRepeatedNGrams
from lit_seq2seq.search.constraints.repetition import RepetitionPenalty as RepetitionPenalty
from lit_seq2seq.search.constraints.words import BadWords as BadWords
from lit_seq2seq.search.constraints.words import ForceWords as ForceWords
from lit_seq2seq.search.constraints.words import Terminology as Terminology
