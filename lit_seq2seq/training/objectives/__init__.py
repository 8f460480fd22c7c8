"""What training minimises, one a file."""

from lit_seq2seq.settings.arguments import check_constructors
from lit_seq2seq.training.objectives.base import Loss, Objective
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.training.objectives.rdrop import RDrop
from lit_seq2seq.training.objectives.scheduled_sampling import ScheduledSampling

__all__ = ["CrossEntropy", "Loss", "Objective", "RDrop", "ScheduledSampling"]

check_constructors(__name__)
