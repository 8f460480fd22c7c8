"""Text to ids and back, over the `tokenizers` library."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import tokenizers

from lit_seq2seq.features.extending import extend_vocabulary
from lit_seq2seq.features.feature import Array, TextFeature
from lit_seq2seq.features.schemes import JOINER, SCHEMES, SPACE, rejoined
from lit_seq2seq.features.streams import FeatureStream, TextStream, begins_character
from lit_seq2seq.features.text import UNKNOWN, known_tags, one_form, whole
from lit_seq2seq.files.untrusted import check_tokenizer, tokenizing
from lit_seq2seq.types import Padded, Sources, SpecialIds, UserError

Units = Literal["word", "char", "byte", "bpe", "unigram"]
Normalization = Literal["none", "nfc", "nfkc", "nfd", "nfkd"]

# The first name of each row is what our own vocabularies use; the others are looked for in an existing tokenizer.json.
_NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
    "bos": ("<bos>", "<s>", "[BOS]", "[CLS]", "<|bos|>", "<|startoftext|>"),
    "eos": ("<eos>", "</s>", "[EOS]", "[SEP]", "<|eos|>", "<|endoftext|>"),
}
_WHITE = frozenset(" \t\n\r\f\v")
_TRAINING = ("vocab_size", "min_frequency", "lowercase", "normalization", "pretokenized")


class Tokenizer(TextFeature):
    """Splits text into units of a vocabulary that is learned from data or read from a `tokenizer.json`.

    `word` splits at white space and around punctuation and keeps a joiner mark on punctuation, so that decoding puts
    it back in place. `char` splits into code points, but keeps a tag such as `⟨past⟩` whole. `bpe` is byte-pair
    encoding (Sennrich et al., 2016, https://arxiv.org/abs/1508.07909) and `unigram` the unigram language model (Kudo,
    2018, https://arxiv.org/abs/1804.10959), both over words that carry their leading space. Decoding gives the
    normalised text back wherever no symbol is unknown; `word` and `pretokenized` also turn each run of white space
    into one space. Raw text never becomes a special symbol, even if it contains `<eos>`.

    Args:
        model: kind of unit.
        vocab_size: greatest number of symbols, the four special ones included; `byte` always has 260.
        min_frequency: units seen less often are unknown (`word`, `char`), pairs seen less often stay apart (`bpe`).
        lowercase: fold text to lower case.
        normalization: Unicode normal form that text is brought to; `nfd` and `nfkd` take letters with marks apart
            (`é` becomes `e` and an accent) and syllables of Hangul too (`한` becomes `ㅎ`, `ㅏ`, `ㄴ`).
        pretokenized: text is already tokenised: split at white space only.
        dropout: probability of skipping a merge when encoding for training, in [0, 1): BPE-dropout (Provilkov et al.,
            2020, https://arxiv.org/abs/1910.13267).
        file: an existing `tokenizer.json`; the other arguments but `dropout` and those below then have no effect.
        pad_token: which symbol of `file` is padding; if `None` it is found by one of the usual names, such as `<pad>`.
        bos_token: which one begins what a decoder reads. T5 takes its `<pad>`.
        eos_token: which one ends texts. One symbol may play several roles: GPT-2's `<|endoftext|>` plays all.
        unk_token: which one stands for unknown symbols; vocabularies of bytes need none.

    Raises:
        UserError: if an argument is out of range, or `file` is missing, unreadable or without special symbols.

    Example:
        >>> tokenizer = Tokenizer(model="char")
        >>> tokenizer.train(["ein Mann"])
        >>> tokenizer.decode(tokenizer.encode_batch(["Mann"])[0])
        'Mann'
    """

    random_settings: ClassVar[tuple[str, ...]] = ("dropout",)
    input_limit: ClassVar[int | None] = 1024

    def __init__(
        self,
        model: Units = "bpe",
        vocab_size: int = 8000,
        min_frequency: int = 1,
        lowercase: bool = False,
        *,
        normalization: Normalization = "nfc",
        pretokenized: bool = False,
        dropout: float = 0.0,
        file: str | None = None,
        pad_token: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
    ) -> None:
        if model not in SCHEMES:
            raise UserError(f"model of the tokenizer must be one of {', '.join(SCHEMES)}, but is {model}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout of the tokenizer must be in [0, 1), but is {dropout}")
        if dropout and model != "bpe" and file is None:
            raise UserError(f"dropout of the tokenizer needs model=bpe, but the model is {model}")
        if vocab_size < 5:
            raise UserError(f"vocab_size of the tokenizer must be at least 5, but is {vocab_size}")
        self.config = {
            "model": model,
            "vocab_size": vocab_size,
            "min_frequency": min_frequency,
            "lowercase": lowercase,
            "normalization": normalization,
            "pretokenized": pretokenized,
            "dropout": dropout,
            "file": file,
        }
        tokens = {"pad": pad_token, "bos": bos_token, "eos": eos_token, "unk": unk_token}
        self.config |= {f"{role}_token": token for role, token in tokens.items() if token is not None}
        self._backend: tokenizers.Tokenizer | None = None
        if file is not None:
            self._adopt(_read(Path(file)), file)

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    def tokens(self, ids: Sequence[int], extra: Sequence[str] = ()) -> list[str]:
        """Name each id by its vocabulary entry, or from `extra`."""
        size = len(self)
        return [str(self.backend.id_to_token(index)) if index < size else extra[index - size] for index in ids]

    @property
    def tells_unknown(self) -> bool:
        """Whether `unknown` can tell unknown symbols apart: for whole words and characters, but not for subwords."""
        return isinstance(self.backend.model, tokenizers.models.WordLevel)

    def unknown(self, text: str) -> list[str]:
        """Return the symbols of a text that the vocabulary lacks, normalised as those of the vocabulary are."""
        backend, without = self.backend, {None, *astuple(self.specials)}
        text = known_tags(whole(text), backend)
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        pieces = [(normal, (0, 0))] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(normal)
        return [piece for piece, _ in pieces if backend.token_to_id(piece) in without]

    def labels(self, source: Padded | Sources, row: int) -> list[str]:
        """Name each id of one source of a batch."""
        assert isinstance(source, Padded)
        return self.tokens(source.values[row, : int(source.lengths[row])].tolist())

    def pieces(self, raw: str) -> list[str]:
        """Return the word of each symbol as it stands in the text; of symbols of several words their own part.

        Example:
            >>> tokenizer = Tokenizer("bpe", vocab_size=30)
            >>> tokenizer.train(["ab abc dog"])
            >>> tokenizer.pieces("abab, Dog")
            ['abab', 'abab', ',', 'Dog', 'Dog', 'Dog', 'Dog']
        """
        text = known_tags(whole(raw), self.backend)
        found = self.backend.encode(text, add_special_tokens=False)
        ends = [0, *(end for _, end in found.offsets)]  # a mark that two symbols touch counts to both
        own = [text[max(start, before) : end] for before, (start, end) in zip(ends, found.offsets, strict=False)]
        words: dict[int | None, str] = {}
        for word, piece in zip(found.word_ids, own, strict=True):
            words[word] = words.get(word, "") + piece
        pairs = ((words[word].split(), piece) for word, piece in zip(found.word_ids, own, strict=True))
        return [parts[0] if len(parts) == 1 else piece for parts, piece in pairs]

    def word_numbers(self, raw: str) -> list[int]:
        """Return the number of each symbol's word between white space; white space counts to the word behind it.

        Example:
            >>> tokenizer = Tokenizer("char")
            >>> tokenizer.train(["a dog"])
            >>> tokenizer.word_numbers("a dog")
            [0, 1, 1, 1, 1]
        """
        text = known_tags(whole(raw), self.backend)
        ends = [word.end() for word in re.finditer(r"\S+", text)]
        return [bisect_right(ends, start) for start, _ in self.backend.encode(text, add_special_tokens=False).offsets]

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of padding, BOS and EOS."""
        return tuple(self._special_names)

    @property
    def is_trained(self) -> bool:
        """Whether there is a vocabulary."""
        return self._backend is not None

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The wrapped `tokenizers.Tokenizer`.

        Raises:
            UserError: if the tokenizer has no vocabulary yet.
        """
        if self._backend is None:
            raise UserError("this tokenizer has no vocabulary yet: call train(texts) or name a tokenizer.json by file=")
        return self._backend

    @property
    def specials(self) -> SpecialIds:
        """Ids of the special symbols."""
        self.backend  # noqa: B018 - raises if there is no vocabulary
        return self._specials

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown symbol, where there is one."""
        return None if self.specials.unk == self.specials.pad else self.specials.unk

    @property
    def size(self) -> int:
        """Number of symbols, the special ones included."""
        return len(self)

    @property
    def padding(self) -> int:
        """Id that fills up a batch."""
        return self.specials.pad

    @property
    def augments(self) -> bool:
        """Whether BPE-dropout is on."""
        return bool(self.config["dropout"])

    def train(self, raw: Iterable[str] | Iterable[list[str]], total: int | None = None) -> None:
        """Learn the vocabulary; a vocabulary that is already there is kept only if it came from `file`.

        Args:
            raw: the texts, or lists of texts.
            total: how many items `raw` has, for the progress bar.
        """
        if self.config["file"] is None:
            options = {name: self.config[name] for name in _TRAINING}
            specials = [names[0] for names in _NAMES.values()]
            backend, trainer = SCHEMES[self.config["model"]].build(**options, specials=specials)
            backend.train_from_iterator(_remove(specials, raw), trainer, length=total)
            self._adopt(backend, "the trained tokenizer")

    def extended(self, raw: Iterable[str] | Iterable[list[str]], limit: int) -> Self:
        """Return a tokenizer that knows up to `limit` symbols more, learned from `raw`; see `extend_vocabulary`.

        Example:
            >>> tokenizer = Tokenizer("char")
            >>> tokenizer.train(["abc"])
            >>> tokenizer.symbols[4:], tokenizer.extended(["bad"], limit=10).symbols[4:]
            (['a', 'b', 'c'], ['a', 'b', 'c', 'd'])
        """
        kind = self.config["model"] if self.config["file"] is None else None
        texts, least = _remove(self._special_names, raw), self.config["min_frequency"]
        return self.from_json(extend_vocabulary(self.to_json(), texts, limit, least, kind=kind), **self.config)

    @property
    def symbols(self) -> list[str]:
        """Names of the symbols by id."""
        return self.tokens(range(len(self)))

    def encode_batch(self, texts: Sequence[str], dropout: bool = False) -> list[list[int]]:
        """Turn texts into ids, without any special symbol added.

        Args:
            texts: the texts.
            dropout: whether to apply BPE-dropout with the configured probability.
        """
        backend = self.backend
        if dropout and self.config["dropout"]:
            backend.model.dropout = self.config["dropout"]
        texts = [known_tags(whole(text), backend) for text in texts]
        try:
            with tokenizing():
                encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        finally:
            if dropout and self.config["dropout"]:
                backend.model.dropout = None
        return [self._without_specials(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]

    def _without_specials(self, text: str, ids: list[int]) -> list[int]:
        if any(name in text for name in self._special_names):
            return [self._specials.unk if index in self._skipped else index for index in ids]
        return ids

    @property
    def settled(self) -> bool:
        """Whether a text stays as it is when symbols follow, but for a last character that lacks bytes."""
        return self.config["file"] is None

    def decode(self, ids: Sequence[int], extra: Sequence[str] = ()) -> str:
        """Turn ids into text; padding, BOS and EOS vanish, unknown symbols show as `<unk>`.

        Args:
            ids: the ids.
            extra: symbols whose ids follow those of the vocabulary; see `CopyMap`.
        """
        return self.decode_batch([ids], [extra])[0]

    def decode_batch(self, batch: Sequence[Sequence[int]], extra: Sequence[Sequence[str]] | None = None) -> list[str]:
        """Turn several sequences of ids into texts, each as by `decode`."""
        kept = [[index for index in ids if index not in self._skipped] for ids in batch]
        with tokenizing():
            if extra is None or not any(extra):
                return list(self.backend.decode_batch(kept, skip_special_tokens=False))
            names = [self.tokens(ids, own) for ids, own in zip(kept, extra, strict=True)]
            decoder = self.backend.decoder
            return [" ".join(row) if decoder is None else str(decoder.decode(row)) for row in names]

    def form(self, text: str) -> str:
        """Return a text in the form in which outputs and references are compared.

        It is what decoding would give back of it if no symbol were unknown, with its case, in Unicode form NFC (NFKC if
        the tokenizer's own normalisation is one of compatibility), with one space for each run of white space, and with
        one symbol (U+2047) for an unknown one.

        Example:
            >>> tokenizer = Tokenizer("word", pretokenized=True)
            >>> tokenizer.train(["a dog"])
            >>> tokenizer.form(" a  <unk> ￭."), tokenizer.form("A" + chr(0xA0) + "dog")
            ('a ⁇.', 'A dog')
        """
        backend, text = self.backend, whole(text)
        normalizer, unknown = backend.normalizer, self._specials.unk
        if normalizer is not None and "fi" in normalizer.normalize_str("\ufb01"):
            text = unicodedata.normalize("NFKC", text)  # before U+2047 stands in it, which would become two symbols
        if unknown not in self._skipped:
            text = text.replace(str(backend.id_to_token(unknown)), UNKNOWN)
        if self.config["file"] is None:
            text = SCHEMES[self.config["model"]].rejoined(text, self.config["pretokenized"])
        else:
            text = rejoined(text, backend.pre_tokenizer, backend.decoder)
        return one_form(text)

    def words(self) -> list[str]:
        """Return the text of every symbol of the vocabulary, without the marks that say where it touches others."""
        return [name.strip(JOINER).removeprefix(SPACE) for name in self.symbols]

    def encode(self, raw: Sequence[str], training: bool = False) -> list[Array]:
        """Turn texts into id arrays `(T,)` that end with EOS, with BPE-dropout when training."""
        eos = self.specials.eos
        return [np.array([*ids, eos], dtype=np.int32) for ids in self.encode_batch(raw, dropout=training)]

    def in_pieces(self, sampling_rate: int | None = None) -> FeatureStream:
        """Begin to read a text in pieces: a word is handed over with the white space behind it, EOS at the end.

        `char` and `byte` hand a character over with the next one, as it may have marks, and a tag with what follows.

        Example:
            >>> tokenizer = Tokenizer("word")
            >>> tokenizer.train(["a dog barks"])
            >>> stream = tokenizer.in_pieces()
            >>> [stream.feed(piece).tolist() for piece in ("a d", "og bar", "ks")], stream.finish().tolist()
            ([[4], [6], []], [5, 3])
        """
        if sampling_rate is not None:
            raise UserError("a text has no sampling rate: leave sampling_rate out")
        begins: Callable[[str], bool]
        if self.config["file"] is None:
            begins = begins_character if SCHEMES[self.config["model"]].by_character else _WHITE.__contains__
        elif _splits_at_spaces(self.backend):
            begins = " ".__eq__
        else:
            raise UserError(
                f"{self.config['file']} does not split texts at spaces, so it cannot read them in pieces: set model "
                "of the tokenizer to word, char, byte, bpe or unigram"
            )
        return TextStream(lambda text: self.encode_batch([text])[0], begins, [self.specials.eos])

    def nothing(self) -> Array:
        """Return a lone EOS."""
        return np.array([self.specials.eos], dtype=np.int32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the `tokenizer.json`, which `tokenizers` and `transformers` can read too."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a `tokenizer.json`."""
        return cls(file=str(path))

    def to_json(self) -> str:
        """Return the text of the `tokenizer.json`."""
        return str(self.backend.to_str(pretty=True))

    @classmethod
    def from_json(cls, text: str, **config: Any) -> Self:
        """Build a tokenizer from the text of a `tokenizer.json` and its `config`."""
        tokenizer = cls(**{**config, "file": None})
        tokenizer.config["file"] = config.get("file")
        with tokenizing():
            tokenizer._adopt(tokenizers.Tokenizer.from_str(text), "the given tokenizer.json")
        return tokenizer

    def transformers_config(self) -> dict[str, Any]:
        """Return what `transformers` wants beside a `tokenizer.json`, as its `tokenizer_config.json`."""
        names = {role: self.backend.id_to_token(getattr(self.specials, role)) for role in _NAMES}
        tokens = {f"{role}_token": str(name) for role, name in names.items()}
        return {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True, **tokens}

    def to_dict(self) -> dict[str, Any]:
        """Describe settings and vocabulary by plain JSON values."""
        return {"config": self.config, "tokenizer": json.loads(self.to_json())}

    @classmethod
    def from_dict(cls, values: dict[str, Any], trust: tuple[str, ...] = ()) -> Self:
        """Build the tokenizer that `to_dict` described."""
        check_tokenizer(values["tokenizer"])
        return cls.from_json(json.dumps(values["tokenizer"]), **values["config"])

    def identity(self) -> dict[str, Any]:
        """Return the vocabulary with its rules, whatever it was trained by."""
        return {"tokenizer": json.loads(self.to_json())}

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "json": None if self._backend is None else self.to_json()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.config, self._backend = state["config"], None
        if state["json"] is not None:
            self._adopt(tokenizers.Tokenizer.from_str(state["json"]), "the tokenizer")

    def _adopt(self, backend: tokenizers.Tokenizer, origin: str) -> None:
        given = {role: (self.config[name],) if (name := f"{role}_token") in self.config else () for role in _NAMES}
        ids = {role: _find(backend, given[role] or names) for role, names in _NAMES.items()}
        if ids["unk"] is None and not given["unk"]:  # byte-level vocabularies have nothing unknown
            ids["unk"] = ids["pad"]
        for role, index in ids.items():
            if index is None:
                there = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items())]
                expected = " or ".join(given[role] or _NAMES[role])
                raise UserError(
                    f"expected a {role} symbol in {origin}, {expected}, but it has none: name one by {role}_token; its "
                    f"special symbols are {', '.join(there[:20]) or 'none'}"
                )
        if isinstance(backend.model, tokenizers.models.WordLevel) and given["unk"] and ids["unk"] == ids["eos"]:
            raise UserError(
                f"expected another unk_token in {origin} than its eos_token: texts would end at unknown words"
            )
        if self.config["dropout"] and not isinstance(backend.model, tokenizers.models.BPE):
            raise UserError(f"dropout of the tokenizer needs byte-pair encoding, which {origin} is not: leave it out")
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._specials = SpecialIds(**{role: index for role, index in ids.items() if index is not None})
        self._skipped = {self._specials.pad, self._specials.bos, self._specials.eos}
        self._special_names = [str(backend.id_to_token(index)) for index in self._skipped]
        self._backend = backend


def _splits_at_spaces(backend: tokenizers.Tokenizer) -> bool:
    """Tell whether words between spaces are encoded apart."""
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    if backend.pre_tokenizer is None or any(token.rstrip or re.search(r"\S\s", token.content) for token in added):
        return False
    text = "a b a"
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    return len(backend.pre_tokenizer.pre_tokenize_str(text)) >= 3


def _find(backend: tokenizers.Tokenizer, names: Iterable[str]) -> int | None:
    ids = (backend.token_to_id(name) for name in names)
    return next((index for index in ids if index is not None), None)


def _remove(names: list[str], raw: Iterable[str] | Iterable[list[str]]) -> Iterator[str | list[str]]:
    found = re.compile("|".join(map(re.escape, names)))
    for item in raw:
        yield found.sub(" ", whole(item)) if isinstance(item, str) else [found.sub(" ", whole(t)) for t in item]


def _read(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise UserError(f"expected a tokenizer.json at {path}, but there is no such file: check the file setting")
    try:
        text = path.read_text(encoding="utf-8-sig")
        check_tokenizer(json.loads(text), gaps=True)
        with tokenizing():
            return tokenizers.Tokenizer.from_str(text)
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"expected a tokenizer.json of the tokenizers library at {path}, but: {error}") from error
