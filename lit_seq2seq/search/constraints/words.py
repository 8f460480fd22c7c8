"""Words that may not, or have to, occur in outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array, Arrays
from lit_seq2seq.search.constraints.base import Constraint, ConstraintState
from lit_seq2seq.search.constraints.terms import read_terms
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import UserError

LONGEST = 100
"""Symbols of the longest word that outputs can be made to have."""


def _words(part: BadWords | ForceWords) -> None:
    if isinstance(part.words, str) or not part.words or not all(part.words):
        raise UserError(f"{type(part).__name__}: words={part.words!r:.60}: must be a list of texts, one at least")
    object.__setattr__(part, "words", tuple(part.words))


def ids_of(texts: Sequence[str], task: Task, setting: str) -> list[list[int]]:
    """Turn texts into the symbols that an output has for them.

    Raises:
        UserError: a text has none, or one that the vocabulary does not know.
    """
    found, unknown = task.words.encode_batch(texts), task.specials.unk
    for text, ids in zip(texts, found, strict=True):
        if not ids or (unknown in ids and unknown != task.specials.pad):
            raise UserError(f"{setting}: the model's outputs have no symbols for {text!r:.60}: write it another way")
    return found


def known(text: str, task: Task) -> bool:
    """Tell whether outputs have symbols for a text that stands by itself."""
    [ids] = task.words.encode_batch([text])
    return bool(ids) and task.specials.unk not in ids


def inside(text: str, task: Task) -> list[int] | None:
    """Return the symbols of a text that touches what stands before it, such as a full stop; `None` where none do."""
    before, both = task.words.encode_batch(["a", f"a{text}"])
    touches = not text[0].isalnum() and both[: len(before)] == before and len(both) > len(before)
    return both[len(before) :] if touches and task.specials.unk not in both[len(before) :] else None


@dataclass(frozen=True)
class _Banned(ConstraintState):
    """The last tokens of each hypothesis, `(N, L - 1)`; `words` are `(M, L)`, filled from the right, -1 elsewhere."""

    recent: Array
    words: _Table

    def allow(self, log_probs: Array) -> Array:
        words, xp = self.words.values, arrays.of(log_probs)
        before = words[:, :-1]  # (M, L - 1)
        follows = ((self.recent[:, None] == before) | (before < 0)).all(-1)  # (N, M)
        last, eos = words[:, -1], self.words.eos
        ending = xp.copy(log_probs[:, eos])  # no word has one: it stands where none follows
        xp.put(log_probs, xp.where(follows, last, eos), -np.inf)
        log_probs[:, eos] = ending
        return log_probs

    def update(self, tokens: Array) -> Self:
        recent = arrays.of(tokens).concat([self.recent, tokens[:, None]], 1)[:, 1:]
        return replace(self, recent=recent)


class _Table:
    """Numbers that are the same for all hypotheses, which search therefore does not select from."""

    def __init__(self, values: Array, eos: int) -> None:
        self.values, self.eos = values, eos


@checked_fields
@dataclass(frozen=True)
class BadWords(Constraint):
    """These texts do not occur in outputs, as the symbols that the vocabulary has for them.

    A text that begins with a letter or digit is banned where a word begins, any other wherever it stands. One for which
    outputs have no symbols cannot occur.

    Args:
        words: the texts.
    """

    words: Sequence[str]

    def __post_init__(self) -> None:
        _words(self)

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        touching = [inside(word, task) for word in self.words]
        apart = [word for word in self.words if known(word, task)]
        ids = [*ids_of(apart, task, "bad_words"), *(found for found in touching if found is not None)]
        ids = ids or [[task.specials.pad]]  # which never comes anyway
        longest = max(map(len, ids))
        words = np.array([[-1] * (longest - len(one)) + one for one in ids])
        recent = task.xp.full((task.batch_size, longest - 1), -1)
        return _Banned(recent, _Table(task.xp.array(words), task.specials.eos))


@dataclass(frozen=True)
class _Forced(ConstraintState):
    """How much of each phrase a hypothesis has written.

    Attributes:
        phrases: `(N, M, L)` the phrases of each hypothesis, padded at the end with -1.
        lengths: `(N, M)` theirs; 0 where there is none.
        steps: `(N, M, L + 1, L)` how much of a phrase is written when so much was and one of its tokens follows.
        written: `(N, M)` how much of the phrase is at the end of the hypothesis.
        done: `(N, M)` whether it has occurred.
        eos: id of EOS.
    """

    phrases: Array
    lengths: Array
    steps: Array
    written: Array
    done: Array
    eos: int

    @property
    def met(self) -> Array:
        return self.done.all(1)

    def allow(self, log_probs: Array) -> Array:
        xp = arrays.of(log_probs)
        log_probs[:, self.eos] = xp.where(self.met, log_probs[:, self.eos], -np.inf)
        return log_probs

    def _next(self) -> Array:
        """How much of each phrase is written after each of its tokens, `(N, M, L)`."""
        places = self.written[:, :, None, None]  # (N, M, 1, 1)
        return arrays.of(places).gather(self.steps, places, 2)[:, :, 0]

    def update(self, tokens: Array) -> Self:
        xp = arrays.of(tokens)
        hits = self.phrases == tokens[:, None, None]  # (N, M, L)
        written = xp.amax(xp.where(hits, self._next(), 0))
        return replace(self, written=written, done=self.done | (written == self.lengths))

    def progress(self, size: int) -> Array:
        xp = arrays.of(self.done)
        following = xp.where(self.done[:, :, None], 0, self._next())
        counts = xp.full((len(self.done), size), 0) + (self.lengths * self.done).sum(1)[:, None]
        for phrase, ahead in zip(self.phrases.swapaxes(0, 1), following.swapaxes(0, 1), strict=True):
            real = phrase >= 0
            added = xp.full((len(phrase), size + 1), 0)  # the last one is that of padding
            counts = counts + xp.put(added, xp.where(real, phrase, size), xp.where(real, ahead, 0))[:, :size]
        return counts


def forced(phrases: Sequence[Sequence[Sequence[int]]], eos: int, xp: Arrays) -> ConstraintState:
    """Begin with empty outputs in which phrases have to occur.

    Args:
        phrases: those of each sentence, as ids.
        eos: id of EOS.
        xp: functions of the arrays.
    """
    count = max(map(len, phrases), default=0)
    longest = max((len(one) for row in phrases for one in row), default=1)
    table = np.full((len(phrases), count, longest), -1)
    steps = np.zeros((len(phrases), count, longest + 1, longest), np.int64)
    lengths = np.zeros((len(phrases), count), np.int64)
    for row, own in enumerate(phrases):
        for place, phrase in enumerate(own):
            if len(phrase) > LONGEST:
                raise UserError(
                    f"a text that outputs must have is {len(phrase)} symbols long: at most {LONGEST} are possible"
                )
            table[row, place, : len(phrase)], lengths[row, place] = phrase, len(phrase)
            steps[row, place, : len(phrase) + 1, : len(phrase)] = _steps(tuple(phrase))
    written = xp.array(np.zeros_like(lengths))
    return _Forced(xp.array(table), xp.array(lengths), xp.array(steps), written, xp.array(lengths == 0), eos)


@lru_cache(maxsize=1000)
def _steps(phrase: tuple[int, ...]) -> list[list[int]]:
    """For each number of tokens written, and each token that may follow: the longest beginning that is written then.

    The automaton of Knuth, Morris and Pratt (1977).
    """
    steps: list[list[int]] = []
    shorter = 0  # the longest beginning that also ends what is written, but for all of it
    for size in range(len(phrase) + 1):
        row = [0] * len(phrase) if size == 0 else list(steps[shorter])
        if size < len(phrase):
            shorter = 0 if size == 0 else steps[shorter][size]
            row = [size + 1 if token == phrase[size] else back for token, back in zip(phrase, row, strict=True)]
        steps.append(row)
    return steps


@checked_fields
@dataclass(frozen=True)
class ForceWords(Constraint):
    """These texts have to occur in each output (dynamic beam allocation, Post and Vilar 2018).

    A beam keeps hypotheses that have written nothing of them beside others that have written some or all. Outputs that
    lack one are only given where the beam has found none that has all.

    Args:
        words: the texts, in any order.
    """

    needs_beam: ClassVar[bool] = True
    words: Sequence[str]

    def __post_init__(self) -> None:
        _words(self)

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        found = [inside(word, task) or ids_of([word], task, "force_words")[0] for word in self.words]
        ids = [list(one) for one in dict.fromkeys(map(tuple, found))]
        return forced([ids] * task.batch_size, task.specials.eos, task.xp)


@checked_fields
@dataclass(frozen=True)
class Terminology(Constraint):
    """Where a source has a term, its translation has to occur in the output.

    Args:
        file: a CSV file with a row for each term: as it stands in sources, and as it has to stand in outputs. Terms are
            found as whole words, whatever their case; of terms within each other the longest counts.
    """

    outside: ClassVar[Mapping[str, str]] = {"file": "file"}
    needs_beam: ClassVar[bool] = True
    file: str

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        terms = read_terms(self.file)
        wanted = [
            dict.fromkeys(terms.entries[term] for term in terms.found(str(raw))) for raw in task.inputs("Terminology")
        ]
        phrases = [ids_of(list(row), task, self.file) for row in wanted]
        return forced(phrases, task.specials.eos, task.xp)
