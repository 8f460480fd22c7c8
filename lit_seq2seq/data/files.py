"""Files of data, wherever they lie: their kind, their bytes and their lines."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from datasets.utils.file_utils import xopen

from lit_seq2seq.files.lines import read_lines
from lit_seq2seq.files.paths import is_remote
from lit_seq2seq.types import UserError

_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz", ".zst", ".lz4", ".z")


def plain_path(path: str | os.PathLike[str]) -> str:
    """Return a path as a text: that of a `file://` address, and with the home folder for `~`."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    return text if is_remote(text) else os.path.expanduser(text)  # noqa: PTH111 - keeps "./" and the last "/"


def _suffixes(path: str) -> list[str]:
    return [suffix.lower() for suffix in PurePosixPath(urlsplit(path).path if is_remote(path) else path).suffixes]


def _packing(path: str) -> str:
    """Return the ending that tells how a file is packed, if it is."""
    return (_suffixes(path) or [""])[-1]


def suffix_of(path: str) -> str:
    """Return the ending that tells the kind of a file, without that of its compression.

    Example:
        >>> suffix_of("rows.CSV.gz"), suffix_of("https://host/rows.tsv?download=true"), suffix_of("train.de")
        ('.csv', '.tsv', '.de')
    """
    found = _suffixes(path)
    while found and found[-1] in (*_OPENERS, *_ARCHIVES):
        found.pop()
    return found[-1] if found else ""


def check_readable(path: str) -> None:
    """Raise a `UserError` if a file is an archive."""
    if _packing(path) in _ARCHIVES:
        raise UserError(f"{path} cannot be read: of compressed files .gz, .bz2 and .xz are; unpack it first")


@contextmanager
def opened(path: str, name: str) -> Iterator[IO[bytes]]:
    """Open a file, or its copy in the cache, for reading its bytes; how it is packed is known by the user's `name`.

    Raises:
        UserError: it is an archive.
    """
    check_readable(name)
    with ExitStack() as stack:
        file: Any = stack.enter_context(xopen(path, "rb"))
        unpack = _OPENERS.get(_packing(name))
        yield file if unpack is None else stack.enter_context(unpack(file))


def lines_of(path: str, name: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file; see `opened` and `read_lines`.

    Raises:
        UserError: it is not UTF-8, or is damaged.
    """
    name = path if name is None else name
    with opened(path, name) as file:
        try:
            yield from read_lines(file, name)
        except (EOFError, OSError, lzma.LZMAError) as error:
            if _packing(name) not in _OPENERS:
                raise
            raise UserError(
                f"{name} is damaged, or is not what its ending says ({error}): get or write it again"
            ) from error
