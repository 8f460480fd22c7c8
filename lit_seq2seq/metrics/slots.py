"""Slot error rate: what texts say of their records."""

from __future__ import annotations

from collections.abc import Sequence

from lit_seq2seq.features.slots import Sayings, Slots
from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.types import UserError


class SlotErrorRate(TextMetric):
    """Slot values that an output misses or adds, per slot of the sources: 100 (missing + added) / slots, in percent.

    After Wen et al. (2015, https://aclanthology.org/D15-1199), with values found in the text as they are written, or by
    the phrases that say them: as whole words, without regard to case and hyphens, the longest that begins first. A
    value of the record that the output does not say is missing; one of `values` that the output says and the record
    does not have is added, and so is a placeholder that is left. A value that is said in other words counts as missing,
    so that `slots` should name those that are said as they are written, such as names, or have phrases in `values`.

    Args:
        slots: the slots that count; all if `None`. Of a triple the relation is the slot and the object its value.
        values: for each slot the values that it may have, to find added ones; none are found for other slots. Given as
            a mapping, each value has the list of all the phrases that say it.

    Example:
        >>> rate = SlotErrorRate(values={"food": ["French", "Thai"], "kids": {"yes": ["child friendly"]}})
        >>> rate.update(["Child-friendly Thai food."], [["unused"]], ["food[French], kids[yes]"])
        >>> rate.compute()
        tensor(100.)
    """

    name = "slot_error_rate"
    higher_is_better = False
    needs_sources = True

    def __init__(self, slots: Sequence[str] | None = None, values: dict[str, Sayings] | None = None) -> None:
        super().__init__(3)
        self.slots = Slots(slots, values)

    def signature(self) -> str:
        """Return the metric's name, its slots and those whose added values are found."""
        slots, values = self.slots.slots, self.slots.values
        names = "all" if slots is None else "+".join(sorted(slots))
        return f"SlotErrorRate|slots:{names}|added:{'+'.join(sorted(values)) or 'none'}|case:lc"

    def _count_all(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]
    ) -> list[list[int]]:
        return [list(self.slots.compare(*pair)) for pair in zip(hypotheses, sources, strict=True)]

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        raise UserError("SlotErrorRate expects sources, but got none: give them as sources")

    def _score(self, counts: list[int]) -> float:
        missing, added, slots = counts
        return 100.0 * (missing + added) / max(slots, 1)
