"""Lightning callbacks: what to show, keep and watch while a model trains and predicts."""

from lit_seq2seq.callbacks.averaging import EMA, average_checkpoints
from lit_seq2seq.callbacks.checkpoint import Checkpoint
from lit_seq2seq.callbacks.finetuning import GradualUnfreezing
from lit_seq2seq.callbacks.guard import NonFiniteLoss
from lit_seq2seq.callbacks.lengths import ExactMatchByLength
from lit_seq2seq.callbacks.predictions import PredictionWriter
from lit_seq2seq.callbacks.progress import Seq2SeqProgressBar
from lit_seq2seq.callbacks.samples import SampleOutputs
from lit_seq2seq.settings.arguments import check_constructors

__all__ = [
    "EMA",
    "Checkpoint",
    "ExactMatchByLength",
    "GradualUnfreezing",
    "NonFiniteLoss",
    "PredictionWriter",
    "SampleOutputs",
    "Seq2SeqProgressBar",
    "average_checkpoints",
]

check_constructors(__name__)
