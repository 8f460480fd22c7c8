"""Training, validation and test splits, carved by seed where they are absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from datasets import Dataset, Features, IterableDataset
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.sources import Split, Splits
from lit_seq2seq.types import UserError


def carve(opened: Splits, names: Mapping[str, str], sizes: Mapping[str, int | float], seed: int) -> Splits:
    """Find the splits by name, and carve an absent validation or test split out of the training split.

    Only a split that goes by its usual name is carved; another name that is missing is a mistake.

    Args:
        opened: the splits of the dataset.
        names: what `train`, `validation` and `test` are called there.
        sizes: how much to carve for `validation` and `test`: rows, a tenth of the training split at most, or a share
            below 1, or 0.
        seed: of the choice of rows.

    Returns:
        Those of `train`, `validation` and `test` that there are.

    Raises:
        UserError: if a name is not among the splits, or a size is out of range.
    """
    for role, name in names.items():
        if name not in opened and name != role:
            raise UserError(f"expected a split '{name}', but the splits are {', '.join(opened)}: set {role}_split")
    for role, size in sizes.items():
        if size < 0 or (isinstance(size, float) and size >= 1 and not size.is_integer()):
            raise UserError(f"expected {role}_size to be a number of rows, or a share below 1, but it is {size}")
    splits = {role: opened[name] for role, name in names.items() if name in opened}
    absent = {role: size for role, size in sizes.items() if role not in splits and size}
    if "train" not in splits or not absent:
        return splits
    train = splits["train"]
    carved = _carve_stream(train, absent) if isinstance(train, IterableDataset) else _carve_rows(train, absent, seed)
    return splits | carved


def _carve_rows(train: Dataset, absent: Mapping[str, int | float], seed: int) -> Splits:
    total = len(train)
    shuffled = np.random.default_rng(seed).permutation(total)
    splits: Splits = {}
    for role, size in absent.items():
        count = round(size * total) if size < 1 else min(int(size), total // 10)
        count = min(max(count, 1), len(shuffled) - 1)
        if count < 1:
            continue
        splits[role] = train.select(np.sort(shuffled[:count]))
        shuffled = shuffled[count:]
        rank_zero_info(
            f"no {role} split: carved {count} of the {total} training rows (set {role}_split or {role}_size)"
        )
    return splits | {"train": train.select(np.sort(shuffled))}


def _carve_stream(train: IterableDataset, absent: Mapping[str, int | float]) -> Splits:
    splits: Splits = {}
    for role, size in absent.items():
        if size < 1:
            raise UserError(f"expected {role}_size to be a number of rows when streaming, but it is {size}")
        splits[role], train = train.take(int(size)), train.skip(int(size))
        rank_zero_info(f"no {role} split: took the first {int(size)} training rows (set {role}_split or {role}_size)")
    return splits | {"train": train}


def only_split(opened: Splits, name: str) -> Split:
    """Return the one split there is, or the one called `name`.

    Raises:
        UserError: if there are several, and none is called so.
    """
    if len(opened) > 1 and name not in opened:
        raise UserError(f"expected one split or '{name}' in predict_dataset, but it has {', '.join(opened)}")
    return opened[name] if name in opened else next(iter(opened.values()))


def columns_of(rows: Split) -> Features:
    """Return the columns of a split and their types, looked up in the first rows where they are not declared."""
    return rows.features or rows._resolve_features().features


def undecoded(rows: Split, columns: list[str]) -> Split:
    """Leave the files of audio and image columns as bytes and paths: the source feature decodes them."""
    for column in columns:
        kind = columns_of(rows).get(column)
        if getattr(kind, "decode", False):
            rows = rows.cast_column(column, dataclasses.replace(kind, decode=False))
    return rows


def on_disk(rows: Split) -> Dataset:
    """Return a split that can be read at any position; a streamed one is copied."""
    return rows if isinstance(rows, Dataset) else Dataset.from_generator(_read, gen_kwargs={"rows": rows})


def _read(rows: IterableDataset) -> Iterator[object]:
    yield from rows
