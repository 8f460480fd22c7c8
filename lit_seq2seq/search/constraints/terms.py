"""Lists of terms with their translations."""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from pathlib import Path

from lit_seq2seq.types import UserError


class Terms:
    """Terms of sources with their translations.

    Args:
        entries: the translation of each term, which is in the form for comparisons without case.
    """

    def __init__(self, entries: dict[str, str]) -> None:
        self.entries = entries
        longest_first = sorted(self.entries, key=len, reverse=True)
        self._pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")

    def found(self, text: str) -> list[str]:
        """List the terms that a text has, in their order.

        Example:
            >>> Terms({"dog": "Hund", "hot dog": "Wurst"}).found("A dog eats a Hot Dog, not hotdogs.")
            ['dog', 'hot dog']
        """
        return self._pattern.findall(text.casefold())


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
            if entries.setdefault(term.casefold(), translation) != translation:
                raise UserError(f"{path}, line {number}: {term!r:.60} is there before, with another translation")
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
