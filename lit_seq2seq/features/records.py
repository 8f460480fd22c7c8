"""Records of slots and values, or of triples, as sequences of symbols."""

from __future__ import annotations

import datetime
import json
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from lit_seq2seq.features.feature import Array, Medium, TextFeature, is_column, is_nothing
from lit_seq2seq.features.placeholders import PLACEHOLDER, Delexicalized, Part
from lit_seq2seq.features.tokenizer import Tokenizer
from lit_seq2seq.types import Padded, Sources, UserError

_SLOT = re.compile(r"\s*([^\[\],]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")
_EXPECTED = (
    "a record such as name[Blue Spice], food[Indian], a mapping of slots to values, or a list of triples such as "
    '["Oslo", "capital of", "Norway"]'
)


class Records(TextFeature):
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

    medium: ClassVar[Medium | None] = "record"
    column_kind: ClassVar[str] = "records (text, slots or lists)"
    input_kind: ClassVar[str] = "a record"
    input_limit: ClassVar[int | None] = 1024

    def __init__(
        self,
        values: Literal["words", "symbols"] = "words",
        sort: bool = False,
        lowercase: bool = False,
        vocab_size: int = 8000,
        *,
        min_frequency: int = 1,
        delexicalize: Sequence[str] = (),
    ) -> None:
        options = {"lowercase": lowercase, "vocab_size": vocab_size, "min_frequency": min_frequency}
        self.config = {"values": values, "sort": sort, **options, "delexicalize": list(delexicalize)}
        self.tokenizer = Tokenizer("word", vocab_size, min_frequency, lowercase, pretokenized=True)

    def linearize(self, raw: object) -> str:
        """Write a record as symbols divided by spaces."""
        return linearize(self._delexicalized(raw).pairs, self.config["values"], self.config["sort"])

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
        """Tell whether a column holds texts, slots or lists; records that differ in their slots are a `Json` column."""
        records = isinstance(column, dict) or is_column(column, "List", "LargeList", "Json")
        return records or self.tokenizer.accepts_column(column)

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is one record: a text, a mapping, or a list of triples of texts."""
        return isinstance(raw, str | Mapping) or (isinstance(raw, list) and all(_is_triple(part) for part in raw))

    def is_missing(self, raw: object) -> bool:
        """Tell whether a record is absent or has no slot."""
        if isinstance(raw, Mapping):
            return not any(map(several, raw.values()))
        return is_nothing(raw)

    def show(self, raw: Any) -> str:
        """Write the record as JSON, which can be read again; a text as it is."""
        return raw if isinstance(raw, str) else "" if raw is None else json.dumps(raw, ensure_ascii=False, default=str)

    def typed(self, raw: Any) -> str:
        """Write the record on one line."""
        return self.show(raw)

    def labels(self, source: Padded | Sources, row: int) -> list[str]:
        """Name each id of one source of a batch."""
        assert isinstance(source, Padded)
        return self.tokens(source.values[row, : int(source.lengths[row])].tolist())

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of padding, BOS and EOS."""
        return self.tokenizer.marks

    @property
    def size(self) -> int:
        """Number of symbols, the special ones included."""
        return self.tokenizer.size

    @property
    def is_trained(self) -> bool:
        """Whether there is a vocabulary."""
        return self.tokenizer.is_trained

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown symbol."""
        return self.tokenizer.unknown_id

    @property
    def padding(self) -> int:
        """Id that fills up a batch."""
        return self.tokenizer.padding

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

    @property
    def symbols(self) -> list[str]:
        """Names of the symbols by id."""
        return self.tokenizer.symbols

    def extended(self, raw: Iterable[Any], limit: int) -> Self:
        """Return a feature that knows up to `limit` symbols more."""
        longer = type(self)(**self.config)
        texts = ([self.linearize(record) for record in records] for records in raw)
        longer.tokenizer = self.tokenizer.extended(texts, limit)
        return longer

    def _note(self, raw: object, seen: set[str]) -> str:
        seen.update(part[-2] for part in read_record(raw))
        return self.linearize(raw)

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn records into id arrays `(T,)` that end with EOS."""
        return self.tokenizer.encode([self.linearize(record) for record in raw])

    def nothing(self) -> Array:
        """Return a lone EOS."""
        return self.tokenizer.nothing()

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
    def from_dict(cls, values: dict[str, Any], trust: tuple[str, ...] = ()) -> Self:
        """Build the feature that `to_dict` described."""
        records = cls(**values["config"])
        records.tokenizer = Tokenizer.from_dict(values["vocabulary"])
        return records


def _is_triple(part: object) -> bool:
    return isinstance(part, list | tuple) and len(part) == 3 and all(isinstance(text, str) for text in part)


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
