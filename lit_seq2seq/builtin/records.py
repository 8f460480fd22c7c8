"""Data-to-text made on the machine: records of weather and calendars, each said in several ways."""

from __future__ import annotations

import datetime
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babel.dates import format_skeleton, format_time
from babel.units import format_unit

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.types import UserError

LARGEST = 100_000
_SHARES = {"test": (0.0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1.0)}  # of the pairs of the two leading slots

_CITIES = "Oslo Rome Lima Cairo Quito Delhi Paris Tokyo Dublin Geneva Havana Lisbon Nairobi Prague Sydney Vienna"
_PEOPLE = "Amara Bjorn Chloe Diego Elif Farid Greta Hiro Ines Jonas Keiko Liam Mila Nadia Omar Priya"
_EVENTS = "dentist appointment/piano lesson/yoga class/team meeting/job interview/dance course/chess game/haircut"
CITIES, PEOPLE, EVENTS = _CITIES.split(), _PEOPLE.split(), _EVENTS.split("/")
SKIES = ["sunny", "cloudy", "rainy", "snowy", "foggy", "stormy", "clear", "hazy"]
WINDS = ["a light breeze", "a strong wind", "a cold wind", "gusts", "no wind"]
PLACES = ["the library", "the town hall", "the office", "the old mill", "the station", "the school"]
DAYS = [(datetime.date(2024, 1, 1) + datetime.timedelta(day)).strftime("%m %d") for day in range(366)]
TIMES = [f"{hour:02}:{minute:02}" for hour in range(7, 22) for minute in (0, 15, 30, 45)]
DEGREES = [str(degree) for degree in range(-15, 41)]


@dataclass(frozen=True)
class RecordKind:
    """Records of one kind.

    Attributes:
        slots: the values of each slot; the pairs of the first two are what the splits do not share.
        optional: slots that half of the records lack.
        ordered: two slots of which the first has the lesser value.
        sentences: templates; what stands in brackets is said only if the record has its slot.
    """

    slots: Mapping[str, Sequence[str]]
    optional: frozenset[str]
    ordered: tuple[str, str]
    sentences: tuple[str, ...]

    def pairs(self, split: str, seed: int) -> list[tuple[str, str]]:
        """Return the pairs of values of the first two slots that belong to a split."""
        first, second = list(self.slots.values())[:2]
        found = list(itertools.product(first, second))
        random.Random(f"{seed}/pairs").shuffle(found)
        start, stop = (round(share * len(found)) for share in _SHARES[split])
        return found[start:stop]

    def draw(self, pair: tuple[str, str], rng: random.Random) -> dict[str, str]:
        """Return a record with the given values of the first two slots."""
        record = {slot: rng.choice(values) for slot, values in self.slots.items()}
        record |= dict(zip(self.slots, pair, strict=False))
        lesser, greater = self.ordered
        possible = self.slots[lesser]
        record |= zip(self.ordered, sorted((record[lesser], record[greater]), key=possible.index), strict=True)
        return {slot: value for slot, value in record.items() if slot not in self.optional or rng.random() < 0.5}


KINDS = (
    RecordKind(
        {"city": CITIES, "sky": SKIES, "day": DAYS, "high": DEGREES, "low": DEGREES, "wind": WINDS},
        frozenset({"low", "wind"}),
        ("low", "high"),
        (
            "On {day} it will be {sky} in {city}, with a high of {high}[ and a low of {low}].[ Expect {wind}.]",
            "{city} will be {sky} on {day:british}. The temperature reaches {high:long}"
            "[ and falls to {low:long} at night][, with {wind}].",
            "Expect {high} and {sky} weather in {city} on {day}[, with {wind}].[ At night it is {low}.]",
            "The weather in {city} on {day:british}: {sky}, up to {high:long}[, {wind}][, {low:long} at night].",
        ),
    ),
    RecordKind(
        {"person": PEOPLE, "event": EVENTS, "day": DAYS, "start": TIMES, "end": TIMES, "place": PLACES},
        frozenset({"end", "place"}),
        ("start", "end"),
        (
            "{person} has a {event} on {day} at {start}[, at {place}].[ It ends at {end}.]",
            "On {day:british} at {start:british}[, until {end:british}], there is a {event} for {person}[ at {place}].",
            "The {event} of {person} is on {day}[ at {place}]. It starts at {start}[ and ends at {end}].",
            "Remind {person} of the {event} on {day:british}, from {start:british}[ to {end:british}]."
            "[ The place is {place}.]",
        ),
    ),
)


def _day(value: str, form: str) -> str:
    month, day = map(int, value.split())
    date = datetime.date(2024, month, day)
    return str(format_skeleton("MMMMd", date, locale="en_GB" if form == "british" else "en_US"))


def _time(value: str, form: str) -> str:
    time = datetime.time.fromisoformat(value)
    return str(format_time(time, "short", locale="en_GB" if form == "british" else "en_US"))


def _degrees(value: str, form: str) -> str:
    length: Any = form or "short"
    return str(format_unit(int(value), "temperature-celsius", length=length, locale="en"))


FORMATS = {"day": _day, "start": _time, "end": _time, "high": _degrees, "low": _degrees}


def say(record: Mapping[str, str], sentence: str) -> str:
    """Say a record by a template.

    Example:
        >>> say({"city": "Oslo", "high": "3"}, "{high} in {city}[, {low} at night].")
        '3°C in Oslo.'
    """

    def value(slot: re.Match[str]) -> str:
        given = record[slot[1]]
        return FORMATS[slot[1]](given, slot[2] or "") if slot[1] in FORMATS else given

    def optional(part: re.Match[str]) -> str:
        return part[1] if set(re.findall(r"\{(\w+)", part[1])) <= record.keys() else ""

    text = re.sub(r"\{(\w+):?(\w*)\}", value, re.sub(r"\[([^\]]*)\]", optional, sentence))
    return re.sub(r"\s", " ", text)


def generate(split: str, size: int, references: int, seed: int, *, version: str = "") -> Iterator[dict[str, str]]:
    """Yield the rows of `size` distinct records of `split`, the `references` texts of each one after another."""
    rng = random.Random(f"{seed}/{split}")
    pairs = [kind.pairs(split, seed) for kind in KINDS]
    seen: set[str] = set()
    while len(seen) < size:
        index = len(seen) % len(KINDS)
        record = KINDS[index].draw(rng.choice(pairs[index]), rng)
        written = ", ".join(f"{slot}[{value}]" for slot, value in record.items())
        if written in seen:
            continue
        seen.add(written)
        for sentence in rng.sample(KINDS[index].sentences, references):
            yield {"record": written, "text": say(record, sentence)}


class WeatherAndCalendar(GeneratedDataset):
    """Records of weather and of calendars, such as `city[Oslo], sky[rainy], day[03 05], high[7]`, said in English.

    Dates, times and temperatures are written by CLDR (through Babel), so that a model has to turn `15:30` into
    `3:30 PM` or `15:30` and `03 05` (month and day) into `March 5` or `5 March`; slots may be absent, and each template
    says them in another order. A record has one row for each of its texts. The splits share no pair of city and sky, or
    of person and event: the test asks for combinations never seen. The same arguments give the same rows everywhere;
    they are kept in the cache of `datasets`.

    Args:
        train_size: records of the train split, each with `references` texts.
        validation_size: records of the validation split, each with four texts.
        test_size: records of the test split, each with four texts.
        references: texts of a training record by different templates, from 1 to 4.
        seed: draws which combinations are held out, and the records.
    """

    generate = staticmethod(generate)
    edition = 2
    makers = ("babel",)

    def __init__(
        self,
        train_size: int = 5_000,
        validation_size: int = 200,
        test_size: int = 500,
        *,
        references: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(train_size, validation_size, test_size, seed, most=LARGEST)
        self.references = references
        if not 1 <= references <= 4:
            raise UserError(f"expected references from 1 to 4, the number of templates, but it is {references}")

    def arguments(self, split: str) -> dict[str, Any]:
        """Return the arguments of `generate` for a split."""
        references = self.references if split == "train" else 4
        return super().arguments(split) | {"references": references}
