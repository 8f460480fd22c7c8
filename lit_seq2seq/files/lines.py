"""Lines of text: how every text file comes in, and how texts go out one a line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from lit_seq2seq.types import UserError

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_NOT_IN_JSON_LINES = re.compile("[\x85\u2028\u2029]")


def read_lines(file: Iterable[bytes], name: str, errors: Literal["strict", "replace"] = "strict") -> Iterator[str]:
    r"""Yield the lines of a UTF-8 text, without their ends and without a byte-order mark.

    A line ends with LF or CR LF; in a text without any LF, as old Macs wrote them, with CR. Nothing else ends one: not
    a form feed, and not the line separators of Unicode.

    Args:
        file: a file opened for reading bytes.
        name: what messages call it.
        errors: whether to refuse a line that is not UTF-8, or to put replacement characters into it.

    Raises:
        UserError: it is not UTF-8.

    Example:
        >>> list(read_lines([b"\xef\xbb\xbfein Hund\r\n", b"eine Katze\n"], "in.txt"))
        ['ein Hund', 'eine Katze']
    """
    for number, line in enumerate(_split(file), start=1):
        if number == 1 and (encoding := _encoding(line)) and (errors == "strict" or b"\0" in line):
            raise UserError(
                f"expected UTF-8 text in {name}, but it is {encoding}: convert it with iconv -f {encoding} -t UTF-8"
            )
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
        except UnicodeDecodeError as error:
            raise UserError(
                f"expected UTF-8 text in {name}, but line {number} is not ({error.reason} at byte {error.start}): "
                "convert it, for example with iconv -f LATIN1 -t UTF-8"
            ) from error


def _split(file: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file):
        if number == 0 and b"\r" in line and not line.endswith(b"\n"):
            yield from line.removesuffix(b"\r").split(b"\r")
        else:
            yield line.rstrip(b"\r\n")


def _encoding(line: bytes) -> str | None:
    """Name the encoding of a text that is not UTF-8 by its first line, where that tells it."""
    found = next((name for mark, name in _MARKS.items() if line.startswith(mark)), None)
    if found is None and b"\0" in line[:2]:  # no mark, but letters of two bytes
        return "UTF-16BE" if line.startswith(b"\0") else "UTF-16LE"
    return found


def one_line(text: str) -> str:
    r"""Put spaces in place of everything that some program takes for the end of a line.

    Example:
        >>> one_line("a dog\r\nand\u2028a cat")
        'a dog and a cat'
    """
    return " ".join(text.splitlines())


def json_line(value: object) -> str:
    r"""Write a value as JSON that every program takes for one line.

    Example:
        >>> json_line({"text": "ja\u2028ü"})
        '{"text": "ja\\u2028ü"}'
    """
    return _NOT_IN_JSON_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def counted(number: int, noun: str) -> str:
    """Name a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
