"""Features that read one input in pieces, as it is spoken or typed."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_seq2seq.features.text import whole
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from lit_seq2seq.features.feature import Array
    from lit_seq2seq.features.frames import FloatArray, Stage

LONGEST = 10_000
"""Characters of a text that are held until a symbol ends."""
_NEUTRAL = "a"  # stands for the text that was handed over before
_CLOSED = re.compile(r"⟩|[^\S\x1c-\x1f]")  # what ends a tag, or shows that it was none


class FeatureStream(ABC):
    """One input in pieces: what `feed` and `finish` return, joined, is what `Feature.encode` makes of the whole.

    What a piece leaves open is held until the next one: a word of text, a few frames of sound. A piece that cannot be
    read changes nothing.

    Attributes:
        taken: how much has come: characters, samples or frames.
    """

    taken = 0
    _ended = False

    def feed(self, raw: Any) -> Array:
        """Read the next piece, which may be empty.

        Returns:
            The new positions `(P, ...)`, P >= 0.

        Raises:
            UserError: it cannot be read, or comes after the end.
        """
        self._check()
        return self._take(raw, last=False)

    def finish(self) -> Array:
        """End the input and return the rest of its positions.

        Raises:
            UserError: there was no sound at all, or the input has ended before.
        """
        self._check()
        rest = self._take(None, last=True)
        self._ended = True
        return rest

    def _check(self) -> None:
        if self._ended:
            raise UserError("this input has ended: begin another one")

    @abstractmethod
    def _take(self, raw: Any, last: bool) -> Array:
        """Read a piece, or the end, which has none."""


class TextStream(FeatureStream):
    """Text in pieces: a symbol is handed over once nothing that follows can change it.

    Args:
        encode: turns a text into ids.
        begins: tells whether a character begins what is encoded apart from all before it.
        end: ids that end a text.
    """

    def __init__(self, encode: Callable[[str], list[int]], begins: Callable[[str], bool], end: Sequence[int]) -> None:
        self._encode, self._begins, self._end = encode, begins, end
        self._held, self._before = "", ""

    def _take(self, raw: Any, last: bool) -> Array:
        if not last:
            whole(raw)  # raises where it is no text
        text = self._held if last else self._held + raw
        cut = len(text) if last else settled(text, self._begins)
        if len(text) - cut > LONGEST:
            raise UserError(f"expected the end of a word within {LONGEST:,} characters: put spaces into the text")
        self.taken += len(text) - len(self._held)
        ids: list[int] = []
        if cut:
            ids = self._encode(self._before + text[:cut])[len(self._encode(self._before)) :]
            self._before = _NEUTRAL
        self._held = text[cut:]
        return np.array([*ids, *(self._end if last else ())], dtype=np.int32)


class GrowingStream(FeatureStream):
    """One input in pieces for a model that needs the whole: each call returns all positions of what has come so far.

    Args:
        read: checks one piece.
        so_far: turns all pieces, given whether they are the whole input, into one input; `None` while there is none.
        encode: turns inputs into arrays.
        nothing: an array without positions.
    """

    def __init__(
        self,
        read: Callable[[Any], Any],
        so_far: Callable[[list[Any], bool], Any],
        encode: Callable[[list[Any]], list[Array]],
        nothing: Array,
    ) -> None:
        self._read, self._so_far, self._encode, self._nothing = read, so_far, encode, nothing
        self._pieces: list[Any] = []

    def _take(self, raw: Any, last: bool) -> Array:
        pieces = self._pieces if last else [*self._pieces, self._read(raw)]
        self.taken = sum(map(len, pieces))
        found = self._so_far(pieces, last)
        array = self._nothing if found is None else self._encode([found])[0]
        self._pieces = pieces
        return array


def text_so_far(pieces: list[str], last: bool) -> str | None:
    """Join the pieces of a text, without the word that may go on unless they are the last; `None` if nothing is left.

    Example:
        >>> text_so_far(["two do", "gs an"], last=False), text_so_far(["two"], last=False)
        ('two dogs', None)
    """
    text = "".join(pieces)
    known = text if last else re.sub(r"\s*\S*$", "", text)
    return known if known.strip() or last else None


def settled(text: str, begins: Callable[[str], bool]) -> int:
    """Return the length of the longest beginning of a text whose symbols are the same whatever follows.

    It ends neither within a tag such as `⟨past⟩` nor between one and its space; nor behind white space, what stands for
    it, or what is not seen, which may vanish at the end of a text.

    Example:
        >>> settled("two dogs and", begins=str.isspace), settled("two ", begins=str.isspace)
        (8, 3)
    """
    for end in range(len(text) - 1, 0, -1):
        before, after = text[end - 1], text[end]
        spaced = before == "⟩" and unicodedata.normalize("NFKD", after)[0].isspace()
        if begins(after) and not spaced and before != "▁" and unicodedata.category(before)[0] in "LMNPS":
            tag = text[text.rfind("⟨", 0, end) : end]
            if tag[:1] != "⟨" or _CLOSED.search(tag):
                return end
    return 0


def begins_character(character: str) -> bool:
    """Tell whether no normal form of Unicode joins a character to the one before it.

    Example:
        >>> begins_character("e"), begins_character(chr(0x301)), begins_character(chr(0x1161))
        (True, False, False)
    """
    first = unicodedata.normalize("NFKD", character)[0]
    syllable = "\u1160" <= first <= "\u11ff" or "\ud7b0" <= first <= "\ud7ff"  # vowels and finals of Hangul
    return not syllable and unicodedata.category(first) not in ("Mn", "Mc", "Me", "Cn", "Cs")


class VectorStream(FeatureStream):
    """Sound or frames in pieces, through stages that each hold what they still need.

    Args:
        read: checks one piece, and returns it as an array.
        stages: what is done with it.
    """

    def __init__(self, read: Callable[[Any], FloatArray], stages: Sequence[Stage]) -> None:
        self._read, self._stages = read, stages

    def _take(self, raw: Any, last: bool) -> Array:
        values = self._read([] if last else raw)
        self.taken += len(values)
        if last and not self.taken:
            raise UserError("there is nothing to read: the input has ended before any sound or frames came")
        for stage in self._stages:
            values = stage(values, last)
        return values
