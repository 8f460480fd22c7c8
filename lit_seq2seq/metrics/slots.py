"""What a text says of its record: slot error rate."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_seq2seq.features.records import read_record
from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.types import UserError


class SlotErrorRate(TextMetric):
    """Slot values that an output misses or adds, per slot of the sources: 100 (missing + added) / slots, in percent.

    After Wen et al. (2015, https://aclanthology.org/D15-1199), with values found in the text as they are written, as
    whole words and without regard to case. A value of the record that the output does not say is missing; one of
    `values` that the output says and the record does not have is added. A value that is said in other words counts as
    missing, so that `slots` should name those that are said as they are written, such as names.

    Args:
        slots: the slots that count; all if `None`. Of a triple the relation is the slot and the object its value.
        values: for each slot the values that it may have, to find added ones; none are found for other slots.

    Example:
        >>> from lit_seq2seq.metrics import SlotErrorRate
        >>> rate = SlotErrorRate(values={"food": ["French", "Thai"]})
        >>> rate.update(["Cocum serves Thai food."], [["Cocum is French."]], ["name[Cocum], food[French]"])
        >>> rate.compute()
        tensor(100.)
    """

    name = "slot_error_rate"
    higher_is_better = False
    needs_sources = True

    def __init__(self, slots: Sequence[str] | None = None, values: dict[str, list[str]] | None = None) -> None:
        super().__init__(3)
        self.slots = None if slots is None else frozenset(slots)
        self.values = values or {}

    def signature(self) -> str:
        """Return the metric's name, its slots and those whose added values are found."""
        names = "all" if self.slots is None else "+".join(sorted(self.slots))
        return f"SlotErrorRate|slots:{names}|added:{'+'.join(sorted(self.values)) or 'none'}|case:lc"

    def _count_all(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]
    ) -> list[list[int]]:
        return [self._compare(hypothesis, source) for hypothesis, source in zip(hypotheses, sources, strict=True)]

    def _compare(self, hypothesis: str, source: str) -> list[int]:
        if source.isspace() or not source:
            return [0, 0, 0]
        parts = [part[-2:] for part in read_record(source)]
        record = [(slot, value) for slot, value in parts if self._counts(slot)]
        missing = sum(not _says(hypothesis, value) for _, value in record)
        said = [value for slot, values in self.values.items() if self._counts(slot) for value in values]
        added = {value.lower() for value in said if not any(_says(own, value) for _, own in record)}
        return [missing, sum(_says(hypothesis, value) for value in added), len(record)]

    def _counts(self, slot: str) -> bool:
        return self.slots is None or slot in self.slots

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        raise UserError("SlotErrorRate expects sources, but got none: give them as sources")

    def _score(self, counts: list[int]) -> float:
        missing, added, slots = counts
        return 100.0 * (missing + added) / max(slots, 1)


def _says(text: str, value: str) -> bool:
    """Tell whether a text has a value as whole words."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None
