"""Regular expressions as automata over characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from re import _constants as names  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from lit_seq2seq.types import UserError

Test = Callable[[str], bool]
_CATEGORIES: dict[Any, Test] = {
    names.CATEGORY_DIGIT: str.isdecimal,
    names.CATEGORY_NOT_DIGIT: lambda char: not char.isdecimal(),
    names.CATEGORY_SPACE: str.isspace,
    names.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
    names.CATEGORY_WORD: lambda char: char.isalnum() or char == "_",
    names.CATEGORY_NOT_WORD: lambda char: not (char.isalnum() or char == "_"),
}
MOST_STATES = 1000
"""States of the largest expression, its repetitions written out."""


class Expression:
    """A regular expression, read character by character; its states are sets of states of Thompson's construction.

    Attributes:
        start: the state before the first character.

    Raises:
        UserError: it is no regular expression, or has parts that no automaton can tell.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._empty: list[list[int]] = []
        self._tests: list[tuple[Test, int] | None] = []
        try:
            parsed = parser.parse(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"expected a regular expression, but {text!r:.60} is none: {error}") from error
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._flags = parsed.state.flags
        first = self._state()
        self._end = self._build(parsed, first)
        self.start = self._closed([first])

    def matches(self, state: frozenset[int]) -> bool:
        """Whether what has been read is a whole match."""
        return self._end in state

    def move(self, state: frozenset[int], char: str) -> frozenset[int]:
        """Return the state after one more character; empty where nothing can match any more."""
        key = state, char
        if key not in self._known:
            tests = (self._tests[one] for one in state)
            self._known[key] = self._closed(test[1] for test in tests if test is not None and test[0](char))
        return self._known[key]

    def _state(self) -> int:
        if len(self._empty) >= MOST_STATES:
            raise UserError(f"the regular expression {self._text!r:.60} is too large: repeat less")
        self._empty.append([])
        self._tests.append(None)
        return len(self._empty) - 1

    def _closed(self, states: Iterable[int]) -> frozenset[int]:
        waiting, found = list(states), set()
        while waiting:
            state = waiting.pop()
            if state not in found:
                found.add(state)
                waiting += self._empty[state]
        return frozenset(found)

    def _build(self, parts: Any, state: int) -> int:
        """Add what matches parts one after the other from a state; return where they end."""
        for kind, value in parts:
            state = self._part(kind, value, state)
        return state

    def _part(self, kind: Any, value: Any, state: int) -> int:
        if kind in (names.MAX_REPEAT, names.MIN_REPEAT):
            least, most, part = value
            return self._repeat(least, most, part, state)
        if kind is names.SUBPATTERN and not value[1] and not value[2]:
            return self._build(value[3], state)
        if kind is names.BRANCH:
            end = self._state()
            for branch in value[1]:
                first = self._state()
                self._empty[state].append(first)
                self._empty[self._build(branch, first)].append(end)
            return end
        if self._flags & ~re.UNICODE or kind not in _TESTS:
            raise UserError(
                f"the regular expression {self._text!r:.60} has what no automaton can tell, such as an anchor, a "
                "reference, a flag or a look ahead: leave it out"
            )
        self._tests[state] = _TESTS[kind](value), self._state()
        return self._tests[state][1]  # type: ignore[index]

    def _repeat(self, least: int, most: Any, part: Any, state: int) -> int:
        for _ in range(least):
            state = self._build(part, state)
        if most is names.MAXREPEAT:
            loop, end = self._state(), self._state()
            self._empty[state].append(loop)
            self._empty[self._build(part, loop)].append(loop)
            self._empty[loop].append(end)
            return end
        ends = [state]
        for _ in range(most - least):
            state = self._build(part, state)
            ends.append(state)
        end = self._state()
        for one in ends:
            self._empty[one].append(end)
        return end


def _literal(code: int) -> Test:
    return chr(code).__eq__


def _class(parts: list[Any]) -> Test:
    negated = parts[0][0] is names.NEGATE
    tests = list(_members(parts[negated:]))
    return lambda char: any(test(char) for test in tests) != negated


def _members(parts: list[Any]) -> Iterator[Test]:
    for kind, value in parts:
        if kind is names.RANGE:
            yield _range(*value)
        else:
            yield _CATEGORIES[value] if kind is names.CATEGORY else _literal(value)


def _range(low: int, high: int) -> Test:
    return lambda char: low <= ord(char) <= high


_TESTS: dict[Any, Callable[[Any], Test]] = {
    names.LITERAL: _literal,
    names.NOT_LITERAL: lambda code: lambda char: ord(char) != code,
    names.ANY: lambda _: lambda char: char != "\n",
    names.IN: _class,
}
