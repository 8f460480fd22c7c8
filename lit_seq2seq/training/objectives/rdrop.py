"""R-Drop: two passes under dropout that have to agree."""

from __future__ import annotations

from torch import Tensor

from lit_seq2seq.nn import DecoderOutput, EncoderDecoder
from lit_seq2seq.search.options import Range, expect
from lit_seq2seq.training.objectives.base import Loss
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.types import Encoded, Padded, Source

LEAST = -1e4
"""Logarithm that stands for that of a probability of 0, so that differences are finite."""


class RDrop(CrossEntropy):
    """Cross-entropy of two passes with different dropout, and their divergence from each other.

    `1/2 sum_t (-log p(y_t) - log q(y_t) + alpha / 2 (KL(p_t, q_t) + KL(q_t, p_t)))`, where p and q are the
    distributions of the two passes: half of equation 4 of Liang et al. (2021, https://arxiv.org/abs/2106.14448). It
    takes twice the time of cross-entropy, and memory for the scores of all symbols at all places of the targets.

    Args:
        alpha: weight of the divergence, >= 0; the paper's is 5 for translation.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(self, label_smoothing: float = 0.0, alpha: float = 5.0) -> None:
        super().__init__(label_smoothing)
        self.alpha = alpha
        expect(self, "alpha", Range(0))

    def of(self, network: EncoderDecoder, source: Source, target: Padded) -> Loss:
        """Compute the loss of targets that end with EOS."""
        loss = super().of(network, source.repeat(2), target.repeat(2))
        return Loss(loss.total / 2, loss.nll / 2, target.total)

    def join(self, network: EncoderDecoder, encoded: Encoded, output: DecoderOutput, target: Padded) -> Loss:
        """Add up the terms of the loss."""
        loss = super().join(network, encoded, output, target)
        log_probs = network.output.log_probs(output, encoded.copies).clamp(min=LEAST)  # (2B, T, V)
        apart = divergence(log_probs[::2], log_probs[1::2]) + divergence(log_probs[1::2], log_probs[::2])  # (B, T)
        return loss._replace(total=loss.total + self.alpha / 2 * (apart * target.mask[::2]).sum())


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Compute `KL(p, q) = sum_v p_v (log p_v - log q_v)` from finite log-probabilities `(..., V)`."""
    return (first.exp() * (first - second)).sum(dim=-1)
