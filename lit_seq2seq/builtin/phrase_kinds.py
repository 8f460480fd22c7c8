"""Kinds of values of the built-in translation data, and how they are said in each language."""

from __future__ import annotations

import datetime
import itertools
import random
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, Literal, TypeVar, get_args

from babel.dates import format_date, format_time, format_timedelta, get_day_names
from babel.lists import format_list
from babel.numbers import format_currency, format_decimal, format_percent, get_currency_name
from babel.units import format_unit
from num2words import num2words

from lit_seq2seq.builtin.base import read_table

V = TypeVar("V")

_KEYS, *_LANGUAGES = read_table("phrases.tsv")
SENTENCES = {language: dict(zip(_KEYS[1:], texts, strict=True)) for language, *texts in _LANGUAGES}
"""By language the sentences by their keys; `{slots}` are said by kind."""
HELD_OUT = 20  # one value in so many goes to validation, one to test

CLOCK = {  # minutes 0, 5, ... 55 after hour {h}, before hour {n}
    "en": "{h} o'clock|five past {h}|ten past {h}|quarter past {h}|twenty past {h}|twenty-five past {h}|half past {h}|"
    "twenty-five to {n}|twenty to {n}|quarter to {n}|ten to {n}|five to {n}",
    "de": "{h} Uhr|fünf nach {h}|zehn nach {h}|Viertel nach {h}|zwanzig nach {h}|fünf vor halb {n}|halb {n}|"
    "fünf nach halb {n}|zwanzig vor {n}|Viertel vor {n}|zehn vor {n}|fünf vor {n}",
    "fr": "{h} heures|{h} heures cinq|{h} heures dix|{h} heures et quart|{h} heures vingt|{h} heures vingt-cinq|"
    "{h} heures et demie|{n} heures moins vingt-cinq|{n} heures moins vingt|{n} heures moins le quart|"
    "{n} heures moins dix|{n} heures moins cinq",
    "es": "las {h}|las {h} y cinco|las {h} y diez|las {h} y cuarto|las {h} y veinte|las {h} y veinticinco|"
    "las {h} y media|las {n} menos veinticinco|las {n} menos veinte|las {n} menos cuarto|las {n} menos diez|"
    "las {n} menos cinco",
    "it": "le {h}|le {h} e cinque|le {h} e dieci|le {h} e un quarto|le {h} e venti|le {h} e venticinque|"
    "le {h} e mezza|le {n} meno venticinque|le {n} meno venti|le {n} meno un quarto|le {n} meno dieci|"
    "le {n} meno cinque",
    "nl": "{h} uur|vijf over {h}|tien over {h}|kwart over {h}|tien voor half {n}|vijf voor half {n}|half {n}|"
    "vijf over half {n}|tien over half {n}|kwart voor {n}|tien voor {n}|vijf voor {n}",
}

REWRITES: dict[str, tuple[tuple[str, str], ...]] = {  # agreement and elision, applied to whole sentences in order
    "en": (),
    "de": ((r"\beins (?=Euro|US-Dollar|Schweizer)", "einen "), (r"\beins Uhr", "ein Uhr")),
    "fr": (
        (r"(?<=\D)1 (?=[^\W\d]+ \d{4})", "1er "),
        (r"\bun heures", "une heure"),
        (r"(vingt|cent)sième", r"\1ième"),
        (r"(\d)me\b", r"\1e"),
    ),
    "es": (
        (r"\blas 1:", "la 1:"),
        (r"\blas uno\b", "la una"),
        (r"veintiuno (?=euro|dólar|franco)", "veintiún "),
        (r"uno (?=euro|dólar|franco)", "un "),
        (r"décimoprimero", "undécimo"),
        (r"décimosegundo", "duodécimo"),
        (r"(sept|oct)igentésimo", r"\1ingentésimo"),
        (r"(\d)º", r"\1.º"),
    ),
    "it": (
        (r"\bil (?=8|11(?!\d)|1[,%])", "l'"),
        (r"\b(de|da|a)l (?=8|11(?!\d)|1[,%]|[ou])", r"\1ll'"),
        (r"(?<=[a-z])tre\b", "tré"),
        (r"\ble uno\b", "l'una"),
        (r"\ba le ", "alle "),
        (r"\ba l'", "all'"),
        (r"\buno (?=euro|dollaro|franco)", "un "),
        (r"(?<=\D)1 (?=[^\W\d]+ \d{4})", "1º "),
    ),
    "nl": (),
}

DAYS = tuple(datetime.date(1900, 1, 1) + datetime.timedelta(n) for n in range(55_000))
MINUTES = tuple(datetime.time(hour, minute) for hour in range(24) for minute in range(60))
AMOUNTS = tuple(sorted(set(range(1, 301)) | {n / 10 for n in range(11, 100) if n % 10}))
Unit = Literal["second", "minute", "hour", "day", "week", "month", "year"]
_DAY = 24 * 3600
SECONDS: dict[Unit, int] = {"second": 1, "minute": 60, "hour": 3600, "day": _DAY}
SECONDS |= {"week": 7 * _DAY, "month": 30 * _DAY, "year": 365 * _DAY}  # as Babel counts them
SPANS: tuple[tuple[Unit, int, Unit, int], ...] = (
    ("year", 20, "month", 12),
    ("week", 12, "day", 7),
    ("day", 31, "hour", 24),
    ("hour", 24, "minute", 60),
    ("minute", 60, "second", 60),
)


@dataclass(frozen=True)
class Kind(Generic[V]):
    """Values of one kind and how each slot of a sentence says such a value in a language.

    Attributes:
        name: what the values are, e.g. `"date"`.
        values: every value, each once.
        slots: slot name -> function from (value, language) to words.
    """

    name: str
    values: Sequence[V]
    slots: Mapping[str, Callable[[V, str], str]]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Keys of the sentences that speak of this kind."""
        return tuple(
            key for key, text in SENTENCES["en"].items() if self.slots.keys() & set(re.findall(r"\{(\w+)\}", text))
        )

    def split(self, name: str, seed: int) -> list[V]:
        """Return the values that belong to the split `name`; the splits are disjoint and together hold every value."""
        values = list(self.values)
        random.Random(f"{seed}/{self.name}").shuffle(values)
        cut = held_out(len(values))
        return {"test": values[:cut], "validation": values[cut : 2 * cut], "train": values[2 * cut :]}[name]

    def capacity(self, split: str) -> int:
        """Return the number of distinct pairs that `split` can hold."""
        cut = held_out(len(self.values))
        return len(self.sentences) * (len(self.values) - 2 * cut if split == "train" else cut)

    def say(self, value: V, sentence: str, language: str) -> str:
        """Return the sentence `sentence` about `value` in `language`, NFC and with plain spaces."""
        template = SENTENCES[language][sentence]
        text = re.sub(r"\{(\w+)\}", lambda slot: self.slots[slot[1]](value, language), template)
        text = unicodedata.normalize("NFC", re.sub(r"\s", " ", text).replace("’", "'"))
        for pattern, replacement in REWRITES[language]:
            text = re.sub(pattern, replacement, text)
        return text


def held_out(count: int) -> int:
    """Return how many of `count` values validation gets, and test as many."""
    return count // HELD_OUT


def spell(number: int, language: str) -> str:
    """Return a number in words."""
    return str(num2words(number, lang=language))


def weekday(day: int, language: str) -> str:
    """Return the name of a day, Monday = 0."""
    return str(get_day_names(locale=language)[day])


def clock(hour: int, minute: int, language: str) -> str:
    """Return a spoken time of day in steps of five minutes, as in "half past two" = "halb drei"."""
    template = CLOCK[language].split("|")[minute // 5]
    return template.format(h=spell(hour, language), n=spell(hour + 1, language))


def short_time(time: datetime.time, language: str) -> str:
    """Return a time of day in digits."""
    return format_time(time, "short", locale=language)


def spelled_sum(value: tuple[int, str], language: str) -> str:
    """Return an amount of money in words."""
    number, currency = value
    return f"{spell(number, language)} {get_currency_name(currency, number, locale=language)}"


def time_span(number: int, unit: Unit, language: str, to_now: bool = False) -> str:
    """Return a length of time, or with `to_now` its distance to now, where negative numbers are past."""
    delta = datetime.timedelta(seconds=number * SECONDS[unit])
    return format_timedelta(delta, unit, threshold=float("inf"), add_direction=to_now, locale=language)


def duration(value: tuple[int, Unit, int, Unit], language: str) -> str:
    """Return a length of time in two units."""
    number, unit, smaller_number, smaller_unit = value
    parts = [time_span(number, unit, language), time_span(smaller_number, smaller_unit, language)]
    return format_list(parts, locale=language)


def measure(slot: str, *units: str, amounts: Sequence[float] = AMOUNTS) -> Kind[tuple[str, float]]:
    """Return the kind of the amounts of CLDR units, e.g. `"length-kilometer"`."""
    return Kind(
        slot,
        tuple(itertools.product(units, amounts)),
        {slot: lambda value, language: format_unit(value[1], value[0], locale=language)},
    )


KINDS: tuple[Kind[Any], ...] = (
    Kind(
        "date",
        DAYS,
        {
            "date": lambda day, language: format_date(day, "long", locale=language),
            "weekday": lambda day, language: weekday(day.weekday(), language),
        },
    ),
    Kind("time", MINUTES, {"time": short_time}),
    Kind(
        "meeting",
        tuple(itertools.product(range(7), MINUTES)),
        {
            "meeting_day": lambda value, language: weekday(value[0], language),
            "meeting_time": lambda value, language: short_time(value[1], language),
        },
    ),
    Kind(
        "clock",
        tuple(itertools.product(range(7), range(1, 11), range(0, 60, 5))),
        {
            "clock_day": lambda value, language: weekday(value[0], language),
            "clock": lambda value, language: clock(value[1], value[2], language),
        },
    ),
    Kind(
        "money",
        tuple(itertools.product(("EUR", "USD", "GBP", "CHF"), (n / 100 for n in range(105, 50_000, 5)))),
        {
            "price": lambda value, language: format_currency(value[1], value[0], locale=language),
            "amount": lambda value, language: format_currency(value[1], value[0], locale=language, format_type="name"),
        },
    ),
    Kind(
        "sum",
        tuple((n, currency) for n in range(1, 1000) for currency in ("EUR", "USD", "CHF") if n == 1 or n % 100 != 1),
        {"sum": spelled_sum},
    ),
    measure("length", "length-kilometer", "length-meter", "length-centimeter", "length-mile", "length-foot"),
    measure("weight", "mass-kilogram", "mass-gram", "mass-pound"),
    measure("volume", "volume-liter", "volume-milliliter", "volume-centiliter"),
    measure("speed", "speed-kilometer-per-hour", "speed-mile-per-hour"),
    measure("temperature", "temperature-celsius", "temperature-fahrenheit", amounts=range(2, 100)),
    Kind(
        "duration",
        tuple((m, a, n, b) for a, end_a, b, end_b in SPANS for m in range(1, end_a) for n in range(1, end_b)),
        {"duration": duration},
    ),
    Kind(
        "relative",
        tuple(itertools.product(range(1, 91), get_args(Unit))),
        {
            "ago": lambda value, language: time_span(-value[0], value[1], language, to_now=True),
            "ahead": lambda value, language: time_span(value[0], value[1], language, to_now=True),
        },
    ),
    Kind("number", range(10_000), {"number": spell}),
    Kind(
        "ordinal",
        range(2, 1000),
        {
            "ordinal": lambda number, language: str(num2words(number, lang=language, to="ordinal")),
            "rank": lambda number, language: str(num2words(number, lang=language, to="ordinal_num")),
        },
    ),
    Kind(
        "percent",
        range(1, 1000),
        {
            "percent": lambda value, language: format_percent(
                Decimal(value) / 1000, locale=language, decimal_quantization=False
            )
        },
    ),
    Kind("count", range(1_000, 100_000), {"count": lambda number, language: format_decimal(number, locale=language)}),
)
