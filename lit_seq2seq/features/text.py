"""Texts in the form in which they are read and compared."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import tokenizers

from lit_seq2seq.types import UserError

_TAG = re.compile(r"⟨[^⟨⟩\s]+⟩ ?")


def whole(text: str) -> str:
    """Join halves of characters (surrogates), and replace lone ones, which no encoding of Unicode can write.

    Raises:
        UserError: it is no text.

    Example:
        >>> whole("a" + chr(0xD800)) == "a" + chr(0xFFFD), whole(chr(0xD83D) + chr(0xDE00))
        (True, '😀')
    """
    if not isinstance(text, str):
        raise UserError(f"expected a text, but it is of type {type(text).__name__}")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


UNKNOWN = "\u2047"
"""What stands in scores for a symbol that is unknown to the vocabulary: a double question mark, one symbol."""


def one_form(text: str, normal: Literal["NFC", "NFKC"] = "NFC") -> str:
    """Return a text in a Unicode normal form, with one space for each run of white space and none at the ends.

    Example:
        >>> one_form(" caf" + "e" + chr(0x301) + chr(0xA0) + " noir")
        'café noir'
    """
    return " ".join(unicodedata.normalize(normal, text).split())


def known_tags(text: str, backend: tokenizers.Tokenizer) -> str:
    """Put a space behind a tag such as `⟨past⟩`, or take it away, where the vocabulary knows only the other form.

    Example:
        >>> backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"⟨V⟩ ": 0, "⟨PST⟩ ": 1}))
        >>> known_tags("⟨V⟩⟨PST⟩go", backend)
        '⟨V⟩ ⟨PST⟩ go'
    """

    def known(form: str) -> bool:
        normal = form if backend.normalizer is None else backend.normalizer.normalize_str(form)
        return backend.token_to_id(normal) is not None

    def mend(found: re.Match[str]) -> str:
        form = found[0]
        other = form[:-1] if form.endswith(" ") else f"{form} "
        return other if known(other) and not known(form) else form

    return _TAG.sub(mend, text) if "⟨" in text else text
