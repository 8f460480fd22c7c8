"""Right or wrong, and how wrong: exact match, word and character error rates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from lit_seq2seq.metrics.base import TextMetric, case_of
from lit_seq2seq.settings.arguments import checked


class Comparison(TextMetric):
    """What compares outputs with references, with or without regard to case."""

    @checked
    def __init__(self, lowercase: bool = False) -> None:
        super().__init__(2)
        self.lowercase = lowercase

    def signature(self) -> str:
        """Return the metric's name and its treatment of case."""
        return f"{type(self).__name__}|case:{case_of(self.lowercase)}"


class ExactMatch(Comparison):
    """Percentage of outputs that equal one of their references, character by character.

    Args:
        lowercase: compare without case.
    """

    name = "exact_match"
    higher_is_better = True

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        if self.lowercase:
            hypothesis, references = hypothesis.lower(), [text.lower() for text in references]
        return [int(hypothesis in references), 1]

    def _score(self, counts: list[int]) -> float:
        correct, segments = counts
        return 100.0 * correct / max(segments, 1)


class SequenceErrorRate(ExactMatch):
    """Percentage of outputs that equal none of their references: 100 minus `ExactMatch`.

    Work on grapheme-to-phoneme conversion calls this the word error rate, since its outputs are words (Gorman et al.,
    2020, https://aclanthology.org/2020.sigmorphon-1.2, section 5); speech recognition calls it the sentence error rate.
    """

    name = "sequence_error_rate"
    higher_is_better = False

    def _score(self, counts: list[int]) -> float:
        correct, segments = counts
        return 100.0 * (segments - correct) / max(segments, 1)


class _ErrorRate(Comparison):
    """Edits per unit of reference text, in percent.

    Args:
        lowercase: compare without case.
    """

    higher_is_better = False

    @abstractmethod
    def _split(self, text: str) -> Sequence[str]:
        """Return the units that are compared."""

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        found, *expected = (self._split(t.lower() if self.lowercase else t) for t in (hypothesis, *references))
        counts = [[edit_distance(found, units), len(units)] for units in expected]
        return min(counts, key=lambda pair: pair[0] / max(pair[1], 1))

    def _score(self, counts: list[int]) -> float:
        edits, length = counts
        return 100.0 * edits / max(length, 1)


class WER(_ErrorRate):
    """Word error rate: insertions, deletions and substitutions of words per reference word, in percent.

    Words are what stands between white space. Of several references the one with the lowest rate counts.

    Example:
        >>> wer = WER()
        >>> wer.update(["the cat sat"], [["the cat sat down"]])
        >>> wer.compute()
        tensor(25.)
    """

    name = "wer"
    splits_at_spaces = True

    def _split(self, text: str) -> Sequence[str]:
        return text.split()


class PER(WER):
    """Phone error rate: insertions, deletions and substitutions of phones per reference phone, in percent.

    Phones are what stands between white space, as in `"ʃ j ɛ̃"`: the same count as `WER`, under the name that work on
    pronunciation gives it.
    """

    name = "per"


class CER(_ErrorRate):
    """Character error rate: insertions, deletions and substitutions per reference character, in percent.

    Characters are Unicode code points, spaces included. Of several references the one with the lowest rate counts.
    """

    name = "cer"

    def _split(self, text: str) -> Sequence[str]:
        return text


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn `first` into `second` (Levenshtein, 1966)."""
    index: dict[str, int] = {}
    target = np.array([index.setdefault(unit, len(index)) for unit in second], dtype=np.int64)  # (T,)
    columns = np.arange(len(target) + 1)
    row = columns
    for position, unit in enumerate(first, start=1):
        substituted = row[:-1] + (target != index.get(unit, -1))  # (T,)
        reached = np.concatenate(([position], np.minimum(substituted, row[1:] + 1)))  # (T + 1,)
        row = np.minimum.accumulate(reached - columns) + columns  # insertions run from left to right
    return int(row[-1])
