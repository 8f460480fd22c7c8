"""Pretrained word vectors: word2vec, GloVe and fastText text files, or NumPy archives."""

from __future__ import annotations

import gzip
import os
import re
import warnings
import zipfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_seq2seq.files.lines import read_lines
from lit_seq2seq.types import UserError

_SEPARATORS = re.compile(r"[ \t]+")


def load_vectors(path: str | os.PathLike[str], symbols: Sequence[str], weight: Tensor) -> int:
    """Copy pretrained vectors into the rows of an embedding, in place.

    Args:
        path: text file with lines of a word and its numbers, separated by spaces or tabs, with or without the
            `count size` line of word2vec, possibly gzipped; or an `.npz` archive with arrays `words (W,)` and
            `vectors (W, E)`.
        symbols: name of each of the V symbols.
        weight: `(V, E)` embedding.

    Returns:
        Number of symbols that got a vector; the others keep theirs.

    Raises:
        UserError: the file is missing or unreadable, or its vectors have another size or values that are not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> weight = torch.zeros(2, 3)
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "vectors.txt"
        ...     _ = path.write_text("eins 1 2 3", encoding="utf-8")
        ...     load_vectors(path, ["eins", "zwei"], weight)
        1
        >>> weight
        tensor([[1., 2., 3.],
                [0., 0., 0.]])
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file of word vectors {file}: check source_vectors or target_vectors")
    rows: dict[str, list[int]] = {}
    for row, symbol in enumerate(symbols):
        rows.setdefault(symbol, []).append(row)
    found = 0
    try:
        with torch.no_grad():
            for word, vector in _read_npz(file) if file.suffix == ".npz" else _read_text(file, rows.keys()):
                if vector.shape != (weight.shape[1],):
                    raise UserError(
                        f"{file} has vectors of size {vector.size}, but embedding_dim is {weight.shape[1]}: make them "
                        "equal"
                    )
                if word in rows and not np.isfinite(vector).all():
                    raise UserError(
                        f"{file} has numbers that are not finite in the vector of {word!r:.60}: leave the word out"
                    )
                for row in rows.pop(word, []):
                    weight[row] = torch.from_numpy(vector)
                    found += 1
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as word vectors ({error}): get or write it again") from error
    if not found:
        warnings.warn(
            f"{file} has a vector for none of the {len(symbols)} symbols: is it of another language, or are its words "
            "split or written in another way?",
            stacklevel=2,
        )
    return found


def _read_npz(file: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    with np.load(file, allow_pickle=False) as archive:
        if not {"words", "vectors"} <= set(archive):
            raise UserError(f"{file} must hold arrays 'words' and 'vectors', but holds {', '.join(archive)}")
        yield from zip(archive["words"].tolist(), archive["vectors"].astype(np.float32), strict=True)


def _read_text(file: Path, wanted: Container[str]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    size = 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(read_lines(lines, str(file), "replace"), start=1):
            text = line.rstrip()
            if "\t" in text or "  " in text:
                text = _SEPARATORS.sub(" ", text)
            fields = text.split(" ")
            if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
                size = int(fields[1])  # word2vec's header: number of words, size
                continue
            size = size or len(fields) - 1
            if not size:
                raise UserError(f"{file}, line {number}: expected a word and numbers, got {text!r:.60}")
            word, *values = text.rsplit(" ", size)  # a few words of GloVe hold spaces
            if word not in wanted:
                continue
            try:
                with np.errstate(over="ignore"):
                    vector = np.array(values, dtype=np.float32)
            except ValueError as error:
                raise UserError(f"{file}, line {number}: expected a word and numbers, got {text!r:.60}") from error
            yield word, vector
