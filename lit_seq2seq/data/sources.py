"""Open a dataset from wherever it lies: hub, folder, files, memory."""

from __future__ import annotations

import csv
import glob
import gzip
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import datasets
from datasets import Audio, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.cache import cache_folder
from lit_seq2seq.data.synthetic import BuiltinDataset
from lit_seq2seq.remote import causes_of, reason_of
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
    streaming: bool = False,
    columns: tuple[str, str] = ("source", "target"),
    train_split: str = "train",
) -> Splits:
    """Open every split of a dataset, without running remote code.

    Args:
        dataset: a hub id; a folder; a csv, tsv, json, jsonl, parquet, arrow or text file; a list of such files; a
            mapping from split to files; a `BuiltinDataset`; or a dataset in memory. Two text files are line-aligned
            source and target. A folder, or a path without its ending, also stands for the line-aligned files
            `FOLDER/SPLIT.SOURCE` and `PATH.SOURCE`, where SOURCE and TARGET are `columns`. Files may end in `.gz`.
        name: configuration of a hub dataset.
        revision: git revision of a hub dataset.
        streaming: read lazily, without keeping a copy on disk.
        columns: names given to the lines of text files: source and target.
        train_split: name of the split that a file without a split name belongs to.

    Returns:
        The splits by name.

    Raises:
        UserError: if something is missing, empty, unreadable or out of reach.

    Example:
        >>> from datasets import Dataset
        >>> open_dataset(Dataset.from_dict({"source": ["a"], "target": ["b"]}))["train"].num_rows
        1
    """
    cache_folder()
    if isinstance(dataset, BuiltinDataset):
        dataset = dataset.load()
    if isinstance(dataset, Dataset | IterableDataset):
        dataset = DatasetDict({train_split: dataset})
    if not isinstance(dataset, DatasetDict | IterableDatasetDict):
        dataset = _open_paths(dataset, name, revision, streaming, columns, train_split)
    splits = cast(Splits, {str(split): rows for split, rows in dataset.items()})
    for split, rows in splits.items():
        if isinstance(rows, Dataset) and not len(rows):
            raise UserError(f"expected rows in split '{split}' of the dataset, but it is empty: check its file")
        if streaming and isinstance(rows, Dataset):
            splits[split] = rows.to_iterable_dataset(num_shards=min(len(rows), 16))
    return splits


def _open_paths(
    dataset: Files, name: str | None, revision: str | None, streaming: bool, columns: tuple[str, str], train: str
) -> Mapping[str, Split]:
    if isinstance(dataset, str):
        files = _aligned(dataset, columns, train) or _plain(dataset, train)
    else:
        files = {train: dataset} if isinstance(dataset, list) else {**dataset}
    if files:
        return {split: _open_files(paths, split, streaming, columns) for split, paths in files.items()}
    path = str(dataset)
    if Path(path).is_dir():
        path = str(Path(path).resolve())  # `datasets` wants its name
    if _is_saved(Path(path)):
        saved: Dataset | DatasetDict = datasets.load_from_disk(path)
        return cast("Mapping[str, Split]", {train: saved} if isinstance(saved, Dataset) else saved)
    with _explained(f"dataset '{dataset}'", revision):
        builder = datasets.load_dataset_builder(path, name, revision=revision)
        if isinstance(builder, AudioFolder):
            builder.BASE_FEATURE = Recording
        if streaming:
            return cast("Mapping[str, Split]", builder.as_streaming_dataset())
        builder.download_and_prepare()
        return cast("Mapping[str, Split]", builder.as_dataset())


class Recording(Audio):  # type: ignore[misc]
    """The path of a recording, which `Audio` does not keep without torchcodec, though nothing is decoded."""

    def encode_example(self, value: str) -> dict[str, str | None]:
        """Return what `Audio` keeps of a file."""
        return {"bytes": None, "path": value}


def _aligned(path: str, columns: tuple[str, str], train: str) -> dict[str, str | list[str]] | None:
    def pair(stem: Path) -> list[str] | None:
        sides = [
            [f"{stem}.{column}{end}" for end in ("", ".gz") if Path(f"{stem}.{column}{end}").is_file()]
            for column in columns
        ]
        return [side[0] for side in sides] if all(sides) else None

    folder = Path(path)
    if not folder.is_dir():
        found = pair(folder)
        return {train: list(found)} if found else None
    stems = sorted({file.name.split(f".{columns[0]}")[0] for file in folder.glob(f"*.{columns[0]}*")})
    pairs = {stem: pair(folder / stem) for stem in stems}
    return {stem: list(files) for stem, files in pairs.items() if files} or None


def _plain(path: str, train: str) -> dict[str, str | list[str]] | None:
    if Path(path).is_file() or "://" in path:
        return {train: path}
    if glob.has_magic(path):
        return {train: sorted(glob.glob(path))}  # noqa: PTH207 - the pattern may be absolute
    if not Path(path).is_dir() and (_suffix(path) in {*_BUILDERS, ".txt"} or path.count("/") > 1 or path[0] in "./~"):
        raise UserError(f"expected a file or folder at '{path}', but there is none: check the dataset setting")
    return None


def origin_of(dataset: Source) -> tuple[str | None, bool]:
    """Return the id of a hub data set, or a few words about another one; and whether it is the former.

    Example:
        >>> origin_of("user/data"), origin_of(["here/one.csv", "two.csv"]), origin_of(DatasetDict())
        (('user/data', True), ('own files one.csv, two.csv', False), (None, False))
    """
    if isinstance(dataset, BuiltinDataset):
        return f"built-in {type(dataset).__name__}", False
    if isinstance(dataset, DatasetDict | IterableDatasetDict) or not isinstance(dataset, str | list | dict):
        return None, False
    if isinstance(dataset, str) and _is_hub_id(dataset):
        return dataset, True
    files = dataset.values() if isinstance(dataset, dict) else [dataset]
    names = [Path(path).name for item in files for path in ([item] if isinstance(item, str) else item)]
    return f"own files {', '.join(names)}", False


def _is_hub_id(name: str) -> bool:
    if Path(name).exists() or "://" in name or glob.has_magic(name):
        return False
    return name.count("/") <= 1 and _suffix(name) not in {*_BUILDERS, ".txt"} and name[0] not in "./~"


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.lower()


def _open_files(paths: str | list[str], split: str, streaming: bool, columns: tuple[str, str]) -> Split:
    paths = [paths] if isinstance(paths, str) else list(paths)
    if not paths:
        raise UserError(f"expected files for split '{split}', but there is none: check the dataset setting")
    for path in paths:
        if "://" not in path:
            _check_file(path, split)
    kinds = {_BUILDERS.get(_suffix(path), "lines") for path in paths}
    if len(kinds) > 1:
        raise UserError(f"expected files of one kind for split '{split}', but these mix {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    label = f"split '{split}' ({', '.join(paths)})"
    with _explained(label):
        if kind == "lines":
            if len(paths) == 1 and _suffix(paths[0]) not in ("", ".txt"):
                rank_zero_info(
                    f"{paths[0]} is read as text, a row a line: its ending is none of {', '.join(_BUILDERS)}"
                )
            return _open_lines(paths, columns, streaming, split)
        options = _csv_options(paths[0]) if kind == "csv" else {}
        return cast(
            Split, datasets.load_dataset(kind, data_files={split: paths}, split=split, streaming=streaming, **options)
        )


def _check_file(path: str, split: str) -> None:
    if not Path(path).is_file():
        raise UserError(
            f"expected a file at '{path}' for split '{split}', but there is none: check the dataset setting"
        )
    if not Path(path).stat().st_size:
        raise UserError(f"expected rows in '{path}' for split '{split}', but the file is empty")
    if _BUILDERS.get(_suffix(path)) in ("csv", "json"):
        for _ in _lines(path):
            pass


def _csv_options(path: str) -> dict[str, Any]:
    """Read every column as text, so that numbers keep their form and "NA" stays a word.

    A header without a comma has semicolons or tabs between its columns, as spreadsheets of many countries write it.
    """
    first = next(_lines(path))
    if _suffix(path) == ".tsv":
        form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}  # such corpora quote nothing
    else:
        form = {"delimiter": next((mark for mark in ",;\t" if mark in first), ",")}
    header = next(csv.reader(_lines(path), **form))
    return form | {"keep_default_na": False, "features": Features({name: Value("string") for name in header})}


def _open_lines(paths: list[str], columns: tuple[str, str], streaming: bool, split: str) -> Split:
    if len(paths) > 2:
        raise UserError(f"expected one text file or two line-aligned ones for split '{split}', but got {len(paths)}")
    stamps = tuple((str(Path(path).resolve()), Path(path).stat().st_mtime_ns) for path in paths)
    options = {"files": stamps, "columns": columns}
    features = Features({column: Value("string") for column in columns[: len(paths)]})
    if streaming:
        return IterableDataset.from_generator(aligned_rows, features=features, gen_kwargs=options)
    return Dataset.from_generator(aligned_rows, features=features, gen_kwargs=options)


def aligned_rows(files: Sequence[tuple[str, int]], columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield one row per line of one or two text files.

    Args:
        files: path and modification time of each file; the time only tells apart versions in the cache.
        columns: column name of each file.

    Raises:
        UserError: if the files have different numbers of lines, or are not UTF-8.
    """
    paths = [path for path, _ in files]
    for lines in itertools.zip_longest(*map(_lines, paths)):
        if None in lines:
            counts = [str(sum(1 for _ in _lines(path))) for path in paths]
            raise UserError(f"expected as many lines in {' as in '.join(paths)}, but they have {' and '.join(counts)}")
        yield dict(zip(columns, lines, strict=False))


def _lines(path: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"expected UTF-8 text in {path}, but line {number} is not ({error.reason} at byte {error.start}): "
                    f"convert it, for example with iconv -f LATIN1 -t UTF-8"
                ) from error


def _open(path: str) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.endswith(".gz") else Path(path).open("rb")


@contextmanager
def _explained(label: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of `datasets` into one line each."""
    logger = logging.getLogger("datasets")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    except Exception as error:
        causes = list(causes_of(error))
        mine = next((cause for cause in causes if isinstance(cause, UserError)), None)
        raise mine or UserError(_explain(label, causes, revision)) from error
    finally:
        logger.disabled = disabled


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
