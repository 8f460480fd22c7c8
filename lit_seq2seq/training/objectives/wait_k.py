"""Cross-entropy of a decoder that writes while the source is still being read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule

from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.nn import DecoderOutput, EncoderDecoder
from lit_seq2seq.search import policies
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.types import Encoded, Padded, UserError


class WaitK(CrossEntropy):
    """Cross-entropy of a decoder that sees only what has been read by wait-k, `-sum_t log p(y_t | y_<t, x_<=g(t))`.

    Prefix-to-prefix training of Ma et al. (2019, equation 4), where g(t) is what the policy `lit_seq2seq.search.WaitK`
    reads before token t. With a range of k one is drawn for each batch, so that one model serves for all of them
    (multi-path training, Elbayad et al. 2020, https://arxiv.org/abs/2005.08595).

    Args:
        k: how many positions of the source are read before the first token, or the least and the greatest of a range.
        catchup: as of the policy.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(self, label_smoothing: float = 0.0, *, k: int | Sequence[int], catchup: float = 0.0) -> None:
        super().__init__(label_smoothing)
        ends = [k, k] if isinstance(k, int) else list(k)
        self.policies = [policies.WaitK(end, catchup) for end in ends]
        if len(ends) != 2 or ends[0] > ends[1]:
            raise UserError(f"WaitK: k={k!r:.60}: must be an integer, or the least and the greatest of a range: [1, 9]")

    def begin(self, model: Seq2SeqModel, data: LightningDataModule | None) -> None:
        """Check that the network can write before its source has ended."""
        model.net.expect_early("the objective WaitK")

    def read(self, network: EncoderDecoder, encoded: Encoded, target: Padded) -> DecoderOutput:
        """Run the decoder over a target, each step seeing only what has been read."""
        least, greatest = (policy.k for policy in self.policies)
        k = int(torch.randint(least, greatest + 1, ()))
        times = torch.arange(target.values.shape[1], device=target.values.device)  # (T,)
        return network.teach(encoded, target, reach=self.policies[0].reach(times) + k - least)
