"""Pieces of inputs as they come in from standard input or a file; `None` ends each input."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from lit_seq2seq.types import UserError

_FILES = (b"RIFF", b"fLaC", b"OggS")
"""What files of sound begin with."""


def _raw(name: str, size: int = 65_536) -> Iterator[bytes]:
    """Yield bytes as they come."""
    place = sys.stdin.fileno() if name == "-" else os.open(name, os.O_RDONLY)
    while some := os.read(place, size):
        yield some


def texts(name: str) -> Iterator[str | None]:
    """Yield pieces of texts, each a line."""
    decoder, begun = codecs.getincrementaldecoder("utf-8-sig")(), False
    for some in chain(_raw(name), [b""]):
        try:
            first, *others = decoder.decode(some, final=not some).replace("\r", "").split("\n")
        except UnicodeDecodeError as error:
            place = "standard input" if name == "-" else name
            raise UserError(
                f"this model reads text, but {place} is not UTF-8 ({error.reason}): check it, or convert it with iconv"
            ) from error
        for piece in (first, *(part for line in others for part in (None, line))):
            begun = piece is not None and (begun or bool(piece))
            if piece != "":
                yield piece
    if begun:
        yield None


def frames(name: str) -> Iterator[list[list[float]] | None]:
    """Yield frames, each a line of JSON; an empty line ends an input."""
    line = ""
    for piece in chain(texts(name), [None]):
        if piece is not None:
            line += piece
            continue
        try:
            yield [json.loads(line)] if line.strip() else None
        except ValueError as error:
            raise UserError(f"expected a frame as a list of numbers, but got {line!r:.60}: {error}") from error
        line = ""


def samples(size: int) -> Iterator[Any]:
    """Yield raw samples of 16 bits from standard input."""
    held, begun = b"", False
    for some in _raw("-", 2 * size):
        held += some
        if not begun and held.startswith(_FILES):
            raise UserError(
                "standard input has a file of sound, not raw samples: give its path, as in lit-seq2seq stream --input "
                "speech.wav"
            )
        begun = len(held) >= len(_FILES[0])
        whole = len(held) // 2 * 2
        yield np.frombuffer(held[:whole], "<i2")
        held = held[whole:]
    yield None
