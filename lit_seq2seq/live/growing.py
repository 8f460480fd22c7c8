"""Text that grows at its end."""

from __future__ import annotations

_UNFINISHED = "\ufffd"  # what a character shows as while some of its bytes are missing


class GrowingText:
    """The text of an output to which symbols are added, given as soon as no later symbol can change it.

    Args:
        settled: whether symbols change nothing before them; see `Tokenizer.settled`. Otherwise a text is given once the
            next symbol has left it alone.

    Example:
        >>> text = GrowingText()
        >>> [text.grow(so_far) for so_far in ("ein", "ein Hund", "ein Hund.")], text.end()
        (['', 'ein', ' Hund'], '.')
        >>> GrowingText(settled=True).grow("ein")
        'ein'
    """

    def __init__(self, settled: bool = False) -> None:
        self._settled = settled
        self.given = self._latest = ""

    def grow(self, text: str) -> str:
        """Take the whole text with one more symbol; return what is new and certain."""
        certain = (text if self._settled else _common(self._latest, text)).rstrip(_UNFINISHED)
        self._latest = text
        return self._give(certain)

    def shorten(self, text: str) -> bool:
        """Forget what comes before `text`, which the last symbols alone give; return whether that is possible."""
        open_end = len(self._latest) - len(self.given)
        if open_end > len(text) or not self._latest.endswith(text):
            return False
        self.given, self._latest = text[: len(text) - open_end], text
        return True

    def end(self) -> str:
        """Return the rest: no symbol follows."""
        return self._give(self._latest)

    def _give(self, text: str) -> str:
        new = text[len(self.given) :]
        self.given += new
        return new


def _common(first: str, second: str) -> str:
    """Return the beginning that two texts share."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))]
