"""Records of slots and values, or of triples, as sequences of symbols."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from lit_seq2seq.features.feature import Array, Medium, TextFeature, is_column
from lit_seq2seq.features.tokenizer import Tokenizer
from lit_seq2seq.runtime.placeholders import Delexicalized
from lit_seq2seq.runtime.readers import is_nothing
from lit_seq2seq.runtime.records import linearize, read_record, several
from lit_seq2seq.types import Padded, Sources, SpecialIds, UserError


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

    def special_ids(self, side: str) -> dict[str, SpecialIds]:
        """Those of its vocabulary."""
        return self.tokenizer.special_ids(side)

    def labels(self, source: Padded | Sources, row: int) -> list[str]:
        """Name each id of one source of a batch."""
        assert isinstance(source, Padded)
        return self.tokens(source.values[row, : int(source.lengths[row])].tolist())

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
