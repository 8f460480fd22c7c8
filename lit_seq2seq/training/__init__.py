"""`LitSeq2Seq`, what it minimises, and what keeps a run going."""

from lit_seq2seq.training.objectives import CrossEntropy, Loss, Objective, RDrop, ScheduledSampling

__all__ = ["CrossEntropy", "Loss", "Objective", "RDrop", "ScheduledSampling"]
