"""Several sources of one example, each read by a feature of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self, cast

import numpy as np

from lit_seq2seq.features.feature import Array, Feature, Medium, build_feature, describe_feature, encode_named
from lit_seq2seq.types import Padded, Sources, UserError


class MultiSource(Feature):
    """Reads several sources at once, such as a text and an image, for a `MultiSourceEncoder`.

    One input is a mapping from the name of each source to its raw value, or the JSON text of such a mapping; in a data
    set, `data.columns.source` names a column for each source. A source that is missing is read as nothing (an empty
    text, a grey image); an input without any source is missing as a whole. All sources count towards the size of a
    batch, and where an input has too many positions they are shared out evenly: what short sources leave is for the
    long ones.

    Args:
        features: how each source is read, by its name.

    Raises:
        UserError: no feature, or one that itself holds several.

    Example:
        >>> from lit_seq2seq.features import Frames, Tokenizer
        >>> text, gesture = Tokenizer("char"), Frames(channels=2)
        >>> text.train(["abc"])
        >>> feature = MultiSource({"text": text, "gesture": gesture})
        >>> sources = feature.collate(feature.encode([{"text": "ab", "gesture": [[0.0, 1.0]]}, '{"text": "c"}']))
        >>> sources.parts["text"].values.tolist(), sources.lengths.tolist()
        ([[4, 5, 3], [6, 3, 0]], [4, 3])
    """

    medium: ClassVar[Medium | None] = None
    column_kind: ClassVar[str] = "a column of its own for each source"
    input_kind: ClassVar[str] = "a mapping from the name of each source to its input, or the JSON text of one"
    rows_at_once: ClassVar[int] = 100

    def __init__(self, features: dict[str, Feature]) -> None:
        if not features:
            raise UserError("expected features for the sources, but there is none: name them in features")
        for name, feature in features.items():
            if isinstance(feature, MultiSource):
                raise UserError(
                    f"expected a feature of one source for '{name}', but got a MultiSource: name its own here"
                )
            if feature.hides:
                raise UserError(f"expected a feature that hides nothing for '{name}': leave delexicalize out")
        self.features = dict(features)
        self.config = {}

    # ---------------------------------------------------------------------------------------------- what it reads

    def accepts_column(self, column: object) -> bool:
        """No single column holds several sources."""
        return False

    def accepts(self, raw: object) -> bool:
        """Tell whether `raw` is a mapping, or a text that may be the JSON of one."""
        return isinstance(raw, Mapping | str)

    def is_missing(self, raw: object) -> bool:
        """Tell whether a row has none of the sources."""
        return lacks_all(raw, self.features)

    def show(self, raw: Any) -> str:
        """Describe each source after its name."""
        return "; ".join(f"{name}: {f.show(self._read(raw).get(name))}" for name, f in self.features.items())

    def labels(self, source: Padded | Sources, row: int) -> list[str]:
        """Name each position of all sources of an example; nothing where one of them has no names."""
        assert isinstance(source, Sources)
        named = [feature.labels(source.parts[name], row) for name, feature in self.features.items()]
        return [symbol for symbols in named for symbol in symbols] if all(named) else []

    @property
    def marks(self) -> tuple[str, ...]:
        """Those of all sources."""
        return tuple(name for feature in self.features.values() for name in feature.marks)

    @property
    def parts(self) -> tuple[Feature, ...]:
        """Itself and the feature of each source."""
        return (self, *self.features.values())

    def pictures(self, raw: Any) -> dict[str, Array]:
        """Return each source that is an image by its name, as the model sees it."""
        read = self._read(raw)
        pictures = {name: feature.picture(read.get(name)) for name, feature in self.features.items()}
        return {name: picture for name, picture in pictures.items() if picture is not None}

    def typed(self, raw: Any) -> str | None:
        """Write the JSON of an input, with FILE for what is neither a text nor a list."""
        if not isinstance(raw, Mapping):
            return super().typed(raw)
        plain = {name: value if isinstance(value, str | list) else "FILE" for name, value in raw.items()}
        return json.dumps(plain, ensure_ascii=False)

    def random(self, count: int, length: int, generator: np.random.Generator) -> Sources:
        """Draw each source."""
        drawn = {name: feature.random(count, length, generator) for name, feature in self.features.items()}
        return Sources(cast("dict[str, Padded]", drawn))

    def _read(self, raw: Any) -> Mapping[str, Any]:
        return read_sources(raw, self.features)

    # ---------------------------------------------------------------------------------------------- learning

    @property
    def size(self) -> dict[str, int]:
        """Size of each source."""
        return {name: cast(int, feature.size) for name, feature in self.features.items()}

    @property
    def is_trained(self) -> bool:
        """Whether no source has anything left to learn."""
        return all(feature.is_trained for feature in self.features.values())

    def train(self, raw: Iterable[Any], total: int | None = None) -> None:
        """Refuse: each feature learns by itself, from its own column."""
        raise UserError("a MultiSource does not learn as a whole: train the features it holds one by one")

    # ---------------------------------------------------------------------------------------------- encoding

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn inputs into arrays `(K,)` that hold the array of each of the K sources."""
        read = [self._read(value) for value in raw]
        columns = []
        for name, feature in self.features.items():
            values = [value.get(name) for value in read]
            present = [value for value in values if not feature.is_missing(value)]
            encode = partial(feature.encode, training=training)
            encoded = iter(encode_named(encode, present, [name] * len(present)))
            columns.append([feature.nothing() if feature.is_missing(value) else next(encoded) for value in values])
        return [bundled(row) for row in zip(*columns, strict=True)]

    def augment(self, array: Array) -> Array:
        """Change each source at random, as its feature does."""
        return self._each("augment", array)

    def positions(self, array: Array) -> int:
        """Count the positions of all sources."""
        return sum(self._positions(array))

    def measure(self, raw: Sequence[Any]) -> list[int]:
        """Count the positions of all sources of each input."""
        totals = np.zeros(len(raw), dtype=np.int64)
        read = [self._read(value) for value in raw]
        for name, feature in self.features.items():
            values = [value.get(name) for value in read]
            there = np.array([not feature.is_missing(value) for value in values], dtype=bool)
            totals[~there] += feature.positions(feature.nothing())
            totals[there] += np.array(
                feature.measure([v for v, found in zip(values, there, strict=True) if found]), int
            )
        return totals.tolist()

    def nothing(self) -> Array:
        """Return what stands for nothing in each source."""
        return bundled([feature.nothing() for feature in self.features.values()])

    def truncate(self, array: Array, length: int) -> Array:
        """Shorten the longest sources until all together have at most `length` positions; an image stays whole."""
        return self._each("truncate", array, fair_share(self._positions(array), length))

    def collate(self, arrays: Sequence[Array]) -> Sources:
        """Pad each source."""
        columns = zip(self.features.items(), zip(*arrays, strict=True), strict=True)
        return Sources({name: cast(Padded, feature.collate(column)) for (name, feature), column in columns})

    def _positions(self, array: Array) -> list[int]:
        return [feature.positions(part) for feature, part in zip(self.features.values(), array, strict=True)]

    def _each(self, method: str, array: Array, *arguments: int) -> Array:
        pairs = zip(self.features.values(), array, strict=True)
        return bundled([getattr(feature, method)(part, *arguments) for feature, part in pairs])

    # ---------------------------------------------------------------------------------------------- saving

    def to_dict(self) -> dict[str, Any]:
        """Describe each feature by plain JSON values."""
        return {"features": {name: describe_feature(feature) for name, feature in self.features.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any], trust: tuple[str, ...] = ()) -> Self:
        """Build the feature that `to_dict` described."""
        return cls({name: build_feature(part, trust) for name, part in values["features"].items()})

    def identity(self) -> dict[str, Any]:
        """Describe what decides the encoded values."""
        return {"features": {name: feature.identity() for name, feature in self.features.items()}}


def read_sources(raw: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """Read several sources: a mapping from their names, or the JSON text of one.

    Raises:
        UserError: it is neither, or names another source.

    Example:
        >>> read_sources('{"text": "ein Hund"}', ["text", "image"])
        {'text': 'ein Hund'}
    """
    expected = f"expected a mapping with {', '.join(names)}"
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{expected}, or its JSON text, but '{raw:.80}' is not JSON: {error}") from None
    if not isinstance(raw, Mapping):
        raise UserError(f"{expected}, but it is of type {type(raw).__name__}")
    for name in raw:
        if name not in names:
            raise UserError(f"{expected}, but it has '{name}'")
    return raw


def lacks_all(raw: Any, parts: Mapping[str, Any]) -> bool:
    """Tell whether an input has none of several sources; `parts` read them, each by its name."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return True
    if not isinstance(raw, Mapping) or not raw.keys() <= parts.keys():
        return False  # `encode` says what is wrong with it
    return all(part.is_missing(raw.get(name)) for name, part in parts.items())


def fair_share(sizes: Sequence[int], length: int) -> int:
    """Return how many positions each of several sources may have, so that all together have at most `length`."""
    for rank, size in enumerate(sorted(sizes)):
        share = length // (len(sizes) - rank)
        if size > share:
            return max(share, 1)
        length -= size
    return max(sizes)


def bundled(parts: Sequence[Array]) -> Array:
    """Put the arrays of several sources into one array `(K,)`."""
    array = np.empty(len(parts), object)
    for place, part in enumerate(parts):
        array[place] = part
    return array
