"""Open a dataset from wherever it lies: hub, folder, files, memory."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

import datasets
from datasets import Dataset, DatasetBuilder, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.builtin import BuiltinDataset
from lit_seq2seq.data.cache import cache_folder
from lit_seq2seq.data.files import check_readable, plain_path, suffix_of
from lit_seq2seq.data.in_memory import is_table, refuse, rows_of
from lit_seq2seq.data.tables import VERSION, Lines, Objects, Tables, by_our_rules
from lit_seq2seq.files.paths import is_remote
from lit_seq2seq.files.remote import causes_of, reason_of
from lit_seq2seq.types import UserError

Split: TypeAlias = Dataset | IterableDataset
Splits: TypeAlias = dict[str, Split]
Files: TypeAlias = str | list[str] | dict[str, str | list[str]]
InMemory: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict
Source: TypeAlias = str | list[str] | BuiltinDataset | InMemory | dict[str, str | list[str]]

_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}


def open_dataset(
    dataset: Source,
    name: str | None = None,
    revision: str | None = None,
    *,
    streaming: bool = False,
    columns: Sequence[str] = ("source", "target"),
    train_split: str = "train",
) -> Splits:
    """Open every split of a dataset, without running remote code.

    Args:
        dataset: see `Seq2SeqDataModule`. A folder, or a path without its ending, also stands for the line-aligned files
            `FOLDER/SPLIT.SOURCE` and `PATH.SOURCE`, where SOURCE and TARGET are `columns`.
        name: configuration of a hub dataset.
        revision: git revision of a hub dataset.
        streaming: read lazily, without keeping a copy on disk.
        columns: names given to the lines of text files: source and target; and other columns that are looked for.
        train_split: name of the split that a file without a split name belongs to.

    Returns:
        The splits by name.

    Raises:
        UserError: if something is missing, empty, unreadable or out of reach.
    """
    cache_folder()
    given: Any = dataset.load() if isinstance(dataset, BuiltinDataset) else dataset
    rows = rows_of(given, columns)
    if rows is not None:
        given = {train_split: rows}
    elif isinstance(given, str | os.PathLike):
        given = _open_path(plain_path(given), name, revision, streaming, columns, train_split)
    elif not isinstance(given, Mapping):
        given = {train_split: given}
    splits = {str(split): _open_split(value, str(split), streaming, columns) for split, value in given.items()}
    for split, opened in splits.items():
        if isinstance(opened, Dataset) and not len(opened):
            raise UserError(f"expected rows in split '{split}' of the dataset, but it is empty: check its file")
        if streaming and isinstance(opened, Dataset):
            splits[split] = opened.to_iterable_dataset(num_shards=min(len(opened), 16))
    return splits


def _open_split(value: Any, split: str, streaming: bool, columns: Sequence[str]) -> Split:
    rows = rows_of(value, columns)
    if rows is not None:
        return rows
    paths = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(paths, Sequence):
        raise refuse(value)
    return _open_files([file for path in paths for file in _found(plain_path(path))], split, streaming, columns)


def _found(path: str) -> list[str]:
    """Return the files that a path or pattern names."""
    if is_remote(path) or Path(path).exists() or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - the pattern may be absolute
    if not found:
        raise UserError(f"expected files that match '{path}', but there are none: check the dataset setting")
    return found


def _open_path(
    path: str, name: str | None, revision: str | None, streaming: bool, columns: Sequence[str], train: str
) -> Mapping[str, Any]:
    """Open a path or hub id; return its splits, or their files."""
    if not path.strip():
        raise UserError("expected a path or hub id as the dataset, but it is empty: check the dataset setting")
    files = _aligned(path, columns, train) or _plain(path, train)
    if files:
        return files
    label = f"dataset '{path}'"
    if Path(path).is_dir():
        path = str(Path(path).resolve())  # `datasets` wants its name
    if _is_saved(Path(path)):
        saved: Dataset | DatasetDict = datasets.load_from_disk(path)
        return {train: saved} if isinstance(saved, Dataset) else cast("Mapping[str, Split]", saved)
    with _explained(label, revision):
        if name is not None and Path(path).is_dir() and datasets.get_dataset_config_names(path) == ["default"]:
            rank_zero_info(f"data.name: {name} is left out, as {label} has no configurations")
            name = None
        try:
            builder = datasets.load_dataset_builder(path, name, revision=revision)
        except ValueError:
            if not Path(path).is_dir() or (files := _by_split(path)) is None:
                raise
            return files
        return _read(by_our_rules(builder, columns[0]), streaming)


def _by_split(folder: str) -> dict[str, list[str]] | None:
    """Return the files of each split of a folder, as `datasets` finds them, where those of some are of another kind."""
    found = DataFilesDict.from_patterns(get_data_patterns(folder), base_path=folder)
    files = {str(split): [one for one in found[split] if suffix_of(one) in {*_BUILDERS, ".txt"}] for split in found}
    kinds = {frozenset(map(suffix_of, paths)) for paths in files.values()}
    return files if len(kinds) > 1 and frozenset() not in kinds else None


def _read(builder: DatasetBuilder, streaming: bool) -> Mapping[str, Split]:
    if streaming:
        return cast("Mapping[str, Split]", builder.as_streaming_dataset())
    builder.download_and_prepare()
    return cast("Mapping[str, Split]", builder.as_dataset())


def _aligned(path: str, columns: Sequence[str], train: str) -> dict[str, list[str]] | None:
    def pair(stem: Path) -> list[str] | None:
        sides = [
            [f"{stem}.{column}{end}" for end in ("", ".gz", ".bz2", ".xz") if Path(f"{stem}.{column}{end}").is_file()]
            for column in columns[:2]
        ]
        return [side[0] for side in sides] if all(sides) else None

    folder = Path(path)
    if not folder.is_dir():
        found = pair(folder)
        return {train: list(found)} if found else None
    stems = sorted({file.name.split(f".{columns[0]}")[0] for file in folder.glob(f"*.{glob.escape(columns[0])}*")})
    pairs = {stem: pair(folder / stem) for stem in stems}
    return {stem: list(files) for stem, files in pairs.items() if files} or None


def _plain(path: str, train: str) -> dict[str, list[str]] | None:
    if Path(path).is_file() or is_remote(path):
        return {train: [path]}
    if Path(path).is_dir():
        return None
    if glob.has_magic(path):
        return {train: _found(path)}
    if suffix_of(path) in {*_BUILDERS, ".txt"} or path.count("/") > 1 or path[0] in "./~":
        raise UserError(f"expected a file or folder at '{path}', but there is none: check the dataset setting")
    return None


def origin_of(dataset: Source, columns: Sequence[str] = ("source", "target")) -> tuple[str | None, bool]:
    """Return the id of a hub data set, or a few words about another one; and whether it is the former.

    Example:
        >>> origin_of("user/data"), origin_of(["here/one.csv", "two.csv"]), origin_of(DatasetDict())
        (('user/data', True), ('own files one.csv, two.csv', False), (None, False))
    """
    if isinstance(dataset, BuiltinDataset):
        return f"built-in {type(dataset).__name__}", False
    if isinstance(dataset, str) and _is_hub_id(dataset):
        return dataset, True
    if isinstance(dataset, dict) and is_table(dataset, columns):
        return None, False
    items = list(dataset.values()) if isinstance(dataset, dict) else [dataset]
    paths = [path for item in items for path in (item if isinstance(item, list) else [item])]
    if not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
        return None, False
    return f"own files {', '.join(Path(path).name for path in paths)}", False


def _is_hub_id(name: str) -> bool:
    if Path(name).exists() or is_remote(name) or glob.has_magic(name):
        return False
    return name.count("/") <= 1 and suffix_of(name) not in {*_BUILDERS, ".txt"} and name[:1] not in {"", *"./~"}


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _open_files(paths: list[str], split: str, streaming: bool, columns: Sequence[str]) -> Split:
    if not paths:
        raise UserError(f"expected files for split '{split}', but there is none: check the dataset setting")
    for path in paths:
        _check_file(path, split)
    kinds = {_BUILDERS.get(suffix_of(path), "lines"): path for path in reversed(paths)}
    if len(kinds) > 1:
        mixed = ", ".join(f"{kind} ({kinds[kind]})" for kind in sorted(kinds))
        raise UserError(f"expected files of one kind for split '{split}', but these mix {mixed}: convert them")
    kind = kinds.popitem()[0]
    with _explained(f"split '{split}' ({', '.join(paths)})"):
        if kind in ("parquet", "arrow"):
            files = {split: [path if is_remote(path) else glob.escape(path) for path in paths]}
            return cast(Split, datasets.load_dataset(kind, data_files=files, split=split, streaming=streaming))
        reader = {"csv": Tables, "json": Objects, "lines": Lines}[kind]
        options = _columns_of_lines(paths, split, columns) if kind == "lines" else {}
        patterns = [path if is_remote(path) else glob.escape(str(Path(path).absolute())) for path in paths]
        files = DataFilesDict.from_patterns({"rows": patterns})
        return _read(reader(hash=VERSION, data_files=files, **options), streaming)["rows"]


def _columns_of_lines(paths: list[str], split: str, columns: Sequence[str]) -> dict[str, Any]:
    if len(paths) > 2:
        raise UserError(f"expected one text file or two line-aligned ones for split '{split}', but got {len(paths)}")
    if len(paths) == 1 and suffix_of(paths[0]) not in ("", ".txt"):
        rank_zero_info(f"{paths[0]} is read as text, a row a line: its ending is none of {', '.join(_BUILDERS)}")
    return {"columns": tuple(columns[: len(paths)])}


def _check_file(path: str, split: str) -> None:
    check_readable(path)
    if is_remote(path):
        return
    if not Path(path).is_file():
        raise UserError(
            f"expected a file at '{path}' for split '{split}', but there is none: check the dataset setting"
        )
    if not Path(path).stat().st_size:
        raise UserError(f"expected rows in '{path}' for split '{split}', but the file is empty")


@contextmanager
def _explained(label: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of `datasets` into one line each."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except Exception as error:
        causes = list(causes_of(error))
        mine = next((cause for cause in causes if isinstance(cause, UserError)), None)
        raise mine or UserError(_explain(label, causes, revision)) from error
    finally:
        logger.setLevel(level)


def _explain(label: str, causes: list[BaseException], revision: str | None) -> str:
    telling = causes[1] if isinstance(causes[0], DatasetGenerationError) and len(causes) > 1 else causes[0]
    text = " ".join(str(telling).split())
    if "scripts are no longer supported" in text:
        return (
            f"{label} is a loading script, which cannot be run: set data.revision to refs/convert/parquet, where the "
            "hub keeps a copy of most, or use another version or your own files"
        )
    if isinstance(telling, ConnectionError):
        return f"{label} is neither a path here nor can the hub be reached: check name, network and HF_HUB_OFFLINE"
    if isinstance(telling, StopIteration) or "corresponds to no data" in text:
        return f"expected rows in {label}, but it is empty"
    if reason := reason_of(causes[0], label, revision):
        return reason
    return f"{label} cannot be read: {text or type(telling).__name__}"
