"""Agreement with many captions: CIDEr-D."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from lit_seq2seq.metrics.base import TextMetric, case_of

if TYPE_CHECKING:
    from torch import Tensor

_ORDER = 4
_SIGMA = 6.0
_WORD = re.compile(r"\w+(?:['’-]\w+)*")

Words = tuple[str, ...]


class _Vector(NamedTuple):
    """Weights of the n-grams of a text."""

    weights: tuple[dict[Words, float], ...]
    norms: tuple[float, ...]
    length: int


class CIDErD(TextMetric):
    """CIDEr-D: mean over n = 1..4 and over references of the clipped tf-idf cosine of n-grams, times 10, in percent.

    `10 exp(-(l_c - l_r)^2 / (2 * 6^2)) min(g(c), g(r)) . g(r) / (|g(c)| |g(r)|)` with
    `g_w = count(w) * log(N / df(w))`, where df(w) counts the segments, of N, of which some reference holds w (Vedantam
    et al. 2015, https://arxiv.org/abs/1411.5726, eq. 1 to 3 and section 6). Document frequencies are those of the
    references seen, so that the texts are kept until the score is computed. As in the authors' code, l counts word
    pairs. Percent: the 1.20 of a paper is 120 here. Words are runs of letters and digits; the COCO toolkit drops
    punctuation likewise, but splits clitics.

    Args:
        lowercase: compare without case.
        tokenize: split into `words` without punctuation, or at spaces only (`none`), for texts that are tokenised.

    Example:
        >>> cider = CIDErD()
        >>> cider.update(["a dog runs", "two men"], [["A dog runs."], ["two men sit", "men"]])
        >>> cider.compute()
        tensor(512.4964)
    """

    name = "cider"
    splits_at_spaces = True
    needs_corpus = True
    higher_is_better = True
    texts: list[Tensor] | Tensor

    def __init__(self, lowercase: bool = True, tokenize: Literal["words", "none"] = "words") -> None:
        super().__init__(1)
        self.lowercase, self.tokenize = lowercase, tokenize
        self.learned: _Frequency | None = None
        self.keep("texts", [], "cat")

    def _note(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        pairs = zip(hypotheses, references, strict=True)
        lines = "".join(json.dumps([hypothesis, *row]) + "\n" for hypothesis, row in pairs)
        # bytes of text as a tensor: what processes exchange
        assert isinstance(self.texts, list)
        self.texts.append(self.counts.byte().new_tensor(np.frombuffer(lines.encode(), np.uint8)))

    def each(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] = ()
    ) -> list[float]:
        """Return the score in percent of each segment, by the document frequencies of `learn`, or else of these."""
        rows = [[self._words(text) for text in (own, *row)] for own, row in zip(hypotheses, references, strict=True)]
        return cider_d(rows, self.learned)

    def learn(self, references: Iterable[Sequence[str]]) -> None:
        """Take the document frequencies for `each` from the references of a corpus."""
        self.learned = _Frequency.of([self._words(text) for text in row] for row in references)

    def signature(self) -> str:
        """Return the settings."""
        return f"CIDEr-D|case:{case_of(self.lowercase)}|tok:{self.tokenize}|df:references|n:{_ORDER}|sigma:{_SIGMA:g}"

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        return [1]

    def _score(self, counts: list[int]) -> float:
        parts = self.texts if isinstance(self.texts, list) else [self.texts]
        lines = b"".join(part.cpu().numpy().tobytes() for part in parts).decode().splitlines()
        scores = cider_d([[self._words(text) for text in json.loads(line)] for line in lines])
        return math.fsum(scores) / max(len(scores), 1)

    def _words(self, text: str) -> Words:
        text = text.lower() if self.lowercase else text
        return tuple(text.split() if self.tokenize == "none" else _WORD.findall(text))


class _Frequency(NamedTuple):
    """In how many of so many segments the references have an n-gram."""

    found: Mapping[Words, int]
    segments: int

    @classmethod
    def of(cls, rows: Iterable[Sequence[Words]]) -> _Frequency:
        found: Counter[Words] = Counter()
        segments = 0
        for references in rows:
            found.update({gram for words in references for grams in _grams(words) for gram in grams})
            segments += 1
        return cls(found, segments)


def cider_d(rows: Sequence[Sequence[Words]], frequency: _Frequency | None = None) -> list[float]:
    """Compute CIDEr-D in percent of each segment from the words of its output, then those of each reference."""
    frequency = frequency or _Frequency.of(references for _, *references in rows)
    scores = []
    for hypothesis, *references in rows:
        candidate = _weigh(hypothesis, *frequency)
        found = [_similarity(candidate, _weigh(words, *frequency)) for words in references]
        scores.append(1000 * math.fsum(found) / len(found))
    return scores


@lru_cache(maxsize=65536)
def _grams(words: Words) -> tuple[Counter[Words], ...]:
    return tuple(Counter(words[i : i + n] for i in range(len(words) - n + 1)) for n in range(1, _ORDER + 1))


def _weigh(words: Words, frequency: Mapping[Words, int], segments: int) -> _Vector:
    weights = tuple(
        {gram: count * (math.log(segments) - math.log(max(1, frequency.get(gram, 0)))) for gram, count in grams.items()}
        for grams in _grams(words)
    )
    norms = tuple(math.sqrt(math.fsum(weight**2 for weight in part.values())) for part in weights)
    return _Vector(weights, norms, sum(1 for _ in pairwise(words)))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    total = []
    for mine, theirs, *norms in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        shared = math.fsum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
        total.append(shared / (norms[0] * norms[1]) if norms[0] and norms[1] else 0.0)
    difference = candidate.length - reference.length
    return math.fsum(total) / _ORDER * math.exp(-(difference**2) / (2 * _SIGMA**2))
