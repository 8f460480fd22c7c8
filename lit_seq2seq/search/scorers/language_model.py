"""Language models beside a model that searches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from lit_seq2seq.arrays import Array, Arrays
from lit_seq2seq.files.lines import counted
from lit_seq2seq.search.options import Range, expect
from lit_seq2seq.search.scorers.base import Scorer
from lit_seq2seq.search.task import OutputVocabulary, Task
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import Joined, S, StepFunction, StepOutput, UserError

_LEAST = -1e4  # what is impossible counts as this, so that it can be subtracted


@checked_fields
@dataclass(frozen=True)
class LanguageModel(Scorer):
    """Shallow fusion with a language model, and subtraction of the model's own.

    The score of a token is `log p(y|x) + weight log p_lm(y) - internal_weight log p_ilm(y)` (Gulcehre et al. 2015;
    https://arxiv.org/abs/2011.01991 of Meng et al. for the last term). The internal language model is the decoder with
    zeros in place of all that the source gave it: what it has learnt of outputs alone, and the new one knows better.

    Args:
        model: folder or hub id of a model without a source, such as `recipes/language_model.py` trains. Symbols are
            matched by their names; those that it does not know score as its unknown symbol.
        weight: of the language model, from 0.
        internal_weight: of the internal language model, from 0; 0 is off.
    """

    outside: ClassVar[Mapping[str, str]] = {"model": "model"}
    model: str
    weight: float = 0.3
    internal_weight: float = 0.0

    def __post_init__(self) -> None:
        expect(self, "weight", Range(0, 1000))
        expect(self, "internal_weight", Range(0, 1000))

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        """A subtracted score can make a token gain."""
        return self.internal_weight == 0

    def join(self, step: StepFunction[S], state: S, task: Task) -> tuple[StepFunction[Any], Any]:
        """Read each token by both, too; see `Scorer.join`."""
        other = task.other(self.model)
        if other.reads_sources:
            raise UserError(f"{self.model} is no language model, as it reads sources: JointModels joins such models")
        ids = task.xp.array(matched(task.words, other.vocabulary, self.model))  # type: ignore[arg-type]
        parts = [(self.weight, ids, *other.begin([""] * task.batch_size))]
        if self.internal_weight:
            assert task.host is not None
            parts.append((-self.internal_weight, task.xp.arange(len(task.words)), *task.host.blind()))
        size, unknown, xp = len(task.words), task.specials.unk, task.xp

        def joint(tokens: Array, state: Joined) -> StepOutput[Joined]:
            before, *others = state.members
            output = step(tokens, before)
            known = xp.where(tokens < size, tokens, unknown)  # others are copied from the source
            log_probs, after = xp.wide(output.log_probs), [output.state]
            for (weight, ids, read, _), own in zip(parts, others, strict=True):
                made = read(ids[known], own)
                scores = xp.wide(made.log_probs)[:, ids].clip(_LEAST)
                log_probs = log_probs + weight * _widened(scores, log_probs.shape[1], unknown, xp)
                after.append(made.state)
            return StepOutput(log_probs, Joined(tuple(after)), output.attention, fresh=True)

        return joint, Joined((state, *(first for *_, first in parts)))


def _widened(scores: Array, size: int, unknown: int, xp: Arrays) -> Array:
    """Score symbols beyond the vocabulary as the unknown one."""
    more = size - scores.shape[1]
    return scores if more == 0 else xp.concat([scores, scores[:, [unknown] * more]], 1)


@lru_cache(maxsize=8)
def matched(vocabulary: OutputVocabulary, other: OutputVocabulary, name: str) -> np.ndarray[Any, Any]:
    """Find each symbol of a vocabulary in another one by its name: `(V,)` ids, the unknown symbol's where it lacks."""
    known = {symbol: index for index, symbol in enumerate(other.symbols)}
    ids = np.array([known.get(symbol, other.specials.unk) for symbol in vocabulary.symbols])
    lacking = int((ids == other.specials.unk).sum()) - 1
    for role in ("pad", "unk", "bos", "eos"):
        ids[getattr(vocabulary.specials, role)] = getattr(other.specials, role)
    if lacking * 2 > len(ids):
        raise UserError(
            f"the language model {name} knows hardly a symbol of the model: train it on outputs of its kind"
        )
    if lacking > 0:
        warnings.warn(
            f"the language model {name} does not know {counted(lacking, 'symbol')} of the model", stacklevel=2
        )
    return ids
