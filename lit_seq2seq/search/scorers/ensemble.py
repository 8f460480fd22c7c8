"""Other models that decide together with the one that searches."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lit_seq2seq.arrays import Array
from lit_seq2seq.search.scorers.base import Joined, Scorer
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import S, StepFunction, StepOutput, UserError


@checked_fields
@dataclass(frozen=True)
class JointModels(Scorer):
    """Probabilities are averaged with those of other models (Hansen and Salamon 1990; Sutskever et al. 2014).

    Each model reads the raw inputs in its own way: one that reads words and one that reads characters can join.

    Args:
        models: folders or hub ids of models that have the same symbols for outputs.
    """

    outside: ClassVar[Mapping[str, str]] = {"models": "model"}
    models: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))

    def join(self, step: StepFunction[S], state: S, task: Task) -> tuple[StepFunction[Any], Any]:
        """Read each token by all models; see `Scorer.join`."""
        begun = []
        for name in self.models:
            other = task.other(name)
            if other.vocabulary.symbols != task.words.symbols:
                raise UserError(f"{name} has other symbols for outputs than the model: join models of one vocabulary")
            begun.append(other.begin(task.inputs("JointModels")))
        xp, share, size = task.xp, math.log(1 + len(begun)), len(task.words)

        def joint(tokens: Array, state: Joined[S]) -> StepOutput[Joined[S]]:
            output = step(tokens, state.own)
            made = [read(tokens, own) for (read, _), own in zip(begun, state.others, strict=True)]
            scores = [xp.wide(one.log_probs) for one in (output, *made)]
            if any(one.shape[1] != size for one in scores):
                raise UserError(
                    "JointModels cannot join models that copy from the source: name all folders as the model"
                )
            average = functools.reduce(xp.logaddexp, scores) - share
            after = Joined(output.state, tuple(one.state for one in made))
            return StepOutput(average, after, output.attention, fresh=True)

        return joint, Joined(state, tuple(first for _, first in begun))
