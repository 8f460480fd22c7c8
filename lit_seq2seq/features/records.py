"""Records of slots and values, or of triples, as sequences of symbols."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from datasets import LargeList, List

from lit_seq2seq.features.feature import Array, Feature
from lit_seq2seq.features.placeholders import PLACEHOLDER, Delexicalized, Part
from lit_seq2seq.features.tokenizer import Tokenizer
from lit_seq2seq.types import Padded, UserError

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
            list means that there is no such slot, and a list several values; a list of triples, each three texts or
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
        return [(slot, str(one)) for slot, value in values for one in _several(value)]
    if isinstance(raw, Sequence):
        return [_read_triple(triple) for triple in raw]
    raise UserError(f"expected {_EXPECTED}, but it is of type {type(raw).__name__}")


def _read_text(text: str) -> list[Part]:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return read_record(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"expected {_EXPECTED}, but '{text}' is not JSON: {error}") from None
    parts: list[Part] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        found = _SLOT.match(text, position)
        if found is None:
            raise UserError(f"expected {_EXPECTED}, but got '{text}'")
        parts.append((found[1], found[2].strip()))
        position = found.end()
    return parts


def _several(value: object) -> list[object]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if one is not None and one != ""]


def _read_triple(triple: object) -> Part:
    parts = triple.split("|") if isinstance(triple, str) else triple
    if not isinstance(parts, Sequence) or len(parts) != 3:
        raise UserError(f"expected {_EXPECTED}, but one triple is {triple!r}")
    return tuple(str(part).strip() for part in parts)


class Records(Feature):
    """Reads records: each slot is one symbol, as `⟨food⟩`, followed by the words of its value.

    A triple becomes the words of the subject, the relation as a symbol, and the words of the object. See `read_record`
    for the forms in which a record may come.

    Args:
        values: whether a value is read word by word, or as one symbol, `Blue_Spice`.
        sort: order the slots by name, so that their order in the record has no influence; triples keep theirs.
        lowercase: fold to lower case.
        vocab_size: greatest number of symbols, the four special ones included.
        min_frequency: symbols seen less often are unknown.
        delexicalize: slots whose values the model does not see: placeholders stand for them in source and target, and
            outputs get the values back; see `Delexicalized`.

    Raises:
        UserError: when learning, if no training record has a slot of `delexicalize`.

    Example:
        >>> Records().linearize("name[Blue Spice], customer rating[5 out of 5]")
        '⟨name⟩ Blue Spice ⟨customer_rating⟩ 5 out of 5'
        >>> Records(values="symbols", sort=True).linearize({"name": "Blue Spice", "food": "Indian", "area": None})
        '⟨food⟩ Indian ⟨name⟩ Blue_Spice'
        >>> Records(delexicalize=["name"]).linearize("name[Blue Spice], food[Indian]")
        '⟨name⟩ __name__ ⟨food⟩ Indian'
    """

    column_kind: ClassVar[str] = "records (text, slots or lists)"
    input_kind: ClassVar[str] = "a record"
    rows_at_once: ClassVar[int] = 1000
    input_limit: ClassVar[int | None] = 1024

    def __init__(
        self,
        values: Literal["words", "symbols"] = "words",
        sort: bool = False,
        lowercase: bool = False,
        vocab_size: int = 8000,
        min_frequency: int = 1,
        delexicalize: Sequence[str] = (),
    ) -> None:
        options = {"lowercase": lowercase, "vocab_size": vocab_size, "min_frequency": min_frequency}
        self.config = {"values": values, "sort": sort, **options, "delexicalize": list(delexicalize)}
        self.tokenizer = Tokenizer("word", vocab_size, min_frequency, lowercase, pretokenized=True)

    def linearize(self, raw: object) -> str:
        """Write a record as symbols divided by spaces."""
        parts = self._delexicalized(raw).parts
        if self.config["sort"]:
            parts = sorted(parts, key=lambda part: part[0] if len(part) == 2 else "")
        return " ".join(symbol for part in parts for symbol in self._symbols(part))

    def _symbols(self, part: Part) -> list[str]:
        *before, slot, value = part
        return [
            *(word for text in before for word in self._words(text)),
            f"⟨{'_'.join(slot.split())}⟩",
            *self._words(value),
        ]

    def _words(self, value: str) -> list[str]:
        words = [value] if PLACEHOLDER.fullmatch(value) else value.replace("_", " ").split()
        return ["_".join(words)] if self.config["values"] == "symbols" else words

    def _delexicalized(self, raw: object) -> Delexicalized:
        return Delexicalized(read_record(raw), self.config["delexicalize"])

    @property
    def hides(self) -> bool:
        """Whether there are slots to delexicalise."""
        return bool(self.config["delexicalize"])

    def hide(self, text: str, raw: object) -> str:
        """Put placeholders in place of the values that a text says."""
        return text if self.is_missing(raw) else self._delexicalized(raw).hide(text)

    def restore(self, text: str, raw: object) -> str:
        """Put the values of a record, or of what `show` says of it, in place of placeholders."""
        return text if self.is_missing(raw) else self._delexicalized(raw).restore(text)

    def accepts_column(self, column: object) -> bool:
        """Tell whether a column holds texts, slots or lists."""
        return self.tokenizer.accepts_column(column) or isinstance(column, dict | List | LargeList)

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is one record: a text, a mapping, or a list of triples of texts."""
        return isinstance(raw, str | Mapping) or (isinstance(raw, list) and all(_is_triple(part) for part in raw))

    def is_missing(self, raw: object) -> bool:
        """Tell whether a record is absent or has no slot."""
        if isinstance(raw, Mapping):
            return not any(map(_several, raw.values()))
        return self.tokenizer.is_missing(raw) if isinstance(raw, str) else not raw

    def show(self, raw: Any) -> str:
        """Write the record as JSON, which can be read again; a text as it is."""
        return raw if isinstance(raw, str) else "" if raw is None else json.dumps(raw, ensure_ascii=False)

    @property
    def size(self) -> int:
        """Number of symbols, the special ones included."""
        return self.tokenizer.size

    @property
    def is_trained(self) -> bool:
        """Whether there is a vocabulary."""
        return self.tokenizer.is_trained

    @property
    def stored_as(self) -> str:
        """Ids are kept on disk."""
        return self.tokenizer.stored_as

    def train(self, raw: Iterable[Any], total: int | None = None) -> None:
        """Learn the vocabulary from lists of records."""
        seen: set[str] = set()
        self.tokenizer.train(([self._note(record, seen) for record in records] for records in raw), total)
        absent = [slot for slot in self.config["delexicalize"] if slot not in seen]
        if absent:
            raise UserError(
                f"expected records with the slot {absent[0]}, but the slots are {', '.join(sorted(seen)) or 'none'}: "
                "set delexicalize"
            )

    def _note(self, raw: object, seen: set[str]) -> str:
        seen.update(part[-2] for part in read_record(raw))
        return self.linearize(raw)

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn records into id arrays `(T,)` that end with EOS."""
        return self.tokenizer.encode([self.linearize(record) for record in raw])

    def nothing(self) -> Array:
        """Return a lone EOS."""
        return self.tokenizer.nothing()

    def truncate(self, array: Array, length: int) -> Array:
        """Shorten ids that end with EOS to at most `length` ids that end with EOS."""
        return self.tokenizer.truncate(array, length)

    def collate(self, arrays: Sequence[Array]) -> Padded:
        """Pad id arrays into int64 `values (B, T)`."""
        return self.tokenizer.collate(arrays)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Name each id by its symbol."""
        return self.tokenizer.tokens(ids)

    def words(self) -> list[str]:
        """Return the text of every symbol of the vocabulary."""
        return self.tokenizer.words()

    def to_dict(self) -> dict[str, Any]:
        """Describe settings and vocabulary by plain JSON values."""
        return {"config": self.config, "vocabulary": self.tokenizer.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the feature that `to_dict` described."""
        records = cls(**values["config"])
        records.tokenizer = Tokenizer.from_dict(values["vocabulary"])
        return records


def _is_triple(part: object) -> bool:
    return isinstance(part, list | tuple) and len(part) == 3 and all(isinstance(text, str) for text in part)
