"""Raw inputs to what an exported encoder reads: several sources at once, and the reader of a saved model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_seq2seq.files.untrusted import check_settings, read_json, undamaged
from lit_seq2seq.runtime.readers import (
    Array,
    Named,
    Pixels,
    PretrainedText,
    Prompts,
    Reader,
    RecordText,
    Text,
    Vectors,
    encode_named,
    own_reader,
)
from lit_seq2seq.runtime.text import Vocabulary
from lit_seq2seq.types import SpecialIds, UserError


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


class Several(Reader):
    """Several sources at once, each by a reader of its own; see `lit_seq2seq.features.MultiSource`.

    Args:
        readers: of each source, by its name.
    """

    def __init__(self, readers: dict[str, Reader]) -> None:
        self.readers = readers

    def is_missing(self, raw: Any) -> bool:
        """Tell whether an input has none of the sources."""
        return lacks_all(raw, self.readers)

    def encode(self, raw: Sequence[Any]) -> list[Array]:
        """Turn mappings, or the JSON texts of some, into arrays `(K,)` that hold the array of each of K sources."""
        read = [read_sources(value, self.readers) for value in raw]
        return [bundled([self._part(name, row.get(name)) for name in self.readers]) for row in read]

    def _part(self, name: str, value: Any) -> Array:
        reader = self.readers[name]
        return reader.nothing() if reader.is_missing(value) else encode_named(reader.encode, [value], [name])[0]

    def nothing(self) -> Array:
        """Return what stands for nothing in each source."""
        return bundled([reader.nothing() for reader in self.readers.values()])

    def positions(self, array: Array) -> int:
        """Count the positions of all sources."""
        return sum(self._positions(array))

    def _positions(self, array: Array) -> list[int]:
        return [reader.positions(part) for reader, part in zip(self.readers.values(), array, strict=True)]

    def truncate(self, array: Array, length: int) -> Array:
        """Shorten the longest sources until all together have at most `length` positions."""
        share = fair_share(self._positions(array), length)
        return bundled([one.truncate(part, share) for one, part in zip(self.readers.values(), array, strict=True)])

    def collate(self, arrays: Sequence[Array]) -> Named:
        """Pad each source: `source.NAME` and `lengths.NAME`."""
        return {
            f"{role}.{name}": values
            for (name, reader), column in zip(self.readers.items(), zip(*arrays, strict=True), strict=True)
            for role, values in reader.collate(column).items()
        }


def load_reader(folder: Path, specials: dict[str, SpecialIds], trust: Sequence[str] = ()) -> tuple[Reader, Vocabulary]:
    """Read the files of a `lit_seq2seq.features.Processor`.

    Args:
        folder: where they are.
        specials: ids of the special symbols of `source` and `target`.
        trust: modules or classes that may be imported to read the inputs.

    Returns:
        What reads inputs, and the vocabulary of the outputs.
    """
    described = read_json(folder / "processor.json")
    with undamaged(folder / "processor.json"):
        check_settings({"source_prefix": described["source_prefix"]}, folder / "processor.json")
        return _load_reader(folder, described, specials, trust)


def _load_reader(
    folder: Path, described: dict[str, Any], specials: dict[str, SpecialIds], trust: Sequence[str]
) -> tuple[Reader, Vocabulary]:
    source, prefix = described["source"], described["source_prefix"]
    alone = source is None or "class_path" in source
    target = Vocabulary(read_json(folder / f"{'' if alone else 'target_'}tokenizer.json"), specials["target"])
    if source is None:
        return Text(target, prefix), target
    if "class_path" not in source:
        return Text(Vocabulary(read_json(folder / "source_tokenizer.json"), specials["source"]), prefix), target
    if source["class_path"] == "lit_seq2seq.features.Prompt":
        return Prompts(target), target
    return _reader(source, specials, "source", trust, prefix), target


def _reader(
    source: dict[str, Any], specials: dict[str, SpecialIds], side: str, trust: Sequence[str], prefix: str = ""
) -> Reader:
    """Make the reader of a feature that a `processor.json` describes; `side` is its name in `specials`."""
    package, *_, kind = source["class_path"].split(".")
    check_settings(source.get("config"), f"the {kind} of the processor")
    if package != "lit_seq2seq":
        return _own(source, trust)
    if kind == "Tokenizer":
        return Text(Vocabulary(source["tokenizer"], specials[side]), prefix)
    if kind == "Records":
        vocabulary = Vocabulary(source["vocabulary"]["tokenizer"], specials[side])
        return RecordText(vocabulary, source["config"])
    if kind == "PretrainedTokenizer":
        return PretrainedText(Vocabulary(source["tokenizer"], SpecialIds(pad=source["pad"])))
    if kind in ("LogMel", "Waveform", "Frames"):
        return Vectors(source["config"], source.get("statistics"))
    if kind == "Image":
        return Pixels(source["config"])
    if kind == "MultiSource":
        parts = source["features"].items()
        return Several({name: _reader(one, specials, f"source.{name}", trust) for name, one in parts})
    raise UserError(f"this runtime cannot read the inputs of {kind:.80}")


def _own(source: dict[str, Any], trust: Sequence[str]) -> Reader:
    """Make the reader that a feature of a user's own names."""
    path = source.get("reader")
    if not isinstance(path, str):
        raise UserError(f"this runtime cannot read the inputs of {source['class_path']:.80}: give it a reader_class")
    module, _, name = path.rpartition(".")
    if not any(f"{path}.".startswith(f"{one}.") for one in trust):
        raise UserError(
            f"the inputs are read by {path:.80}, which is no part of lit_seq2seq: if you trust its author, pass "
            f"trust=({module!r:.80},), or --trust {module:.80}"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{path} cannot be imported ({error}): put {module} on Python's path") from error
    return own_reader(found)(**{key: value for key, value in source.items() if key not in ("class_path", "reader")})
