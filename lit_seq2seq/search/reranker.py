"""Rerankers, which reorder the outputs of a search by their texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lit_seq2seq.types import Hypothesis

if TYPE_CHECKING:
    from lit_seq2seq.search.config import GenerationConfig


class Reranker(ABC):
    """Adds a score for its text to that of each hypothesis of a source, and sorts them by the sum.

    Example:
        >>> import torch
        >>> class Shortest(Reranker):
        ...     def judge(self, text, source):
        ...         return -len(text)
        >>> found = [Hypothesis(torch.tensor([4]), -0.5, -0.5, torch.zeros(1), text=text) for text in ("long", "no")]
        >>> [(one.text, one.score) for one in Shortest()(found, "any source")]
        [('no', -2.5), ('long', -4.5)]
    """

    @property
    def passes(self) -> tuple[str, ...]:
        """Other parts of the model that have to rate outputs beforehand; see `Hypothesis.passes`."""
        return ()

    @abstractmethod
    def judge(self, text: str, source: Any) -> float:
        """Return what is added to the score of the hypothesis that says `text`, for a raw source."""

    def candidates(self, config: GenerationConfig) -> int:
        """Return how many outputs of a source it compares: the whole beam. With 1, there is nothing to rank."""
        return config.num_beams

    def order(self, hypotheses: Sequence[Hypothesis], source: Any, config: GenerationConfig) -> list[Hypothesis]:
        """Rank the hypotheses that a search with these options found for a raw source, best first."""
        return self(hypotheses, source)

    def __call__(self, hypotheses: Sequence[Hypothesis], source: Any) -> list[Hypothesis]:
        """Return the hypotheses of a source, best first; of equal ones the earlier stays before the later."""
        judged = [replace(one, score=one.score + self.judge(one.text, source)) for one in hypotheses]
        return sorted(judged, key=lambda one: -one.score)


class Utility(ABC):
    """Rates an output against a reference, as every `lit_seq2seq.metrics.TextMetric` does.

    Attributes:
        higher_is_better: whether more is better; `None` where it is neither.
        needs_corpus: whether it needs to learn from the references of a corpus.
        home: where those are that can be given by their plain names.
    """

    home: ClassVar[str] = "lit_seq2seq.metrics"
    higher_is_better: bool | None = None
    needs_corpus: ClassVar[bool] = False

    @abstractmethod
    def each(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] = ()
    ) -> list[float]:
        """Return the score in percent of each output by itself."""
