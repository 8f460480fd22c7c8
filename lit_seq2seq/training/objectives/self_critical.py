"""Self-critical sequence training."""

from __future__ import annotations

from torch import Tensor

from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.metrics import BLEU
from lit_seq2seq.nn import EncoderDecoder
from lit_seq2seq.search.options import counts, expect
from lit_seq2seq.training.objectives.rewards import MetricFactory, Outputs, Rewarded
from lit_seq2seq.types import Batch, Encoded


class SelfCritical(Rewarded):
    """REINFORCE with the model's own greedy output as the baseline: `-(r(sample) - r(greedy)) log p(sample | x)`.

    Rennie et al. (2017, https://arxiv.org/abs/1612.00563, equation 9): outputs that are drawn at random become more
    probable where the metric prefers them to the greedy output, and less probable where it does not. Train with
    cross-entropy first, and go on with this from there.

    Args:
        number: outputs that are drawn for each source, of whose losses the mean is taken.

    Raises:
        UserError: a number is out of its range, or the metric does not say whether more is better.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        metric: MetricFactory = BLEU,
        cross_entropy: float = 0.3,
        *,
        number: int = 1,
    ) -> None:
        super().__init__(label_smoothing, metric, cross_entropy)
        self.number = number
        expect(self, "number", counts(1))

    def risk(self, model: Seq2SeqModel, batch: Batch, encoded: Encoded) -> Tensor:
        """Compute the mean loss of the samples of each source, `(B,)`."""
        drawn = self.search(model, batch, do_sample=True, num_return_sequences=self.number)
        sampled, greedy = (self.judge(model, batch, found) for found in (drawn, self.search(model, batch)))
        losses = reinforce(model.net, encoded, sampled, greedy.rewards)
        return losses.new_zeros(len(batch)).index_add(0, sampled.rows, losses / self.number)


def reinforce(network: EncoderDecoder, encoded: Encoded, sampled: Outputs, baseline: Tensor) -> Tensor:
    """Compute `-(r(y) - b(x)) log p(y | x)` of each sample, `(N,)`.

    Args:
        network: in the mode to train it in.
        encoded: the sources.
        sampled: outputs for them.
        baseline: reward of the greedy output for each source, `(B,)`.
    """
    advantage = sampled.rewards - baseline[sampled.rows]
    return -advantage * sampled.log_probs(network, encoded)
