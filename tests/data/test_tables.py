"""Tables are read by one set of rules, wherever they lie: files, lists, folders, metadata, packed and remote files."""

import bz2
import csv
import gzip
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from lit_seq2seq.data import open_dataset
from lit_seq2seq.data.splits import undecoded
from lit_seq2seq.types import UserError
from tests.loopback_hub import LoopbackHub


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def put(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
Place = Callable[[Path, str, str], object]
PLACES: dict[str, Place] = {
    "file": lambda folder, end, text: put(folder / f"rows{end}", text),
    "path": lambda folder, end, text: Path(put(folder / f"rows{end}", text)),
    "list": lambda folder, end, text: [put(folder / f"rows{end}", text)],
    "mapping": lambda folder, end, text: {"train": Path(put(folder / f"rows{end}", text))},
    "pattern": lambda folder, end, text: put(folder / f"rows{end}", text)[: -len(end) - 1] + f"?{end}",
    "patterns": lambda folder, end, text: {"train": [put(folder / f"rows{end}", text)[: -len(end) - 2] + f"*{end}"]},
    "folder": lambda folder, end, text: str(Path(put(folder / "set" / f"train{end}", text)).parent),
    "address": lambda folder, end, text: Path(put(folder / f"rows{end}", text)).as_uri(),
    **{
        pack: lambda folder, end, text, pack=pack: put(folder / f"rows{end}{pack}", PACKED[pack](text.encode()))
        for pack in PACKED
    },
    "packed folder": lambda folder, end, text: str(
        Path(put(folder / "set" / f"train{end}.gz", gzip.compress(text.encode()))).parent
    ),
}
everywhere = pytest.mark.parametrize("place", PLACES)


def read(place: str, folder: Path, end: str, text: str, **options: object) -> list[dict[str, str]]:
    return list(open_dataset(PLACES[place](folder, end, text), **options)["train"])


@everywhere
def test_text_stays_text(place: str, tmp_path: Path) -> None:
    rows = [("007", "NA"), ("null", "None"), ("1.50", "nan"), ("2024-01-02", "true"), ("a\u2028b", "c\x85\x0bd\x0ce")]
    text = "source,target\n" + "".join(f"{a},{b}\n" for a, b in rows)
    assert read(place, tmp_path, ".csv", text) == [{"source": a, "target": b} for a, b in rows]


OBJECTS = {
    "lines": lambda rows: "\n\n".join(map(json.dumps, rows)),
    "byte-order mark": lambda rows: "\ufeff" + "\r\n".join(map(json.dumps, rows)),
    "list": lambda rows: "\n" + json.dumps(rows, indent=1),
    "columns": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}, indent=1),
}


@everywhere
@pytest.mark.parametrize("form", OBJECTS)
def test_text_in_json_stays_text(place: str, form: str, tmp_path: Path) -> None:
    texts = ["2024-01-02", "007", "NA", "1.50", "2024-01-02T00:00:00Z", "a\u2028b"]
    rows = [
        {"source": text, "record": {"born": text, "n": number, **extra}}
        for text, number, extra in zip(texts, [7, "007", 7.0, None, "x", "y"], [{}, {"m": "1"}] * 3, strict=True)
    ]
    found = read(place, tmp_path, ".json" if form == "list" else ".jsonl", OBJECTS[form](rows))
    assert found == rows
    assert [list(map(str, row["record"].values())) for row in found] == [
        list(map(str, row["record"].values())) for row in rows
    ]


WRONG_OBJECTS = {
    '{"a": "b"}\n{"a": \n': r"line 2 of .*rows.jsonl is not JSON \(Expecting value\): write an object on each line",
    '[\n{"a": "b"},\n{"a"}]': r"line 3 of .*rows.jsonl is not JSON \(Expecting ':' delimiter\)",
    '{"a": "b", "a": "c"}': r"line 1 of .*rows.jsonl is not JSON \(a name is there twice\)",
    '\n["a", 7]': r"expected JSON objects from line 2 of .*rows.jsonl on, but one is 7",
    "[" * 100_000: r"line 1 of .*rows.jsonl is not JSON",
    "[]": r"expected rows in .*rows.jsonl, but there are none",
    '{"a": "\\ud800"}': r"split 'train' \(.*rows.jsonl\) cannot be read: .*surrogates not allowed",
}


@pytest.mark.parametrize("text", WRONG_OBJECTS)
def test_what_is_wrong_in_json_is_named(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=WRONG_OBJECTS[text]) as caught:
        open_dataset(put(tmp_path / "rows.jsonl", text))
    assert "\n" not in str(caught.value)
    assert "Failed" not in capfd.readouterr().err


@everywhere
def test_tsv_quotes_nothing(place: str, tmp_path: Path) -> None:
    lines = ['"Hallo\t"hello', 'er\t"he"', 'welt"\tworld"', "in 5,5\"; 'x\tfive"]
    found = read(place, tmp_path, ".tsv", "source\ttarget\n" + "\n".join(lines))
    assert found == [dict(zip(("source", "target"), line.split("\t"), strict=True)) for line in lines]


def test_quotes_that_a_program_put_into_a_tsv_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [['he said ""hi"" ""', "a"], ['"he said ""hi"""', "b"], ['"a"" b"', "c"], ['"c"', "d"]]
    text = "source\ttarget\n" + "".join("\t".join(row) + "\n" for row in rows)
    with caplog.at_level("INFO"):
        read_back = open_dataset(put(tmp_path / "rows.tsv", text))["train"]
    assert [list(row.values()) for row in read_back] == rows
    assert "rows.tsv: 2 rows with fields in quotes with doubled quotes inside, the first in line 3" in caplog.text


@everywhere
def test_a_first_line_may_tell_the_separator(place: str, tmp_path: Path) -> None:
    found = read(place, tmp_path, ".csv", "sep=;\nsource;target\na, b;c\n")
    assert found == [{"source": "a, b", "target": "c"}]


LATE = ['x, "b c"', ' "a",b', '"a", "b"']


@pytest.mark.parametrize("line", LATE)
def test_a_quote_behind_a_space_is_named(line: str, tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", f"\n\nsource,target\n{line}\n")
    with pytest.raises(UserError, match=r"a quote in line 4 of .*rows.csv follows a space, .*: take the spaces"):
        open_dataset(path)


def test_quotes_that_are_text_stay(tmp_path: Path) -> None:
    rows = [(' "b c"', 'he said, "x"'), ('a,\n "b"', "y"), ('"', ' "')]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("source", "target"), *rows])
    read_back = open_dataset(tmp_path / "rows.csv")["train"]
    assert [(row["source"], row["target"]) for row in read_back] == rows


def test_one_field_is_one_field(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", "source\nhello, friend\n")
    with pytest.raises(
        UserError, match=r"expected 1 field \(source\) in line 2 .* 2 fields: name all columns in the f"
    ):
        open_dataset(path)
    with pytest.raises(UserError, match=r"expected names of columns in the first line of .*, but it has none"):
        open_dataset(put(tmp_path / "unnamed.csv", ",\na,b\n"))


@everywhere
@pytest.mark.parametrize("number", [2, 3])
def test_a_field_too_many_names_the_line_and_shifts_nothing(place: str, number: int, tmp_path: Path) -> None:
    lines = ["source,target", "a,b", "c,d"]
    lines[number - 1] = "hello, friend 1,salut ami 1"
    match = (
        rf"expected 2 fields \(source, target\) in line {number} of .*(rows|train).csv.*, but it has 3 fields: put quo"
    )
    with pytest.raises(UserError, match=match):
        read(place, tmp_path, ".csv", "\n".join(lines))


@everywhere
def test_tabs_at_the_ends_of_lines_make_no_columns(place: str, tmp_path: Path) -> None:
    text = "source\ttarget\nhallo\thello\t\nwelt\tworld\n\nja\tyes\t\t\n"
    expected = [{"source": a, "target": b} for a, b in (("hallo", "hello"), ("welt", "world"), ("ja", "yes"))]
    assert read(place, tmp_path, ".tsv", text) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_metadata_of_recordings_and_pictures_is_a_table(streaming: bool, tmp_path: Path) -> None:
    for name, end in (("audio", "wav"), ("image", "png")):
        for file in ("a", "b"):
            put(tmp_path / name / "train" / f"{file}.{end}", b"nothing to decode")
        text = f"file_name,text,speaker\na.{end},NA,007\nb.{end},2024-01-02,8\n"
        put(tmp_path / name / "train" / "metadata.csv", text)
        rows = open_dataset(str(tmp_path / name), streaming=streaming)["train"]
        rows = undecoded(rows, [name]).remove_columns(name)
        expected = [{"text": "NA", "speaker": "007"}, {"text": "2024-01-02", "speaker": "8"}]
        assert list(rows) == expected
        put(tmp_path / name / "train" / "metadata.csv", text.replace(",8", ""))
        with pytest.raises(UserError, match=r"expected 3 fields .* in line 3 of .*metadata.csv, but it has 2"):
            list(open_dataset(str(tmp_path / name), streaming=streaming)["train"])
        (tmp_path / name / "train" / "metadata.csv").unlink()
        objects = [{"file_name": f"{file}.{end}", **row} for file, row in zip("ab", expected, strict=True)]
        put(tmp_path / name / "train" / "metadata.jsonl", "\n".join(map(json.dumps, objects)))
        rows = open_dataset(str(tmp_path / name), streaming=streaming)["train"]
        assert list(undecoded(rows, [name]).remove_columns(name)) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_and_texts_at_an_address_are_those_of_a_file(hub: LoopbackHub, streaming: bool) -> None:
    table, packed = b"source,target\n007,NA\n", gzip.compress(b"source\ttarget\n007\tNA\n")
    files = {"train.csv": table, "rows.tsv.gz": packed, "in.txt": b"007\n\nNA\n", "a.de": b"007\n", "a.en": b"NA\n"}
    hub.add("datasets", "alice/files", files)
    hub.add("datasets", "alice/rows", {"train.csv": table, "test.csv": table})
    hub.add("datasets", "alice/texts", {"train.txt": b"007\x0b\n\nNA\n"})
    web, here = f"{hub.url}/datasets/alice/files/resolve/main", "hf://datasets/alice/files"
    pair = [{"source": "007", "target": "NA"}]
    for dataset in (f"{web}/train.csv", f"{here}/train.csv", f"{here}/rows.tsv.gz", f"{here}/train*.csv", "alice/rows"):
        assert list(open_dataset(dataset, streaming=streaming)["train"]) == pair, dataset
    assert list(open_dataset({"train": [f"{here}/a.de", f"{here}/a.en"]}, streaming=streaming)["train"]) == pair
    for dataset, first in ((f"{web}/in.txt", "007"), ("alice/texts", "007\x0b")):
        found = list(open_dataset(dataset, streaming=streaming)["train"])
        assert found == [{"source": text} for text in (first, "", "NA")], dataset


def test_a_published_separator_and_names_are_taken(hub: LoopbackHub) -> None:
    card = (
        b"---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n  sep: '|'\n  names: [source, target]\n---\n"
    )
    hub.add("datasets", "alice/piped", {"README.md": card, "rows.csv": b"007|a, b\nNA|c\n"})
    rows = open_dataset("alice/piped")["train"].to_list()
    assert rows == [{"source": "007", "target": "a, b"}, {"source": "NA", "target": "c"}]


def test_line_breaks_within_quotes_are_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path / "rows.csv", 'source,target\r\n"a\r\nb ""c""",d\r\ne\rf,g\r\n')
    with caplog.at_level("INFO"):
        rows = open_dataset(path)["train"].to_list()
    assert rows == [{"source": 'a\nb "c"', "target": "d"}, {"source": "e\rf", "target": "g"}]
    assert any("rows.csv: 1 row with line breaks within quotes, the first in line 2" in m for m in caplog.messages)


TAKEN = {
    "blank first line": ("\n \nsource,target\na,b\n", {"source": "a", "target": "b"}),
    "old Mac": ("source,target\ra,b\r", {"source": "a", "target": "b"}),
    "mark and blank": ("\ufeff\nsource,target\na,b", {"source": "a", "target": "b"}),
    "comma at the end": ("source,target,\na,b,\n", {"source": "a", "target": "b"}),
    "comma in the header only": ("source,target,\na,b\n", {"source": "a", "target": "b"}),
    "index of pandas": (",source,target\n0,a,b\n", {"column 1": "0", "source": "a", "target": "b"}),
    "spaces": ("source; target\na;b\n", {"source": "a", "target": "b"}),
    "comma in a name": ("source;target, english\na;b\n", {"source": "a", "target, english": "b"}),
    "quoted names": ('"source, de";"target"\na;b\n', {"source, de": "a", "target": "b"}),
    "a long text": (f"source,target\n{'a' * 200_000},b\n", {"source": "a" * 200_000, "target": "b"}),
    "a quote within": ('source,target\n5" long,b\n', {"source": '5" long', "target": "b"}),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_programs_write_is_taken(case: str, tmp_path: Path) -> None:
    text, row = TAKEN[case]
    assert open_dataset(put(tmp_path / "rows.csv", text))["train"].to_list() == [row]


def test_a_blank_line_is_an_empty_text_where_there_is_one_column(tmp_path: Path) -> None:
    rows = open_dataset(put(tmp_path / "rows.csv", 'source\na\n\n""\nb\n'))["train"]["source"]
    assert rows[:] == ["a", "", "", "b"]


REFUSED = {
    "missing field": ("rows.csv", "source,target\na\n", "line 2 of .*rows.csv, but it has 1 field: write one for"),
    "blank lines are counted": ("rows.csv", "\nsource,target\n\na\n", "line 4 of .*rows.csv"),
    "rows of several lines are counted": ("rows.csv", 'source,target\n"a\nb",c\nd\n', "line 4 of .*rows.csv"),
    "other separators below": ("rows.csv", "source,target\na;b\n", "it has semicolons where the first line has commas"),
    "tabs below": ("rows.csv", "source,target\na\tb\n", "it has tabs where the first line has commas"),
    "mixed separators": ("rows.csv", "a,b;c\n1,2;3\n", "one kind of separator .* has commas and semicolons: keep one"),
    "no tabs": ("rows.tsv", "source,target\na,b\n", "expected tabs between .*rows.tsv, but its first line has commas"),
    "a tab too many": ("rows.tsv", "source\ttarget\na\tb\tc\n", "line 2 of .*, but it has 3 fields: take tabs out"),
    "a name twice": ("rows.csv", "source,target,source\na,b,c\n", "columns in .*rows.csv, but two are called 'source'"),
    "an open quote": ("rows.csv", 'source,target\na,b\n"c,d\ne,f\n', "field in line 3 of .*rows.csv is never closed"),
    "a quote in front": (
        "rows.csv",
        'source,target\n"Ja" sagte er,b\n',
        "line 2 of .*rows.csv is closed within a text",
    ),
    "blank": ("rows.csv", "\n\n", "expected rows in '.*rows.csv', but the file is empty"),
    "UTF-16": ("rows.csv", "source,target\nä,b\n".encode("utf-16"), "it is UTF-16: convert it with iconv -f UTF-16 "),
    "UTF-16 without mark": ("rows.csv", "source,target\na,b\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
    "UTF-16 text": ("rows.txt", "a\nb\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
    "UTF-32": ("rows.jsonl", '{"a": "b"}\n'.encode("utf-32"), "it is UTF-32"),
    "damaged": ("rows.csv.gz", b"source,target\na,b\n", "rows.csv.gz is damaged, or is not what its ending says"),
    "cut off": ("rows.tsv.xz", lzma.compress(b"source\ttarget\na\tb\n")[:-9], "rows.tsv.xz is damaged"),
    "archive": ("rows.zip", b"PK", r"rows.zip cannot be read: of compressed files \.gz, \.bz2 and \.xz are; unpack"),
    "archive of a table": ("rows.csv.zst", b"x", r"rows.csv.zst cannot be read: .*unpack it first"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    name, content, match = REFUSED[case]
    with pytest.raises(UserError, match=match) as caught:
        open_dataset(put(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_files_of_a_list_are_named_where_they_differ(tmp_path: Path) -> None:
    first = put(tmp_path / "a.csv", "source,target\na,b\n")
    other = [put(tmp_path / "b.csv", "target;source\nd;c\n"), put(tmp_path / "c.tsv", "source\ttarget\ne\tf\n")]
    rows = open_dataset([first, *other])["train"]
    assert rows["source"][:] == ["a", "c", "e"]
    with pytest.raises(UserError, match=r"expected the columns source, target in .*d.csv, .* they are source, english"):
        open_dataset([first, put(tmp_path / "d.csv", "source,english\na,b\n")])
    with pytest.raises(UserError, match=r"one kind .*these mix csv \(.*a.csv\), json \(.*e.json\)"):
        open_dataset([first, put(tmp_path / "e.json", "[]")])
    with pytest.raises(UserError, match=re.escape("expected files that match '") + ".*"):
        open_dataset({"train": [str(tmp_path / "none*.csv")]})


def test_an_empty_file_of_a_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path / "set" / "train.csv", "source,target\na,b\n")
    for content, match in (
        ("", "validation.csv', but the file is empty"),
        ("source,target\n", "validation.csv, but there"),
    ):
        put(tmp_path / "set" / "validation.csv", content)
        with pytest.raises(UserError, match=match):
            open_dataset(str(tmp_path / "set"))


FOLDERS = {
    "train.csv.zip": (b"PK\x03\x04", "train.csv.zip cannot be read: .*unpack it first"),
    "train.csv.bz2": (b"source", "train.csv.bz2 is damaged"),
    "train.csv": ("source,target\nä,b\n".encode("utf-16"), "train.csv, but it is UTF-16"),
    "train.txt": ("eins\nzwölf\n".encode("latin-1"), "train.txt, but line 2 is not"),
    "train.jsonl": ('{"source": "ü"}\n'.encode("latin-1"), "train.jsonl, but line 1 is not"),
    "train.json": (b"", "expected rows in .*train.json, but there are none: check the file"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_wrong_in_a_folder_is_named(name: str, tmp_path: Path) -> None:
    content, match = FOLDERS[name]
    put(tmp_path / "set" / name, content)
    with pytest.raises(UserError, match=match):
        open_dataset(str(tmp_path / "set"))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_splits_of_a_folder_may_be_files_of_different_kinds(streaming: bool, tmp_path: Path) -> None:
    put(tmp_path / "train.csv", 'source,target\n"a, 007",b\n')
    put(tmp_path / "test.tsv", 'source\ttarget\n"c\td\n')
    put(tmp_path / "validation-1.jsonl.gz", gzip.compress(b'{"source": "2024-01-02", "target": "e"}\n'))
    put(tmp_path / "notes.md", "about the training data")
    found = {split: list(rows) for split, rows in open_dataset(str(tmp_path), streaming=streaming).items()}
    expected = {"train": ("a, 007", "b"), "test": ('"c', "d"), "validation": ("2024-01-02", "e")}
    assert found == {split: [dict(zip(("source", "target"), row, strict=True))] for split, row in expected.items()}


def test_names_that_look_like_patterns_are_files(tmp_path: Path) -> None:
    for name in ("rows [1].csv", "rows*.tsv", "a?.jsonl"):
        end = name.rpartition(".")[2]
        text = {"csv": "source\na\n", "tsv": "source\na\n", "jsonl": '{"source": "a"}\n'}[end]
        assert open_dataset(put(tmp_path / name, text))["train"].to_list() == [{"source": "a"}]


@pytest.mark.parametrize("place", [place for place in PLACES if place != "address"])
def test_folders_need_no_name_in_utf8(place: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    assert read(place, folder, ".csv", "source,target\na,b\n") == [{"source": "a", "target": "b"}]
