"""The cache of `datasets`, and what it would do on its own."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import datasets
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_warn

from lit_seq2seq.settings import spec
from lit_seq2seq.types import UserError

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # even the opening of a local file would be reported to its makers


_ADVICE = "set HF_DATASETS_CACHE to a folder that can be written"


def cache_folder() -> Path:
    """Return the folder for tokenizers and encoded columns, inside the cache of `datasets` (`HF_DATASETS_CACHE`).

    Where nothing can be written there, as in a read-only home, the cache is a new folder for temporary files.
    """
    root = Path(datasets.config.HF_DATASETS_CACHE)
    if (folder := _writable(root)) is not None:
        return folder
    try:
        own = Path(tempfile.mkdtemp(prefix="datasets-"))
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {root}, nor make a temporary folder ({error}): {_ADVICE}"
        ) from error
    if (folder := _writable(own)) is None:
        raise UserError(f"cannot write to the cache {root}, nor to {own}: {_ADVICE}")
    datasets.config.HF_DATASETS_CACHE = own
    rank_zero_warn(f"the cache {root} cannot be written: what is made goes to {own}; set HF_DATASETS_CACHE to keep it")
    return folder


def code_of(*classes: type) -> str:
    """Digest the code of the user's own features, so that the cache keeps apart what different versions of it made."""
    bases = {base for cls in classes for base in cls.__mro__}
    return str(Hasher.hash([_written(base) for base in sorted(bases, key=spec.public_name)]))


def _written(cls: type) -> bytes | str:
    """Return the file of a class, or what is known of one that has none, as in a notebook; nothing of ours."""
    if cls.__module__.split(".")[0] in ("lit_seq2seq", "builtins", "abc", "typing"):
        return ""
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    return Path(file).read_bytes() if file else str(Hasher.hash(cls))


def _writable(root: Path) -> Path | None:
    """Make the folder in a cache; return it if it can be written to, also by Arrow, which wants names in UTF-8."""
    folder = root / "lit_seq2seq"
    with contextlib.suppress(OSError, UnicodeEncodeError):
        str(folder.absolute()).encode()
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else None
    return None
