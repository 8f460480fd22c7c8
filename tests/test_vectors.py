import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_seq2seq.types import UserError
from lit_seq2seq.vectors import load_vectors

SYMBOLS = ["<pad>", "Hund", "a dog", "cat", "Hund"]
GLOVE = "Hund 1 2 3\na dog 4 5 6\nabsent 7 8 9\n"


def load(path: Path, size: int = 3) -> tuple[int, torch.Tensor]:
    weight = torch.full((len(SYMBOLS), size), -1.0, requires_grad=True)
    return load_vectors(path, SYMBOLS, weight), weight.detach()


def write_npz(path: Path, words: list[str]) -> None:
    np.savez(path, words=np.array(words), vectors=np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))


@pytest.mark.parametrize("form", ["glove.txt", "word2vec.txt", "fasttext.vec", "glove.txt.gz", "vectors.npz"])
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    if form == "vectors.npz":
        write_npz(path, ["Hund", "a dog", "absent"])
    elif form.endswith(".gz"):
        path.write_bytes(gzip.compress(GLOVE.encode()))
    else:
        header = "" if form.startswith("glove") else "3 3\n"
        path.write_text(header + (GLOVE.replace("\n", " \n") if form == "fasttext.vec" else GLOVE))
    found, weight = load(path)
    assert found == 3
    assert weight.tolist() == [[-1] * 3, [1, 2, 3], [4, 5, 6], [-1] * 3, [1, 2, 3]]


def test_a_damaged_word_does_not_spoil_the_others(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"\xff\xfe 0 0 0\n" + GLOVE.encode())
    assert load(tmp_path / "v.txt")[0] == 3


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("v.txt", "Hund 1 2\n", "vectors of size 2, but embedding_dim is 3: make them equal"),
        ("v.txt", "Hund 1 2 3\ncat 1 2\n", "vectors of size 2, but embedding_dim is 3"),
        ("v.txt", "Hund 1 2 3\ncat 1 two 3\n", "line 2: expected a word and numbers, got 'cat 1 two 3'"),
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
