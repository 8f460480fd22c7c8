"""Character transduction data made on the machine: numbers in figures, spelled out by language and form."""

from __future__ import annotations

import random
from collections.abc import Iterator

from num2words import num2words

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.types import UserError

LANGUAGES = ("de", "en", "es", "fi", "fr", "it", "nl", "tr")
FORMS = ("cardinal", "ordinal")
LARGEST = 9999
_HELD_OUT = {"validation": 0, "test": 1}  # number modulo 10, after shuffling


def numbers_of(split: str, seed: int) -> list[int]:
    """Return the numbers of a split in random order: a tenth each for validation and test, the others for training."""
    numbers = list(range(1, LARGEST + 1))
    random.Random(seed).shuffle(numbers)
    place = _HELD_OUT.get(split)
    return [
        number for index, number in enumerate(numbers) if (index % 10 == place if place is not None else index % 10 > 1)
    ]


def generate(
    languages: tuple[str, ...], split: str, size: int, seed: int, *, version: str = ""
) -> Iterator[dict[str, str]]:
    """Yield `size` distinct rows of `split`, whose numbers `seed` draws, and its rows from them."""
    numbers = numbers_of(split, seed)
    kinds = [(language, form) for language in languages for form in FORMS]
    for index in random.Random(f"{seed}/{split}").sample(range(len(numbers) * len(kinds)), size):
        number, (language, form) = numbers[index // len(kinds)], kinds[index % len(kinds)]
        spelled = num2words(number, lang=language, to=form)
        yield {"number": str(number), "language": language, "form": form, "spelled": spelled}


class SpelledNumbers(GeneratedDataset):
    """Numbers from 1 to 9999 in figures, spelled out as cardinals and ordinals of several languages.

    The rules are those of num2words: German puts the units before the tens, French counts by scores, Finnish inflects
    every part of an ordinal. The source, `number`, does not tell language and form, which stand in columns of their
    own, as a lemma does not tell the inflected form: use them as `feature_columns`. The splits share no number.

    Args:
        languages: among `de`, `en`, `es`, `fi`, `fr`, `it`, `nl`, `tr`.
        seed: draws which numbers are held out, and the rows.

    Raises:
        UserError: for an unknown language, or more rows than there are.
    """

    generate = staticmethod(generate)
    makers = ("num2words",)

    def __init__(
        self,
        languages: list[str] = ["de", "en", "fr"],  # noqa: B006 - only read
        *,
        train_size: int = 8_000,
        validation_size: int = 500,
        test_size: int = 1_000,
        seed: int = 0,
    ) -> None:
        for language in languages:
            if language not in LANGUAGES:
                raise UserError(f"expected languages of {', '.join(LANGUAGES)}, but got {language!r}")
        if not languages:
            raise UserError(f"expected languages of {', '.join(LANGUAGES)}, but got none")
        rows = len(languages) * len(FORMS)
        distinct = {split: len(numbers_of(split, seed)) * rows for split in ("train", "validation", "test")}
        super().__init__(train_size, validation_size, test_size, seed, most=distinct, languages=tuple(languages))
