"""Paths, here and elsewhere: checkpoints may lie wherever `fsspec` reaches, everything else is local."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypedDict

from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class Loading(TypedDict, total=False):
    """Where a model comes from and what it may run.

    Attributes:
        revision: branch, tag or commit on the hub.
        token: access token for private repositories; that of `hf auth login` or `HF_TOKEN` if not given.
        cache_dir: where what comes from the hub is kept; `HF_HUB_CACHE` if not given.
        local_files_only: take what is in the cache and ask nobody, as `HF_HUB_OFFLINE=1` does.
        trust: packages, beyond this one and torch, whose classes the model may name, so that their code runs.
    """

    revision: str | None
    token: str | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    trust: str | Sequence[str] | None


class Pushing(TypedDict, total=False):
    """Where a model goes to.

    Attributes:
        private: whether a new repository is; `None` for what the account has as its default.
        revision: branch, made if needed; `None` for `main`.
        token: access token that may write; that of `hf auth login` or `HF_TOKEN` if `None`.
        commit_message: what the commit is called.
    """

    private: bool | None
    revision: str | None
    token: str | None
    commit_message: str


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of a place other than this machine's disks.

    Example:
        >>> is_remote("s3://bucket/runs"), is_remote("file:///runs"), is_remote("runs")
        (True, False, False)
    """
    scheme, separator, _ = os.fspath(path).partition("://")
    return bool(separator) and len(scheme) > 1 and scheme not in ("file", "local")  # one letter: a drive of Windows


def local_path(path: str | os.PathLike[str], setting: str) -> Path:
    """Return a path on this machine from what was given as a `setting`, such as `~/runs` or `file:///runs`.

    Raises:
        UserError: it is somewhere else.
    """
    text = _address(path)
    if is_remote(path):
        raise UserError(f"{setting}: {path} is not on this machine: give a local path; only checkpoint.dirpath may be")
    return Path(place(text)[1] if "://" in text else text).expanduser()


def format_of(path: str | os.PathLike[str]) -> Literal["text", "jsonl"]:
    """Return what outputs are written as in a file of this name.

    Example:
        >>> format_of("out.JSONL"), format_of("out.txt"), format_of("-")
        ('jsonl', 'text', 'text')
    """
    return "jsonl" if Path(path).suffix.lower() in (".jsonl", ".ndjson", ".json") else "text"


def place(path: str | os.PathLike[str]) -> tuple[AbstractFileSystem, str]:
    """Return the file system that holds a path, and the path there.

    Raises:
        UserError: there is no such file system, or a package is missing that reaches it.
    """
    from fsspec.core import url_to_fs

    with _reaching(path):
        system, there = url_to_fs(_address(path))
    return system, there


def _address(path: str | os.PathLike[str]) -> str:
    """Return a path as text; it must not be an address that has lost a slash, as in a `pathlib.Path`."""
    text = os.fspath(path)
    scheme, _, rest = text.partition(":")
    if rest[:1] != "/" or rest[1:2] == "/":
        return text
    from fsspec import available_protocols

    if scheme in available_protocols():
        raise UserError(f"{text} is no address: write {scheme}:// as text, since a pathlib.Path drops a slash")
    return text


@contextmanager
def _reaching(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a remote file system, or a package that it needs, raises into one line."""
    try:
        yield
    except Exception as error:
        if not is_remote(path) or isinstance(error, UserError):
            raise
        raise UserError(f"cannot reach {path}: {' '.join(str(error).split())}") from error


def check_writable(folder: str) -> None:
    """Check that files can be written in a remote folder, before time is spent on what they are to hold."""
    system, there = place(folder)
    with _reaching(folder):
        system.makedirs(there, exist_ok=True)
        system.pipe_file(inside(there, ".writable"), b"1")
        system.rm_file(inside(there, ".writable"))


def folder_of(path: str | os.PathLike[str]) -> str:
    """Return the folder of a file; it is the same for all names of a folder on this machine."""
    if is_remote(path):
        return os.fspath(path).rpartition("/")[0]
    return str(Path(os.fspath(path)).expanduser().resolve().parent)


def inside(folder: str | os.PathLike[str], name: str) -> str:
    """Return the path of a name in a folder, here or elsewhere."""
    return f"{os.fspath(folder).rstrip('/')}/{name}"


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, here or elsewhere."""
    if "://" not in os.fspath(path):
        return local_path(path, "file").is_file()
    system, there = place(path)
    with _reaching(path):
        return bool(system.isfile(there))


@contextmanager
def local_copy(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield where a file can be read on this machine."""
    if not is_remote(path):
        yield local_path(path, "file")
        return
    system, there = place(path)
    with TemporaryDirectory() as folder:
        with _reaching(path):
            system.get_file(there, f"{folder}/copy")
        yield Path(folder, "copy")


def is_special(path: Path) -> bool:
    """Whether there is a device or a pipe, which is written into and which no file may replace."""
    return path.exists() and not path.is_file() and not path.is_dir()


def expect_own(folder: Path, names: Iterable[str], is_ours: Callable[[], bool]) -> None:
    """Refuse to overwrite files of a folder that have the names of ours but are not."""
    taken = [name for name in names if (folder / name).exists()]
    with suppress(UserError):
        if not taken or is_ours():
            return
    raise UserError(f"{folder} has a {taken[0]} of another project: choose another folder")


def set_aside(path: Path) -> Path:
    """Rename a file by the first number that no other has."""
    for number in itertools.count(1):
        kept = path.with_stem(f"{path.stem}-{number}")
        with suppress(FileExistsError):
            kept.touch(exist_ok=False)
            break
    return path.replace(kept)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under; it takes its place, and is on the disk, when all is written.

    Whatever happens before, an older file of that name stays whole.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        _flush(part)
        part.replace(path)
        _flush(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
