"""Sanity tasks made on the machine: copy, reverse, sort, add."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.types import UserError

LETTERS = "abcdefgh"


def _letters(solve: Callable[[str], str]) -> Callable[[random.Random, int], tuple[str, str]]:
    def make(rng: random.Random, length: int) -> tuple[str, str]:
        text = "".join(rng.choices(LETTERS, k=length))
        return text, solve(text)

    return make


def _addition(rng: random.Random, length: int) -> tuple[str, str]:
    """Add two numbers of so many digits each."""
    low = 10 ** (length - 1) if length > 1 else 0
    first, second = rng.randrange(low, 10**length), rng.randrange(low, 10**length)
    return f"{first}+{second}", str(first + second)


Task = Literal["copy", "reverse", "sort", "addition"]
TASKS: dict[str, Callable[[random.Random, int], tuple[str, str]]] = {
    "copy": _letters(lambda text: text),
    "reverse": _letters(lambda text: text[::-1]),
    "sort": _letters(lambda text: "".join(sorted(text))),
    "addition": _addition,
}


def generate(
    task: str, split: str, size: int, *, lengths: tuple[int, int], seed: int, version: str
) -> Iterator[dict[str, str]]:
    """Yield `size` rows of `split`, their lengths drawn evenly from `lengths`, both ends included."""
    rng = random.Random(f"{seed}/{task}/{split}")
    made = 0
    while made < size:
        source, target = TASKS[task](rng, rng.randint(*lengths))
        if split_of(source, seed) == split:
            made += 1
            yield {"source": source, "target": target}


def split_of(source: str, seed: int) -> str:
    """Return the split that a source belongs to: eight tenths of all go to training, a tenth each to the others."""
    return {0: "validation", 1: "test"}.get(random.Random(f"{seed}/{source}").randrange(10), "train")


class SequenceTask(GeneratedDataset):
    """A task with a simple rule, whose test split goes on to longer sequences than those of training.

    `copy`, `reverse` and `sort` (Graves et al., 2014; Sutskever et al., 2014) are about words of eight letters;
    `addition` (Zaremba and Sutskever, 2014) adds two numbers of equally many digits, `"345+78"`. The splits share no
    source. The test split holds lengths from 1 to `test_length`; `callbacks.ExactMatchByLength` shows how far a model
    gets beyond `max_length`.

    Args:
        task: `copy`, `reverse`, `sort` or `addition`.
        max_length: longest word, or most digits of a number, in training and validation.
        test_length: the same for the test split; twice `max_length` if `None`.
        seed: of the rows.

    Raises:
        UserError: for a length or a size below 1.
    """

    generate = staticmethod(generate)

    def __init__(
        self,
        task: Task = "copy",
        max_length: int = 10,
        test_length: int | None = None,
        *,
        train_size: int = 10_000,
        validation_size: int = 500,
        test_size: int = 2_000,
        seed: int = 0,
    ) -> None:
        if task not in TASKS:
            raise UserError(f"expected a task of {', '.join(TASKS)}, but got {task!r}")
        self.lengths = {"train": max_length, "validation": max_length, "test": test_length or 2 * max_length}
        for name, value in {"max_length": max_length, "test_length": self.lengths["test"]}.items():
            if value < 1:
                raise UserError(f"expected {name} to be at least 1, but it is {value}")
        super().__init__(train_size, validation_size, test_size, seed, task=task)

    def arguments(self, split: str) -> dict[str, Any]:
        """Return the arguments of `generate` for a split."""
        return super().arguments(split) | {"lengths": (1, self.lengths[split])}
