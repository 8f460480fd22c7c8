"""`Scores`: everything that one pass over an evaluation split measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from lit_seq2seq.metrics.base import TextMetric, TokenAverage
from lit_seq2seq.types import Batch


class Scores(nn.Module):
    """Loss, perplexity and corpus metrics of a split, from sums over its batches on all processes.

    Args:
        metrics: of texts.

    Example:
        >>> import torch
        >>> from lit_seq2seq.metrics import ExactMatch, Scores
        >>> from lit_seq2seq.types import Batch, Padded
        >>> ids = Padded(torch.tensor([[1]]), torch.tensor([1]))
        >>> batch = Batch(ids, ids, rows=torch.tensor([0]), references=(("a",),), texts=("A",))
        >>> scores = Scores([ExactMatch()])
        >>> scores.update(torch.tensor(3.0), torch.tensor(2), ["a"], batch)
        >>> {name: round(score.item(), 2) for name, score in scores.compute().items()}
        {'loss': 1.5, 'ppl': 4.48, 'exact_match': 100.0}
    """

    def __init__(self, metrics: Iterable[TextMetric] = ()) -> None:
        super().__init__()
        self.nll = TokenAverage()
        self.metrics = nn.ModuleList(metrics)
        self.signatures: dict[str, str] = {}

    def update(self, nll: Tensor, tokens: Tensor | int, hypotheses: Sequence[str], batch: Batch) -> None:
        """Add a batch.

        Args:
            nll: scalar, the negative log-likelihood of its targets, summed over their tokens.
            tokens: scalar, the number of these.
            hypotheses: one output per example.
            batch: with the references and, where a metric needs them, the texts of the sources.
        """
        self.nll.update(nll, tokens)
        for metric in self.metrics:
            cast(TextMetric, metric).update(hypotheses, batch.references, batch.texts)

    def compute(self) -> dict[str, Tensor]:
        """Return each score by its name, and remember the signatures of the metrics; collective over processes."""
        nll = self.nll.compute()
        scores = {"loss": nll, "ppl": nll.exp()}
        for module in self.metrics:
            metric = cast(TextMetric, module)
            scores[metric.name] = metric.compute()
            self.signatures[metric.name] = metric.signature()
        return scores

    def reset(self) -> None:
        """Forget all batches."""
        self.nll.reset()
        for metric in self.metrics:
            cast(TextMetric, metric).reset()
