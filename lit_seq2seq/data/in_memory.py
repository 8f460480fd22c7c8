"""Rows that are in memory already, in any of the usual forms, as a `Dataset`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas
import pyarrow
from datasets import Dataset, IterableDataset

from lit_seq2seq.types import UserError

_KINDS = (
    "expected a data set, a path or hub id, a DataFrame, a list of pairs (source, target) or of mappings, or a mapping "
    "from column to values"
)


def rows_of(given: Any, columns: Sequence[str]) -> Dataset | IterableDataset | None:
    """Make a `Dataset` of rows in memory; `None` where these are not rows, but paths.

    Args:
        given: a `Dataset`; a DataFrame of pandas, or what hands out an Arrow stream, as those of polars; a list of
            pairs of source and target, or of mappings from column to value; or a mapping from column to values.
        columns: source and target, and any others that are looked for, by which a mapping from column to values is told
            from one from split to files.

    Raises:
        UserError: they do not fit together.

    Example:
        >>> rows_of([("ein Hund", "a dog")], ("de", "en")).to_list()
        [{'de': 'ein Hund', 'en': 'a dog'}]
    """
    if isinstance(given, Dataset | IterableDataset):
        return _unformatted(given)
    try:
        if isinstance(given, pandas.DataFrame):
            return Dataset.from_pandas(given.rename(columns=str), preserve_index=False)
        if hasattr(given, "__arrow_c_stream__"):
            return Dataset(pyarrow.table(given))
        if isinstance(given, Mapping):
            return _from_columns(given) if is_table(given, columns) else None
        if isinstance(given, Sequence) and given and not all(isinstance(row, str | os.PathLike) for row in given):
            return _from_list(given, columns)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise UserError(f"the rows of the dataset do not fit together: {' '.join(str(error).split())}") from error
    return None


def is_table(given: Mapping[Any, Any], columns: Sequence[str]) -> bool:
    """Tell whether a mapping is one from column to values, as it has one of the columns that are looked for."""
    return bool({name.split(".")[0] for name in columns} & given.keys())


def _from_columns(columns: Mapping[Any, Any]) -> Dataset:
    for name, values in columns.items():
        if isinstance(values, str | os.PathLike):
            raise ValueError(f"column '{name}' is not a list of values, but {values!r:.80}")
    return Dataset.from_dict(dict(columns))


def _from_list(rows: Sequence[Any], columns: Sequence[str]) -> Dataset:
    if all(isinstance(row, Mapping) for row in rows):
        names = dict.fromkeys(name for row in rows for name in row)
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    if all(isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2 for row in rows):
        return Dataset.from_dict(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=False)))
    wrong = next((row for row in rows if isinstance(row, str) or not isinstance(row, Sequence | Mapping)), rows[0])
    raise UserError(f"{_KINDS}, but it is a list with {wrong!r:.80}")


def refuse(given: object) -> UserError:
    """Return the error about something that is no dataset."""
    return UserError(f"{_KINDS}, but it is of type {type(given).__name__}: check the dataset setting")


def _unformatted(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return rows of plain Python values; what a transform of the user's makes of them is computed once."""
    if isinstance(rows, Dataset) and rows.format["type"] == "custom":
        rows = rows.map(lambda batch: batch, batched=True, remove_columns=rows.column_names, desc="transform")
    return rows.with_format(None)
