"""The contract of scorers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lit_seq2seq.search.task import Task
from lit_seq2seq.types import Part, S, StepFunction


class Scorer(Part, ABC):
    """Changes the scores of continuations; a frozen dataclass, named in `generation.scorers`.

    Attributes:
        bounded: whether scores of tokens stay at most 0, so that a longer output never gains. A beam otherwise stops
            when no open hypothesis is better, at its length, than what has ended.
        needs_frames: whether it needs CTC's log-probabilities.
        whole_source: whether it looks at the whole source, so that no policy can hold it back.
    """

    bounded: ClassVar[bool] = True
    needs_frames: ClassVar[bool] = False
    whole_source: ClassVar[bool] = False

    @abstractmethod
    def join(self, step: StepFunction[S], state: S, task: Task) -> tuple[StepFunction[Any], Any]:
        """Wrap a step function and its first state.

        Args:
            step: of the model, perhaps with other scorers already.
            state: its state before BOS, one hypothesis for each sentence.
            task: what the search is about.
        """
