"""Tables, JSON and line-aligned texts: one set of rules, wherever the files lie and whoever lists them."""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow
from datasets import (
    ArrowBasedBuilder,
    Audio,
    BuilderConfig,
    DatasetBuilder,
    DatasetInfo,
    Features,
    SplitGenerator,
    Value,
)
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.text.text import Text
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.files import lines_of, suffix_of
from lit_seq2seq.data.objects import features_of, object_table, read_objects
from lit_seq2seq.files.lines import counted
from lit_seq2seq.types import UserError

VERSION = "lit-seq2seq-1"
"""Part of the cache key: raise it when a change of the code changes the rows."""
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_NAMED_MARK = re.compile(r"sep=(.)\1*", re.IGNORECASE)  # the first line of what Excel shall open
_RETURN = "\udc0d"  # stands for a carriage return, at which `csv` would end a line; no UTF-8 text holds it
_AT_ONCE = 5000
_TELLING = 100_000  # objects whose values tell the types of columns
Fields = list[str]


@dataclass(frozen=True)
class Form:
    """How a table is written.

    Args:
        separator: what stands between columns; found out from the first lines if `None`.
        quoted: whether quotes enclose fields that hold separators, quotes or line ends.
        names: of the columns, where the first line does not name them.
    """

    separator: str | None = None
    quoted: bool = True
    names: Sequence[str] | None = None


def read_table(lines: Iterator[str], name: str, form: Form) -> tuple[Fields, Iterator[Fields]]:
    r"""Read a table: the names of its columns, and its rows, every field as the text it is.

    Blank lines are left out, unless there is one column only, where they are empty texts. Separators at the end of a
    line, with nothing behind them, make no columns. A first line such as `sep=;` tells the separator. Messages call the
    table by `name`.

    Raises:
        UserError: it has no line, a name is there twice, separators are mixed, or a row has more or fewer fields than
            there are columns.

    Example:
        >>> header, rows = read_table(iter(["de,en", '"ja, 007",NA']), "rows.csv", Form())
        >>> header, list(rows)
        (['de', 'en'], [['ja, 007', 'NA']])
    """
    first: list[str] = []
    blank = 0
    for line in lines:
        if not first and not line.strip():
            blank += 1
            continue
        if not first and form.separator is None and (mark := _NAMED_MARK.fullmatch(line)):
            form, blank = replace(form, separator=mark[1]), blank + 1
            continue
        first.append(line)
        if len(first) > 1 and line.strip():
            break
    if not first:
        raise UserError(f"expected rows in '{name}', but the file is empty")
    separator = _separator(first, name, form)
    records = _records(itertools.chain([""] * blank, first, lines), name, separator, form.quoted)
    next(itertools.islice(records, blank, blank), None)  # skips these
    header = list(form.names or [])
    if not header:
        _, fields = next(records)
        header = _columns(fields, name)
    return header, _rows(records, header, name, replace(form, separator=separator))


def _separator(first: Sequence[str], name: str, form: Form) -> str:
    if form.separator is not None:
        other = next((mark for mark in ",;" if mark in first[0]), None)
        if form.separator == "\t" and form.names is None and "\t" not in first[0] and other:
            raise UserError(
                f"expected tabs between the columns of {name}, but its first line has {_MARKS[other]}: name it .csv"
            )
        return form.separator
    found = [mark for mark in _MARKS if _count(first[0], mark) > 1]
    if len(found) < 2:
        return found[0] if found else ","
    even = [mark for mark in found if _count(first[0], mark) == _count(first[-1], mark)]
    if len(even) == 1:
        return even[0]
    raise UserError(
        f"expected one kind of separator between the columns of {name}, but its first line has "
        f"{' and '.join(_MARKS[mark] for mark in found)}: keep one of them"
    )


def _count(line: str, separator: str) -> int:
    return len(next(csv.reader([line.replace("\r", _RETURN)], delimiter=separator)))


def _records(lines: Iterator[str], name: str, separator: str, quoted: bool) -> Iterator[tuple[int, Fields]]:
    """Yield for each record the number of its first line, and its fields; none where the line is blank."""
    if not quoted:
        yield from ((number, line.split(separator) if line else []) for number, line in enumerate(lines, start=1))
        return
    csv.field_size_limit(sys.maxsize)
    written: list[str] = []  # the lines of a record
    ended = False

    def watched() -> Iterator[str]:
        nonlocal ended
        for line in lines:
            written.append(line)
            yield line.replace("\r", _RETURN) + "\n"
        ended = True

    reader = csv.reader(watched(), delimiter=separator, strict=True)
    number = 1
    try:
        for fields in reader:
            if any(_is_quoted_late(field, separator, written) for field in fields):
                raise UserError(
                    f"a quote in line {number} of {name} follows a space, so it would be part of the text: take the "
                    "spaces before quotes out"
                )
            written.clear()
            yield number, [field.replace(_RETURN, "\r") for field in fields]
            number = reader.line_num + 1
    except csv.Error as error:
        wrong = "is never closed" if ended else "is closed within a text"
        raise UserError(
            f"the quote that opens a field in line {number} of {name} {wrong}: put quotes around the whole field and "
            "double those in it, or separate columns by tabs and name the file .tsv, where quotes are text"
        ) from error


def _is_quoted_late(field: str, separator: str, written: Sequence[str]) -> bool:
    """Tell whether quotes enclose a field but for a space before them, and are not meant as text themselves."""
    inside = field.strip(" ")
    if not field.startswith(" ") or len(inside) < 2 or not inside[0] == inside[-1] == '"':
        return False
    return any(line.startswith(field) or separator + field in line for line in written)


def _columns(fields: Fields, name: str) -> Fields:
    names = [field.strip() for field in fields]
    while names and not names[-1]:
        names.pop()
    names = [column or f"column {place}" for place, column in enumerate(names, start=1)]
    if not names:
        raise UserError(f"expected names of columns in the first line of {name}, but it has none: write them there")
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise UserError(f"expected different names of columns in {name}, but two are called '{twice}': rename one")
    return names


def _rows(records: Iterator[tuple[int, Fields]], header: Fields, name: str, form: Form) -> Iterator[Fields]:
    count = len(header)
    broken: list[int] = []
    enclosed: list[int] = []
    for number, fields in records:
        if len(fields) < 2 and not any(field.strip() for field in fields):
            if count > 1:
                continue
            fields = fields or [""]
        while len(fields) > count and not fields[-1].strip():
            fields.pop()
        if len(fields) != count:
            raise UserError(_uneven(number, fields, header, name, form.separator or ","))
        if any("\n" in field for field in fields):
            broken.append(number)
        if not form.quoted and any(map(_is_enclosed, fields)):
            enclosed.append(number)
        yield fields
    if broken:
        rank_zero_info(
            f"{name}: {counted(len(broken), 'row')} with line breaks within quotes, the first in line {broken[0]}"
        )
    if enclosed:
        rank_zero_info(
            f"{name}: {counted(len(enclosed), 'row')} with fields in quotes with doubled quotes inside, the first in "
            f"line {enclosed[0]}; in a .tsv file all of these are text: if a program put them there, name the file .csv"
        )


def _is_enclosed(field: str) -> bool:
    """Tell whether a field looks like one that a program, such as Excel, has put into quotes."""
    inside = field[1:-1]
    return field[:1] == field[-1:] == '"' and '""' in inside and '"' not in inside.replace('""', "")


def _uneven(number: int, fields: Fields, header: Fields, name: str, separator: str) -> str:
    expected, found = (counted(len(one), "field") for one in (header, fields))
    text = separator.join(fields)
    other = next((mark for mark in _MARKS if mark != separator and text.count(mark) == len(header) - 1), None)
    if len(fields) == 1 and other is not None:
        advice = f"it has {_MARKS[other]} where the first line has {_MARKS.get(separator, repr(separator))}"
    elif len(fields) < len(header):
        advice = "write one for each column, an empty one where there is nothing"
    elif separator == "\t":
        advice = "take tabs out of texts"
    elif len(header) == 1:
        advice = f"name all columns in the first line, or put quotes around a text that has '{separator}' in it"
    else:
        advice = f"put quotes around a text that has '{separator}' in it"
    named = ", ".join(header)
    return f"expected {expected} ({named}) in line {number} of {name}, but it has {found}: {advice}"


# -------------------------------------------------------------------------------------------------- as data sets


class Texts(ArrowBasedBuilder):  # type: ignore[misc]
    """Rows from files, which are brought into the cache first unless they are streamed."""

    def _info(self) -> DatasetInfo:
        return DatasetInfo()

    def _split_generators(self, manager: Any) -> list[SplitGenerator]:
        named = self.config.data_files
        found = manager.download(named)
        files = {split: list(zip(found[split], map(str, named[split]), strict=True)) for split in named}
        self.info.features = self._features(files)
        return [SplitGenerator(name=split, gen_kwargs=self._shards(pairs)) for split, pairs in files.items()]

    def _features(self, files: dict[str, list[tuple[str, str]]]) -> Features:
        raise NotImplementedError

    def _shards(self, files: list[tuple[str, str]]) -> dict[str, Any]:
        return {"files": files}

    def _read(self, files: Sequence[Any]) -> Iterator[Any]:
        raise NotImplementedError

    def _table(self, rows: Sequence[Any]) -> pyarrow.Table:
        return table_of(rows, self.info.features.arrow_schema)

    def _generate_tables(self, files: Sequence[Any]) -> Iterator[tuple[tuple[int, int], pyarrow.Table]]:
        rows = self._read(files)
        for number in itertools.count():
            part = list(itertools.islice(rows, _AT_ONCE))
            if not part:
                break
            yield (0, number), self._table(part)
        if number == 0:
            raise UserError(f"expected rows in {', '.join(_shown(files))}, but there are none: check the file")


def table_of(rows: Sequence[Sequence[str]], schema: pyarrow.Schema) -> pyarrow.Table:
    """Make a table of texts."""
    columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*rows, strict=True)]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _texts(columns: Iterable[str]) -> Features:
    return Features({column: Value("string") for column in columns})


def _shown(files: Sequence[Any]) -> Iterator[str]:
    for file in files:
        yield from (name for _, name in (file if isinstance(file, list) else [file]))


@dataclass
class TablesConfig(BuilderConfig):  # type: ignore[misc]
    """Settings of `Tables`: the form of the files, where it is not that of their endings."""

    form: Form | None = None


class Tables(Texts):
    """Rows of csv and tsv files, which follow each other."""

    BUILDER_CONFIG_CLASS = TablesConfig

    def _open(self, path: str, name: str) -> tuple[Fields, Iterator[Fields]]:
        usual = Form("\t", quoted=False) if suffix_of(name) == ".tsv" else Form()  # corpora in tsv quote nothing
        return read_table(lines_of(path, name), name, self.config.form or usual)

    def _features(self, files: dict[str, list[tuple[str, str]]]) -> Features:
        first = next(pair for pairs in files.values() for pair in pairs)
        return _texts(self._open(*first)[0])

    def _read(self, files: Sequence[tuple[str, str]]) -> Iterator[Sequence[str]]:
        expected = list(self.info.features)
        for path, name in files:
            header, rows = self._open(path, name)
            if sorted(header) != sorted(expected):
                raise UserError(
                    f"expected the columns {', '.join(expected)} in {name}, as in the other files, but they are "
                    f"{', '.join(header)}: rename them, or give the file as another dataset"
                )
            order = [header.index(column) for column in expected]
            yield from ([fields[place] for place in order] for fields in rows)


class Objects(Texts):
    """Rows of JSON files, which follow each other; a text stays the text it is, also one that looks like a date."""

    def _features(self, files: dict[str, list[tuple[str, str]]]) -> Features:
        pairs = list(itertools.chain(*files.values()))
        if not (telling := list(itertools.islice(self._read(pairs), _TELLING))):
            raise UserError(f"expected rows in {', '.join(_shown(pairs))}, but there are none: check the file")
        return features_of(telling, pairs[0][1])

    def _read(self, files: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(read_objects(lines_of(*file), file[1]) for file in files)

    def _table(self, rows: Sequence[dict[str, Any]]) -> pyarrow.Table:
        return object_table(rows, self.info.features)


@dataclass
class LinesConfig(BuilderConfig):  # type: ignore[misc]
    """Settings of `Lines`: the name of the column, or of both columns of line-aligned files."""

    columns: Sequence[str] = ("source",)


class Lines(Texts):
    """A row for each line of text files, which follow each other, or of two files that are line-aligned."""

    BUILDER_CONFIG_CLASS = LinesConfig

    def _features(self, files: dict[str, list[tuple[str, str]]]) -> Features:
        return _texts(self.config.columns)

    def _shards(self, files: list[tuple[str, str]]) -> dict[str, Any]:
        aligned = len(self.config.columns)
        return {"files": [files[start : start + aligned] for start in range(0, len(files), aligned)]}

    def _read(self, files: Sequence[list[tuple[str, str]]]) -> Iterator[Sequence[str]]:
        return itertools.chain.from_iterable(map(_aligned, files))


def _aligned(files: list[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    for lines in itertools.zip_longest(*(lines_of(*file) for file in files)):
        if None in lines:
            names = " as in ".join(name for _, name in files)
            counts = " and ".join(str(sum(1 for _ in lines_of(*file))) for file in files)
            raise UserError(f"expected as many lines in {names}, but they have {counts}")
        yield lines


class Recording(Audio):  # type: ignore[misc]
    """The path of a recording, which `Audio` does not keep without torchcodec, though nothing is decoded."""

    def encode_example(self, value: str) -> dict[str, str | None]:
        """Return what `Audio` keeps of a file."""
        return {"bytes": None, "path": value}


class _Described:
    """What describes the files of a folder in its `metadata.csv` or `metadata.jsonl` is read as any other file."""

    def _read_metadata(self, metadata_file: str, metadata_ext: str = "") -> Iterator[pyarrow.Table]:
        name = metadata_file if metadata_file.endswith(metadata_ext) else f"metadata{metadata_ext}"
        if metadata_ext == ".jsonl":
            objects = list(read_objects(lines_of(metadata_file, name), name))
            yield object_table(objects, features_of(objects, name))
            return
        if metadata_ext != ".csv":
            yield from super()._read_metadata(metadata_file, metadata_ext)  # type: ignore[misc]
            return
        header, rows = read_table(lines_of(metadata_file, name), name, Form())
        schema = _texts(header).arrow_schema
        while part := list(itertools.islice(rows, _AT_ONCE)):
            yield table_of(part, schema)


class RecordingFolder(_Described, AudioFolder):  # type: ignore[misc]
    """Recordings in a folder, with what its metadata say of them."""

    BASE_FEATURE = Recording


class PictureFolder(_Described, ImageFolder):  # type: ignore[misc]
    """Images in a folder, with what its metadata say of them."""


_FORM = {"sep", "delimiter", "quoting", "names", "column_names", "header"}
_NO_MATTER = {"name", "version", "data_dir", "data_files", "description", "features", "chunksize", "encoding"}
_MISSING = {"keep_default_na", "na_filter", "na_values"}  # text stays text


def by_our_rules(builder: DatasetBuilder, column: str) -> DatasetBuilder:
    """Return a builder that reads the same files as one of `datasets`, by the rules of this module.

    Lines of text become one `column`.
    """
    config = builder.config
    kept = {key: value for key, value in vars(config).items() if key not in _NO_MATTER}
    kind: type[DatasetBuilder] | None = None
    if isinstance(builder, Csv):
        plain = vars(type(config)())
        if all(kept[key] == plain[key] for key in kept.keys() - _FORM - _MISSING):
            kind, kept = Tables, {"form": _published(config)}
    elif isinstance(builder, Text) and config.sample_by == "line":
        kind, kept = Lines, {"columns": (column,)}
    elif isinstance(builder, Json) and config.field is None and config.encoding == "utf-8":
        kind, kept = Objects, {}
    elif isinstance(builder, AudioFolder | ImageFolder):
        kind = RecordingFolder if isinstance(builder, AudioFolder) else PictureFolder
    if kind is None:
        return builder
    return kind(
        dataset_name=builder.dataset_name,
        config_name=config.name,
        config_id=builder.config_id,
        hash=f"{VERSION}-{builder.hash}",
        base_path=builder.base_path,
        repo_id=builder.repo_id,
        data_files=config.data_files,
        **kept,
    )


def _published(config: Any) -> Form | None:
    """Return the form that the page of a data set declares; `None` where the endings of its files tell it."""
    tabs = all(suffix_of(name) == ".tsv" for names in config.data_files.values() for name in names)
    if not config.names and config.quoting == csv.QUOTE_MINIMAL and config.sep == ("\t" if tabs else ","):
        return None
    return Form(config.sep, config.quoting != csv.QUOTE_NONE, config.names)
