"""Second predictions of the target, made from the encoder alone and trained beside the decoder."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.types import Padded


class Auxiliary(nn.Module, ABC):
    """Base of what predicts the target from the encoder's memory and shares in the loss by its `weight`.

    The loss to minimise is `(1 - weight) decoder + weight auxiliary`.

    Args:
        weight: share of its loss, above 0 and at most 1.

    Raises:
        ValueError: the weight is out of its range.

    Example:
        >>> class Length(Auxiliary):
        ...     def __init__(self, encoder, vocab_size, blank, weight=0.1):
        ...         super().__init__(weight)
        ...         self.dense = Linear(encoder.memory_size, 1)
        ...     def loss(self, memory, target):
        ...         return (self.dense(memory.values).sum(dim=(1, 2)) - target.lengths).square().sum()
        >>> length = Length(EncoderShape(4, 1, 4), vocab_size=6, blank=0)
        >>> memory = Padded(torch.zeros(1, 2, 4), torch.tensor([2]))
        >>> length.loss(memory, Padded(torch.tensor([[5, 3]]), torch.tensor([2]))).shape
        torch.Size([])
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 < weight <= 1:
            raise ValueError(f"weight of {type(self).__name__} must be above 0 and at most 1, got {weight}")
        self.weight = weight

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """Parameters with a row for each target symbol, which stay when a vocabulary grows."""
        return []

    @abstractmethod
    def loss(self, memory: Padded, target: Padded) -> Tensor:
        """Compute its own loss.

        Args:
            memory: `(B, S, M)` what the encoder returns.
            target: `(B, T)` ids of the vocabulary, ending with EOS.

        Returns:
            A scalar, summed over targets as the decoder's loss is.
        """

    def frames(self, memory: Padded) -> Padded | None:
        """Compute log-probabilities by which search can judge outputs, `(B, S, V)`; `None` where there are none."""
        return None


class CTC(Auxiliary):
    """Connectionist temporal classification (Graves et al. 2006): a symbol or a blank at each encoder position.

    `-log p(y | x) = -log sum_z prod_s p(z_s | x)` over all sequences z that give y when repetitions are joined and
    blanks dropped. It holds the alignment to left-to-right order, which attention must otherwise learn, and joins the
    attention's loss (Kim et al. 2017, https://arxiv.org/abs/1609.06773, equation 4) and, by the option `ctc_weight`,
    its search.

    The blank is the padding symbol. EOS is no part of y: it follows from the last position. A target that needs more
    positions than the memory has, one for each symbol and one between equal neighbours, has no alignment: it is left
    out of this loss, with a warning.

    Args:
        encoder: sizes of the encoder's result.
        vocab_size: number of target symbols.
        blank: id of the blank.
        weight: share of the loss, above 0 and at most 1; the lambda of the paper, which tries 0.2, 0.5 and 0.8.

    Raises:
        ValueError: the weight is out of its range.
    """

    def __init__(self, encoder: EncoderShape, vocab_size: int, blank: int, weight: float = 0.3) -> None:
        super().__init__(weight)
        self.blank = blank
        self.dense = Linear(encoder.memory_size, vocab_size)

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """The weights and the biases."""
        return [self.dense.weight, self.dense.bias]

    def frames(self, memory: Padded) -> Padded:
        """Compute log-probabilities of symbols and the blank at each position, `(B, S, V)`."""
        return Padded(torch.log_softmax(wide(self.dense(memory.values)), dim=-1), memory.lengths)

    def loss(self, memory: Padded, target: Padded) -> Tensor:
        """Compute the negative log-likelihood of the targets without their EOS; see `Auxiliary.loss`."""
        lengths = target.lengths - 1  # (B,)
        repeated = (target.values[:, 1:] == target.values[:, :-1]) & target.mask[:, 1:]  # (B, T - 1)
        if (lengths + repeated.sum(dim=1) > memory.lengths).any():
            warnings.warn(
                "CTC leaves out targets that need more positions than the encoder has: join fewer neighbours (factors "
                "of the encoder, stack of the feature), or make targets shorter with another tokenizer",
                stacklevel=2,
            )
        return F.ctc_loss(
            self.frames(memory).values.transpose(0, 1),  # (S, B, V)
            target.values,
            memory.lengths,
            lengths,
            blank=self.blank,
            reduction="sum",
            zero_infinity=True,
        )
