"""JSON objects as rows, in which every text stays the text it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow
from datasets import Dataset, Features

from lit_seq2seq.types import UserError


def read_objects(lines: Iterator[str], name: str) -> Iterator[dict[str, Any]]:
    r"""Yield the objects of a JSON file, one on each line or all in one list; a text in a list becomes `{"text": ...}`.

    Raises:
        UserError: a line is not JSON, or something is no object.

    Example:
        >>> list(read_objects(iter(['{"born": "1990-01-02"}', "", '{"born": "007"}']), "rows.jsonl"))
        [{'born': '1990-01-02'}, {'born': '007'}]
    """
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        if line.lstrip().startswith("[") or line.strip() == "{":  # one value on all lines
            value = parsed("\n".join([line, *(further for _, further in numbered)]), name, number)
            if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
                value = [dict(zip(value, row, strict=False)) for row in itertools.zip_longest(*value.values())]
            yield from (_object(one, name, number) for one in (value if isinstance(value, list) else [value]))
        elif line.strip():
            yield _object(parsed(line, name, number), name, number)


def parsed(text: str, name: str, number: int) -> Any:
    """Parse a line of JSON.

    Raises:
        UserError: it is none.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        line = number + getattr(error, "lineno", 1) - 1
        raise UserError(
            f"line {line} of {name} is not JSON ({getattr(error, 'msg', error)}): write an object on each line, or all "
            "in one list"
        ) from error


def _object(value: Any, name: str, number: int) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise UserError(f"expected JSON objects from line {number} of {name} on, but one is {value!r:.80}")
    return value


def object_table(rows: Sequence[dict[str, Any]], features: Features) -> pyarrow.Table:
    """Make a table of objects; what one of them lacks is missing."""
    columns = {column: [row.get(column) for row in rows] for column in features}
    return Dataset.from_dict(columns, features=features).data.table


def features_of(rows: Sequence[dict[str, Any]], name: str) -> Features:
    """Tell the columns of objects; what has no single type, such as records of different slots, stays JSON."""
    names = dict.fromkeys(itertools.chain(*rows))
    return Features({column: _type_of(column, [row.get(column) for row in rows], name) for column in names})


def _type_of(column: str, values: list[Any], name: str) -> Any:
    stays = getattr(datasets, "Json", None)  # since version 4.7
    slots = {frozenset(value) for value in values if isinstance(value, dict)}
    try:
        found = Features.from_arrow_schema(pyarrow.table({column: values}).schema)[column]
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        if stays is None:
            reason = " ".join(str(error).split())
            raise UserError(f"the values of '{column}' in {name} do not fit together: {reason}") from error
        return stays()
    return stays() if stays and len(slots) > 1 else found
