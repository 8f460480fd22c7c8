import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_seq2seq.training.vectors import load_vectors
from lit_seq2seq.types import UserError

SYMBOLS = ["<pad>", "Hund", "a dog", "cat", "Hund"]
GLOVE = "Hund 1 2 3\na dog 4 5 6\nabsent 7 8 9\n"


def load(path: Path, size: int = 3) -> tuple[int, torch.Tensor]:
    weight = torch.full((len(SYMBOLS), size), -1.0, requires_grad=True)
    return load_vectors(path, SYMBOLS, weight), weight.detach()


def write_npz(path: Path, words: list[str]) -> None:
    np.savez(path, words=np.array(words), vectors=np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))


@pytest.mark.parametrize(
    "form",
    [
        *("glove.txt", "word2vec.txt", "fasttext.vec", "glove.txt.gz", "vectors.npz"),
        *("glove tabs", "word2vec tabs", "fasttext tab after word", "glove wide", "word2vec crlf"),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    if form == "vectors.npz":
        write_npz(path, ["Hund", "a dog", "absent"])
    elif form.endswith(".gz"):
        path.write_bytes(gzip.compress(GLOVE.encode()))
    else:
        lines = ("" if form.startswith("glove") else "3 3\n") + GLOVE
        tabs = {f" {number}": f"\t{number}" for number in (range(1, 10) if form.endswith("tabs") else (1, 4, 7))}
        for old, new in tabs.items() if "tab" in form else ():
            lines = lines.replace(old, new)
        ends = {"fasttext.vec": " \n", "word2vec tabs": "\t\n", "word2vec crlf": "\r\n"}
        lines = lines.replace("\n", ends.get(form, "\n"))
        path.write_bytes((lines.replace(" ", "  ") if form.endswith("wide") else lines).encode())
    found, weight = load(path)
    assert found == 3
    assert weight.tolist() == [[-1] * 3, [1, 2, 3], [4, 5, 6], [-1] * 3, [1, 2, 3]]


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path: Path) -> None:
    for name, end in (("glove.txt", "\n"), ("windows.txt", "\r\n"), ("mac.txt", "\r")):
        (tmp_path / name).write_bytes(("\ufeff" + GLOVE.replace("\n", end)).encode())
        assert load(tmp_path / name)[0] == 3
    (tmp_path / "word2vec.txt").write_bytes(("\ufeff3 3\n" + GLOVE).encode())
    assert load(tmp_path / "word2vec.txt")[0] == 3
    (tmp_path / "wide.txt").write_bytes(GLOVE.encode("utf-16"))
    with pytest.raises(UserError, match="it is UTF-16: convert it"):
        load(tmp_path / "wide.txt")


def test_a_damaged_word_does_not_spoil_the_others(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"\xff\xfe 0 0 0\n" + GLOVE.encode())
    assert load(tmp_path / "v.txt")[0] == 3


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("v.txt", "Hund 1 2\n", "vectors of size 2, but embedding_dim is 3: make them equal"),
        ("v.txt", "Hund 1 2 3\ncat 1 2\n", "vectors of size 2, but embedding_dim is 3"),
        ("v.txt", "Hund 1 2 3\ncat 1 two 3\n", "line 2: expected a word and numbers, got 'cat 1 two 3'"),
        ("v.txt", "Hund,1,2,3\n", "line 1: expected a word and numbers, got 'Hund,1,2,3'"),
        (
            "v.txt",
            "cat 1 2 3\nHund 1 nan 3\n",
            "numbers that are not finite in the vector of 'Hund': leave the word out",
        ),
        ("v.txt", "Hund\t1\t-inf\t3\n", "numbers that are not finite in the vector of 'Hund'"),
        ("v.txt", "Hund 1 1e39 3\n", "numbers that are not finite in the vector of 'Hund'"),
        ("v.txt.gz", "Hund 1 2 3\n", "cannot be read as word vectors"),
        ("v.npz", "Hund 1 2 3\n", "cannot be read as word vectors"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, name: str, content: str, match: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=match):
        load(tmp_path / name)


def test_missing_files_and_arrays_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file of word vectors .*check source_vectors or target_vectors"):
        load(tmp_path / "none.txt")
    np.savez(tmp_path / "v.npz", names=np.array(["a"]))
    with pytest.raises(UserError, match="must hold arrays 'words' and 'vectors', but holds names"):
        load(tmp_path / "v.npz")


def test_numbers_that_are_not_finite_are_told_in_archives_too_and_only_of_words_that_are_needed(tmp_path: Path) -> None:
    vectors = np.array([[1, 2, 3], [np.nan, 5, 6]])
    np.savez(tmp_path / "a.npz", words=np.array(["Hund", "absent"]), vectors=vectors)
    assert load(tmp_path / "a.npz")[0] == 2
    np.savez(tmp_path / "b.npz", words=np.array(["Hund", "cat"]), vectors=vectors)
    with pytest.raises(UserError, match="numbers that are not finite in the vector of 'cat'"):
        load(tmp_path / "b.npz")


def test_vectors_of_none_of_the_symbols_are_told(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("perro 1 2 3\ngato 1 2 3\n")
    with pytest.warns(UserWarning, match="has a vector for none of the 5 symbols: is it of another language"):
        assert load(tmp_path / "v.txt")[0] == 0
