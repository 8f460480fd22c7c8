"""Rows with the same source: told by digests, and brought together as one row with several references."""

from __future__ import annotations

import json
import marshal
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.cache import cache_folder
from lit_seq2seq.data.rows import RowMapper, Rows, listed
from lit_seq2seq.features.records import read_record
from lit_seq2seq.features.text import one_form
from lit_seq2seq.files.lines import counted
from lit_seq2seq.types import UserError

COLUMN = "references of equal sources"
_VERSION = 3  # of the keys: raise it when the same source gives another one
_AT_ONCE = 256  # rows that are in memory together
Keys = npt.NDArray[np.int64]
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")


def source_keys(raw: Dataset, mapper: RowMapper) -> Keys:
    """Return a key for each row, `(N,)`; rows whose sources differ in nothing but their form have the same one.

    Form is case, the Unicode form of a text (NFKC), white space and characters that nobody sees, such as soft hyphens.
    The key of a row without a source is 0. The keys, 8 bytes a row, are kept in the cache.

    Example:
        >>> rows = Dataset.from_dict({"source": ["Ein  Hund", "ein Hund ", "eine Katze"]})
        >>> first, second, third = source_keys(rows, RowMapper()).tolist()
        >>> first == second, first == third
        (True, False)
    """
    path = cache_folder() / f"{Hasher.hash((_VERSION, raw._fingerprint, mapper))}.keys.npy"
    if path.is_file():
        return np.load(path)  # type: ignore[no-any-return]
    columns = [name for name in mapper.roots if name in raw.column_names]
    numbers = [name for name in columns if _holds_numbers(raw.features[name])]
    rows = raw.select_columns(columns).with_format("numpy" if numbers else None, numbers or None, bool(numbers))
    found = [keys_of(part, mapper) for part in rows.iter(_AT_ONCE)]
    keys = np.concatenate(found) if found else np.empty(0, np.int64)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, keys)
    partial.replace(path)
    return keys


def keys_of(rows: Rows, mapper: RowMapper) -> Keys:
    """Return the key of each of some rows; see `source_keys`."""
    keys = [_digest(source, fold=True, size=8) or bytes(8) for source in mapper.sources(rows)]
    return np.frombuffer(b"".join(keys), np.int64)


def _digest(source: Any, fold: bool, size: int) -> bytes:
    """Digest a source in one form; nothing where there is none."""
    value = _plain(source, fold)
    if value is None or (hasattr(value, "__len__") and not len(value)):
        return b""
    return blake2b(marshal.dumps(value, 2), digest_size=size).digest()


def _plain(value: Any, fold: bool) -> Any:
    """Bring all texts inside a value into one form; of a file its bytes count, or its path where there are none."""
    if fold and isinstance(value, str) and (structure := _structure(value)):
        value = structure
    if fold and isinstance(value, int | float):
        value = str(value).removesuffix(".0")
    if isinstance(value, str):
        if fold:
            value = unicodedata.normalize("NFKC", value).casefold()
            value = value if value.isascii() else _INVISIBLE.sub("", value)
        return one_form(value, "NFKC" if fold else "NFC")
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return value["bytes"]
        return sorted((str(name), _plain(part, fold)) for name, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return [_plain(part, fold) for part in value] if isinstance(next(iter(value), 0), str | list | dict) else value
    return value if isinstance(value, bytes | int | float | np.ndarray | np.generic | None) else repr(value)


def _structure(text: str) -> Any:
    """Return what a text of JSON or of slots with values, such as a record, holds; nothing if it is another text."""
    if not text.rstrip().endswith(("]", "}")):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    slots: dict[str, list[str]] = {}
    with suppress(UserError):
        for slot, *values in read_record(text):
            slots.setdefault(slot, []).extend(values)
    return {slot: values if len(values) > 1 else values[0] for slot, values in slots.items()}


def _holds_numbers(column: Any) -> bool:
    """Tell whether a column holds arrays or mappings of nothing but numbers, which NumPy reads many times faster."""
    if isinstance(column, dict | Features):
        return all(map(_holds_numbers, column.values()))
    if isinstance(column, List):
        return _holds_numbers(column.feature)
    return isinstance(column, Value) and column.dtype.startswith(("int", "uint", "float"))


def group_references(raw: Dataset, mapper: RowMapper, split: str, at_once: int = 1000) -> tuple[Dataset, RowMapper]:
    """Keep one row of each distinct source; the targets and references of the others become references of it.

    Kept is the first row that has a target, in the order of the split. Sources are equal if their tags are, too; the
    Unicode form of texts and white space make no difference. Rows without a source stay as they are.

    Returns the kept rows with one more column, and the mapper that reads it.

    Example:
        >>> rows = Dataset.from_dict({"source": ["a", "b", "a"], "target": ["x", "y", "z"]})
        >>> grouped, mapper = group_references(rows, RowMapper("source", ["target"]), "test")
        >>> mapper.all_references(grouped[:])
        [('x', 'z'), ('y',)]
    """
    groups: dict[bytes, list[int]] = {}
    texts: list[tuple[str, ...]] = []
    has_target: list[bool] = []
    for index, (key, references, target) in enumerate(_read(raw, mapper, at_once)):
        groups.setdefault(key or str(index).encode(), []).append(index)
        texts.append(references)
        has_target.append(target)
    others: dict[int, list[str]] = {}
    for rows in groups.values():
        kept = next((row for row in rows if has_target[row]), rows[0])
        others[kept] = [text for row in rows if row != kept for text in texts[row]]
    order = sorted(others)
    grouped = raw.select(order).add_column(COLUMN, [others[row] for row in order], feature=List(Value("string")))
    rank_zero_info(f"{split}: {counted(len(raw), 'row')} with {counted(len(order), 'different source')}")
    return grouped, replace(mapper, references=[*listed(mapper.references), COLUMN])


def _read(raw: Dataset, mapper: RowMapper, at_once: int) -> Iterator[tuple[bytes, tuple[str, ...], bool]]:
    """Yield for each row a digest of its source, empty if there is none, its references, and if it has a target."""
    needed = raw.select_columns([name for name in mapper.roots if name in raw.column_names]).with_format(None)
    for rows in needed.iter(at_once):
        found = zip(mapper.sources(rows), mapper.all_references(rows), mapper.targets(rows), strict=True)
        for source, references, targets in found:
            yield _digest(source, fold=False, size=32), tuple(text for text in references if text), bool(targets)
