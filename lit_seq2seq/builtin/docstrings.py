"""Summarization data found on the machine: the documentation strings of the installed Python packages."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.types import UserError

SUMMARY_WORDS, TEXT_WORDS = (4, 25), (10, 150)
LEAST_SHARE = 0.4  # of a summary's words must be in the text, or there is nothing to summarize
MOST_OF_SPLIT = 4  # a module gives at most this part of an evaluation split
LARGE_MODULE = 300  # files; larger modules are kept for training
_SKIPPED = {"test", "tests", "testing", "_vendor", "vendor", "site-packages", "__pycache__", "idlelib", "lib2to3"}
_OWN = "lit_seq2seq"
_PROSE = re.compile(r"[A-Z`'\"].*[.:!?]", re.S)
_WORD = re.compile(r"\w+")


def generate(
    split: str, folders: tuple[str, ...], sizes: tuple[tuple[str, int], ...], seed: int, *, stamp: str
) -> Iterator[dict[str, str]]:
    """Yield the rows of `split`, found in `folders`: `text`, `summary` and `module`; `stamp` is for the cache alone."""
    yield from _collect(folders, sizes, seed, stamp)[split]


@lru_cache(maxsize=1)
def _collect(
    folders: tuple[str, ...], sizes: tuple[tuple[str, int], ...], seed: int, stamp: str
) -> dict[str, list[dict[str, str]]]:
    """Fill the splits, those for evaluation first, each from modules of its own."""
    found = modules(folders)
    order = sorted(found, key=lambda name: _draw(seed, name))
    seen: set[str] = set()
    splits = {}
    for split, size in reversed(sizes):
        training = split == "train"
        most = size if training else max(1, size // MOST_OF_SPLIT)
        rows: list[dict[str, str]] = []
        for name in list(order):
            if len(rows) >= size:
                break
            if not training and len(found[name]) > LARGE_MODULE:
                continue
            order.remove(name)
            fresh = [row for row in _rows(name, found[name]) if _is_new(row, seen)]
            fresh.sort(key=lambda row: _draw(seed, row["summary"]))
            rows += fresh[: min(most, size - len(rows))]
        if len(rows) < size:
            raise UserError(
                f"expected {size} fit documentation strings for {split}_size, but {', '.join(folders)} have "
                f"{len(rows)}: lower {split}_size, or install more packages"
            )
        splits[split] = sorted(rows, key=lambda row: _draw(seed, row["text"]))
    return splits


def modules(folders: Sequence[str]) -> dict[str, list[Path]]:
    """Find the top-level modules in `folders`, and the Python files of each, in a fixed order."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        for entry in sorted(Path(folder).iterdir()):
            name = entry.stem
            if name in _SKIPPED or name in found or name == _OWN or "." in entry.with_suffix("").name:
                continue
            if entry.suffix == ".py":
                found[name] = [entry]
            elif entry.is_dir():
                files = [
                    file for file in sorted(entry.rglob("*.py")) if not _SKIPPED & set(file.parts[len(entry.parts) :])
                ]
                found |= {name: files} if files else {}
    return found


def _rows(module: str, files: Sequence[Path]) -> Iterator[dict[str, str]]:
    for file in files:
        for doc in docstrings(file):
            pair = split_docstring(doc)
            if pair is not None:
                yield {"text": pair[0], "summary": pair[1], "module": module}


def docstrings(file: Path) -> list[str]:
    """Return the documentation strings of a file, without indentation; none of a file that is not Python 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, RecursionError):  # templates, and code for other versions
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for node in ast.walk(tree) if isinstance(node, kinds) if (doc := ast.get_docstring(node))]


def split_docstring(doc: str) -> tuple[str, str] | None:
    r"""Split a documentation string into text and summary; `None` if it is not fit for the data.

    Example:
        >>> words = "The file is read line by line, and each line is one of the rows, whatever its length may be."
        >>> split_docstring(f"Read the rows of a file.\n\n{words}\n\nArgs:\n    file: the file.")[1]
        'Read the rows of a file.'
    """
    summary, _, rest = doc.partition("\n\n")
    summary = " ".join(summary.split())
    prose = []
    for paragraph in rest.split("\n\n"):
        lines = paragraph.split("\n")
        if any(line.startswith((" ", "\t", ">>>", "..", ":", "-", "=", "*", "|", "+")) for line in lines):
            break
        prose.append(" ".join(paragraph.split()))
    text = " ".join(prose)
    words, others = set(_WORD.findall(summary.lower())), set(_WORD.findall(text.lower()))
    fit = (
        SUMMARY_WORDS[0] <= len(summary.split()) <= SUMMARY_WORDS[1]
        and TEXT_WORDS[0] <= len(text.split()) <= TEXT_WORDS[1]
        and (summary + text).isascii()
        and _PROSE.fullmatch(summary) is not None
        and len(words & others) >= LEAST_SHARE * len(words)
    )
    return (text, summary) if fit else None


def _is_new(row: dict[str, str], seen: set[str]) -> bool:
    """Whether neither text nor summary has been seen; both are from now on."""
    keys = {" ".join(_WORD.findall(row[column].lower())) for column in ("text", "summary")}
    if keys & seen:
        return False
    seen |= keys
    return True


def _draw(seed: int, key: str) -> bytes:
    """Return what a key is sorted by: the same everywhere, unlike Python's own hashes."""
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


class DocstringSummaries(GeneratedDataset):
    """Documentation strings of the installed Python packages: the text below the first line, and that line as summary.

    Files are read as text and parsed with `ast`; nothing is imported. A pair is kept if the summary is a sentence of 4
    to 25 words, two in five of them also in the text, and the text is prose of 10 to 150 words; equal ones occur once.
    All rows of a top-level module are in one split, so that its names are new in another. The same environment gives
    the same rows; they are kept in the cache of `datasets`, after about a minute of reading at the first call.

    Args:
        seed: draws which modules are held out, and the order of the rows.
        folders: where to look for modules; the standard library and the installed packages if `None`.

    Raises:
        UserError: for a folder that does not exist, or if there are fewer rows than asked for.
    """

    generate = staticmethod(generate)

    def __init__(
        self,
        train_size: int = 4000,
        validation_size: int = 200,
        test_size: int = 400,
        seed: int = 0,
        *,
        folders: list[str] | None = None,
    ) -> None:
        super().__init__(train_size, validation_size, test_size, seed)
        paths = sysconfig.get_paths()
        installed = dict.fromkeys(paths[name] for name in ("stdlib", "purelib", "platlib"))
        self.folders = tuple(installed if folders is None else folders)
        for folder in self.folders:
            if not Path(folder).is_dir():
                raise UserError(f"expected a folder of Python modules at {folder}, but there is none: check folders")

    def arguments(self, split: str) -> dict[str, Any]:
        """Return the arguments of `generate` for a split."""
        found = modules(self.folders)
        state = [
            (str(file), file.stat().st_size, file.stat().st_mtime_ns) for files in found.values() for file in files
        ]
        stamp = hashlib.sha256(repr((self.edition, state)).encode()).hexdigest()
        sizes = tuple(self.sizes.items())
        return {"split": split, "folders": self.folders, "sizes": sizes, "seed": self.seed, "stamp": stamp}
