"""What training minimises, one a file."""

from lit_seq2seq.settings.arguments import check_constructors
from lit_seq2seq.training.objectives.base import Loss, Objective
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.training.objectives.distillation import Distillation
from lit_seq2seq.training.objectives.minimum_risk import MinimumRisk
from lit_seq2seq.training.objectives.rdrop import RDrop
from lit_seq2seq.training.objectives.scheduled_sampling import ScheduledSampling
from lit_seq2seq.training.objectives.self_critical import SelfCritical
from lit_seq2seq.training.objectives.wait_k import WaitK

__all__ = [
    "CrossEntropy",
    "Distillation",
    "Loss",
    "MinimumRisk",
    "Objective",
    "RDrop",
    "ScheduledSampling",
    "SelfCritical",
    "WaitK",
]

check_constructors(__name__)
