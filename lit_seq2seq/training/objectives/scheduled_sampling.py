"""Scheduled sampling in two passes."""

from __future__ import annotations

import torch

from lit_seq2seq.nn import DecoderOutput, EncoderDecoder
from lit_seq2seq.search.options import Range, counts, expect
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.types import Encoded, Padded


class ScheduledSampling(CrossEntropy):
    """Cross-entropy of a decoder that reads some of its own predictions in place of the true symbols.

    Bengio et al. (2015) in the two passes of Mihaylova and Martins (2019, https://aclanthology.org/P19-2049): the first
    reads the target and predicts the most probable symbol at each step, without gradient; in the second, which the loss
    is of, each symbol read is the true one with probability `rate` and else what the first pass has predicted there.
    That works for every decoder, at the cost of one more pass of it.

    Args:
        least: rate at the end, from 0 to 1.
        steps: optimizer steps over which the rate falls from 1 to `least`, by the same amount in each.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(self, label_smoothing: float = 0.0, least: float = 0.5, steps: int = 10_000) -> None:
        super().__init__(label_smoothing)
        self.least, self.steps = least, steps
        expect(self, "least", Range(0, 1))
        expect(self, "steps", counts(1))

    @property
    def rate(self) -> float:
        """Probability with which a true symbol is read in the present step."""
        return max(self.least, 1 - (1 - self.least) * self.step / self.steps)

    def read(self, network: EncoderDecoder, encoded: Encoded, target: Padded) -> DecoderOutput:
        """Run the decoder over a target, in part over what it predicts."""
        inputs = network.shift(target)  # (B, T)
        with torch.no_grad():
            scores = network.output.scores(network.teach(encoded, target), encoded.copies)  # (B, T, V)
        predicted = network.readable(scores.argmax(dim=-1)).roll(1, dims=1)  # (B, T)
        own = torch.rand(inputs.shape, device=inputs.device, dtype=torch.float32) >= self.rate
        own[:, 0] = False  # BOS
        return network.teach(encoded, target, inputs.where(~own, predicted))
