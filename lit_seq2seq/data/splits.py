"""Training, validation and test splits, carved by seed where they are absent."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, IterableDataset
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.grouping import Keys, keys_of, source_keys
from lit_seq2seq.data.rows import RowMapper, Rows
from lit_seq2seq.data.sources import Split, Splits
from lit_seq2seq.files.lines import counted
from lit_seq2seq.files.remote import explained
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import UserError

_AT_ONCE = 100  # rows of a stream that are looked at together


@checked_fields
@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """What the splits are called, and how much is carved out of the training split for those that are absent.

    Args:
        train: name of the training split.
        validation: name of the validation split.
        test: name of the test split.
        validation_size: where there is no split called `validation`: how much to carve out of the training split, a
            number of rows (a tenth of the split at most) or, below 1, a share; 0 for none. Rows with the same source
            stay together. A stream gives its first rows, whose sources are left out of the rest.
        test_size: the same for `test`.
        group_references: rows of the validation and test splits with the same source are one example, whose references
            are the targets of all; the first of them gives the loss. Training uses every row. If `None`, a split that
            is carved is grouped, and one that is given is not.
    """

    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    validation_size: int | float = 1000
    test_size: int | float = 1000
    group_references: bool | None = None

    @property
    def names(self) -> dict[str, str]:
        """What each split is called in the data."""
        return {role: getattr(self, role) for role in ("train", "validation", "test")}


def carve(opened: Splits, settings: SplitSettings, seed: int, mapper: RowMapper, *, running: bool = False) -> Splits:
    """Find the splits by name, and carve an absent validation or test split out of the training split.

    Only a split that goes by its usual name is carved; another name that is missing is a mistake. Rows with the same
    source, as `source_keys` has it, go to the same split; of `running` text the last rows. Returns those of `train`,
    `validation` and `test` that there are.

    Raises:
        UserError: if a name is not among the splits, a size is out of range, or the column of the source is missing.
    """
    for role, name in settings.names.items():
        if name not in opened and name != role:
            raise UserError(f"expected a split '{name}', but the splits are {', '.join(opened)}: set splits.{role}")
    sizes = {"validation": settings.validation_size, "test": settings.test_size}
    for role, size in sizes.items():
        if not size >= 0 or (isinstance(size, float) and size >= 1 and not size.is_integer()):
            raise UserError(f"expected splits.{role}_size to be a number of rows, or a share below 1, but it is {size}")
    splits = {role: opened[name] for role, name in settings.names.items() if name in opened}
    absent = {role: size for role, size in sizes.items() if role not in splits and size}
    if "train" not in splits or not absent:
        return splits
    train = splits["train"]
    mapper = mapper.told_apart.only_sources(columns_of(train))
    if isinstance(train, IterableDataset):
        return splits | _carve_stream(train, absent, mapper)
    if running:
        return splits | _carve_end(train, absent, np.flatnonzero(source_keys(train, mapper)))
    return splits | _carve_rows(train, absent, seed, mapper)


def _carve_end(train: Dataset, absent: Mapping[str, int | float], texts: npt.NDArray[np.intp]) -> Splits:
    """Cut running text into training, validation and test, in this order; only the rows of `texts` are not blank."""
    total, splits = len(texts), {}
    for role, size in reversed(list(absent.items())):
        count = _count(size, total)
        if len(texts) <= count:
            raise UserError(f"expected more than {total} training rows to carve a {role} split from: give such a split")
        left, texts = int(texts[-count]), texts[:-count]
        splits[role], train = train.select(range(left, len(train))), train.select(range(left))
        rank_zero_info(
            f"no {role} split: carved {count} of the {total} training rows, the last ones (set splits.{role} or "
            f"splits.{role}_size)"
        )
    return {"train": train, **{role: splits[role] for role in absent}}


def _count(size: int | float, total: int) -> int:
    return max(1, round(size * total) if size < 1 else min(int(size), total // 10))


def _carve_rows(train: Dataset, absent: Mapping[str, int | float], seed: int, mapper: RowMapper) -> Splits:
    total = len(train)
    keys = source_keys(train, mapper)
    groups = np.full(total, -1)  # of rows without a source, which are of no use in an evaluation
    groups[keys != 0], sizes = _grouped(keys[keys != 0])
    if shared := int(sizes[sizes > 1].sum()):
        rank_zero_info(
            f"{total} training rows have {counted(len(sizes), 'different source')}: the {shared} rows that share "
            "theirs with another stay together when splits are carved"
        )
    left = np.random.default_rng(seed).permutation(len(sizes)).tolist()
    splits: Splits = {}
    for role, size in absent.items():
        chosen = _fill(left, sizes, _count(size, total))
        if not chosen:
            rank_zero_info(
                f"no {role} split: none is carved, as the {total} training rows have too few different sources: give "
                f"one, or set splits.{role}_size"
            )
            continue
        splits[role] = train.select(np.flatnonzero(np.isin(groups, list(chosen))))
        left = [group for group in left if group not in chosen]
        rank_zero_info(
            f"no {role} split: carved {len(splits[role])} of the {total} training rows "
            f"(set splits.{role} or splits.{role}_size)"
        )
    return splits | {"train": train.select(np.flatnonzero(np.isin(groups, [-1, *left])))}


def _grouped(keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Number the groups of rows with the same key by their first rows: the group of each row, the size of each."""
    _, first, group, sizes = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    return np.argsort(order)[group], sizes[order]


def _fill(groups: list[int], sizes: npt.NDArray[np.int64], count: int) -> set[int]:
    """Choose groups, in turn, that have `count` rows together, or less; one is always left over."""
    chosen: set[int] = set()
    for group in groups:
        if not count or len(chosen) == len(groups) - 1:
            break
        if sizes[group] <= count:
            chosen.add(group)
            count -= int(sizes[group])
    return chosen


def _carve_stream(train: IterableDataset, absent: Mapping[str, int | float], mapper: RowMapper) -> Splits:
    splits: Splits = {}
    seen: frozenset[int] = frozenset()
    for role, size in absent.items():
        if size < 1:
            raise UserError(f"expected splits.{role}_size to be a number of rows when streaming, but it is {size}")
        part, train = train.take(int(size)), train.skip(int(size))
        keys = [key for rows in part.iter(_AT_ONCE) for key in keys_of(rows, mapper).tolist()]
        doubled = sum(key in seen for key in keys)
        splits[role] = part.filter(_Unseen(mapper, seen), batched=True, batch_size=_AT_ONCE) if doubled else part
        seen |= frozenset(keys) - {0}
        rank_zero_info(
            f"no {role} split: took the first {counted(len(keys) - doubled, 'training row')} (set splits.{role} or "
            f"splits.{role}_size); later rows with their sources are left out"
        )
    return splits | {"train": train.filter(_Unseen(mapper, seen), batched=True, batch_size=_AT_ONCE)}


@dataclasses.dataclass(frozen=True)
class _Unseen:
    """Tells the rows whose source has none of some keys."""

    mapper: RowMapper
    keys: frozenset[int]

    def __call__(self, rows: Rows) -> list[bool]:
        return [key not in self.keys for key in keys_of(rows, self.mapper).tolist()]


def overlaps(splits: Splits, mapper: RowMapper, first: int = 0) -> str:
    """Say how many rows of each split have a source that is also in one before it; nothing where there are none.

    Only the `first` rows of a stream are looked at. Rows without any source are told apart by their targets.

    Example:
        >>> rows = {"train": ["a", "b"], "test": ["c", "A"]}
        >>> overlaps({name: Dataset.from_dict({"source": texts}) for name, texts in rows.items()}, RowMapper())
        '1 of the 2 test rows shares its source with train'
    """
    what, mapper = "text" if mapper.source is None else "source", mapper.told_apart
    needed = {column.split(".")[0] for column in mapper.source_columns}
    kept = {name: rows for name, rows in splits.items() if needed <= columns_of(rows).keys()}
    keys = {name: _some_keys(rows, mapper.only_sources(columns_of(rows)), first) for name, rows in kept.items()}
    named = {
        name: name if isinstance(rows, Dataset) else f"the first {len(keys[name])} rows of {name}"
        for name, rows in kept.items()
    }
    found = [
        f"{shared} of the {len(theirs)} {later} rows {'shares its' if shared == 1 else 'share their'} {what} with "
        f"{named[earlier]}"
        for (earlier, mine), (later, theirs) in itertools.combinations(keys.items(), 2)
        if (shared := int(np.isin(theirs[theirs != 0], mine).sum()))
    ]
    return ", ".join(found)


def _some_keys(rows: Split, mapper: RowMapper, first: int) -> Keys:
    if isinstance(rows, Dataset):
        return source_keys(rows, mapper)
    with explained("the stream"):
        found = [keys_of(part, mapper) for part in rows.take(first).iter(_AT_ONCE)]
    return np.concatenate([np.empty(0, np.int64), *found])


def only_split(opened: Splits, name: str) -> Split:
    """Return the one split there is, or the one called `name`; raise a `UserError` where that is neither."""
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
