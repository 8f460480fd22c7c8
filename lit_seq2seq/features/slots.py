"""What a text says of its record."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from lit_seq2seq.features.placeholders import PLACEHOLDER
from lit_seq2seq.features.records import read_record

Sayings = list[str] | dict[str, list[str]]
"""Values of a slot, said as they are written, or each with the phrases that say it."""
Pair = tuple[str, str]


class Slots:
    """Finds the values of a record in a text, by the rules of `lit_seq2seq.metrics.SlotErrorRate`.

    Args:
        slots: the slots that count; all if `None`.
        values: for each slot the values that it may have, to find added ones.

    Example:
        >>> Slots(values={"food": ["French", "Thai"]}).compare("A Thai pub.", "eatType[pub], food[French]")
        (1, 1, 2)
    """

    def __init__(self, slots: Sequence[str] | None = None, values: dict[str, Sayings] | None = None) -> None:
        self.slots = None if slots is None else frozenset(slots)
        self.values = values or {}
        self._known = {
            (slot, value.casefold()): tuple(map(_plain, sayings[value] if isinstance(sayings, dict) else [value]))
            for slot, sayings in self.values.items()
            for value in sayings
        }

    def compare(self, text: str, source: Any) -> tuple[int, int, int]:
        """Count what a text misses and adds, and the slots of its record.

        Args:
            text: an output.
            source: the record in any form that `read_record` takes; a blank text is a record without slots.

        Raises:
            UserError: the source is no record.
        """
        if not source or (isinstance(source, str) and source.isspace()):
            return 0, 0, 0
        record = [(part[-2], part[-1].casefold()) for part in read_record(source)]
        phrases: dict[str, set[Pair]] = defaultdict(set)
        for pair, sayings in {**{pair: (_plain(pair[1]),) for pair in record}, **self._known}.items():
            for phrase in sayings:
                phrases[phrase].add(pair)
        found = {match[0] for match in _either(phrases).finditer(_plain(text))}
        said = {pair for phrase in found for pair in phrases[phrase]}
        others = (phrases[phrase] for phrase in found if phrases[phrase].isdisjoint(record))
        added = {min(pairs) for pairs in others if any(self._counts(slot) for slot, _ in pairs)}
        sayable = {pair for phrase, pairs in phrases.items() if phrase for pair in pairs}  # an empty value is not
        counted = [pair for pair in record if self._counts(pair[0]) and pair in sayable]
        left = len(PLACEHOLDER.findall(text))
        return sum(pair not in said for pair in counted), len(added) + left, len(counted)

    def errors(self, text: str, source: Any) -> int:
        """Count what a text misses and adds; see `compare`."""
        missing, added, _ = self.compare(text, source)
        return missing + added

    def _counts(self, slot: str) -> bool:
        return self.slots is None or slot in self.slots


def _plain(phrase: str) -> str:
    return re.sub(r"[\s-]+", " ", phrase.casefold())


def _either(phrases: Iterable[str]) -> re.Pattern[str]:
    """Match any of the phrases as whole words, the longest first."""
    longest = sorted(filter(None, phrases), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest)) or '(?!)'})(?!\w)")
