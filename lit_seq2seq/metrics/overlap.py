"""Overlap of n-grams: BLEU and chrF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import sacrebleu
import torch
from sacrebleu.metrics.base import Metric as SacreBLEUMetric
from torch import Tensor

from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.types import UserError

Tokenization = Literal["13a", "none", "char", "intl", "zh", "ja-mecab", "ko-mecab"]
Smoothing = Literal["exp", "floor", "add-k", "none"]


class _SacreBLEU(TextMetric):
    """A metric whose counts and score are sacreBLEU's."""

    higher_is_better = True
    fewest_references: Tensor
    most_references: Tensor

    def __init__(self, scorer: SacreBLEUMetric, size: int) -> None:
        super().__init__(size)
        self.scorer = scorer
        limit = torch.iinfo(torch.int64).max
        self.add_state("fewest_references", torch.tensor(limit), dist_reduce_fx="min")
        self.add_state("most_references", torch.tensor(0), dist_reduce_fx="max")

    def update(
        self,
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]],
        sources: Sequence[str] | None = None,
    ) -> None:
        """Add segments to the corpus; see `TextMetric.update`."""
        super().update(hypotheses, references, sources)
        if references:
            numbers = [len(row) for row in references]
            self.fewest_references = self.fewest_references.clamp(max=min(numbers))
            self.most_references = self.most_references.clamp(min=max(numbers))

    def signature(self) -> str:
        """Return sacreBLEU's signature, with the number of references seen so far."""
        fewest, most = int(self.fewest_references), int(self.most_references)
        vars(self.scorer)["num_refs"] = "?" if most == 0 else most if most == fewest else -1
        title = self.scorer._compute_score_from_stats(self.counts.tolist()).name
        return f"{title}|{self.scorer.get_signature()}"

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        (counts,) = self.scorer._extract_corpus_statistics([hypothesis], [[text] for text in references])
        return list(counts)

    def _score(self, counts: list[int]) -> float:
        return float(self.scorer._compute_score_from_stats(counts).score)


class BLEU(_SacreBLEU):
    """BLEU = min(1, exp(1 - r / c)) * exp(sum_n log p_n / 4), n = 1..4, as sacreBLEU computes it.

    `p_n` is the clipped n-gram precision, `c` the total length of the outputs and `r` that of the references nearest
    in length (Papineni et al., 2002, https://aclanthology.org/P02-1040; Post, 2018, https://aclanthology.org/W18-6319).

    Args:
        lowercase: compare without case.
        tokenize: how sacreBLEU splits text into words; "13a" is the standard of WMT, "none" splits at spaces,
            "char" at characters; "ja-mecab" and "ko-mecab" need sacreBLEU's extra packages.
        smooth_method: what stands in for an n-gram order without a match.

    Raises:
        UserError: if the tokenizer's package is not installed.

    Example:
        >>> from lit_seq2seq.metrics import BLEU
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
        self, lowercase: bool = False, tokenize: Tokenization = "13a", smooth_method: Smoothing = "exp"
    ) -> None:
        try:
            scorer = sacrebleu.BLEU(
                lowercase, tokenize=tokenize, smooth_method=smooth_method, max_ngram_order=self.order
            )
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"BLEU(tokenize={tokenize!r}) needs a package that is not installed: "
                f'pip install "sacrebleu[{tokenize[:2]}]" or choose tokenize: char'
            ) from error
        super().__init__(scorer, 2 + 2 * self.order)

    def signature(self) -> str:
        """Return sacreBLEU's signature with the number of references seen so far; it names the order if not 4."""
        order = "" if self.order == 4 else f"order:{self.order}|"
        return f"{order}{super().signature()}"


class BLEU1(BLEU):
    """BLEU of single words, n = 1 only; see `BLEU`.

    Args:
        lowercase: see `BLEU`.
        tokenize: see `BLEU`.
        smooth_method: see `BLEU`.

    Example:
        >>> from lit_seq2seq.metrics import BLEU1
        >>> bleu = BLEU1()
        >>> bleu.update(["a man sleeps"], [["a man reads", "the man"]])
        >>> round(bleu.compute().item(), 1)
        66.7
    """

    name = "bleu1"
    order = 1


class BLEU2(BLEU):
    """BLEU of n-grams, n = 1 and 2; see `BLEU`.

    Args:
        lowercase: see `BLEU`.
        tokenize: see `BLEU`.
        smooth_method: see `BLEU`.

    Example:
        >>> bleu = BLEU2()
        >>> bleu.update(["a man sleeps now"], [["a man sleeps here"]])
        >>> round(bleu.compute().item(), 1)
        70.7
    """

    name = "bleu2"
    order = 2


class BLEU3(BLEU):
    """BLEU of n-grams, n = 1 to 3; see `BLEU`.

    Args:
        lowercase: see `BLEU`.
        tokenize: see `BLEU`.
        smooth_method: see `BLEU`.

    Example:
        >>> bleu = BLEU3()
        >>> bleu.update(["a man sleeps now"], [["a man sleeps here"]])
        >>> round(bleu.compute().item(), 1)
        63.0
    """

    name = "bleu3"
    order = 3


class ChrF(_SacreBLEU):
    """F-score of character n-grams, (1 + 4) P R / (4 P + R) with P and R averaged over n = 1..6, by sacreBLEU.

    chrF2 of Popović (2015, https://aclanthology.org/W15-3049); `word_order=2` gives chrF++ (Popović, 2017).

    Args:
        word_order: longest word n-gram that is counted beside the characters; 0 for chrF, 2 for chrF++.
        lowercase: compare without case.

    Example:
        >>> from lit_seq2seq.metrics import ChrF
        >>> chrf = ChrF()
        >>> chrf.update(["a man sleeps"], [["a man sleeps", "a man is asleep"]])
        >>> chrf.compute()
        tensor(100.)
    """

    name = "chrf"

    def __init__(self, word_order: int = 0, lowercase: bool = False) -> None:
        scorer = sacrebleu.CHRF(word_order=word_order, lowercase=lowercase)
        super().__init__(scorer, 3 * scorer.order)
