"""Second predictions of the target, made from the encoder alone and trained beside the decoder."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.types import Encoded, Padded


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

    def log_probs(self, encoded: Encoded, target: Padded) -> Tensor | None:
        """Compute the log-probability of each target, `(B,)`; `None` if it cannot tell."""
        return None

    def forced_align(self, memory: Padded, target: Padded) -> Tensor | None:
        """Find where targets are written, `(B, T)`; see `EncoderDecoder.forced_align`; `None` if it cannot tell."""
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
        return self._loss(memory, target, reduction="sum", zero_infinity=True)

    def log_probs(self, encoded: Encoded, target: Padded) -> Tensor:
        """Compute the log-probability of each target; see `Auxiliary.log_probs`."""
        return -self._loss(encoded.memory, target, reduction="none")

    def _loss(self, memory: Padded, target: Padded, **options: Any) -> Tensor:
        frames = self.frames(memory).values.transpose(0, 1)  # (S, B, V)
        return F.ctc_loss(frames, target.values, memory.lengths, target.lengths - 1, blank=self.blank, **options)

    @torch.no_grad()
    def forced_align(self, memory: Padded, target: Padded) -> Tensor:
        """Find the first position of each symbol on the most probable path; see `EncoderDecoder.forced_align`.

        A target that has no path is at -1.
        """
        frames, labels = self.frames(memory).values.double(), target.values  # (B, S, V), (B, T)
        states = torch.full((len(labels), 2 * labels.shape[1] + 1), self.blank, device=labels.device)
        states[:, 1::2] = labels  # (B, 2T + 1)
        jumps = (states[:, 2:] != self.blank) & (states[:, 2:] != states[:, :-2])  # over a blank
        best = torch.full_like(states, -torch.inf, dtype=frames.dtype)
        best[:, 0] = 0  # before the first position, from where a step leads to the first two states
        steps = []
        for written, there in zip(frames.unbind(1), memory.mask.unbind(1), strict=True):
            over = F.pad(best[:, :-2].masked_fill(~jumps, -torch.inf), (2, 0), value=-torch.inf)
            ways = torch.stack([best, F.pad(best[:, :-1], (1, 0), value=-torch.inf), over])  # (3, B, 2T + 1)
            value, step = ways.max(dim=0)
            best = torch.where(there[:, None], value + written.gather(1, states), best)
            steps.append(step * there[:, None])
        ends = 2 * (target.lengths[:, None] - 1) - torch.arange(2, device=labels.device)  # the two last states
        scores = best.gather(1, ends.clamp(min=0)).masked_fill(ends < 0, -torch.inf)  # (B, 2)
        score, which = scores.max(dim=1)
        state, path = ends.gather(1, which[:, None])[:, 0], []
        for step in reversed(steps):
            path.append(state)
            state = state - step.gather(1, state[:, None])[:, 0]
        own = 2 * torch.arange(labels.shape[1], device=labels.device) + 1  # the state of each symbol
        first = (torch.stack(path[::-1], dim=1)[..., None] == own).int().argmax(dim=1)  # (B, T)
        first = torch.where(own < 2 * target.lengths[:, None] - 1, first, memory.lengths[:, None] - 1)
        return first.masked_fill((score == -torch.inf)[:, None], -1)
