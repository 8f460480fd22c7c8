"""Other models that decide together with the one that searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lit_seq2seq.arrays import Array
from lit_seq2seq.search.scorers.base import Scorer
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import Joined, S, StepFunction, StepOutput, UserError, averaged


@checked_fields
@dataclass(frozen=True)
class JointModels(Scorer):
    """Averages the model's probabilities with those of other models, as an ensemble does.

    Each model reads the raw inputs in its own way: one that reads words and one that reads characters can join.

    Args:
        models: folders or hub ids of models that have the same symbols for outputs.
    """

    outside: ClassVar[Mapping[str, str]] = {"models": "model"}
    whole_source: ClassVar[bool] = True
    models: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))

    def join(self, step: StepFunction[S], state: S, task: Task) -> tuple[StepFunction[Any], Any]:
        """Read each token by all models; see `Scorer.join`."""
        begun: list[tuple[StepFunction[Any], Any]] = [(step, state)]
        for name in self.models:
            other = task.other(name)
            if other.vocabulary.symbols != task.words.symbols:
                raise UserError(f"{name} has other symbols for outputs than the model: join models of one vocabulary")
            begun.append(other.begin(task.inputs("JointModels")))
        size = len(task.words)

        def joint(tokens: Array, state: Joined) -> StepOutput[Joined]:
            made = [read(tokens, own) for (read, _), own in zip(begun, state.members, strict=True)]
            if any(one.log_probs.shape[1] != size for one in made):
                raise UserError(
                    "JointModels cannot join models that copy from the source: name all folders as the model"
                )
            return averaged(made)

        return joint, Joined(tuple(first for _, first in begun))
