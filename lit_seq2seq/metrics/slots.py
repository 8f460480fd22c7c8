"""What a text says of its record: slot error rate."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.runtime.placeholders import PLACEHOLDER
from lit_seq2seq.runtime.records import read_record
from lit_seq2seq.types import UserError

Sayings = list[str] | dict[str, list[str]]
"""Values of a slot, said as they are written, or each with the phrases that say it."""
Pair = tuple[str, str]


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
        >>> from lit_seq2seq.metrics import SlotErrorRate
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
        self.slots = None if slots is None else frozenset(slots)
        self.values = values or {}
        self._known = {
            (slot, value.lower()): tuple(map(_plain, sayings[value] if isinstance(sayings, dict) else [value]))
            for slot, sayings in self.values.items()
            for value in sayings
        }

    def signature(self) -> str:
        """Return the metric's name, its slots and those whose added values are found."""
        names = "all" if self.slots is None else "+".join(sorted(self.slots))
        return f"SlotErrorRate|slots:{names}|added:{'+'.join(sorted(self.values)) or 'none'}|case:lc"

    def compare(self, text: str, source: Any) -> tuple[int, int, int]:
        """Count what a text misses and adds, and the slots of its record.

        Args:
            text: an output.
            source: the record in any form that `read_record` takes; a blank text is a record without slots.
        """
        if not source or (isinstance(source, str) and source.isspace()):
            return 0, 0, 0
        record = [(part[-2], part[-1].lower()) for part in read_record(source)]
        phrases: dict[str, set[Pair]] = defaultdict(set)
        for pair, sayings in {**{pair: (_plain(pair[1]),) for pair in record}, **self._known}.items():
            for phrase in sayings:
                phrases[phrase].add(pair)
        found = {_plain(match[0]) for match in _either(phrases).finditer(text)}
        said = {pair for phrase in found for pair in phrases[phrase]}
        others = (phrases[phrase] for phrase in found if phrases[phrase].isdisjoint(record))
        added = {min(pairs) for pairs in others if any(self._counts(slot) for slot, _ in pairs)}
        counted = [pair for pair in record if self._counts(pair[0])]
        left = len(PLACEHOLDER.findall(text))
        return sum(pair not in said for pair in counted), len(added) + left, len(counted)

    def _count_all(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]
    ) -> list[list[int]]:
        return [list(self.compare(*pair)) for pair in zip(hypotheses, sources, strict=True)]

    def _counts(self, slot: str) -> bool:
        return self.slots is None or slot in self.slots

    def _count(self, hypothesis: str, references: Sequence[str]) -> list[int]:
        raise UserError("SlotErrorRate expects sources, but got none: give them as sources")

    def _score(self, counts: list[int]) -> float:
        missing, added, slots = counts
        return 100.0 * (missing + added) / max(slots, 1)


def _plain(phrase: str) -> str:
    return re.sub(r"[\s-]+", " ", phrase.lower())


def _either(phrases: Iterable[str]) -> re.Pattern[str]:
    """Match any of the phrases as whole words, the longest first."""
    longest = sorted(filter(None, phrases), key=len, reverse=True)
    words = (re.escape(phrase).replace(r"\ ", r"[\s-]+") for phrase in longest)
    return re.compile(rf"(?<!\w)(?:{'|'.join(words) or '(?!)'})(?!\w)", re.IGNORECASE)
