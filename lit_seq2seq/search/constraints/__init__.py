"""What outputs have to be like: parts that `generation.constraints` names."""

from lit_seq2seq.search.constraints.base import Constraint as Constraint
from lit_seq2seq.search.constraints.base import ConstraintState as ConstraintState
from lit_seq2seq.search.constraints.base import Task as Task
from lit_seq2seq.search.constraints.repetition import NoRepeatedNGrams as NoRepeatedNGrams
