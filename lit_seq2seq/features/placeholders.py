"""Values of a record hidden behind placeholders, in the record and in its texts."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property

Part = tuple[str, ...]
PLACEHOLDER = re.compile(r"__\w+?__")


class Delexicalized:
    """A record whose values of some slots are hidden (Dusek and Jurcicek 2016, https://aclanthology.org/P16-2008).

    The value of the slot `name` becomes `__name__`, a second value of it `__name_2__`: lower-case words, which the
    tokenizer `word` keeps whole. In a text values are found as they are written, as whole words and without regard to
    case, longer ones first; slots with the same value take turns, in their order. A value that the text does not say is
    hidden in the record alone.

    Args:
        parts: pairs of slot and value, or triples, of which the relation is the slot and the object its value.
        slots: the slots whose values are hidden.

    Example:
        >>> record = Delexicalized([("name", "Blue Spice"), ("food", "Thai")], slots=["name"])
        >>> record.pairs
        [('name', '__name__'), ('food', 'Thai')]
        >>> record.hide("Blue Spice serves Thai food.")
        '__name__ serves Thai food.'
        >>> record.restore("Eat Thai at __name__, near __near__.")
        'Eat Thai at Blue Spice, near __near__.'
    """

    def __init__(self, parts: Sequence[Part], slots: Collection[str]) -> None:
        self.pairs: list[Part] = []
        self.values: dict[str, str] = {}
        for *before, slot, value in parts:
            self.pairs.append((*before, slot, self._placeholder(slot, value) if value and slot in slots else value))

    def _placeholder(self, slot: str, value: str) -> str:
        name = "_".join(re.findall(r"\w+", slot.lower()))
        further = (f"__{name}_{number}__" for number in itertools.count(2))
        placeholder = next(one for one in itertools.chain([f"__{name}__"], further) if one not in self.values)
        self.values[placeholder] = value
        return placeholder

    def hide(self, text: str) -> str:
        """Put placeholders in place of the values that a text says."""
        turns = [itertools.cycle(names) for names in self._names.values()]
        return self._pattern.sub(lambda found: next(turns[(found.lastindex or 1) - 1]), text) if turns else text

    def restore(self, text: str) -> str:
        """Put the values back; a placeholder that the record does not have stays."""
        return PLACEHOLDER.sub(lambda found: self.values.get(found[0], found[0]), text)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """The placeholders of each value, longer values first; of what differs in case the first spelling."""
        spellings: dict[str, str] = {}
        names = defaultdict(list)
        for placeholder, value in self.values.items():
            names[spellings.setdefault(value.lower(), value)].append(placeholder)
        return dict(sorted(names.items(), key=lambda item: -len(item[0])))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Each value as a group: other letters than `str.lower` knows may count as alike, such as two kinds of µ."""
        values = (f"({re.escape(value)})" for value in self._names)
        return re.compile(rf"(?<!\w)(?:{'|'.join(values)})(?!\w)", re.IGNORECASE)
