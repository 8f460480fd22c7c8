"""Free text generation made on the machine: short dialogues, each turn of which could be said in several ways."""

from __future__ import annotations

import datetime
import math
import random
import re
from collections.abc import Iterator, Sequence

from babel.dates import format_time, get_day_names
from babel.numbers import format_currency
from num2words import num2words

from lit_seq2seq.builtin.base import GeneratedDataset, read_table
from lit_seq2seq.builtin.records import CITIES, PEOPLE

LARGEST = 100_000
TURN = " / "  # between the turns of a prompt

TIMES = [str(format_time(datetime.time(hour, m), "short", locale="en_GB")) for hour in range(9, 21) for m in (0, 30)]
PRICES = [str(format_currency(euros, "EUR", locale="en")) for euros in range(6, 36)]
POOLS: dict[str, Sequence[str]] = {
    "people": [num2words(number) for number in range(2, 10)],
    "time": TIMES[:-4],
    "day": [str(name) for name in get_day_names("wide", locale="en").values()],
    "name": PEOPLE,
    "city": CITIES,
    "platform": [str(number) for number in range(1, 9)],
    "price": PRICES[5:],
    "kind": ["single", "return"],
    "colour": ["red", "blue", "green", "black", "white"],
    "thing": ["scarf", "umbrella", "lamp", "teapot", "hat", "bag"],
    "vehicle": ["by train", "by car", "by bus", "by bike"],
}

SCRIPTS: dict[str, list[tuple[str, str]]] = {}
"""What can be said in each state, and the state that follows; nothing follows the empty one."""
for _state, _next, _line in zip(*read_table("dialogues.tsv"), strict=True):
    SCRIPTS.setdefault(_state, []).append((_line, _next))
STARTS = ("table", "train", "shop", "phone", "plans")


def speak(rng: random.Random) -> Iterator[tuple[str, int]]:
    """Yield the turns of a dialogue, each with the inverse of its probability after those before."""
    values: dict[str, str] = {}
    state = rng.choice(STARTS)
    while state:
        lines = SCRIPTS[state]
        choices, (line, state) = len(lines), rng.choice(lines)
        for slot in re.findall(r"\{(\w+)\}", line):
            if slot not in values:
                options = _options(slot, values)
                choices *= len(options)
                values[slot] = rng.choice(options)
        yield line.format(**values), choices


def _options(slot: str, values: dict[str, str]) -> Sequence[str]:
    """Return the values that a slot may have beside those of the others."""
    if slot == "later":
        return TIMES[TIMES.index(values["time"]) + 1 :][:4]
    if slot == "less":
        return PRICES[: PRICES.index(values["price"])][-5:]
    if slot in ("other", "caller"):
        like = {"other": "colour", "caller": "name"}[slot]
        return [value for value in POOLS[like] if value != values[like]]
    return POOLS[slot]


def generate(
    split: str, size: int, seed: int, *, whole: bool = False, version: str = ""
) -> Iterator[dict[str, str | int]]:
    """Yield the rows of `size` dialogues of `split`, which no other split has: one for each turn but the first.

    Of `whole` dialogues there is one row each.
    """
    splits = ("test", "validation", "train")
    rng = random.Random(f"{seed}/{split}")
    seen: set[str] = set()
    while len(seen) < size:
        turns = list(speak(rng))
        texts = [text for text, _ in turns]
        joined = TURN.join(texts)
        owner = splits[min(random.Random(f"{seed}/{joined}").randrange(10), 2)]
        if joined in seen or owner != split:
            continue
        seen.add(joined)
        if whole:
            yield {"text": joined, "choices": len(STARTS) * math.prod(choices for _, choices in turns)}
            continue
        for turn in range(1, len(turns)):
            text, choices = turns[turn]
            yield {"prompt": TURN.join(texts[:turn]), "continuation": text, "choices": choices}


class Dialogues(GeneratedDataset):
    """Short dialogues in English, cut after each turn: what was said so far, and what is said next.

    A table is reserved, a ticket bought, someone called. Each turn could be said in several ways, and may bring in a
    time, a price or a name that the next turns must keep to, so that there is something to draw and something to get
    right. Columns: `prompt`, turns divided by ` / `; `continuation`, the next turn; `choices`, the inverse of
    its probability: on average no model can have a smaller loss per row than the logarithm of it. Times, prices and
    days are written by CLDR (through Babel), numbers by num2words. No whole dialogue is in two splits. The same
    arguments give the same rows everywhere; they are kept in the cache of `datasets`.

    Args:
        train_size: dialogues of the train split; each has three to five rows.
        validation_size: dialogues of the validation split.
        test_size: dialogues of the test split.
        seed: draws the dialogues and their splits.
        whole: leave dialogues uncut: the columns are then `text`, the turns of one, and `choices`.
    """

    generate = staticmethod(generate)
    makers = ("babel", "num2words")

    def __init__(
        self,
        train_size: int = 6_000,
        validation_size: int = 200,
        test_size: int = 300,
        seed: int = 0,
        *,
        whole: bool = False,
    ) -> None:
        super().__init__(train_size, validation_size, test_size, seed, most=LARGEST, whole=whole)
