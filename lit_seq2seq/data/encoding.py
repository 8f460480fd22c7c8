"""Rows to arrays, kept on disk."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from lit_seq2seq.data.alignment import aligned_symbols
from lit_seq2seq.data.cache import cache_folder, code_of
from lit_seq2seq.data.rows import RowMapper, Rows, hidden_targets, listed
from lit_seq2seq.features import Feature, Processor
from lit_seq2seq.features.feature import Array, encode_named
from lit_seq2seq.files.lines import counted
from lit_seq2seq.types import UserError

_VERSION = 3  # of the encoded columns: raise it when their meaning changes
Lengths = npt.NDArray[np.int32]


@dataclass(frozen=True)
class EncodedRows:
    """A split as columns on disk; nothing but lengths stays in memory.

    Attributes:
        sources: a row for each row of the split: `length`, 0 where there is no source, and the array `values`, flat,
            unless the feature encodes anew for each batch.
        examples: a row for each example: `row` and `choice`, the alternative target of that row, and the `target` ids;
            `copies` and `symbols`, see `CopyMap`, and `alignment`, see `aligned_symbols`, where they are asked for.
    """

    sources: Dataset
    examples: Dataset

    def lengths(self) -> tuple[Lengths, Lengths]:
        """Return the source and the target lengths of all examples."""
        table = self.examples.with_format("arrow").data
        chunks = [chunk.value_lengths().to_numpy() for chunk in table.column("target").chunks]
        rows = table.column("row").to_numpy()
        source = self.sources.with_format("arrow").data.column("length").to_numpy()
        return source[rows].astype(np.int32), np.concatenate(chunks).astype(np.int32)


@dataclass(frozen=True)
class RowEncoder:
    """Turns raw rows into arrays; where a source or a text is missing the array is empty.

    Args:
        mapper: finds the sources and texts; resolved.
        processor: encodes them.
        targets: whether there are targets.
        alternatives: make one example of each alternative target, not of the first only.
        speakers: source feature for each speaker, where the feature adapts to them; see `adapt`.
    """

    mapper: RowMapper
    processor: Processor
    targets: bool = True
    alternatives: bool = False
    speakers: Mapping[str | None, Feature] = field(default_factory=dict)

    def references(self, rows: Rows) -> tuple[tuple[str, ...], ...]:
        """Return what outputs can be compared with, for each row, or nothing: what is predicted may have it, too.

        Where there is no source, it is the target alone.
        """
        there = listed(self.mapper.target) or listed(self.mapper.references)
        found = self.mapper.all_references(rows) if there else []
        return tuple(found if self.mapper.source is not None else (row[:1] for row in found))

    def adapt(self, raw: Dataset) -> RowEncoder:
        """Return an encoder whose source feature has adapted to each speaker of `raw`, if it does so."""
        feature = self.processor.source_feature
        if not feature.by_speaker or self.mapper.speaker is None:
            return self
        rows = raw.select_columns([name for name in self.mapper.roots if name in raw.column_names])
        names = raw.select_columns([name for name in self.mapper.speaker_roots if name in raw.column_names])
        groups: dict[str | None, list[int]] = {}
        for place, speaker in enumerate(self.mapper.speakers(names[:])):
            groups.setdefault(speaker, []).append(place)
        groups.pop(None, None)
        return replace(self, speakers={name: self._adapted(rows, places) for name, places in groups.items()})

    def _adapted(self, rows: Dataset, places: list[int]) -> Feature:
        feature = self.processor.source_feature
        at_once = feature.rows_at_once
        parts = [places[start : start + at_once] for start in range(0, len(places), at_once)]
        values = (value for part in parts for value in self._raw(rows[part]) if not feature.is_missing(value))
        try:
            return feature.adapted(values)
        except UserError:
            for part in parts:
                self.sources(rows[part], part)  # says which row it is
            raise

    def sources(self, rows: Rows, indices: Sequence[int], training: bool = False) -> list[Array]:
        """Encode the source of each of the rows that stand at `indices`, with random augmentation when training."""
        names, feature = [f"row {index}" for index in indices], self.processor.source_feature
        if not self.speakers:
            return _encode(feature, self._raw(rows), names, training)
        features = [self.speakers.get(speaker, feature) for speaker in self.mapper.speakers(rows)]
        single = zip(features, self._raw(rows), names, strict=True)
        return [array for own, raw, name in single for array in _encode(own, [raw], [name], training)]

    def stored(self, rows: Rows, indices: Sequence[int]) -> dict[str, list[Any]]:
        """Make the rows of `EncodedRows.sources`."""
        if self.processor.source_feature.stored_as is None:
            return {"length": self.measure(rows, indices)}
        arrays = self.sources(rows, indices)
        return {"length": [len(array) for array in arrays], "values": [array.reshape(-1) for array in arrays]}

    def examples(self, rows: Rows, indices: Sequence[int], training: bool = False) -> dict[str, list[Any]]:
        """Make the examples of rows: `row`, `choice` and `target` ids."""
        texts = self._texts(rows) if self.targets else [[] for _ in indices]
        chosen = [(group if self.alternatives else group[:1]) or [""] for group in texts]
        flat = [text for group in chosen for text in group]
        examples: dict[str, list[Any]] = {
            "row": [index for index, group in zip(indices, chosen, strict=True) for _ in group],
            "choice": [choice for group in chosen for choice in range(len(group))],
            "target": self._targets(flat, training),
        }
        if self.processor.copy:
            ids, symbols = self.copies(rows, self.sources(rows, indices))
            places = [place for place, group in enumerate(chosen) for _ in group]
            examples |= {"copies": [ids[place] for place in places], "symbols": [symbols[place] for place in places]}
            examples["target"] = self.processor.copy_map.target(flat, examples["target"], examples["symbols"])
        if self.mapper.alignment:
            plain = replace(self.mapper, tags=None).sources(rows)
            names = [f"row {index}, {text!r:.60}" for index, text in zip(indices, plain, strict=True)]
            given = list(zip(self.mapper.alignments(rows), plain, self._raw(rows), texts, strict=True))
            examples["alignment"] = encode_named(lambda some: [self._alignment(*row) for row in some], given, names)
        return examples

    def _alignment(self, pairs: str, plain: str, raw: str, texts: list[str]) -> Array:
        """Align the symbols of a source and its target, but for those of tags and of a prefix, as their words are."""
        if len(texts) > 1:
            raise UserError("expected one target, whose words columns.alignment names, but there are more")
        if not raw or not texts:
            return np.empty(0, np.int32)
        source, target = self.processor.source_feature.word_numbers(raw), self.processor.target.word_numbers(texts[0])
        before = len(raw.split()) - len(plain.split())
        words = len(plain.split()), len(texts[0].split())
        return aligned_symbols(pairs, [number - before for number in source], target, words)

    def ends(self, rows: Rows, indices: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Tell when each symbol of the target of rows ends, NaN within words of which only that is known."""
        if self.mapper.ends is None:
            return ()
        given = zip(indices, self.mapper.times(rows), self._texts(rows), strict=True)
        return tuple(self._ends(f"row {index}", times, (texts or [""])[0]) for index, times, texts in given)

    def _ends(self, name: str, given: Sequence[float] | str | None, text: str) -> tuple[float, ...]:
        numbers, words = self.processor.target.word_numbers(text), len(text.split())
        times = given.split() if isinstance(given, str) else given or ()
        if not len(times):
            return (math.nan,) * len(numbers)
        try:
            ends = list(map(float, times))
        except (TypeError, ValueError):
            ends = []
        if len(ends) not in (words, len(numbers)):
            raise UserError(
                f"{name}: expected in columns.ends a number for each of {counted(words, 'word')} or "
                f"{counted(len(numbers), 'symbol')}, but it is {given!r:.60}"
            )
        if len(ends) == len(numbers):
            return tuple(ends)
        last = [one != after for one, after in pairwise([*numbers, words])]
        return tuple(ends[one] if here else math.nan for one, here in zip(numbers, last, strict=True))

    def copies(self, rows: Rows, sources: list[Array]) -> tuple[list[Array], list[tuple[str, ...]]]:
        """Name what can be copied from each of the encoded sources of `rows`; see `CopyMap`."""
        return self.processor.copy_map.source(self._raw(rows), sources)

    def choose(self, rows: Rows, choices: Sequence[int]) -> list[Array]:
        """Encode the given alternative target of each row anew, with random augmentation."""
        chosen = [(group or [""])[choice] for group, choice in zip(self._texts(rows), choices, strict=True)]
        return self._targets(chosen, training=True)

    def show(self, rows: Rows, indices: Sequence[int]) -> tuple[str, ...]:
        """Describe the source of each row for display: a text as it is, a record as JSON, else in a few words.

        What is missing is empty.
        """
        feature = self.processor.source_feature

        def shown(raw: Any, index: int) -> str:
            if feature.is_missing(raw):
                return ""
            said = isinstance(raw, str | None) or feature.medium == "record"
            return feature.show(raw) if said else f"row {index}: {feature.show(raw)}"

        return tuple(map(shown, self.mapper.sources(rows), indices))

    def measure(self, rows: Rows, indices: Sequence[int]) -> list[int]:
        """Count the positions of each source, 0 where there is none."""
        feature, raw = self.processor.source_feature, self._raw(rows)
        present = [value for value in raw if not feature.is_missing(value)]
        try:
            lengths = iter(feature.measure(present))
        except UserError:
            self.sources(rows, indices)  # says which row it is
            raise
        return [0 if feature.is_missing(value) else next(lengths) for value in raw]

    def _raw(self, rows: Rows) -> list[Any]:
        prefix = self.processor.source_prefix
        return [prefix + raw if prefix and raw else raw for raw in self.mapper.sources(rows)]

    def _texts(self, rows: Rows) -> list[list[str]]:
        return hidden_targets(rows, self.mapper, self.processor.source_feature)

    def _targets(self, texts: list[str], training: bool) -> list[Array]:
        return _encode(self.processor.target, texts, texts, training)

    def encode_all(self, raw: Dataset, num_proc: int | None, description: str) -> EncodedRows:
        """Encode a whole split into columns on disk, or find them in the cache."""
        feature = self.processor.source_feature
        lengths: dict[str, Any] = {"length": Value("int32")}
        stored = {} if feature.stored_as is None else {"values": List(Value(feature.stored_as))}
        settings = json.dumps(self.processor.identity(), sort_keys=True)
        state = (_VERSION, raw._fingerprint, self.mapper, settings, code_of(*map(type, feature.parts)))
        sources = _map(raw, self.stored, lengths | stored, state, feature.rows_at_once, num_proc, description)
        columns = {"row": Value("int64"), "choice": Value("int32"), "target": List(Value("int32"))}
        whole = self.processor.copy or feature.hides or self.mapper.alignment
        needed = self.mapper.roots if whole else self.mapper.text_roots
        if self.processor.copy:
            columns |= {"copies": List(Value("int32")), "symbols": List(Value("string"))}
        if self.mapper.alignment:
            columns["alignment"] = List(Value("int32"))
        texts = raw.select_columns([name for name in needed if name in raw.column_names])
        key = (state, self.targets, self.alternatives)
        return EncodedRows(sources, _map(texts, self.examples, columns, key, 1000, num_proc, f"{description}: targets"))


def _map(
    raw: Dataset, function: Any, columns: dict[str, Any], state: object, size: int, num_proc: int | None, label: str
) -> Dataset:
    fingerprint = Hasher.hash((state, sorted(columns)))
    return raw.map(
        function,
        batched=True,
        batch_size=size,
        writer_batch_size=size,
        with_indices=True,
        remove_columns=raw.column_names,
        features=Features(columns),
        num_proc=num_proc,
        cache_file_name=str(cache_folder() / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        load_from_cache_file=True,
        desc=label,
    )


def _encode(feature: Feature, raw: Sequence[Any], names: Sequence[str], training: bool) -> list[Array]:
    present = [not feature.is_missing(value) for value in raw]
    kept = [value for value, there in zip(raw, present, strict=True) if there]
    encode = partial(feature.encode, training=training)
    encoded = iter(encode_named(encode, kept, list(itertools.compress(names, present))))
    missing: Array = np.empty(0, feature.stored_as or "int32")
    return [next(encoded) if there else missing for there in present]
