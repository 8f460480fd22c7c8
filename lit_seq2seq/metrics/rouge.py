"""Overlap with reference summaries: ROUGE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.types import UserError, install

_UNIT = 1 << 40  # F-scores are counted in units of 2 ** -40


class _ROUGE(TextMetric):
    """Mean F-score of segments, by the package rouge-score.

    Each F-score is rounded once to a multiple of 2^-40 and the integers are summed, so that the mean does not depend on
    batches or processes; 2^23 segments fit. With several references the best one counts. Words are the runs of a-z and
    0-9 after lowercasing: other scripts vanish.

    Args:
        stem: compare words without their endings (Porter's stemmer), as most papers do.

    Raises:
        UserError: rouge-score is not installed.
    """

    higher_is_better = True
    splits_at_spaces = True
    perfect = 100.0
    kind: ClassVar[str]

    def __init__(self, stem: bool = True) -> None:
        super().__init__(2)
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise UserError(f"ROUGE needs rouge-score, which is not installed: {install('summarization')}") from error
        self.stem = stem
        self.scorer = RougeScorer([self.kind], tokenizer=_Words(stem))

    def signature(self) -> str:
        """Return the settings, with the version of rouge-score."""
        stem = "yes" if self.stem else "no"
        return f"{self.kind}|mean:segments|refs:best|score:f1|stem:{stem}|rouge-score:{version('rouge-score')}"

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        best = self.scorer.score_multi(list(references), hypothesis)[self.kind].fmeasure
        return [round(best * _UNIT), 1]

    def _score(self, counts: list[int]) -> float:
        total, segments = counts
        return 100 * total / _UNIT / segments if segments else 0.0


class _Words(NamedTuple):
    """rouge-score's tokenizer, remembering texts: all kinds of ROUGE look at the same ones."""

    stem: bool

    def tokenize(self, text: str) -> list[str]:
        """Split into lowercased words, stemmed if so wished."""
        return _words(text, self.stem)


@lru_cache(maxsize=8192)
def _words(text: str, stem: bool) -> list[str]:
    words: list[str] = _tokenizer(stem).tokenize(text)
    return words


@lru_cache
def _tokenizer(stem: bool) -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(stem)


class ROUGE1(_ROUGE):
    """ROUGE-1: mean over segments of `2 P R / (P + R)` with P and R the shares of single words that match.

    Lin (2004, https://aclanthology.org/W04-1013), as the package rouge-score computes it; see there for stemming. With
    several references the best one counts. Needs `pip install -e ".[summarization]"`, and no download.

    Example:
        >>> rouge = ROUGE1()
        >>> rouge.update(["the dogs bark"], [["a dog barked", "birds sing"]])
        >>> round(rouge.compute().item(), 2)
        66.67
    """

    name = kind = "rouge1"


class ROUGE2(_ROUGE):
    """ROUGE-2: as `ROUGE1`, of pairs of neighbouring words."""

    name = kind = "rouge2"


class ROUGEL(_ROUGE):
    """ROUGE-L: as `ROUGE1`, of the longest common subsequence of words."""

    name = kind = "rougeL"


class ROUGELsum(_ROUGE):
    r"""ROUGE-Lsum: as `ROUGEL`, by sentence, a sentence being a line; without line breaks it equals ROUGE-L.

    Example:
        >>> rouge = ROUGELsum()
        >>> rouge.update(["dogs bark\nat night"], [["at night\na dog barks"]])
        >>> round(rouge.compute().item(), 2)
        88.89
    """

    name = kind = "rougeLsum"
    keeps_lines = True
