"""Text to ids and back, over an existing `tokenizer.json`."""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, Literal

import tokenizers
from tokenizers.models import WordLevel

from lit_seq2seq.files.untrusted import check_tokenizer, tokenizing
from lit_seq2seq.types import SpecialIds, UserError

_TAG = re.compile(r"⟨[^⟨⟩\s]+⟩ ?")
_SURROGATE = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """Replace halves of characters (lone surrogates), which no encoding of Unicode can write.

    Raises:
        UserError: it is no text.

    Example:
        >>> whole("a" + chr(0xD800)) == "a" + chr(0xFFFD)
        True
    """
    if not isinstance(text, str):
        raise UserError(f"expected a text, but it is of type {type(text).__name__}")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
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
        >>> backend = tokenizers.Tokenizer(WordLevel({"⟨V⟩ ": 0, "⟨PST⟩ ": 1}))
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


class Symbols(ABC):
    """Base of what names the symbols of a vocabulary."""

    @property
    @abstractmethod
    def backend(self) -> tokenizers.Tokenizer:
        """The wrapped `tokenizers.Tokenizer`."""

    @property
    @abstractmethod
    def specials(self) -> SpecialIds:
        """Ids of the special symbols."""

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    def tokens(self, ids: Sequence[int], extra: Sequence[str] = ()) -> list[str]:
        """Name each id by its vocabulary entry, or from `extra`."""
        size = len(self)
        return [str(self.backend.id_to_token(index)) if index < size else extra[index - size] for index in ids]

    @property
    def tells_unknown(self) -> bool:
        """Whether `unknown` can tell unknown symbols apart: for whole words and characters, but not for subwords."""
        return isinstance(self.backend.model, WordLevel)

    def unknown(self, text: str) -> list[str]:
        """Return the symbols of a text that the vocabulary lacks, normalised as those of the vocabulary are."""
        backend, without = self.backend, {None, *astuple(self.specials)}
        text = known_tags(whole(text), backend)
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        pieces = [(normal, (0, 0))] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(normal)
        return [piece for piece, _ in pieces if backend.token_to_id(piece) in without]


class Vocabulary(Symbols):
    """Encodes and decodes as `lit_seq2seq.features.Tokenizer` does, whose vocabulary this is.

    Args:
        described: what a `tokenizer.json` says.
        specials: ids of the special symbols.
    """

    def __init__(self, described: dict[str, Any], specials: SpecialIds) -> None:
        check_tokenizer(described, gaps=True)
        with tokenizing():
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(described))
        self.backend.encode_special_tokens = True
        self.backend.no_padding()
        self.backend.no_truncation()
        self._specials = specials
        self._skipped = {specials.pad, specials.bos, specials.eos}
        self._special_names = [str(self.backend.id_to_token(index)) for index in self._skipped]

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The wrapped `tokenizers.Tokenizer`."""
        return self._backend

    @property
    def specials(self) -> SpecialIds:
        """Ids of the special symbols."""
        return self._specials

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into ids that end with EOS."""
        found, texts = [], [known_tags(whole(text), self.backend) for text in texts]
        with tokenizing():
            encodings = self.backend.encode_batch_fast(texts, False, False)
        for text, encoding in zip(texts, encodings, strict=True):
            ids = list(encoding.ids)
            if any(name in text for name in self._special_names):
                ids = [self.specials.unk if index in self._skipped else index for index in ids]
            found.append([*ids, self.specials.eos])
        return found

    def decode(self, ids: Sequence[int], extra: Sequence[str] = ()) -> str:
        """Turn ids into text; those of `extra` follow the vocabulary's."""
        kept = [index for index in ids if index not in self._skipped]
        with tokenizing():
            if not extra:
                return str(self.backend.decode(kept, skip_special_tokens=False))
            names, decoder = self.tokens(kept, extra), self.backend.decoder
            return " ".join(names) if decoder is None else str(decoder.decode(names))
