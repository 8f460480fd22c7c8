"""What every objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.types import Batch, UserError


class Loss(NamedTuple):
    """What an objective makes of a batch: sums over it, so that batches, and parts of one, are added up.

    Attributes:
        total: scalar to minimise, in 32 bits or more.
        nll: scalar without gradient, the negative log-likelihood of the targets in nats.
        units: scalar, the number of target tokens or sentences that `total` is summed over. An optimizer step follows
            the gradient of all its totals over all its units.
    """

    total: Tensor
    nll: Tensor
    units: Tensor


class Objective(nn.Module, ABC):
    """Base of what training minimises; its parameters, if it has any, learn with the model's.

    Args:
        label_smoothing: the model's `label_smoothing`, which it hands over to its objective.

    Attributes:
        step: optimizer steps of the run so far; training keeps it.
        needs_references: whether training batches have to come with references, and texts of their sources.

    Raises:
        UserError: the smoothing is out of its range.

    Example:
        >>> class Likelihood(Objective):
        ...     def forward(self, model, batch):
        ...         output = model.net.teach(model.net.encode(batch.source), batch.target)
        ...         total, nll = model.net.output.loss(output, batch.target, batch.source.copies, self.label_smoothing)
        ...         return Loss(total, nll, batch.target.total)
        >>> Likelihood(label_smoothing=0.1).label_smoothing
        0.1
    """

    needs_references: ClassVar[bool] = False
    step = 0

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing must be from 0 to below 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    @property
    def reads_on(self) -> bool:
        """Whether it can learn from running text, by what `EncoderDecoder.read_on` computes."""
        return False

    def begin(self, model: Seq2SeqModel, data: LightningDataModule | None) -> None:
        """Get ready for training; called in each run, when the model is on its device.

        Raises:
            UserError: the model or the data does not fit.
        """

    @abstractmethod
    def forward(self, model: Seq2SeqModel, batch: Batch) -> Loss:
        """Compute the loss of a batch with targets."""
