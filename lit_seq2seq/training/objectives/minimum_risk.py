"""Minimum risk training."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.metrics import BLEU
from lit_seq2seq.search.options import Range, counts, expect
from lit_seq2seq.training.objectives.rewards import MetricFactory, Outputs, Rewarded
from lit_seq2seq.types import Batch, Encoded, Hypothesis


class MinimumRisk(Rewarded):
    """Expected risk of the model's outputs: `sum_y q(y) (1 - reward(y))` over candidates, with `q` from `p(y|x)^a`.

    Shen et al. (2016, https://aclanthology.org/P16-1159, equations 9 to 12). The candidates of a source are different
    outputs of the present model, drawn at random or the best of a beam, and the target; `q` are their probabilities to
    the power of `a`, the sharpness, made to sum to one. Train with cross-entropy first, and go on with this from there.

    Args:
        number: outputs that are drawn, or beams, for each source.
        beam: take the best of a beam instead of drawing outputs.
        sharpness: exponent a > 0; with small ones all candidates count alike, and the gradient is as much smaller.
        include_target: whether the target is a candidate.

    Raises:
        UserError: a number is out of its range, or the metric does not say whether more is better.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        metric: MetricFactory = BLEU,
        cross_entropy: float = 0.3,
        *,
        number: int = 8,
        beam: bool = False,
        sharpness: float = 1.0,
        include_target: bool = True,
    ) -> None:
        super().__init__(label_smoothing, metric, cross_entropy)
        self.number, self.sharpness, self.include_target = number, sharpness, include_target
        expect(self, "number", counts(1))
        expect(self, "sharpness", Range(above=0))
        self.options = {"num_beams": number if beam else 1, "do_sample": not beam, "num_return_sequences": number}

    def risk(self, model: Seq2SeqModel, batch: Batch, encoded: Encoded) -> Tensor:
        """Compute the expected risk for each source, `(B,)`."""
        found = self.search(model, batch, **self.options)
        if self.include_target:
            found = [[*own, target] for own, target in zip(found, self.targets(model, batch), strict=True)]
        outputs = self.judge(model, batch, [_distinct(own) for own in found])
        return expected_risk(self.sharpness * outputs.log_probs(model.net, encoded), outputs, len(batch))


def expected_risk(scores: Tensor, outputs: Outputs, sources: int) -> Tensor:
    """Compute `sum_y q(y) (1 - reward(y))` for each source `(B,)`, with `q` from the logarithms `(N,)`."""
    same = outputs.rows == torch.arange(sources, device=outputs.rows.device)[:, None]  # (B, N)
    q = scores.masked_fill(~same, -torch.inf).softmax(dim=1)
    return q @ (1 - outputs.rewards).to(q.dtype)


def _distinct(found: list[Hypothesis]) -> list[Hypothesis]:
    """Leave out what is there already."""
    kept = {(*one.tokens.tolist(), len(one.token_scores)): one for one in reversed(found)}
    return list(reversed(kept.values()))
