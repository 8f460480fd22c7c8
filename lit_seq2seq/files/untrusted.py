"""Files that others may have written: JSON of bounded size, archives, and tokenizers that cannot blow up."""

from __future__ import annotations

import base64
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lit_seq2seq.types import UserError

JSON_LIMIT = 2**26
"""Bytes of the largest JSON file that is read: a tokenizer of a million symbols has about half of it."""
DEPTH_LIMIT = 100
"""Greatest depth of JSON; a description of a model has about ten."""
LONGEST = 10_000
"""Characters of a setting or of a symbol of a vocabulary."""
RULES = 100_000
"""Characters of all that a tokenizer.json holds beside its vocabulary."""
GROWTH = 200
"""How many times as long as it was the rules of a tokenizer may make a text."""
_REPLACED = 100  # bytes by which a table may replace a character; NFKC has 33 at most
_UNBOUNDED = 4  # repetitions without end in one alternative of a pattern


GREATEST: Mapping[str, float] = {
    "max_new_tokens": 100_000,
    "coverage_penalty": 1000,
    "size": 4096,
    "max_pixels": 10**9,
    "sampling_rate": 10**6,
    "max_seconds": 10**5,
    "deltas": 10,
    "n_mels": 4096,
    "window": 60,
    "stack": 1000,
    "channels": 10**6,
}
"""What options of generation and settings of a source feature may be at most."""


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number of reasonable size; infinity and NaN are such."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def check_settings(settings: object, path: object) -> None:
    """Refuse settings with which one input could take hours or all memory.

    Args:
        settings: plain values, however deeply nested.
        path: where they come from, for the message.

    Raises:
        UserError: a number is greater than in `GREATEST`, or none.
    """
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if isinstance(value, int | float) and not value <= (most := GREATEST.get(name, math.inf)):
                limit = "which is no number" if value != value else f"more than the {most:,} that are allowed"
                raise UserError(f"{path} sets {name} to {value!s:.20}, {limit}: it is damaged or hostile")
            if isinstance(value, str) and len(value) > LONGEST:
                raise UserError(
                    f"{path} sets {name} to {len(value):,} characters, more than the {LONGEST:,} that are allowed: "
                    "it is damaged or hostile"
                )
            check_settings(value, path)


def checked(path: Path, hidden: bool = True) -> Path:
    """Return a path if it is a file that lies where it seems to lie.

    Args:
        path: of a file. It may be a link within its folder or, in the cache of the hub, within its repository.
        hidden: whether a link may lead to a hidden file.

    Raises:
        UserError: there is no such file, or it is a link that leads away.
    """
    if not path.is_file():
        raise UserError(f"expected the file {path}, but there is none: name a folder that a model was saved to")
    if re.search("[\ud800-\udfff]", str(path)):
        raise UserError(
            f"the name of the folder {str(path.parent)!a} is not UTF-8: rename or copy it to load what is in it"
        )
    folder, real = path.parent.resolve(), path.resolve()
    above = (one.parents[1] for one in (folder, *folder.parents) if one.parent.name == "snapshots")
    home = next((one for one in above if one.name.startswith("models--")), folder)
    if not real.is_relative_to(home):
        raise UserError(f"{path} is a link that leads out of its folder, to {real}: put the file itself there")
    if not hidden and any(step.startswith(".") for step in real.relative_to(home).parts):
        raise UserError(f"{path} is a link to the hidden file {real}: put the file itself there")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file of bounded size and depth.

    Raises:
        UserError: it is missing, damaged, too large or too deep.
    """
    size = checked(path).stat().st_size
    if size > JSON_LIMIT:
        raise UserError(
            f"{path} has {size:,} bytes, more than the {JSON_LIMIT:,} that are read: it is damaged or hostile"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        value = _nested(DEPTH_LIMIT + 1)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy or save the model again") from error
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return value
    raise UserError(f"{path} nests deeper than {DEPTH_LIMIT} levels: it is damaged or hostile")


def _nested(depth: int) -> object:
    return [] if depth == 0 else [_nested(depth - 1)]


def _items(value: object) -> list[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


def check_archive(path: Path) -> None:
    """Refuse a zip file, such as a checkpoint or an `.npz`, that would become larger when it is read.

    Raises:
        UserError: its contents are compressed, or said to be larger than the file.
    """
    with zipfile.ZipFile(path) as archive:
        if (inside := sum(entry.file_size for entry in archive.infolist())) > path.stat().st_size:
            raise UserError(f"{path} holds {inside:,} bytes, more than it has itself: it is damaged or hostile")


@contextmanager
def undamaged(what: object) -> Iterator[None]:
    """Turn what is raised while an untrusted file is used into a `UserError`; a `MemoryError` stays one.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{what} is damaged ({reason:.200}): copy or save it again") from error


# ---------------------------------------------------------------------------------------------- tokenizers


@contextmanager
def tokenizing() -> Iterator[None]:
    """Turn what the tokenizers library raises, a panic of Rust included, into a `UserError`.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except BaseException as error:  # a panic is no Exception, and its class cannot be imported
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(f"the tokenizer failed ({reason:.200}): its file is damaged: take another tokenizer") from error


def check_tokenizer(described: Any, gaps: bool = False) -> None:
    """Refuse a `tokenizer.json` that would take all time or memory, or end the process.

    Args:
        described: its contents.
        gaps: whether ids may be left out.

    Raises:
        UserError: its vocabulary or its rules are no reasonable ones.

    Example:
        >>> check_tokenizer({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 5}}})
        Traceback (most recent call last):
        lit_seq2seq.types.UserError: a tokenizer gives its 2 symbols other ids than 0 to 1: it is damaged ...
    """
    model = described.get("model") if isinstance(described, dict) else None
    if not isinstance(model, dict):
        raise UserError("a tokenizer has no model: it is damaged: copy or save the model again")
    _check_symbols(model, described.get("added_tokens") or [], gaps)
    tables = [table for rule in _rules(described) if isinstance(table := rule.get("precompiled_charsmap"), str)]
    apart = sum(map(len, tables)) + len(json.dumps(described.get("added_tokens")))
    settings = {name: value for name, value in model.items() if name not in ("vocab", "merges")}
    size = len(json.dumps({**described, "model": settings})) - apart
    if size > RULES:
        raise UserError(f"the rules of a tokenizer have {size:,} characters, more than {RULES:,}: {_DAMAGED}")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (growth := math.prod(map(_growth, _rules(described.get(part))))) > GROWTH:
            raise UserError(
                f"the {part} of a tokenizer can make a text {growth:,.0f} times as long, more than {GROWTH}: {_DAMAGED}"
            )
    for rule in _rules(described):
        pattern = rule.get("Regex")
        if isinstance(pattern, str) and not is_tame(pattern):
            raise UserError(f"the pattern {pattern!r:.80} of a tokenizer can take forever: {_DAMAGED}")


def check_special(ids: Sequence[int], size: int) -> None:
    """Refuse what a tokenizer puts beside every text, if it is beyond its `size` symbols, or too much."""
    if len(ids) > GROWTH or not all(0 <= index < size for index in ids):
        raise UserError(f"a tokenizer puts {len(ids):,} symbols beside a text, not all of its {size:,}: {_DAMAGED}")


_DAMAGED = "it is damaged or hostile"


def _check_symbols(model: Mapping[str, Any], added: list[Any], gaps: bool) -> None:
    vocabulary = model.get("vocab")
    names = [entry[0] for entry in vocabulary] if isinstance(vocabulary, list) else list(vocabulary or ())
    names += [token.get("content") for token in added]
    if not all(isinstance(name, str) for name in names) or max(map(len, names), default=0) > LONGEST:
        raise UserError(f"a symbol of a tokenizer is no text, or longer than {LONGEST:,} characters: {_DAMAGED}")
    if isinstance(vocabulary, dict) and not gaps and set(vocabulary.values()) != set(range(len(vocabulary))):
        raise UserError(
            f"a tokenizer gives its {len(vocabulary):,} symbols other ids than 0 to {len(vocabulary) - 1:,}: {_DAMAGED}"
        )
    if prefix := model.get("continuing_subword_prefix") if model.get("type") == "BPE" else None:
        pairs = (pair if isinstance(pair, list) else str(pair).split(" ") for pair in model.get("merges") or ())
        if not all(len(pair) == 2 and str(pair[1]).startswith(prefix) for pair in pairs):
            raise UserError(f"a tokenizer joins symbols that do not begin with its prefix {prefix!r:.80}: {_DAMAGED}")


def _rules(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings of a description but its vocabulary."""
    if isinstance(value, dict):
        yield value
        for name, inner in value.items():
            if name not in ("vocab", "merges", "added_tokens"):
                yield from _rules(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _rules(inner)


def _growth(rule: Mapping[str, Any]) -> float:
    """Return how many times as many bytes a text may have after a rule."""
    kind = rule.get("type")
    if kind == "Replace":
        content, pattern = len(str(rule.get("content", "")).encode(errors="replace")), rule.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else pattern
        return (
            max(1, content / len(literal.encode(errors="replace")))
            if isinstance(literal, str) and literal
            else 1 + content
        )
    if kind == "Precompiled":
        return _check_table(str(rule.get("precompiled_charsmap", "")))
    if kind == "TemplateProcessing":
        return len(rule.get("single") or ())
    return 2 if kind in ("ByteLevel", "BertNormalizer") else 1  # the latter puts spaces around each Chinese character


def _check_table(text: str) -> float:
    """Return the most bytes by which a table of normalisation (a double array, then the texts) replaces a character.

    Raises:
        UserError: it leads out of itself.
    """
    try:
        table = base64.b64decode(text, validate=True)
        size = int.from_bytes(table[:4], "little")
        units, texts = np.frombuffer(table[4 : 4 + size], "<u4"), table[4 + size :]
        texts.decode("utf-8")
    except ValueError as error:
        raise UserError(
            f"the normalisation of a tokenizer is damaged ({error}): copy or save the model again"
        ) from error
    places = np.arange(len(units), dtype=np.uint32)
    ends = units >> 31 == 1
    values, letters = units[ends] & 0x7FFFFFFF, np.frombuffer(texts, np.uint8)
    next_ones = (places ^ ((units >> 10) << ((units & 512) >> 6)))[~ends]
    with_value = next_ones[units[~ends] & 256 > 0]
    inside = len(units) > 0 and ((next_ones | 255) < len(units)).all() and (values < len(letters)).all()
    if not inside or not ends[with_value].all() or (letters[values] & 0xC0 == 0x80).any():
        raise UserError(f"the normalisation of a tokenizer leads out of its table: {_DAMAGED}")
    longest = max(map(len, texts.split(b"\0")))
    if longest > _REPLACED:
        raise UserError(f"the normalisation of a tokenizer puts {longest:,} bytes for a character: {_DAMAGED}")
    return longest


def is_tame(pattern: str) -> bool:
    r"""Tell whether a regular expression takes reasonable time: no repetition of what itself repeats or has a choice.

    Example:
        >>> is_tame(r" ?\p{L}+|\s+(?!\S)"), is_tame("(a+)+$"), is_tame("(?:a|a)*b")
        (True, False, False)
    """
    groups, last, place = [_Group()], _Group(), 0  # `last` is what a quantifier repeats
    while place < len(pattern):
        char, rest = pattern[place], pattern[place + 1 :]
        step = 1
        if char == "\\":
            if (rest[:1].isdigit() and rest[:1] != "0") or rest[:1] == "k":
                return False  # back to a group
            step = 2 + (rest.find("}") if rest[1:2] == "{" else 0)
            last = _Group()
        elif char == "[":
            step, last = _length_of_class(pattern[place:]), _Group()
        elif char == "(":
            groups.append(_Group())
            step = 2 if rest[:1] == "?" else 1
        elif char == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1].repeats(last.most)
        elif char == "|":
            groups[-1].next()
        elif char in "*+?{":
            step, endless = _quantifier(pattern[place:])
            if endless and (last.choice or last.most):
                return False
            groups[-1].repeats(endless)
            last = _Group() if endless or char != "{" else last
        else:
            last = _Group()
        place += max(step, 1)
    return all(group.most <= _UNBOUNDED for group in groups) and len(pattern) <= LONGEST


class _Group:
    """What is known of a group: whether it has a choice, and the most repetitions without end in one alternative."""

    def __init__(self) -> None:
        self.choice, self.most, self._here = False, 0, 0

    def next(self) -> None:
        self.choice, self._here = True, 0

    def repeats(self, count: int) -> None:
        self._here += count
        self.most = max(self.most, self._here)


def _length_of_class(text: str) -> int:
    depth = place = 0
    while place < len(text):
        depth += {"[": 1, "]": -1}.get(text[place], 0)
        place += 2 if text[place] == "\\" else 1
        if depth == 0:
            break
    return place


def _quantifier(text: str) -> tuple[int, bool]:
    """Return its length and whether it has no end, or a distant one."""
    end = text.find("}") if text[0] == "{" else 0
    bounds = text[1:end].split(",")
    if text[0] == "{" and not all(not bound or bound.isdigit() for bound in bounds):
        return 1, False  # a brace
    endless = text[0] in "*+" or (text[0] == "{" and (not bounds[-1] or int(bounds[-1]) > 100))
    return end + (2 if text[end + 1 : end + 2] in ("?", "+") else 1), endless
