"""Words that outputs must not have, or must have."""

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
            raise _unwritable(text, setting)
    return found


def _unwritable(text: str, setting: str) -> UserError:
    return UserError(f"{setting}: the model's outputs have no symbols for {text!r:.60}: write it another way")


def forms(text: str, task: Task) -> list[list[int]]:
    """List the symbols that outputs can have for a text: by itself, and where a mark at its ends touches a word.

    Vocabularies may write a full stop that touches a word otherwise than one between spaces.
    """
    befores = ("",) if text[0].isalnum() else ("", "a")
    afters = ("",) if text[-1].isalnum() else ("", "a")
    sides = [(before, after) for before in befores for after in afters]
    *made, start, end = task.words.encode_batch([*(before + text + after for before, after in sides), "a", ".a"])
    found = []
    for ids, (before, after) in zip(made, sides, strict=True):
        first, last = len(start) if before else 0, len(ids) - bool(after)
        fits = (not before or ids[:first] == start) and (not after or ids[last:] == end[-1:])
        own = ids[first:last]
        if fits and own and (task.specials.unk not in own or task.specials.unk == task.specials.pad):
            found.append(own)
    return [list(one) for one in dict.fromkeys(map(tuple, found))]


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

    A text that begins with a letter or digit is banned where a word begins (of subwords: after a space), any other
    wherever it stands. One for which outputs have no symbols cannot occur.

    Args:
        words: the texts.
    """

    words: Sequence[str]

    def __post_init__(self) -> None:
        _words(self)

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        ids = [one for word in self.words for one in forms(word, task)]
        ids = ids or [[task.specials.pad]]  # which never comes anyway
        longest = max(map(len, ids))
        words = np.array([[-1] * (longest - len(one)) + one for one in ids])
        recent = task.xp.full((task.batch_size, longest - 1), -1)
        return _Banned(recent, _Table(task.xp.array(words), task.specials.eos))


@dataclass(frozen=True)
class _Forced(ConstraintState):
    """How much of each text a hypothesis has written, in each of its forms.

    Attributes:
        phrases: `(N, M, F, L)` the forms of the texts of each hypothesis, padded at the end with -1.
        lengths: `(N, M, F)` theirs; -1 where there is none.
        steps: `(N, M, F, L + 1, L)` how much of a form is written when so much was and one of its tokens follows.
        written: `(N, M, F)` how much of the form is at the end of the hypothesis.
        done: `(N, M)` whether one has occurred.
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
        """How much of each form is written after each of its tokens, `(N, M, F, L)`."""
        places = self.written[..., None, None]  # (N, M, F, 1, 1)
        return arrays.of(places).gather(self.steps, places, 3)[:, :, :, 0]

    def update(self, tokens: Array) -> Self:
        xp = arrays.of(tokens)
        hits = self.phrases == tokens[:, None, None, None]  # (N, M, F, L)
        written = xp.amax(xp.where(hits, self._next(), 0))
        return replace(self, written=written, done=self.done | (written == self.lengths).any(2))

    def progress(self, size: int) -> Array:
        xp = arrays.of(self.done)
        following = xp.where(self.done[:, :, None, None], 0, self._next())
        whole = xp.amax(self.lengths) * self.done * (self.lengths[:, :, 0] > 0)  # (N, M)
        counts = xp.full((len(self.done), size), 0) + whole.sum(1)[:, None]
        for texts, ahead in zip(self.phrases.swapaxes(0, 1), following.swapaxes(0, 1), strict=True):
            most = xp.full((len(texts), size), 0)
            for form, steps in zip(texts.swapaxes(0, 1), ahead.swapaxes(0, 1), strict=True):
                real = form >= 0
                added = xp.full((len(form), size + 1), 0)  # the last one is that of padding
                own = xp.put(added, xp.where(real, form, size), xp.where(real, steps, 0))[:, :size]
                most = xp.where(own > most, own, most)
            counts = counts + most
        return counts


def forced(phrases: Sequence[Sequence[Sequence[Sequence[int]]]], eos: int, xp: Arrays) -> ConstraintState:
    """Begin with empty outputs in which texts have to occur.

    Args:
        phrases: the texts of each sentence, each in some forms, as ids.
        eos: id of EOS.
        xp: functions of the arrays.
    """
    texts = [text for row in phrases for text in row]
    longest = max((len(one) for text in texts for one in text), default=1)
    if longest > LONGEST:
        raise UserError(f"a text that outputs must have is {longest} symbols long: at most {LONGEST} are possible")
    shape = len(phrases), max(map(len, phrases), default=0), max(map(len, texts), default=1)
    table, lengths = np.full((*shape, longest), -1), np.full(shape, -1)
    steps = np.zeros((*shape, longest + 1, longest), np.int64)
    for row, own in enumerate(phrases):
        for text, written_so in enumerate(own):
            for form, ids in enumerate(written_so):
                place, size = (row, text, form), len(ids)
                table[*place, :size], lengths[place] = ids, size
                steps[*place, : size + 1, :size] = _steps(tuple(ids))
    written, done = xp.array(np.zeros_like(lengths)), xp.array(lengths[:, :, 0] < 0)
    return _Forced(xp.array(table), xp.array(lengths), xp.array(steps), written, done, eos)


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
        return forced([_forms(self.words, task, "force_words")] * task.batch_size, task.specials.eos, task.xp)


def _forms(words: Sequence[str], task: Task, setting: str) -> list[list[list[int]]]:
    """List the forms of each of some texts, which have to be there.

    Raises:
        UserError: a text has none.
    """
    found = [forms(word, task) for word in dict.fromkeys(words)]
    for word, own in zip(dict.fromkeys(words), found, strict=True):
        if not own:
            raise _unwritable(word, setting)
    return found


@checked_fields
@dataclass(frozen=True)
class Terminology(Constraint):
    """Where a source has a term, its translation has to occur in the output.

    Args:
        file: a CSV file with a row for each term: as it stands in sources, and as it has to stand in outputs. Terms are
            found as whole words, whatever their case, in scripts without spaces wherever they stand; of terms within
            each other the longest counts.
    """

    outside: ClassVar[Mapping[str, str]] = {"file": "file"}
    whole_source: ClassVar[bool] = True
    needs_beam: ClassVar[bool] = True
    file: str

    def start(self, task: Task) -> ConstraintState:
        """Return the state of empty outputs."""
        terms = read_terms(self.file)
        wanted = [[terms.entries[term] for term in terms.found(str(raw))] for raw in task.inputs("Terminology")]
        return forced([_forms(row, task, self.file) for row in wanted], task.specials.eos, task.xp)
