"""Rows to evaluate with the same source, brought together as one row with several references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

from datasets import Dataset, List, Value
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.rows import RowMapper, listed

COLUMN = "references of equal sources"


def group_references(raw: Dataset, mapper: RowMapper, split: str, at_once: int = 1000) -> tuple[Dataset, RowMapper]:
    """Keep one row of each distinct source; the targets and references of the others become references of it.

    Kept is the first row that has a target, in the order of the split; sources are equal if their tags are, too. Rows
    without a source stay as they are.

    Args:
        raw: the split.
        mapper: finds the sources and texts; resolved.
        split: name of the split, for the report.
        at_once: number of rows that are in memory together.

    Returns:
        The kept rows with one more column, and the mapper that reads it.

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
    rank_zero_info(f"{split}: {len(raw)} rows with {len(order)} different sources")
    return grouped, replace(mapper, references=[*listed(mapper.references), COLUMN])


def _read(raw: Dataset, mapper: RowMapper, at_once: int) -> Iterator[tuple[bytes, tuple[str, ...], bool]]:
    """Yield for each row a digest of its source, empty if there is none, its references, and if it has a target."""
    needed = raw.select_columns([name for name in mapper.roots if name in raw.column_names]).with_format(None)
    for rows in needed.iter(at_once):
        found = zip(mapper.sources(rows), mapper.all_references(rows), mapper.targets(rows), strict=True)
        for source, references, targets in found:
            key = b"" if source is None else blake2b(repr(source).encode()).digest()
            yield key, tuple(text for text in references if text), bool(targets)
