"""Rows to arrays, kept on disk, and arrays to batches."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from lit_seq2seq.data.batching import BatchRows
from lit_seq2seq.data.rows import RowMapper, Rows, hidden_targets
from lit_seq2seq.features import Feature, Processor, Records, Tokenizer
from lit_seq2seq.features.feature import Array, encode_named
from lit_seq2seq.types import Batch, CopySource, Padded, Shared, Source, UserError

_VERSION = 2  # of the encoded columns: raise it when their meaning changes
Lengths = npt.NDArray[np.int32]


def cache_folder() -> Path:
    """Return the folder for tokenizers and encoded columns, inside the cache of `datasets` (`HF_DATASETS_CACHE`)."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "lit_seq2seq"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Encoded:
    """A split as columns on disk; nothing but lengths stays in memory.

    Attributes:
        sources: a row for each row of the split: `length`, 0 where there is no source, and the array `values`, flat,
            unless the feature encodes anew for each batch.
        examples: a row for each example: `row` and `choice`, the alternative target of that row, and the `target` ids.
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
class Encoder:
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

    def adapt(self, raw: Dataset) -> Encoder:
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
        return examples

    def copies(self, rows: Rows, sources: list[Array]) -> tuple[list[Array], list[tuple[str, ...]]]:
        """Name what can be copied from each of the encoded sources of `rows`; see `CopyMap`."""
        return self.processor.copy_map.source(self._raw(rows), sources)

    def choose(self, rows: Rows, choices: Sequence[int]) -> list[Array]:
        """Encode the given alternative target of each row anew, with random augmentation."""
        chosen = [(group or [""])[choice] for group, choice in zip(self._texts(rows), choices, strict=True)]
        return self._targets(chosen, training=True)

    def show(self, rows: Rows, indices: Sequence[int]) -> tuple[str, ...]:
        """Describe the source of each row for display: a text as it is, a record as JSON, else in a few words."""
        shown = zip(self.mapper.sources(rows), indices, strict=True)
        feature = self.processor.source_feature
        show = feature.show
        if isinstance(feature, Records):
            return tuple(show(raw) for raw, _ in shown)
        return tuple((raw or "") if _is_text(raw) else f"row {index}: {show(raw)}" for raw, index in shown)

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

    def encode_all(self, raw: Dataset, num_proc: int | None, description: str) -> Encoded:
        """Encode a whole split into columns on disk, or find them in the cache.

        Args:
            raw: the split.
            num_proc: number of processes; `None` for this one.
            description: label of the progress bar.
        """
        feature = self.processor.source_feature
        lengths: dict[str, Any] = {"length": Value("int32")}
        stored = {} if feature.stored_as is None else {"values": List(Value(feature.stored_as))}
        state = (_VERSION, raw._fingerprint, self.mapper, json.dumps(self.processor.identity(), sort_keys=True))
        sources = _map(raw, _Sources(self), lengths | stored, state, feature.rows_at_once, num_proc, description)
        columns = {"row": Value("int64"), "choice": Value("int32"), "target": List(Value("int32"))}
        needed = self.mapper.roots if self.processor.copy or feature.hides else self.mapper.text_roots
        if self.processor.copy:
            columns |= {"copies": List(Value("int32")), "symbols": List(Value("string"))}
        texts = raw.select_columns([name for name in needed if name in raw.column_names])
        return Encoded(
            sources,
            _map(
                texts,
                self.examples,
                columns,
                (state, self.targets, self.alternatives),
                1000,
                num_proc,
                f"{description}: targets",
            ),
        )


@dataclass(frozen=True)
class _Sources:
    """Makes the rows of `Encoded.sources`."""

    encoder: Encoder

    def __call__(self, rows: Rows, indices: Sequence[int]) -> dict[str, list[Any]]:
        feature = self.encoder.processor.source_feature
        if feature.stored_as is None:
            return {"length": self.encoder.measure(rows, indices)}
        arrays = self.encoder.sources(rows, indices)
        return {"length": [len(array) for array in arrays], "values": [array.reshape(-1) for array in arrays]}


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


def _is_text(raw: object) -> bool:
    return raw is None or isinstance(raw, str)


def _encode(feature: Feature, raw: Sequence[Any], names: Sequence[str], training: bool) -> list[Array]:
    present = [not feature.is_missing(value) for value in raw]
    kept = [value for value, there in zip(raw, present, strict=True) if there]
    encoded = iter(encode_named(feature, kept, list(itertools.compress(names, present)), training))
    return [next(encoded) if there else np.empty(0, np.int32) for there in present]


@dataclass(frozen=True)
class Limits:
    """What to do with rows that are empty or too long.

    Args:
        max_source_length: greatest number of source positions (of text: ids, EOS counted); `None` for no limit.
        max_target_length: greatest number of target ids, EOS counted.
        overlong: cut longer rows, or drop them.
        empty: drop rows without source or target, keep them as `Feature.nothing`, or raise an error.
    """

    max_source_length: int | None = None
    max_target_length: int | None = None
    overlong: Literal["truncate", "drop"] = "truncate"
    empty: Literal["drop", "keep", "error"] = "drop"

    def __post_init__(self) -> None:
        for setting in ("max_source_length", "max_target_length"):
            length = getattr(self, setting)
            if length is not None and length < 1:
                raise UserError(f"expected {setting} to be at least 1, but it is {length}")

    def select(self, source: Lengths, target: Lengths | None) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
        """Choose the examples to keep.

        Args:
            source: `(N,)` source lengths, 0 for a missing source.
            target: `(N,)` target lengths; `None` without targets.

        Returns:
            `(N,)` booleans, and the number of examples by what was wrong with them.

        Raises:
            UserError: if a row is empty and `empty` is `"error"`.
        """
        sides = {"source": (source, self.max_source_length)}
        if target is not None:
            sides["target"] = (target, self.max_target_length)
        kept = np.ones(len(source), dtype=bool)
        counts = {}
        for side, (lengths, limit) in sides.items():
            empty = lengths == 0
            counts[f"without {side}"] = int(empty.sum())
            if self.empty == "error" and empty.any():
                raise UserError(
                    f"expected a source and a target in every row, but {empty.sum()} have no {side}, the first is row "
                    f"{int(np.argmax(empty))}: mend them, or set empty to drop or keep"
                )
            if self.empty == "drop":
                kept &= ~empty
            long = lengths > limit if limit else np.zeros_like(empty)
            counts[f"with {side} longer than {limit}"] = int(long.sum())
            if self.overlong == "drop":
                kept &= ~long
        return kept, {reason: count for reason, count in counts.items() if count}

    def collate(self, processor: Processor, columns: dict[str, list[Any]]) -> tuple[Source, Padded]:
        """Cut and pad the `source` and `target` columns, and the `copies` and their `symbols` where there are any.

        A source that several examples share, as their `row` tells, is there once.
        """
        sources = _cut(processor.source_feature, columns["source"], self.max_source_length)
        _, first, index = np.unique(columns["row"], return_index=True, return_inverse=True)
        source: Source
        if len(first) < len(index) and "copies" not in columns:
            distinct = processor.source_feature.collate([sources[place] for place in first])
            source = Shared(distinct, torch.from_numpy(index))
        else:
            source = processor.source_feature.collate(sources)
        targets = _cut(processor.target, columns["target"], self.max_target_length)
        if "copies" in columns:
            ids = _cut(processor.target, columns["copies"], self.max_source_length)
            symbols, targets = _left(ids, columns["symbols"], targets, processor.target)
            assert isinstance(source, Padded)
            source = CopySource(source.values, source.lengths, processor.target.collate(ids).values, symbols)
        return source, processor.target.collate(targets)


def _left(
    copies: list[Array], symbols: list[Sequence[str]], targets: list[Array], tokenizer: Tokenizer
) -> tuple[tuple[tuple[str, ...], ...], list[Array]]:
    """Make symbols unknown that were cut off their source; those left are the first, as they are numbered in order."""
    ends = [max(int(row.max(initial=0)) + 1, tokenizer.size) for row in map(np.asarray, copies)]
    kept = tuple(tuple(own[: end - tokenizer.size]) for own, end in zip(symbols, ends, strict=True))
    unk = tokenizer.specials.unk
    return kept, [np.where(np.less(row, end), row, unk) for row, end in zip(targets, ends, strict=True)]


def _cut(feature: Feature, arrays: list[Array], limit: int | None) -> list[Array]:
    """Shorten arrays to `limit`, and put what stands for nothing where there is nothing."""
    arrays = [array if len(array) else feature.nothing() for array in arrays]
    return arrays if limit is None else [feature.truncate(array, limit) for array in arrays]


class Examples(torch.utils.data.Dataset[Batch]):
    """The encoded examples of a split, read from disk; indexing by a list of positions gives a `Batch`.

    Args:
        raw: the split as it came.
        encoder: what encodes it.
        encoded: the columns that `Encoder.encode_all` made of it.
        limits: how arrays are cut.
        texts: give sources for display and reference texts with the batch.
        training: augment at random.

    Attributes:
        kept: positions of the examples within the limits.
        source_lengths: number of source positions of each of them, after the cut.
        target_lengths: number of target ids of each of them, after the cut; 0 without targets.
        row_numbers: the row of each of them.
        report: how many examples are kept, and what is wrong with others.

    Raises:
        UserError: if no example is within the limits.
    """

    def __init__(
        self,
        raw: Dataset,
        encoder: Encoder,
        encoded: Encoded,
        limits: Limits,
        texts: bool = False,
        training: bool = False,
    ) -> None:
        self.raw = raw.select_columns([name for name in encoder.mapper.roots if name in raw.column_names])
        self.encoder = encoder
        self.encoded = Encoded(encoded.sources.with_format("arrow"), encoded.examples.with_format("arrow"))
        self.limits = limits
        self.texts = texts
        self.training = training
        feature = encoder.processor.source_feature
        self._anew = feature.stored_as is None or (training and feature.augments)  # whether sources are encoded anew
        self._targets_anew = training and encoder.processor.target.augments
        source, target = encoded.lengths()
        kept, counts = limits.select(source, target if encoder.targets else None)
        problems = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        self.report = f"{kept.sum()} of {len(kept)} examples" + (f" ({problems})" if problems else "")
        if not kept.any():
            raise UserError(f"expected examples to use, but there are {self.report}: check the columns and the limits")
        self.kept = np.flatnonzero(kept)
        self.source_lengths = source.clip(1, limits.max_source_length)[kept]
        self.target_lengths = target.clip(int(encoder.targets), limits.max_target_length)[kept]
        self.row_numbers = self.encoded.examples.data.column("row").to_numpy()[kept]

    def __len__(self) -> int:
        return len(self.encoded.examples)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        if self.training and isinstance(positions, BatchRows):
            with seeded(positions.seed):
                return self._batch(positions)
        return self._batch(positions)

    def _batch(self, positions: Sequence[int]) -> Batch:
        table = self.encoded.examples[list(positions)]
        rows = table["row"].to_numpy()
        distinct, places = np.unique(rows, return_inverse=True)  # a source shared by several examples is read once
        raw: Rows = self.raw[distinct.tolist()] if self.texts or self._anew or self._targets_anew else {}
        sources = self._sources(distinct, raw)
        chosen = [sources[place] for place in places]
        if self.training:
            augment = self.encoder.processor.source_feature.augment
            chosen = [augment(array) if len(array) else array for array in chosen]
        raw = {name: [column[place] for place in places] for name, column in raw.items()}
        anew = self._targets_anew
        targets = self.encoder.choose(raw, table["choice"].to_pylist()) if anew else _arrays(table["target"])
        columns: dict[str, list[Any]] = {"row": rows, "source": chosen, "target": targets}
        if self.encoder.processor.copy and self._anew:
            columns["copies"], columns["symbols"] = self.encoder.copies(raw, chosen)
        elif self.encoder.processor.copy:
            columns |= {"copies": _arrays(table["copies"]), "symbols": table["symbols"].to_pylist()}
        source, target = self.limits.collate(self.encoder.processor, columns)
        return Batch(
            source=source,
            target=target if self.encoder.targets else None,
            rows=torch.tensor(rows),
            references=tuple(self.encoder.mapper.all_references(raw)) if self.texts and self.encoder.targets else (),
            texts=self.encoder.show(raw, rows.tolist()) if self.texts else (),
        )

    def _sources(self, rows: npt.NDArray[np.int64], raw: Rows) -> list[Array]:
        if self._anew:
            return self.encoder.sources(raw, rows.tolist(), self.training)
        table = self.encoded.sources[rows.tolist()]
        return _arrays(table["values"], table["length"].to_numpy())

    def first(self, count: int) -> list[tuple[Any, str]]:
        """Return the raw source and the first reference of each of the first `count` rows that are kept."""
        table = self.encoded.examples[self.kept[:count].tolist()]
        raw = self.raw[table["row"].to_pylist()]
        references = self.encoder.mapper.all_references(raw) if self.encoder.targets else [("",)] * len(table)
        return [(source, texts[0]) for source, texts in zip(self.encoder.mapper.sources(raw), references, strict=True)]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers on the CPU from `seed`, and leave its state as it was."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _arrays(column: Any, lengths: Lengths | None = None) -> list[Array]:
    """Read arrays from a column of flat lists: ids `(T,)`, or vectors `(T, F)` with T = `lengths`."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy()
    parts = np.split(array.values.to_numpy()[offsets[0] : offsets[-1]], offsets[1:-1] - offsets[0])
    if lengths is None or not np.issubdtype(array.values.to_numpy().dtype, np.floating):
        return parts
    return [part.reshape(length, -1) if length else part for part, length in zip(parts, lengths, strict=True)]
