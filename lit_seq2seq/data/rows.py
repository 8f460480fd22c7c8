"""Sources and target texts in the rows of a dataset, whatever its columns are called."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from datasets import Features, LargeList, List, Value

from lit_seq2seq.features import Feature, MultiSource, Tokenizer
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import UserError

Rows = Mapping[str, Sequence[Any]]  # several rows, column by column
_BETWEEN_TAGS = re.compile(r"[\s;|⟨⟩]")


@checked_fields
@dataclass(frozen=True)
class Columns:
    """Where the sources and the texts stand in a row.

    Args:
        source: column of the source; `translation.de` reaches into a nested column. For a `MultiSource`: the column of
            each source by its name. `None` where there is none: for a language model, which learns the targets alone.
        target: column of the target; several columns, a pattern such as `caption_*`, or a column of lists give
            alternative targets: each a training example, all of them references.
        references: further columns with references, for the metrics only.
        tags: columns with tags that condition the output, such as a language or grammatical features; each tag is one
            symbol before the source, as in `⟨V⟩ ⟨PST⟩ go`, which is how they are given when predicting. A text may hold
            several tags, divided by white space, `;` or `|`, but not within brackets; a column may hold lists of texts.
        speaker: column that names the speaker, for a source feature with `normalize: speaker`.
        alignment: column of the training split with word alignments for `GuidedAlignment`: pairs such as `0-0 1-2` of
            source and target words, split at white space and counted from 0, as fast_align, eflomal and awesome-align
            write them. Leave a row empty if its alignment is unknown.
        ends: column of the splits to evaluate that tells when the target is spoken, for `EmissionLag`: the end of each
            of its words, or of each symbol, in milliseconds of sound or positions of another source, as a list of
            numbers or a text of them. Leave a row empty if they are unknown.
    """

    source: str | dict[str, str] | None = "source"
    target: str | list[str] = "target"
    references: str | list[str] | None = None
    tags: str | list[str] | None = None
    speaker: str | None = None
    alignment: str | None = None
    ends: str | None = None


class RowMapper(Columns):
    """Finds the source and the target texts in rows with any column names.

    Example:
        >>> mapper = RowMapper("translation.de", ["translation.en"])
        >>> mapper.sources({"translation": [{"de": "ein Hund", "en": "a dog"}]})
        ['ein Hund']
        >>> RowMapper("lemma", tags=["features"]).sources({"lemma": ["go"], "features": ["V;PST"]})
        ['⟨V⟩ ⟨PST⟩ go']
        >>> RowMapper({"text": "de", "image": "file"}).sources({"de": ["ein Hund"], "file": ["1.png"]})
        [{'text': 'ein Hund', 'image': '1.png'}]
    """

    def resolve(self, features: Features, targets: bool, source: Feature | None = None) -> RowMapper:
        """Check the columns against those of a dataset and write out the patterns.

        Without `targets`, target columns that are there are kept. The source is text if nothing reads it.

        Raises:
            UserError: if a column is missing or does not hold what is expected.
        """
        known = dict(_leaves(features))
        for column, feature in self._read_by(Tokenizer() if source is None else source):
            _check(known, [column], "columns.source", feature)
        if targets and self.source is not None and source is not None and source.begins_output:
            raise UserError(
                f"expected columns.source to be null, as the model has no source, but it is {self.source}: a column of "
                "prompts is for predictions only"
            )
        target = _expand(known, self.target)
        references = _expand(known, self.references)
        if targets:
            _check(known, target, "columns.target", Tokenizer(), lists=True)
            _check(known, references, "columns.references", Tokenizer(), lists=True)
            _check(known, listed(self.alignment), "columns.alignment", Tokenizer())
            _check_there(known, listed(self.ends), "columns.ends")
        tags = _expand(known, self.tags)
        _check(known, tags, "columns.tags", Tokenizer(), lists=True)
        if tags and source is not None and (source.medium != "text" or source.begins_output):
            raise UserError("expected no columns.tags with a source_feature that is not text, but they are set")
        if (self.speaker is not None) != (source is not None and source.by_speaker):
            missing = "normalize of the source_feature is not" if self.speaker else "columns.speaker is not set"
            raise UserError(f"expected columns.speaker together with normalize: speaker, but {missing}")
        speaker = self.speaker if targets or self.speaker in known else None  # what is predicted may name no speakers
        _check(known, listed(speaker), "columns.speaker", Tokenizer())
        target, references = (_readable(known, names) for names in (target, references))
        if self.source is None and not target:
            raise UserError(
                "expected a column of prompts or of targets, but the columns are "
                f"{', '.join(known)}: set columns.source"
            )
        ends = self.ends if targets else None
        return RowMapper(self.source, target, references, tags, speaker=speaker, alignment=self.alignment, ends=ends)

    def only_sources(self, features: Features) -> RowMapper:
        """Return a mapper that finds the sources alone, with their tags, to compare rows by them."""
        known = dict(_leaves(features))
        tags = _expand(known, self.tags)
        _check_there(known, self.source_columns, "columns.source")
        _check_there(known, tags, "columns.tags")
        return RowMapper(self.source, [], tags=tags)

    @property
    def told_apart(self) -> RowMapper:
        """The mapper by whose sources rows are told apart: without sources these are the targets."""
        return self if self.source is not None else RowMapper(listed(self.target)[0])

    def _read_by(self, source: Feature) -> list[tuple[str, Feature]]:
        """Pair each source column with the feature that reads it."""
        if self.source is None:
            if source.begins_output:
                return []
            raise UserError(
                f"expected columns.source to name a column, as {type(source).__name__} reads one, but it is null"
            )
        if not isinstance(source, MultiSource):
            if isinstance(self.source, str):
                return [(self.source, source)]
            raise UserError(
                f"expected one column for {type(source).__name__}, but columns.source names {', '.join(self.source)}: "
                "set source_feature to a MultiSource of the same names"
            )
        columns = self.source if isinstance(self.source, dict) else {}
        if columns.keys() != source.features.keys():
            raise UserError(
                "expected columns.source to be a mapping that names a column for each of "
                f"{', '.join(source.features)}, but it is {self.source}"
            )
        return [(columns[name], feature) for name, feature in source.features.items()]

    def part(self, name: str) -> RowMapper:
        """Return the mapper that finds one of several sources alone."""
        assert isinstance(self.source, dict)
        return replace(self, source=self.source[name])

    @property
    def source_columns(self) -> list[str]:
        """Columns that hold sources."""
        return list(self.source.values()) if isinstance(self.source, dict) else listed(self.source)

    @property
    def columns(self) -> list[str]:
        """Top-level or nested names of every column that is read."""
        names = [*self.source_columns, *listed(self.tags), *listed(self.speaker), *listed(self.target)]
        names += [*listed(self.references), *listed(self.alignment), *listed(self.ends)]
        return list(dict.fromkeys(names))

    def sources(self, rows: Rows) -> list[Any]:
        """Return the source of each row, a text with its tags, or a mapping of several; `None` where there is none."""
        if isinstance(self.source, dict):
            columns = [_column(rows, column) for column in self.source.values()]
            return [dict(zip(self.source, values, strict=True)) for values in zip(*columns, strict=True)]
        if self.source is None:
            return [None] * len(next(iter(rows.values())))
        found = list(_column(rows, self.source))
        names = listed(self.tags)
        if not names:
            return found
        marks = ["".join(f"⟨{tag}⟩ " for text in group for tag in split_tags(text)) for group in _gather(rows, names)]
        return [mark + text if text else None for mark, text in zip(marks, found, strict=True)]

    def speakers(self, rows: Rows) -> Sequence[str | None]:
        """Return the speaker of each row, `None` where no one is named."""
        return _column(rows, self.speaker) if self.speaker else [None] * len(next(iter(rows.values())))

    def alignments(self, rows: Rows) -> list[str]:
        """Return the alignment of the words of each row, empty where it is not known."""
        assert self.alignment is not None
        return [pairs or "" for pairs in _column(rows, self.alignment)]

    def times(self, rows: Rows) -> Sequence[Any]:
        """Return what tells when the words or symbols of each target end."""
        assert self.ends is not None
        return _column(rows, self.ends)

    def targets(self, rows: Rows) -> list[list[str]]:
        """Return the alternative targets of each row, without empty ones."""
        return _gather(rows, listed(self.target))

    @property
    def roots(self) -> list[str]:
        """Names of the columns that hold everything in `columns`."""
        return _roots(self.columns)

    @property
    def text_roots(self) -> list[str]:
        """Names of the columns that hold targets and references, or the source where there are none."""
        return _roots([*listed(self.target), *listed(self.references)] or self.source_columns)

    @property
    def speaker_roots(self) -> list[str]:
        """Names of the columns that hold the speaker."""
        return _roots(listed(self.speaker))

    def all_references(self, rows: Rows) -> list[tuple[str, ...]]:
        """Return what the metrics compare with: the targets, then the further references of each row."""
        gathered = _gather(rows, listed(self.target) + listed(self.references))
        return [tuple(texts) or ("",) for texts in gathered]


def split_tags(text: str) -> list[str]:
    """Split tags at white space, `;` and `|`, but not within brackets, where white space is left out.

    Example:
        >>> split_tags("N;ABL(PL; PSS(1,PL))"), split_tags("V|3(A;B) :(")
        (['N', 'ABL(PL;PSS(1,PL))'], ['V', '3(A;B)', ':('])
    """
    open_at: list[int] = []
    changes = [0] * len(text)  # of the depth, at each bracket that has a partner; others are letters
    for place, mark in enumerate(text):
        if mark in "([{":
            open_at.append(place)
        elif mark in ")]}" and open_at:
            changes[open_at.pop()], changes[place] = 1, -1
    tags = [""]
    for mark, depth in zip(text, accumulate(changes), strict=True):
        if not _BETWEEN_TAGS.fullmatch(mark) or (depth and mark in ";|"):
            tags[-1] += mark
        elif not depth:
            tags.append("")
    return [tag for tag in tags if tag]


def hidden_targets(rows: Rows, mapper: RowMapper, source: Feature) -> list[list[str]]:
    """Return the alternative targets of each row as a model learns them; see `Feature.hide`."""
    targets = mapper.targets(rows)
    if not source.hides:
        return targets
    pairs = zip(mapper.sources(rows), targets, strict=True)
    return [[source.hide(text, raw) for text in texts] for raw, texts in pairs]


def _roots(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names + [name.split(".")[0] for name in names]))


def listed(names: str | list[str] | None) -> list[str]:
    """Return a setting that names one column, several or none as a list."""
    return [names] if isinstance(names, str) else list(names or [])


def _expand(known: Mapping[str, object], names: str | list[str] | None) -> list[str]:
    expanded = []
    for name in listed(names):
        matches = [] if name in known else fnmatch.filter(known, name)
        expanded += matches or [name]
    return expanded


def _leaves(features: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, object]]:
    for name, feature in features.items():
        yield before + name, feature
        languages = getattr(feature, "languages", None)  # datasets.Translation
        inner = feature if isinstance(feature, dict) else {code: Value("string") for code in languages or ()}
        yield from _leaves(inner, f"{before}{name}.")


def _check_there(known: Mapping[str, object], names: list[str], setting: str) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"expected a column '{name}', but the columns are {', '.join(known)}: set {setting}")


def _check(known: Mapping[str, object], names: list[str], setting: str, feature: Feature, lists: bool = False) -> None:
    _check_there(known, names, setting)
    for name in names:
        column = _held(known[name], lists)
        if not feature.accepts_column(column):
            kind = getattr(column, "dtype", None) or type(column).__name__
            raise UserError(
                f"expected {feature.column_kind} in column '{name}', but it holds {kind}: convert it or set {setting}"
            )


def _readable(known: Mapping[str, object], names: list[str]) -> list[str]:
    """Return those of some columns that are there and hold texts, or lists of them."""
    return [name for name in names if name in known and Tokenizer().accepts_column(_held(known[name], lists=True))]


def _held(column: Any, lists: bool) -> Any:
    return column.feature if lists and isinstance(column, List | LargeList) else column


def _column(rows: Rows, name: str, several: bool = False) -> Sequence[Any]:
    if name in rows or "." not in name:
        return rows[name]
    outer, inner = name.split(".", 1)
    key = inner.split(".")[0]
    return _column({key: [_inside(value or {}, key, several) for value in rows[outer]]}, inner, several)


def _inside(value: Mapping[str, Any], key: str, several: bool) -> Any:
    """Look up a key; where a `TranslationVariableLanguages` stands, the first text of a language, or all of them."""
    if key in value or value.keys() != {"language", "translation"}:
        return value.get(key)
    texts = [text for language, text in zip(value["language"], value["translation"], strict=True) if language == key]
    return texts if several else next(iter(texts), None)


def _gather(rows: Rows, names: list[str]) -> list[list[str]]:
    columns = [_column(rows, name, several=True) for name in names]
    count = len(next(iter(rows.values())))
    gathered: list[list[str]] = []
    for index in range(count):
        values = [column[index] for column in columns]
        texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
        gathered.append([text for text in texts if text and not text.isspace()])
    return gathered
