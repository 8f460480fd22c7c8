"""Records of slots and values, or of triples, as text."""

from __future__ import annotations

import datetime
import json
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_seq2seq.runtime.placeholders import PLACEHOLDER, Part
from lit_seq2seq.types import UserError

_SLOT = re.compile(r"\s*([^\[\],]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")
_EXPECTED = (
    "a record such as name[Blue Spice], food[Indian], a mapping of slots to values, or a list of triples such as "
    '["Oslo", "capital of", "Norway"]'
)


def read_record(raw: object) -> list[Part]:
    """Read a record in any of its forms.

    Args:
        raw: `name[Blue Spice], food[Indian]`, as in the E2E data (Novikova et al., 2017,
            https://aclanthology.org/W17-5525); a mapping from slot to value, where `None`, an empty text or an empty
            list means that there is no such slot, and a list several values; whole numbers are written without `.0`,
            and nothing may be nested deeper; a list of triples, each three texts or
            a text `Oslo | capital of | Norway`; or the JSON text of a mapping or list.

    Returns:
        Pairs of slot and value, or triples of subject, relation and object.

    Raises:
        UserError: it is none of these.

    Example:
        >>> read_record("name[Blue Spice], food[Indian]")
        [('name', 'Blue Spice'), ('food', 'Indian')]
        >>> read_record(["Oslo | capital of | Norway"])
        [('Oslo', 'capital of', 'Norway')]
    """
    if isinstance(raw, str):
        return _read_text(raw)
    if isinstance(raw, Mapping):
        values = ((str(slot), value) for slot, value in raw.items())
        return [(slot, _text(one, f"the slot '{slot}'")) for slot, value in values for one in several(value)]
    if isinstance(raw, Sequence):
        return [_read_triple(triple) for triple in raw]
    raise UserError(f"expected {_EXPECTED}, but it is of type {type(raw).__name__}")


def _read_text(text: str) -> list[Part]:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return read_record(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"expected {_EXPECTED}, but {text!r:.300} is not JSON: {error}") from None
    parts: list[Part] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        found = _SLOT.match(text, position)
        if found is None:
            raise UserError(f"expected {_EXPECTED}, but got '{text}'")
        parts.append((found[1], found[2].strip()))
        position = found.end()
    return parts


def several(value: object) -> list[object]:
    """List the values of a slot; an empty one has none."""
    value = _plain(value)
    values = list(map(_plain, value)) if isinstance(value, list | tuple) else [value]
    return [one for one in values if one is not None and one != "" and one == one]  # NaN is not itself


def _plain(value: Any) -> Any:
    """Return what an array or a number of NumPy holds, and anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _text(value: object, place: str) -> str:
    """Write a value; a whole number is one, though a column that has decimals too makes it 7.0."""
    if not isinstance(value, str | numbers.Number | datetime.date):
        raise UserError(
            f"expected a text, a number or a list of them in {place} of a record, but it is {value!r:.80}: give what "
            "is nested slots of its own"
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read_triple(triple: object) -> Part:
    parts = triple.split("|") if isinstance(triple, str) else triple
    if not isinstance(parts, Sequence) or len(parts) != 3:
        raise UserError(f"expected {_EXPECTED}, but one triple is {triple!r}")
    return tuple(_text(part, "a triple").strip() for part in parts)


def linearize(parts: Sequence[Part], values: str, sort: bool) -> str:
    """Write a record as symbols divided by spaces; see `lit_seq2seq.features.Records`.

    Args:
        parts: from `read_record`.
        values: `words`, or `symbols` for one symbol per value.
        sort: order slots by name.

    Example:
        >>> linearize(read_record({"food": "Indian", "area": None}), "words", sort=False)
        '⟨food⟩ Indian'
    """
    if sort:
        parts = sorted(parts, key=lambda part: part[0] if len(part) == 2 else "")
    return " ".join(symbol for part in parts for symbol in _symbols(part, values))


def _symbols(part: Part, values: str) -> list[str]:
    *before, slot, value = part
    subject = [word for text in before for word in _words(text, values)]
    return [*subject, f"⟨{'_'.join(slot.split())}⟩", *_words(value, values)]


def _words(value: str, values: str) -> list[str]:
    words = [value] if PLACEHOLDER.fullmatch(value) else value.replace("_", " ").split()
    return ["_".join(words)] if values == "symbols" else words
