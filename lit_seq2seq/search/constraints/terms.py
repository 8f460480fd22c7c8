"""Lists of terms with their translations."""

from __future__ import annotations

import csv
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from lit_seq2seq.types import UserError

_UNSPACED = (  # letters of scripts without spaces between words
    "\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u30ff\u3100-\u312f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)


def comparable(text: str) -> str:
    """Return a text in one Unicode form, without case and with single spaces."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


class Terms:
    """Terms of sources with their translations.

    Args:
        entries: the translation of each term, which is `comparable`.
    """

    def __init__(self, entries: dict[str, str]) -> None:
        self.entries = entries
        longest_first = sorted(self.entries, key=len, reverse=True)
        letter = rf"[^\W{_UNSPACED}]"
        self._pattern = re.compile(rf"(?<!{letter})(?:{'|'.join(map(re.escape, longest_first))})(?!{letter})")

    def found(self, text: str) -> list[str]:
        """List the terms that a text has, in their order.

        Example:
            >>> Terms({"dog": "Hund", "hot dog": "Wurst"}).found("A dog eats a Hot Dog, not hotdogs.")
            ['dog', 'hot dog']
            >>> Terms({"北京": "Peking"}).found("我在北京。")
            ['北京']
        """
        return self._pattern.findall(comparable(text))


@lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Terms:
    with path.open(encoding="utf-8-sig", newline="") as file:
        entries: dict[str, str] = {}
        for number, row in enumerate(csv.reader(file, strict=True), start=1):
            if not row or not any(cell.strip() for cell in row):
                continue
            if len(row) != 2 or not all(cell.strip() for cell in row):
                raise UserError(f"{path}, line {number}: expected a term and its translation, got {row!r:.80}")
            term, translation = (cell.strip() for cell in row)
            if entries.setdefault(comparable(term), translation) != translation:
                raise UserError(
                    f"{path}, line {number}: the term {term!r:.60} already has another translation: keep one"
                )
    if not entries:
        raise UserError(f"{path} has no terms: give each a line, the term and its translation divided by a comma")
    return Terms(entries)


def read_terms(name: str) -> Terms:
    """Read a CSV file of terms and their translations.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path = Path(name)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the terms in {name} cannot be read ({error}): give a CSV file in UTF-8") from error
