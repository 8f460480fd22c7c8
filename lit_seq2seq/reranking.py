"""Orders the hypotheses of a beam anew by what their texts say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lit_seq2seq.features.slots import Sayings, Slots
from lit_seq2seq.types import Hypothesis


class Reranker(ABC):
    """Adds to the score of each hypothesis of a source what its text deserves, and orders them by the sum.

    Example:
        >>> import torch
        >>> class Shortest(Reranker):
        ...     def judge(self, text, source):
        ...         return -len(text)
        >>> found = [Hypothesis(torch.tensor([4]), -0.5, -0.5, torch.zeros(1), text=text) for text in ("long", "no")]
        >>> [(one.text, one.score) for one in Shortest()(found, "any source")]
        [('no', -2.5), ('long', -4.5)]
    """

    @abstractmethod
    def judge(self, text: str, source: Any) -> float:
        """Return what is added to the score of the hypothesis that says `text`, for a raw source."""

    @property
    def exported(self) -> dict[str, Any] | None:
        """The settings of a `SlotCoverage` that orders alike, which the runtime knows; `None` if there is none."""
        return None

    def __call__(self, hypotheses: Sequence[Hypothesis], source: Any) -> list[Hypothesis]:
        """Return the hypotheses of a source, best first; of equal ones the earlier stays before the later."""
        judged = [replace(one, score=one.score + self.judge(one.text, source)) for one in hypotheses]
        return sorted(judged, key=lambda one: -one.score)


class SlotCoverage(Reranker):
    """Takes `weight` off for each slot of the record that the text misses or adds.

    After Dusek and Jurcicek (2016, https://aclanthology.org/P16-2008), section 3.2, whose classifier is replaced
    by looking for values as `SlotErrorRate` does. It orders the outputs of a beam: set `num_beams` above 1.

    Args:
        weight: taken off for each wrong slot; the default puts what a text says before how probable it is.
        slots: see `SlotErrorRate`.
        values: see `SlotErrorRate`.

    Example:
        >>> SlotCoverage(weight=10).judge("Cocum is a pub.", "name[Cocum], eatType[pub], food[Thai]")
        -10.0
    """

    def __init__(
        self, weight: float = 100.0, slots: Sequence[str] | None = None, values: dict[str, Sayings] | None = None
    ) -> None:
        self.weight = weight
        self.slots = Slots(slots, values)

    @property
    def exported(self) -> dict[str, Any] | None:
        """Its own settings; `None` for a class derived from it, which may judge otherwise."""
        if type(self) is not SlotCoverage:
            return None
        slots, values = self.slots.slots, self.slots.values
        return {"weight": self.weight, "slots": None if slots is None else sorted(slots), "values": values}

    def judge(self, text: str, source: Any) -> float:
        """Weigh the wrong slots of a text."""
        return -float(self.weight) * self.slots.errors(text, source)
