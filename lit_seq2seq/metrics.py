"""Corpus-level scores of generated text, kept as exact sums that may be added over batches and processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import sacrebleu
import torch
from sacrebleu.metrics.base import Metric as SacreBLEUMetric
from torch import Tensor
from torchmetrics import Metric

from lit_seq2seq.types import UserError

Tokenization = Literal["13a", "none", "char", "intl", "zh", "ja-mecab", "ko-mecab"]
Smoothing = Literal["exp", "floor", "add-k", "none"]


class TextMetric(Metric, ABC):
    """Score of a corpus of outputs against one or more references each, a percentage computed from summed counts.

    A subclass says how one segment is counted and how the summed counts become a score. Counts are 64-bit integers
    that are added over segments, batches and processes, so that batching never changes the score.

    Attributes:
        name: key under which the score is logged.
        counts: `(C,)` integers, the sums so far.
    """

    name: ClassVar[str]
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add segments to the corpus.

        Args:
            hypotheses: one output per segment; may be empty strings.
            references: per segment one or more references; their number may differ between segments.

        Raises:
            UserError: if the two differ in length, or a segment has no reference.
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
        if hypotheses:
            rows = [self._count(hypothesis, row) for hypothesis, row in zip(hypotheses, references, strict=True)]
            # not in place: under ddp_spawn on a CPU the processes share the memory of the first state
            self.counts = self.counts + torch.tensor(rows, device=self.counts.device).sum(dim=0)  # (C,)

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

    def update(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add segments to the corpus; see `TextMetric.update`."""
        super().update(hypotheses, references)
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

    def __init__(
        self, lowercase: bool = False, tokenize: Tokenization = "13a", smooth_method: Smoothing = "exp"
    ) -> None:
        try:
            scorer = sacrebleu.BLEU(lowercase=lowercase, tokenize=tokenize, smooth_method=smooth_method)
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"BLEU(tokenize={tokenize!r}) needs a package that is not installed: "
                f'pip install "sacrebleu[{tokenize[:2]}]" or choose tokenize: char'
            ) from error
        super().__init__(scorer, 2 + 2 * scorer.max_ngram_order)


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


class ExactMatch(TextMetric):
    """Percentage of outputs that equal one of their references, character by character.

    Args:
        lowercase: compare without case.

    Example:
        >>> from lit_seq2seq.metrics import ExactMatch
        >>> match = ExactMatch()
        >>> match.update(["one", "two"], [["one"], ["three", "3"]])
        >>> match.compute()
        tensor(50.)
    """

    name = "exact_match"
    higher_is_better = True

    def __init__(self, lowercase: bool = False) -> None:
        super().__init__(2)
        self.lowercase = lowercase

    def signature(self) -> str:
        """Return the metric's name and its treatment of case."""
        return f"ExactMatch|case:{_case(self.lowercase)}"

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        if self.lowercase:
            hypothesis, references = hypothesis.lower(), [text.lower() for text in references]
        return [int(hypothesis in references), 1]

    def _score(self, counts: list[int]) -> float:
        correct, segments = counts
        return 100.0 * correct / max(segments, 1)


class _ErrorRate(TextMetric):
    """Edits per unit of reference text, in percent."""

    higher_is_better = False

    def __init__(self, lowercase: bool = False) -> None:
        super().__init__(2)
        self.lowercase = lowercase

    def signature(self) -> str:
        """Return the metric's name and its treatment of case."""
        return f"{type(self).__name__}|case:{_case(self.lowercase)}"

    @abstractmethod
    def _split(self, text: str) -> Sequence[str]:
        """Return the units that are compared."""

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        candidates = [self._count_one(hypothesis, reference) for reference in references]
        return min(candidates, key=lambda counts: counts[0] / max(counts[1], 1))

    def _count_one(self, hypothesis: str, reference: str) -> list[int]:
        if self.lowercase:
            hypothesis, reference = hypothesis.lower(), reference.lower()
        units = self._split(reference)
        return [edit_distance(self._split(hypothesis), units), len(units)]

    def _score(self, counts: list[int]) -> float:
        edits, length = counts
        return 100.0 * edits / max(length, 1)


class WER(_ErrorRate):
    """Word error rate: insertions, deletions and substitutions of words per reference word, in percent.

    Words are what stands between white space. Of several references the one with the lowest rate counts.

    Args:
        lowercase: compare without case.

    Example:
        >>> from lit_seq2seq.metrics import WER
        >>> wer = WER()
        >>> wer.update(["the cat sat"], [["the cat sat down"]])
        >>> wer.compute()
        tensor(25.)
    """

    name = "wer"

    def _split(self, text: str) -> Sequence[str]:
        return text.split()


class CER(_ErrorRate):
    """Character error rate: insertions, deletions and substitutions per reference character, in percent.

    Characters are Unicode code points, spaces included. Of several references the one with the lowest rate counts.

    Args:
        lowercase: compare without case.

    Example:
        >>> from lit_seq2seq.metrics import CER
        >>> cer = CER()
        >>> cer.update(["hat"], [["heat"]])
        >>> cer.compute()
        tensor(25.)
    """

    name = "cer"

    def _split(self, text: str) -> Sequence[str]:
        return text


class TokenAverage(Metric):
    """Mean over all tokens of a quantity that comes as sums over batches, such as the negative log-likelihood.

    Perplexity is the exponential of the mean negative log-likelihood. The sum is compensated (Neumaier, 1974), so
    that single precision holds over millions of tokens, on every device.

    Example:
        >>> import torch
        >>> from lit_seq2seq.metrics import TokenAverage
        >>> nll = TokenAverage()
        >>> nll.update(torch.tensor(6.0), torch.tensor(2))
        >>> nll.update(torch.tensor(2.0), torch.tensor(2))
        >>> nll.compute()
        tensor(2.)
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


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn `first` into `second` (Levenshtein, 1966).

    Args:
        first: S units, such as words or characters.
        second: T units.

    Returns:
        An integer from 0 to max(S, T).

    Example:
        >>> from lit_seq2seq.metrics import edit_distance
        >>> edit_distance("kitten", "sitting")
        3
    """
    index: dict[str, int] = {}
    target = np.array([index.setdefault(unit, len(index)) for unit in second], dtype=np.int64)  # (T,)
    columns = np.arange(len(target) + 1)
    row = columns
    for position, unit in enumerate(first, start=1):
        substituted = row[:-1] + (target != index.get(unit, -1))  # (T,)
        reached = np.concatenate(([position], np.minimum(substituted, row[1:] + 1)))  # (T + 1,)
        row = np.minimum.accumulate(reached - columns) + columns  # insertions run from left to right
    return int(row[-1])


def _case(lowercase: bool) -> str:
    return "lc" if lowercase else "mixed"
