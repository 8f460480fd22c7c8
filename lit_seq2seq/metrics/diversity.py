"""How varied the outputs are: distinct n-grams."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, ClassVar

from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

_UNITS = re.compile(r"\w+|[^\w\s]")


class Distinct1(TextMetric):
    """Different words of all outputs, per word, in percent: distinct-1 of Li et al. (2016).

    See https://aclanthology.org/N16-1014. Words are runs of letters and digits, and other symbols one by one, without
    regard to case. The outputs of the corpus count together, so that the score falls with their number: compare it only
    between outputs for the same inputs. References are not looked at, but are measured alike when given as outputs.

    Example:
        >>> distinct = Distinct1()
        >>> distinct.update(["I am fine.", "I am not."], [["unused"], ["unused"]])
        >>> distinct.compute()
        tensor(62.5000)
    """

    name = "distinct1"
    splits_at_spaces = True
    order: ClassVar[int] = 1
    higher_is_better = True
    found: list[Tensor] | Tensor  # a tensor once the processes have joined theirs

    def __init__(self) -> None:
        super().__init__(1)
        self.keep("found", [], "cat")

    def _note(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        keys = {_key(gram) for hypothesis in hypotheses for gram in self._grams(hypothesis)}
        assert isinstance(self.found, list)
        self.found.append(self.counts.new_tensor(sorted(keys)))

    def each(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] = ()
    ) -> list[float]:
        """Refuse: outputs are compared with each other."""
        raise UserError(f"{type(self).__name__} is a score of many outputs, not of one: use another metric")

    def signature(self) -> str:
        """Return the order of the n-grams and how words are found."""
        return f"distinct|order:{self.order}|case:lc|words:unicode"

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        return [len(self._grams(hypothesis))]

    def _score(self, counts: list[int]) -> float:
        parts = self.found if isinstance(self.found, list) else [self.found]
        distinct = len({key for part in parts for key in part.tolist()})
        return 100.0 * distinct / max(counts[0], 1)

    def _grams(self, text: str) -> list[str]:
        words = _UNITS.findall(text.lower())
        return [" ".join(words[start : start + self.order]) for start in range(len(words) - self.order + 1)]


class Distinct2(Distinct1):
    """Different pairs of neighbouring words of all outputs, per pair, in percent; see `Distinct1`."""

    name = "distinct2"
    order = 2


def _key(gram: str) -> int:
    return int.from_bytes(blake2b(gram.encode(), digest_size=8).digest(), "big", signed=True)
