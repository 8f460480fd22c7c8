"""Free text generation made on the machine: short dialogues, each turn of which could be said in several ways."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from babel.dates import format_time, get_day_names
from babel.numbers import format_currency
from num2words import num2words

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.builtin.records import CITIES, PEOPLE

VERSION = 1  # part of the cache key: raise it when a change of the code changes the rows
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

SCRIPTS: dict[str, tuple[tuple[str, str], ...]] = {
    "table": (
        ("Good evening, a table for {people}, please.", "table when"),
        ("Hello, do you have a table for {people}?", "table when"),
        ("We are {people}. Is there a table for us?", "table when"),
    ),
    "table when": (
        ("Of course. For what time?", "table time"),
        ("Certainly. When would you like to come?", "table time"),
        ("Yes, for {people}. At what time?", "table time"),
    ),
    "table time": (("At {time}.", "table answer"), ("Around {time}, if possible.", "table answer")),
    "table answer": (
        ("A table for {people} at {time}. What is your name?", "table name"),
        ("{time} is fine. Under what name?", "table name"),
        ("I am sorry, we are full at {time}. Is {later} all right?", "table later"),
    ),
    "table name": (("My name is {name}.", "table done"), ("{name}, please.", "table done")),
    "table done": (
        ("Thank you, {name}. See you at {time}.", ""),
        ("A table for {people} at {time}, {name}. Goodbye.", ""),
    ),
    "table later": (
        ("Yes, {later} is fine. The name is {name}.", "table moved"),
        ("No, {later} is too late for us.", "table lost"),
    ),
    "table moved": (("Thank you, {name}. See you at {later}.", ""), ("Until {later}, {name}.", "")),
    "table lost": (("I am sorry. Goodbye.", ""), ("What a pity. Perhaps another day.", "")),
    "train": (
        ("When is the next train to {city}?", "train time"),
        ("Hello, I would like to go to {city}.", "train time"),
    ),
    "train time": (
        ("The next train to {city} leaves at {time} from platform {platform}.", "train ticket"),
        ("There is a train at {time} from platform {platform}.", "train ticket"),
        ("There is no train to {city} today, but one at {time} tomorrow.", "train tomorrow"),
    ),
    "train ticket": (
        ("A {kind}, please.", "train price"),
        ("How much is a {kind}?", "train price"),
    ),
    "train price": (
        ("A {kind} to {city} is {price}.", "train pay"),
        ("That is {price} for a {kind}.", "train pay"),
    ),
    "train pay": (
        ("Here you are. Which platform was it?", "train platform"),
        ("Here is {price}. When does it leave?", "train leaves"),
        ("{price} is too much for me.", "train dear"),
    ),
    "train platform": (("Platform {platform}.", ""), ("The train to {city} is on platform {platform}.", "")),
    "train leaves": (("At {time}.", ""), ("It leaves at {time}. Have a good journey to {city}.", "")),
    "train tomorrow": (("Then I will take the one at {time}.", ""), ("Thank you, I will not go to {city} then.", "")),
    "train dear": (("I am sorry, it is {price} for everyone.", ""), ("The bus to {city} is only {less}.", "")),
    "shop": (
        ("How much is the {colour} {thing}?", "shop price"),
        ("I like this {colour} {thing}. What does it cost?", "shop price"),
    ),
    "shop price": (("It is {price}.", "shop answer"), ("The {colour} {thing} costs {price}.", "shop answer")),
    "shop answer": (
        ("I will take it.", "shop pay"),
        ("{price} is too much. Do you have a cheaper {thing}?", "shop cheaper"),
    ),
    "shop pay": (("That is {price}, please.", ""), ("Thank you. Would you like anything else with the {thing}?", "")),
    "shop cheaper": (
        ("The {other} {thing} is only {less}.", "shop other"),
        ("Yes, a {other} one for {less}.", "shop other"),
        ("No, all of them are {price}.", "shop lost"),
    ),
    "shop other": (("Then I will take the {other} one.", ""), ("No, I wanted a {colour} {thing}.", "")),
    "shop lost": (("Then I will think about it.", ""), ("All right, I will take it.", "")),
    "phone": (
        ("Hello, may I speak to {name}?", "phone answer"),
        ("Good morning, is {name} there?", "phone answer"),
    ),
    "phone answer": (
        ("One moment, please. Who is calling?", "phone who"),
        ("I am sorry, {name} is out until {time}.", "phone out"),
    ),
    "phone who": (("This is {caller}.", "phone through"), ("It is {caller} from {city}.", "phone through")),
    "phone through": (("Hello, {caller}, {name} here.", ""), ("{name}, it is {caller} for you.", "")),
    "phone out": (
        ("Please tell {name} that {caller} called.", "phone message"),
        ("Then I will call again after {time}.", "phone again"),
    ),
    "phone message": (("I will tell {name}. Goodbye, {caller}.", ""), ("Yes, {caller}, I will.", "")),
    "phone again": (("Good. {name} will be here.", ""), ("Thank you, goodbye.", "")),
    "plans": (
        ("What are you doing on {day}?", "plans trip"),
        ("Do you have any plans for {day}?", "plans trip"),
    ),
    "plans trip": (
        ("I am going to {city} with {name}.", "plans how"),
        ("On {day} I will visit {name} in {city}.", "plans how"),
        ("Nothing yet. And you?", "plans you"),
    ),
    "plans how": (("How will you get to {city}?", "plans vehicle"), ("Is {name} a friend of yours?", "plans friend")),
    "plans vehicle": (("We go {vehicle}.", ""), ("I think {vehicle}. It is not far.", "")),
    "plans friend": (("Yes, I know {name} from school.", ""), ("No, {name} is my cousin.", "")),
    "plans you": (("I am staying at home on {day}.", ""), ("I would like to go to {city}.", "")),
}
"""What can be said in each state, and the state that follows; nothing follows the empty one."""
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


def generate(split: str, size: int, seed: int, makers: str = "") -> Iterator[dict[str, str | int]]:
    """Yield the rows of `size` dialogues of `split`, which no other split has: one for each turn but the first."""
    splits = ("test", "validation", "train")
    rng = random.Random(f"{seed}/{split}")
    seen: set[str] = set()
    while len(seen) < size:
        turns = list(speak(rng))
        texts = [text for text, _ in turns]
        whole = TURN.join(texts)
        owner = splits[min(random.Random(f"{seed}/{whole}").randrange(10), 2)]
        if whole in seen or owner != split:
            continue
        seen.add(whole)
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

    Raises:
        UserError: if a number is out of range.
    """

    generate = staticmethod(generate)

    def __init__(
        self, train_size: int = 6_000, validation_size: int = 200, test_size: int = 300, seed: int = 0
    ) -> None:
        makers = f"{VERSION} babel {version('babel')} num2words {version('num2words')}"
        super().__init__(train_size, validation_size, test_size, seed, most=LARGEST, makers=makers)
