"""What every metric is: exact sums over segments, added over batches and processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_seq2seq.search.reranker import Utility
from lit_seq2seq.types import UserError


class TextMetric(Metric, Utility):
    """Score of a corpus of outputs against one or more references each, a percentage computed from summed counts.

    A subclass says how one segment is counted and how the summed counts become a score. Counts are 64-bit integers
    that are added over segments, batches and processes, so that batching never changes the score.

    Attributes:
        name: key under which the score is logged.
        needs_sources: whether a segment is compared with its source, too, given to `update` as a text.
        splits_at_spaces: whether words are what stands between spaces, which not all scripts have.
        keeps_lines: whether line breaks make a difference.
        needs_corpus: whether `each` needs to `learn` from the references of a corpus.
        perfect: the score of right outputs, where it is the same for all texts that the metric fits; else 0.
        counts: `(C,)` integers, the sums so far.
    """

    name: ClassVar[str]
    needs_sources: ClassVar[bool] = False
    splits_at_spaces: bool = False
    keeps_lines: ClassVar[bool] = False
    needs_corpus: ClassVar[bool] = False
    perfect: ClassVar[float] = 0.0
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]],
        sources: Sequence[str] | None = None,
    ) -> None:
        """Add segments to the corpus.

        Args:
            hypotheses: one output per segment; may be empty strings.
            references: per segment one or more references; their number may differ between segments.
            sources: one source per segment, for a metric with `needs_sources`; others do not look at them.

        Raises:
            UserError: if they differ in length, a segment has no reference, or needed sources are absent.
        """
        if len(hypotheses) != len(references):
            raise UserError(
                f"{type(self).__name__} expects references for each of {len(hypotheses)} hypotheses, "
                f"but got {len(references)}: give one list of references per hypothesis"
            )
        for position, row in enumerate(references):
            if isinstance(row, str) or not row:
                raise UserError(
                    f"{type(self).__name__} expects a list of one or more references per hypothesis, "
                    f"but item {position} is {row!r}: wrap a single reference in a list, drop rows without any"
                )
        given = None if sources is None else len(sources)
        if self.needs_sources and given != len(hypotheses):
            raise UserError(
                f"{type(self).__name__} expects a source for each of {len(hypotheses)} hypotheses, "
                f"but got {given or 'none'}: give them as sources"
            )
        if hypotheses:
            rows = self._count_all(hypotheses, references, sources or ())
            # not in place: under ddp_spawn on a CPU the processes share the memory of the first state
            self.counts = self.counts + torch.tensor(rows, device=self.counts.device).sum(dim=0)  # (C,)
            self._note(hypotheses, references)

    def _note(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Keep what the score needs beside counts, if anything."""

    def _count_all(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]
    ) -> list[list[int]]:
        """Return the C counts of each segment; a metric that needs the sources overrides this."""
        return [self._count(hypothesis, row) for hypothesis, row in zip(hypotheses, references, strict=True)]

    def each(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] = ()
    ) -> list[float]:
        """Return the score in percent of each segment by itself; none is added to the corpus.

        Raises:
            UserError: the metric has no score of a single segment.
        """
        return [self._single(counts) for counts in self._count_all(hypotheses, references, sources)]

    def learn(self, references: Iterable[Sequence[str]]) -> None:
        """Note what `each` needs to know of the references of a corpus."""

    def _single(self, counts: list[int]) -> float:
        """Return the score in percent of one segment."""
        return self._score(counts)

    def compute(self) -> Tensor:
        """Return the score of the corpus in percent, a scalar; 0 when there are no segments."""
        return torch.tensor(self._score(self.counts.tolist()), dtype=torch.float32, device=self.counts.device)

    @abstractmethod
    def signature(self) -> str:
        """Return the settings that a reader needs to reproduce the score, in sacreBLEU's notation."""

    @abstractmethod
    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        """Return the C counts of one segment."""

    @abstractmethod
    def _score(self, counts: list[int]) -> float:
        """Return the score in percent from the C summed counts."""


class TokenAverage(Metric):
    """Mean over all tokens of a quantity that comes as sums over batches, such as the negative log-likelihood.

    Perplexity is the exponential of the mean negative log-likelihood. The sum is compensated (Neumaier, 1974), so
    that single precision holds over millions of tokens, on every device.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False
    total: Tensor
    error: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("error", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, value: Tensor, tokens: Tensor | int) -> None:
        """Add a batch.

        Args:
            value: scalar, the sum of the quantity over the tokens of the batch.
            tokens: scalar, the number of tokens summed over.
        """
        value = value.detach().float()
        total = self.total + value
        larger = self.total.abs() >= value.abs()
        lost = torch.where(larger, (self.total - total) + value, (value - total) + self.total)
        self.error = self.error + lost
        self.total = total
        self.tokens = self.tokens + tokens

    def compute(self) -> Tensor:
        """Return the mean per token, a scalar; 0 when there are no tokens."""
        return (self.total + self.error) / self.tokens.clamp(min=1)


def case_of(lowercase: bool) -> str:
    """Name the treatment of case in sacreBLEU's notation."""
    return "lc" if lowercase else "mixed"
