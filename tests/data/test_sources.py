import gzip
import json

import datasets
import pytest
from datasets import Dataset, DatasetDict

from lit_seq2seq.data import BuiltinDataset, open_dataset
from lit_seq2seq.data.splits import undecoded
from lit_seq2seq.types import UserError

ROWS = [
    {"source": 'ein "Hund", ja', "target": "a dog"},
    {"source": "007", "target": "NA"},
    {"source": "Straße\u2028x", "target": "null"},
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_files(folder):
    frame = Dataset.from_list(ROWS)
    frame.to_csv(folder / "rows.csv")
    frame.to_parquet(folder / "rows.parquet")
    frame.to_json(folder / "rows.jsonl")
    (folder / "rows.json").write_text(json.dumps(ROWS))
    lines = [f"{row['source']}\t{row['target']}\n" for row in ROWS]
    (folder / "rows.tsv").write_text("".join(["source\ttarget\n", *lines]))
    for side in ("source", "target"):
        text = "".join(row[side] + "\n" for row in ROWS)
        (folder / f"rows.{side}").write_text(text)
        (folder / f"zipped.{side}.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("rows.csv", "rows.jsonl", "rows.tsv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    frame.save_to_disk(folder / "saved")
    DatasetDict({"train": frame}).save_to_disk(folder / "saved_splits")
    (folder / "folder").mkdir()
    (folder / "folder" / "train.jsonl").write_text((folder / "rows.jsonl").read_text())


class Builtin(BuiltinDataset):
    def load(self):
        return DatasetDict({"train": Dataset.from_list(ROWS)})


def sources(folder):
    names = ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl", "rows.parquet"]
    names += ["rows.csv.gz", "rows.jsonl.gz", "rows.tsv.gz", "rows", "zipped", "saved", "saved_splits", "folder"]
    return [str(folder / name) for name in names] + [
        [str(folder / "rows.source"), str(folder / "rows.target")],
        {"train": [str(folder / "zipped.source.gz"), str(folder / "zipped.target.gz")]},
        {"train": str(folder / "rows.jsonl")},
        str(folder / "rows.js*l"),
        Dataset.from_list(ROWS),
        DatasetDict({"train": Dataset.from_list(ROWS)}),
        Builtin(),
    ]


@pytest.mark.parametrize("index", range(20))
def test_every_kind_of_source_gives_the_same_rows(index, tmp_path):
    write_files(tmp_path)
    dataset = sources(tmp_path)[index]
    opened = open_dataset(dataset)
    assert list(opened) == ["train"]
    assert opened["train"].to_list() == ROWS
    if index % 4 == 0:
        streamed = open_dataset(dataset, streaming=True)
        assert list(streamed["train"]) == ROWS


def test_every_kind_is_tested(tmp_path):
    write_files(tmp_path)
    assert len(sources(tmp_path)) == 20


def test_the_working_directory_is_a_folder_too(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    Dataset.from_list(ROWS).to_csv(tmp_path / "folder" / "rows.csv")
    monkeypatch.chdir(tmp_path / "folder")
    assert open_dataset(".")["train"].num_rows == len(ROWS)


def test_a_folder_of_line_aligned_files_has_its_splits(tmp_path):
    for split, count in {"train": 3, "validation": 2}.items():
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{language} {i}\n" for i in range(count)))
    opened = open_dataset(str(tmp_path), columns=("de", "en"))
    assert opened["train"].to_list() == [{"de": f"de {i}", "en": f"en {i}"} for i in range(3)]
    assert len(opened["validation"]) == 2


def test_several_files_of_one_split_follow_each_other(tmp_path):
    write_files(tmp_path)
    opened = open_dataset({"train": [str(tmp_path / "rows.jsonl"), str(tmp_path / "rows.json")]})
    assert opened["train"].to_list() == ROWS + ROWS


def test_one_text_file_is_all_source(tmp_path):
    (tmp_path / "in.txt").write_text("a\n\nb")
    assert open_dataset(str(tmp_path / "in.txt"))["train"].to_list() == [{"source": t} for t in ("a", "", "b")]


def test_a_changed_text_file_is_read_again(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("a\n")
    assert open_dataset(str(path))["train"]["source"][:] == ["a"]
    path.write_text("b\nc\n")
    assert open_dataset(str(path))["train"]["source"][:] == ["b", "c"]


@pytest.mark.parametrize("mark", [";", "\t", ","])
def test_a_csv_file_may_have_semicolons_or_tabs_between_its_columns(mark, tmp_path):
    path = write(tmp_path / "rows.csv", f'german{mark}english\n"ja{mark} ein Hund"{mark}a dog\n'.encode())
    assert open_dataset(path)["train"].to_list() == [{"german": f"ja{mark} ein Hund", "english": "a dog"}]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_recordings_is_read_without_decoding_any(streaming, tmp_path):
    for split, names in {"train": ["a.wav", "b.wav"], "test": ["c.wav"]}.items():
        (tmp_path / split).mkdir()
        for name in names:
            (tmp_path / split / name).write_bytes(b"no recording")
        lines = ["file_name,text", *(f"{name},said in {name}" for name in names)]
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines))
    opened = open_dataset(str(tmp_path), streaming=streaming)
    rows = list(undecoded(opened["train"], ["audio"]))
    assert [row["text"] for row in rows] == ["said in a.wav", "said in b.wav"]
    assert [row["audio"]["path"] for row in rows] == [str(tmp_path / "train" / n) for n in ("a.wav", "b.wav")]
    assert list(opened) == ["train", "test"]


def write(path, content):
    path.write_bytes(content)
    return str(path)


def test_mistakes_with_files_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"expected a file or folder at '.*none.jsonl', but there is none"):
        open_dataset(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"expected a file at '.*none.csv' for split 'test', but there is none"):
        open_dataset({"test": str(tmp_path / "none.csv")})
    with pytest.raises(UserError, match=r"expected rows in '.*void.csv' for split 'train', but the file is empty"):
        open_dataset(write(tmp_path / "void.csv", b""))
    with pytest.raises(UserError, match=r"expected rows in .*header.csv, but there are none: check the file"):
        open_dataset(write(tmp_path / "header.csv", b"source,target\n"))
    with pytest.raises(UserError, match=r"expected rows in split 'train' .*, but it is empty"):
        open_dataset(Dataset.from_dict({"source": [], "target": []}))
    with pytest.raises(UserError, match=r"expected files for split 'train', but there is none"):
        open_dataset([])
    with pytest.raises(UserError, match=r"of one kind .*'train', .* mix csv \(.*header.csv\), json \(.*a.json\)"):
        open_dataset([str(tmp_path / "header.csv"), write(tmp_path / "a.json", b"[]")])
    with pytest.raises(UserError, match=r"line 2 of .*bad.jsonl is not JSON \(Expecting value\): write an object on"):
        open_dataset(write(tmp_path / "bad.jsonl", b'{"a": 1}\n{"a": oops\n'))
    with pytest.raises(UserError, match="expected one text file or two line-aligned ones for split 'train', but got 3"):
        open_dataset([write(tmp_path / "a.txt", b"a")] * 3)


@pytest.mark.parametrize("name", ["bad.csv", "bad.tsv", "bad.json", "bad.jsonl", "bad.txt", "bad.jsonl.gz"])
def test_files_that_are_not_utf8_are_named_with_the_line(name, tmp_path):
    content = (b"[\n" if ".json" in name else b"source,target\n") + '{"\u00e9": "x"}\n'.encode("latin-1")
    path = write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=rf"expected UTF-8 text in .*{name}, but line 2 is not"):
        open_dataset(path)


def test_line_counts_must_agree(tmp_path):
    paths = [write(tmp_path / "a.en", b"1\n2\n3\n"), write(tmp_path / "a.de", b"1\n2\n")]
    with pytest.raises(UserError, match=r"as many lines in .*a.en as in .*a.de, but they have 3 and 2"):
        open_dataset(paths)


def test_scripts_and_an_unreachable_hub_are_explained(tmp_path, monkeypatch):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("")
    with pytest.raises(UserError, match=r"dataset '.*script' is a loading script, which cannot be run"):
        open_dataset(str(tmp_path / "script"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="dataset 'nobody/nothing' is neither a path here nor can the hub be reached"):
        open_dataset("nobody/nothing")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfsource,target\na,b\n", b"source,target\r\na,b\r\n"])
def test_byte_order_marks_and_windows_line_ends_are_taken(content, tmp_path):
    assert open_dataset(write(tmp_path / "a.csv", content))["train"].to_list() == [{"source": "a", "target": "b"}]
