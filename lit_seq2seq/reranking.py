"""Rerankers of the hypotheses of a search by their texts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lit_seq2seq.features.slots import Sayings, Slots
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.options import Range, counts, expect
from lit_seq2seq.search.reranker import Reranker as Reranker
from lit_seq2seq.search.reranker import Utility as Utility
from lit_seq2seq.search.scores import length_divisor
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import Hypothesis, Part, UserError

_LEAST = -1e4  # the log-probability of what a part of the model finds impossible


def reranked(config: GenerationConfig, own: Reranker | None) -> tuple[Reranker | None, GenerationConfig]:
    """Return the reranker, if any, and the options of a search that finds all the outputs it compares.

    Args:
        config: the options, which may name it.
        own: the model's, which counts where they name none.
    """
    reranker = own if config.reranker is None else config.reranker
    count = 1 if reranker is None else reranker.candidates(config)
    return (None, config) if count == 1 else (reranker, replace(config, num_return_sequences=count))


@checked_fields
@dataclass(frozen=True)
class SlotCoverage(Part, Reranker):
    """Subtracts `weight` for each slot of the record that the text misses or adds.

    After Dusek and Jurcicek (2016, https://aclanthology.org/P16-2008), section 3.2, whose classifier is replaced
    by looking for values as `SlotErrorRate` does. It ranks the outputs of a beam: set `num_beams` above 1.

    Args:
        weight: the default puts what a text says before how probable it is.
        slots: see `SlotErrorRate`.
        values: see `SlotErrorRate`.

    Example:
        >>> SlotCoverage(weight=10).judge("Cocum is a pub.", "name[Cocum], eatType[pub], food[Thai]")
        -10.0
    """

    weight: float = 100.0
    slots: Sequence[str] | None = None
    values: dict[str, Sayings] | None = None

    @cached_property
    def _looked_for(self) -> Slots:
        return Slots(self.slots, self.values)

    def judge(self, text: str, source: Any) -> float:
        """Weigh the wrong slots of a text."""
        return -float(self.weight) * self._looked_for.errors(text, source)


@checked_fields
@dataclass(frozen=True)
class MinimumBayesRisk(Part, Reranker):
    """Chooses the output that is most like all others: `argmax_h sum_y q(y) u(h, y)` (Kumar and Byrne 2004).

    The outputs of a source are both the candidates h and what they are compared with. With `do_sample` they are draws
    from the model, each of which counts alike (Eikema and Aziz 2020, https://aclanthology.org/2020.coling-main.398);
    of a beam, `q` follows the scores, `q(y) ~ exp(sharpness score(y))`. The utility u is 1 for a perfect score of the
    metric; an error rate counts from there downwards. The score of an output becomes its expected utility.

    Args:
        metric: makes the metric, such as `lit_seq2seq.metrics.ChrF`; it scores each output by itself.
        samples: outputs drawn for each source with `do_sample`, at least 2; of a beam, all are compared.
        sharpness: exponent >= 0 of the probabilities in a beam; with 0 all count alike.

    Raises:
        UserError: a number is out of its range, or the metric cannot score outputs by themselves.
    """

    metric: Callable[[], Utility]
    samples: int = 32
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        expect(self, "samples", counts(2))
        expect(self, "sharpness", Range(0))
        name = type(self.utility).__name__
        if self.utility.higher_is_better is None or self.utility.needs_corpus:
            raise UserError(f"{name} does not score an output by itself: give MinimumBayesRisk another metric")

    @cached_property
    def utility(self) -> Utility:
        """The metric."""
        return self.metric()

    def candidates(self, config: GenerationConfig) -> int:
        """Count the beams, or what is drawn."""
        return max(self.samples, config.num_return_sequences) if config.do_sample else config.num_beams

    def judge(self, text: str, source: Any) -> float:
        """Return 0: without the others a text says nothing."""
        return 0.0

    def order(self, hypotheses: Sequence[Hypothesis], source: Any, config: GenerationConfig) -> list[Hypothesis]:
        """Return the hypotheses by their expected utility, best first."""
        highest = max(one.score for one in hypotheses)
        sharpness = 0.0 if config.do_sample else self.sharpness
        weights: dict[str, float] = {}
        for one in hypotheses:
            weight = math.exp(sharpness * (one.score - highest))
            weights[one.text] = weights.get(one.text, 0.0) + weight
        texts, total = list(weights), sum(weights.values())
        expected = dict.fromkeys(texts, 0.0)
        pairs = [(text, other) for text in texts for other in texts]
        scores = self.utility.each([text for text, _ in pairs], [[other] for _, other in pairs], [source] * len(pairs))
        for (text, other), score in zip(pairs, scores, strict=True):
            gain = score / 100 if self.utility.higher_is_better else 1 - score / 100
            expected[text] += gain * weights[other] / total
        return sorted((replace(one, score=expected[one.text]) for one in hypotheses), key=lambda one: -one.score)


@checked_fields
@dataclass(frozen=True)
class Rescoring(Part, Reranker):
    """Ranks a beam by what other parts of the model say of its outputs, too (Sainath et al. 2019, arXiv:1908.10992).

    The log-probability of an output becomes `(1 - weight - ctc_weight) first + weight second + ctc_weight ctc`, and its
    score is normalised by length as before. `first` is what the search has found, `second` comes from the model's
    `SecondPass`, which has seen the whole source, and `ctc` from its `auxiliary`. A live transducer writes what is
    certain of its beam at once, and is rescored when its source has ended. Set `num_beams` above 1.

    Args:
        weight: of the second pass, from 0 to 1.
        ctc_weight: of CTC, from 0 to 1.

    Raises:
        UserError: the weights are out of their range, or above 1 together.
    """

    weight: float = 0.5
    ctc_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("weight", "ctc_weight"):
            expect(self, name, Range(0, 1))
        if self.weight + self.ctc_weight > 1:
            raise UserError(f"Rescoring: weight={self.weight} and ctc_weight={self.ctc_weight} are above 1 together")

    @property
    def _weights(self) -> dict[str, float]:
        weights = {"second_pass": self.weight, "auxiliary": self.ctc_weight}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def passes(self) -> tuple[str, ...]:
        """The parts with a weight."""
        return tuple(self._weights)

    def candidates(self, config: GenerationConfig) -> int:
        """Compare the whole beam, if any part has a weight."""
        return config.num_beams if self.passes else 1

    def judge(self, text: str, source: Any) -> float:
        """Return 0: the text alone says nothing."""
        return 0.0

    def order(self, hypotheses: Sequence[Hypothesis], source: Any, config: GenerationConfig) -> list[Hypothesis]:
        """Rank the hypotheses by all parts, best first."""
        found = []
        for one in hypotheses:
            if lacking := [name for name in self.passes if name not in one.passes]:
                raise UserError(f"Rescoring needs the {lacking[0]} of a model, which exported ones lack: leave it out")
            parts = [(weight, max(one.passes[name], _LEAST)) for name, weight in self._weights.items()]
            more = sum(weight * (log_prob - one.log_prob) for weight, log_prob in parts)
            length = np.array([float(len(one.token_scores))])
            divisor = length_divisor(length, config.length_normalization, config.length_penalty)
            found.append(replace(one, score=one.score + float(more / divisor[0])))
        return sorted(found, key=lambda one: -one.score)
