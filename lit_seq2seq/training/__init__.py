"""`LitSeq2Seq`, what it minimises, and what keeps a run going."""

from lit_seq2seq.training.objectives import (
    CrossEntropy,
    Distillation,
    Loss,
    MinimumRisk,
    Objective,
    RDrop,
    ScheduledSampling,
    SelfCritical,
    WaitK,
)

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
