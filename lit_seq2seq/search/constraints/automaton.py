"""Outputs within an automaton: entries of a lexicon, or matches of a regular expression."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array, Arrays
from lit_seq2seq.files.lines import counted, read_lines
from lit_seq2seq.search.constraints.base import Constraint, ConstraintState
from lit_seq2seq.search.constraints.patterns import Expression
from lit_seq2seq.search.task import OutputVocabulary, Task
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import UserError

MOST_STATES = 2_000_000
"""States of the largest lexicon."""
MOST_REACHED = 5000
"""States that a pattern may reach."""


class Automaton:
    """A deterministic automaton over symbol ids, whose first state is 0.

    Args:
        edges: for each state the state that each symbol leads to.
        final: for each state whether an output may end there.
    """

    def __init__(self, edges: Sequence[Mapping[int, int]], final: Sequence[bool]) -> None:
        counts = np.array([len(one) for one in edges])
        self.starts = np.concatenate([[0], counts.cumsum(), [counts.sum()]])
        self.ids = np.array([*(symbol for one in edges for symbol in one), 0])  # the last one is nobody's
        self.targets = np.array([*(target for one in edges for target in one.values()), 0])
        self.final = np.array([*final, False])  # the last state is that of outputs which have left the automaton

    def on(self, xp: Arrays) -> Automaton:
        """Return a copy for arrays of one library, on one device."""
        copy = object.__new__(type(self))
        vars(copy).update({name: xp.array(value) for name, value in vars(self).items()})
        return copy


@dataclass(frozen=True)
class _Within(ConstraintState):
    """The state that each hypothesis has reached, `(N,)`."""

    states: Array
    automaton: Automaton
    eos: int

    @property
    def met(self) -> Array:
        return self.automaton.final[self.states]

    def _edges(self) -> tuple[Array, Array]:
        """Places of the edges that lead on, `(N, D)`, and which of them are there."""
        starts = self.automaton.starts
        first, counts = starts[self.states], starts[self.states + 1] - starts[self.states]  # (N,)
        numbers = arrays.of(first).arange(max(int(counts.max()), 1))
        real = numbers < counts[:, None]
        return (first[:, None] + numbers) * real, real

    def allow(self, log_probs: Array) -> Array:
        xp = arrays.of(log_probs)
        places, real = self._edges()
        ids = xp.where(real, self.automaton.ids[places], self.eos)
        allowed = xp.put(xp.full_like(log_probs, -np.inf), ids, 0.0)
        allowed[:, self.eos] = xp.where(self.met, 0.0, -np.inf)
        return log_probs + allowed

    def update(self, tokens: Array) -> Self:
        xp = arrays.of(tokens)
        places, real = self._edges()
        chosen = real & (self.automaton.ids[places] == tokens[:, None])
        dead = len(self.automaton.final) - 1
        states = xp.amax(xp.where(chosen, self.automaton.targets[places], -1))
        states = xp.where(states < 0, dead, states)
        return replace(self, states=xp.where(tokens == self.eos, self.states, states))


class Within(Constraint):
    """Base of constraints by an automaton."""

    @abstractmethod
    def automaton(self, vocabulary: OutputVocabulary) -> Automaton:
        """Return the automaton over the symbols of a vocabulary."""

    @property
    def stamp(self) -> object:
        """A key that changes when the automaton must be rebuilt."""
        return None

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        found = _compiled(self, task.words, self.stamp)  # type: ignore[arg-type]
        if isinstance(found, UserError):
            raise found
        automaton = found.on(task.xp)
        return _Within(task.xp.full((task.batch_size,), 0), automaton, task.specials.eos)


@lru_cache(maxsize=8)
def _compiled(constraint: Within, vocabulary: OutputVocabulary, stamp: object) -> Automaton | UserError:
    try:
        return constraint.automaton(vocabulary)
    except UserError as error:  # which it took as long to find
        return error


@checked_fields
@dataclass(frozen=True)
class Lexicon(Within):
    """Each output is an entry of a lexicon, or several in a row.

    Args:
        file: a text file with an entry a line.
        several: whether an output may be made of several entries, with spaces between them.
    """

    outside: ClassVar[Mapping[str, str]] = {"file": "file"}
    file: str
    several: bool = False

    @property
    def stamp(self) -> object:
        """Where the file is, and when it was written."""
        path = Path(self.file).resolve()
        return path, path.stat().st_mtime_ns if path.is_file() else None

    def automaton(self, vocabulary: OutputVocabulary) -> Automaton:
        """Return the trie of the entries, as the vocabulary writes them."""
        path = Path(self.file)
        if not path.is_file():
            raise UserError(f"there is no lexicon {self.file}: give a text file with an entry a line")
        with path.open("rb") as file:
            entries = [line for line in dict.fromkeys(one.strip() for one in read_lines(file, self.file)) if line]
        if not entries:
            raise UserError(f"the lexicon {self.file} is empty: give an entry a line")
        unknown = vocabulary.specials.unk
        written = vocabulary.encode_batch(entries)
        known = [ids for ids in written if unknown not in ids]
        if not known:
            raise UserError(f"the lexicon {self.file} has no entry that the model can write: check its symbols")
        if lost := [entry for entry, ids in zip(entries, written, strict=True) if unknown in ids]:
            warnings.warn(
                f"the lexicon {self.file} has {counted(len(lost), 'line')} for which the model has no symbols, such as "
                f"{lost[0]!r:.60}: they are left out",
                stacklevel=2,
            )
        between = _between(entries, vocabulary) if self.several else None
        return trie(known, between)


def _between(entries: Sequence[str], vocabulary: OutputVocabulary) -> list[int]:
    """Find the symbols that stand between two entries."""
    one, other = vocabulary.encode_batch([entries[0], entries[-1]])
    [both] = vocabulary.encode_batch([f"{entries[0]} {entries[-1]}"])
    middle = both[len(one) : len(both) - len(other)]
    if [*one, *middle, *other] != both or vocabulary.specials.unk in middle:
        raise UserError("the vocabulary writes entries of a lexicon in other ways within a text: set several to false")
    return middle


def trie(entries: Sequence[Sequence[int]], between: Sequence[int] | None = None) -> Automaton:
    """Return the automaton of some sequences of ids.

    Args:
        entries: the sequences.
        between: what stands between two entries, where there may be several; `None`: an output is a single one.
    """
    children: list[dict[int, int]] = [{}]

    def follow(node: int, ids: Sequence[int]) -> int:
        for symbol in ids:
            if symbol not in children[node]:
                children[node][symbol] = len(children)
                children.append({})
            node = children[node][symbol]
        return node

    ends = {follow(0, ids) for ids in entries}
    if len(children) > MOST_STATES:
        raise UserError(f"the lexicon has more than {MOST_STATES:,} states: shorten it")
    if between is None:
        return Automaton(children, [node in ends for node in range(len(children))])
    again = 0
    if between:  # a chain of nodes that leads back to the root
        again = len(children)
        children.append({})
        children[follow(again, between[:-1])][between[-1]] = 0
    return _determined(children, ends, again)


def _determined(children: Sequence[Mapping[int, int]], ends: Container[int], again: int) -> Automaton:
    """Return the automaton of a graph in which node `again` is reached with each end, by sets of nodes."""

    def closed(nodes: set[int]) -> tuple[int, ...]:
        return tuple(sorted({*nodes, again} if any(node in ends for node in nodes) else nodes))

    states = [closed({0})]
    numbers, rows = {states[0]: 0}, []
    for state in states:  # which grows
        targets: dict[int, set[int]] = {}
        for node in state:
            for symbol, child in children[node].items():
                targets.setdefault(symbol, set()).add(child)
        row = {}
        for symbol, nodes in targets.items():
            target = closed(nodes)
            if target not in numbers:
                numbers[target] = len(states)
                states.append(target)
            row[symbol] = numbers[target]
        rows.append(row)
    return Automaton(rows, [any(node in ends for node in state) for state in states])


S = TypeVar("S")


def explored(start: S, edges: Callable[[S], Mapping[int, S]], final: Callable[[S], bool]) -> Automaton:
    """Return the automaton of all states on a way from the first to a final one; only the first if there is none.

    Args:
        start: the first state.
        edges: the states to which each symbol leads from a state.
        final: whether an output may end in a state.

    Raises:
        UserError: there are more.
    """
    states, found = [start], {start: edges(start)}
    for state in states:  # which grows
        for target in found[state].values():
            if target not in found:
                found[target] = edges(target)
                states.append(target)
        if len(states) > MOST_REACHED:
            raise UserError(f"a pattern reaches more than {MOST_REACHED:,} states: make it simpler")
    before: dict[S, list[S]] = {}
    for state, targets in found.items():
        for target in targets.values():
            before.setdefault(target, []).append(state)
    waiting = [state for state in states if final(state)]
    useful = set(waiting)
    while waiting:
        new = [state for state in before.get(waiting.pop(), ()) if state not in useful]
        useful.update(new)
        waiting += new
    kept = [state for state in states if state in useful or state == start]
    numbers = {state: number for number, state in enumerate(kept)}
    rows = [{symbol: numbers[to] for symbol, to in found[state].items() if to in useful} for state in kept]
    return Automaton(rows, [final(state) for state in kept])


@checked_fields
@dataclass(frozen=True)
class Pattern(Within):
    """Each output matches a regular expression as a whole.

    Args:
        expression: in the syntax of Python's `re`, without anchors, flags and references to groups.
    """

    expression: str

    def automaton(self, vocabulary: OutputVocabulary) -> Automaton:
        """Return the automaton over symbols, each of which goes on with what has been written before it."""
        expression = Expression(self.expression)
        first, later = (_tree(texts) for texts in _pieces(vocabulary))

        def edges(state: tuple[frozenset[int], bool]) -> dict[int, tuple[frozenset[int], bool]]:
            found: dict[int, tuple[frozenset[int], bool]] = {}
            waiting = [(state[0], first if state[1] else later)]
            while waiting:
                reached, tree = waiting.pop()
                found |= dict.fromkeys(tree.ids, (reached, False))
                following = ((expression.move(reached, char), branch) for char, branch in tree.branches.items())
                waiting += [(after, branch) for after, branch in following if after]
            return found

        found = explored((expression.start, True), edges, lambda state: expression.matches(state[0]))
        if len(found.ids) == 1 and not found.final[0]:
            raise UserError(f"no output of this model can match {self.expression!r:.60}: it lacks symbols for it")
        return found


class _Tree:
    """Symbols by their texts, character by character."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.branches: dict[str, _Tree] = {}


def _tree(texts: Sequence[str]) -> _Tree:
    root = _Tree()
    for index, text in enumerate(texts):
        tree = root
        for char in text:
            tree = tree.branches.setdefault(char, _Tree())
        if text:
            tree.ids.append(index)
    return root


def _pieces(vocabulary: OutputVocabulary) -> tuple[list[str], list[str]]:
    """Return the text of each symbol at the beginning of an output, and after others; empty where it has none."""
    ids = range(len(vocabulary))
    specials = set(astuple(vocabulary.specials))
    first = vocabulary.decode_batch([[index] for index in ids])
    anchor = next(index for index in ids if index not in specials and first[index].strip())
    joined = vocabulary.decode_batch([[anchor, index] for index in ids])
    start = len(first[anchor])

    def clean(texts: Iterable[str]) -> list[str]:
        return ["" if index in specials or "\ufffd" in text else text for index, text in enumerate(texts)]

    if parts := sum("\ufffd" in text for index, text in enumerate(first) if index not in specials):
        warnings.warn(
            f"a pattern reads characters, and {counted(parts, 'symbol')} of the vocabulary stand for parts of some: "
            "they are not written",
            stacklevel=2,
        )
    return clean(first), clean(text[start:] for text in joined)
