"""Translation data made on the machine: dates, times, money, quantities and numbers said in short sentences."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.builtin.phrase_kinds import KINDS, SENTENCES, Kind
from lit_seq2seq.types import UserError


def shares(size: int, split: str) -> list[int]:
    """Return how many of `size` pairs each kind gives: the same number each, small kinds at most what they have."""
    taken = [0] * len(KINDS)
    ascending = sorted(range(len(KINDS)), key=lambda index: KINDS[index].capacity(split))
    for position, index in enumerate(ascending):
        fair = (size - sum(taken)) // (len(KINDS) - position)
        taken[index] = min(KINDS[index].capacity(split), fair)
    return taken


def generate(
    languages: tuple[str, ...], split: str, size: int, seed: int, *, version: str = ""
) -> Iterator[dict[str, str]]:
    """Yield `size` distinct rows of `split` in random order, with a column for each of `languages`."""
    rng = random.Random(f"{seed}/{split}")
    chosen: list[tuple[Kind[Any], Any, str]] = []
    for kind, share in zip(KINDS, shares(size, split), strict=True):
        values, sentences = kind.split(split, seed), kind.sentences
        pairs = rng.sample(range(len(values) * len(sentences)), share)
        chosen += [(kind, values[pair // len(sentences)], sentences[pair % len(sentences)]) for pair in pairs]
    rng.shuffle(chosen)
    for kind, value, sentence in chosen:
        yield {language: kind.say(value, sentence, language) for language in languages} | {"kind": kind.name}


class PhraseTranslation(GeneratedDataset):
    """Short sentences about dates, times, money, quantities, durations and numbers, said in two languages.

    The words come from CLDR (through Babel) and num2words, so that word order, agreement, month names, spelled-out
    numbers, decimal separators and clock times differ between the languages as they do in life. The splits share no
    value: a date, time, amount or number of the test split is in no sentence of its kind in the others. A sentence has
    one translation only. The same arguments give the same rows everywhere; they are kept in the cache of `datasets`.

    Args:
        source_language: one of `en`, `de`, `fr`, `es`, `it`, `nl`; names the first column.
        target_language: another of these; names the second column.
        seed: draws which values are held out, and the rows.

    Raises:
        UserError: for an unknown language, equal languages, or more rows than there are distinct pairs.
    """

    generate = staticmethod(generate)
    makers = ("babel", "num2words")

    def __init__(
        self,
        source_language: str = "en",
        target_language: str = "de",
        *,
        train_size: int = 20_000,
        validation_size: int = 500,
        test_size: int = 1_000,
        seed: int = 0,
    ) -> None:
        languages = (source_language, target_language)
        for language in languages:
            if language not in SENTENCES:
                raise UserError(f"Expected a language of {', '.join(SENTENCES)}, but got {language!r}.")
        if source_language == target_language:
            raise UserError(f"Expected two different languages, but got {source_language!r} twice: change one.")
        distinct = {split: sum(kind.capacity(split) for kind in KINDS) for split in ("train", "validation", "test")}
        super().__init__(train_size, validation_size, test_size, seed, most=distinct, languages=tuple(languages))
