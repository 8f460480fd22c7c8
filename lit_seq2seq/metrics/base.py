"""The base of all metrics: exact sums over segments, batches and processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from lit_seq2seq.search.reranker import Utility
from lit_seq2seq.types import UserError

if TYPE_CHECKING or find_spec("lit_seq2seq.metrics.sums"):
    from torch import Tensor

    from lit_seq2seq.metrics.sums import Sums
else:

    class Sums:
        """Stands in beside an exported model, which scores outputs one by one and sums up nothing."""

        def keep(self, name: str, start: object, how: str) -> None:
            """Keep nothing."""


class TextMetric(Sums, Utility):
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
    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.keep("counts", [0] * size, "sum")

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
            self.counts = self.counts + self.counts.new_tensor(rows).sum(dim=0)  # (C,)
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
        """Learn what `each` needs from the references of a corpus."""

    def _single(self, counts: list[int]) -> float:
        """Return the score in percent of one segment."""
        return self._score(counts)

    def compute(self) -> Tensor:
        """Return the score of the corpus in percent, a scalar; 0 when there are no segments."""
        return self.counts.float().new_tensor(self._score(self.counts.tolist()))

    @abstractmethod
    def signature(self) -> str:
        """Return the settings that a reader needs to reproduce the score, in sacreBLEU's notation."""

    @abstractmethod
    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        """Return the C counts of one segment."""

    @abstractmethod
    def _score(self, counts: list[int]) -> float:
        """Return the score in percent from the C summed counts."""


def case_of(lowercase: bool) -> str:
    """Name the treatment of case in sacreBLEU's notation."""
    return "lc" if lowercase else "mixed"
