"""How each kind of tokenizer normalises, splits and joins text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPACE = "▁"  # leading space of a subword
JOINER = "￭"  # side of a punctuation mark that touches its neighbour

# A word of letters, of digits, or one other symbol, each with its leading space.
_SUBWORDS = Regex(rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}+|{SPACE}?[^{SPACE}\p{{L}}\p{{M}}\p{{N}}]")
_TOUCHING = Regex(r"(?<=\S)(?=[^\w\s])|(?<=[^\w\s])(?=\w)")
_WORDS = Regex(rf"{JOINER}?[^\w\s{JOINER}](?:{JOINER}(?=\w))?|\w+")
_CHARACTERS = Regex(r"⟨[^⟨⟩\s]+⟩ ?|[\s\S]")  # a tag, with the space behind it, is one symbol
_ONE_SPACE: list[Any] = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Replace(Regex("^ | $"), "")]
_NORMAL: dict[str, list[Any]] = {
    "none": [],
    "nfc": [normalizers.NFC()],
    "nfkc": [normalizers.NFKC()],
    "nfd": [normalizers.NFD()],
    "nfkd": [normalizers.NFKD()],
}


@dataclass(frozen=True)
class Scheme:
    """One kind of tokenizer.

    Attributes:
        model: makes the untrained model, given the unknown symbol.
        trainer: makes the trainer, given vocabulary size, least frequency and special symbols.
        pieces: makes the last normalisers, the splitter and the joiner, given whether text is already tokenised.
        by_character: whether each character has symbols of its own, rather than each word.
    """

    model: Callable[[str], models.Model]
    trainer: Callable[[int, int, list[str]], trainers.Trainer]
    pieces: Callable[[bool], tuple[list[Any], Any, Any]]
    by_character: bool = False

    def build(
        self,
        vocab_size: int,
        min_frequency: int,
        lowercase: bool,
        normalization: str,
        *,
        pretokenized: bool,
        specials: list[str],
    ) -> tuple[Tokenizer, trainers.Trainer]:
        """Make an untrained tokenizer and its trainer; `specials` are pad, unk, bos and eos, in the order of ids."""
        tokenizer = Tokenizer(self.model(specials[1]))
        last, tokenizer.pre_tokenizer, tokenizer.decoder = self.pieces(pretokenized)
        normal: list[Any] = [normalizers.Lowercase()] if lowercase else []
        normal += _NORMAL[normalization]
        tokenizer.normalizer = normalizers.Sequence(normal + (_ONE_SPACE if pretokenized else []) + last)
        return tokenizer, self.trainer(vocab_size, min_frequency, specials)

    def rejoined(self, text: str, pretokenized: bool) -> str:
        """Split a text and join it again: the text as decoding gives it back, but for the Unicode form and case."""
        last, split, join = _pieces(self.pieces, pretokenized)
        return rejoined(last.normalize_str(text), split, join)


def rejoined(text: str, split: Any, join: Any) -> str:
    """Split a text with a pre-tokenizer and join it again with a decoder, each of which may be absent."""
    pieces = [text] if split is None else [piece for piece, _ in split.pre_tokenize_str(text)]
    return " ".join(pieces) if join is None else str(join.decode(pieces))


@cache
def _pieces(pieces: Callable[[bool], tuple[list[Any], Any, Any]], pretokenized: bool) -> tuple[Any, Any, Any]:
    last, split, join = pieces(pretokenized)
    return normalizers.Sequence((_ONE_SPACE if pretokenized else []) + last), split, join


def _split_words(pretokenized: bool) -> tuple[list[Any], Any, Any]:
    if pretokenized:
        return [], pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix=JOINER, cleanup=False)
    normal = [normalizers.Replace(JOINER, ""), *_ONE_SPACE, normalizers.Replace(_TOUCHING, JOINER)]
    join: list[Any] = [
        decoders.WordPiece(prefix=JOINER, cleanup=False),
        decoders.Fuse(),
        decoders.Replace(f"{JOINER} ", ""),
        decoders.Replace(JOINER, ""),
    ]
    return normal, pre_tokenizers.Split(_WORDS, "removed", invert=True), decoders.Sequence(join)


def _split_characters(pretokenized: bool) -> tuple[list[Any], Any, Any]:
    return [], pre_tokenizers.Split(_CHARACTERS, "isolated"), decoders.Fuse()


def _split_bytes(pretokenized: bool) -> tuple[list[Any], Any, Any]:
    return [], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()


def _split_subwords(pretokenized: bool) -> tuple[list[Any], Any, Any]:
    normal = [normalizers.Replace(" ", SPACE), normalizers.Prepend(SPACE)]
    words = pre_tokenizers.Split(_SUBWORDS, "isolated")
    split = pre_tokenizers.Split(SPACE, "merged_with_next") if pretokenized else words
    join: list[Any] = [decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return normal, split, decoders.Sequence(join)


def _word_level(unk: str) -> models.Model:
    return models.WordLevel({unk: 0}, unk_token=unk)


def _word_trainer(size: int, least: int, specials: list[str]) -> trainers.Trainer:
    return trainers.WordLevelTrainer(vocab_size=size, min_frequency=least, special_tokens=specials)


def _byte_trainer(size: int, least: int, specials: list[str]) -> trainers.Trainer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(vocab_size=256 + len(specials), special_tokens=specials, initial_alphabet=alphabet)


def _bpe_trainer(size: int, least: int, specials: list[str]) -> trainers.Trainer:
    # Half of the vocabulary at most goes to single characters; rarer ones are unknown.
    return trainers.BpeTrainer(
        vocab_size=size, min_frequency=least, special_tokens=specials, limit_alphabet=max(size // 2, 1)
    )


def _unigram_trainer(size: int, least: int, specials: list[str]) -> trainers.Trainer:
    return trainers.UnigramTrainer(vocab_size=size, special_tokens=specials, unk_token=specials[1])


SCHEMES = {
    "word": Scheme(_word_level, _word_trainer, _split_words),
    "char": Scheme(_word_level, _word_trainer, _split_characters, by_character=True),
    "byte": Scheme(lambda unk: models.BPE(), _byte_trainer, _split_bytes, by_character=True),
    "bpe": Scheme(lambda unk: models.BPE(unk_token=unk, fuse_unk=True), _bpe_trainer, _split_subwords),
    "unigram": Scheme(lambda unk: models.Unigram(), _unigram_trainer, _split_subwords),
}
