"""The encoded examples of a split, within limits, as batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset

from lit_seq2seq.data.alignment import with_alignment
from lit_seq2seq.data.batching import BatchRows
from lit_seq2seq.data.encoding import EncodedRows, Lengths, RowEncoder
from lit_seq2seq.data.rows import Rows
from lit_seq2seq.features import Feature, Processor, Tokenizer
from lit_seq2seq.features.feature import Array
from lit_seq2seq.files.lines import counted
from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import Batch, CopySource, Padded, Shared, Source, UserError


@checked_fields
@dataclass(frozen=True)
class Limits:
    """What to do with rows that are empty or too long.

    Args:
        max_source_length: greatest number of source positions (of text: ids, EOS counted).
        max_target_length: greatest number of target ids, EOS counted.
        overlong: cut longer rows, or drop them from the training split; rows to evaluate are always cut.
        empty: drop rows without source or target, keep them, or raise an error.
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

    def select(
        self, source: Lengths, target: Lengths | None, show: Callable[[int], object] = "number {}".format
    ) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
        """Choose the examples to keep: `(N,)` booleans, and the number of examples by what was wrong with them.

        Args:
            source: `(N,)` source lengths, 0 for a missing source.
            target: `(N,)` target lengths; `None` without targets.
            show: says which example has a number, for the error.

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
                    f"expected a source and a target in every row, but {counted(int(empty.sum()), 'example')} without "
                    f"{side} came, the first of them {show(int(np.argmax(empty)))}: fill in what is missing, or set "
                    "data.limits.empty to drop or keep"
                )
            if self.empty == "drop":
                kept &= ~empty
            long = lengths > limit if limit else np.zeros_like(empty)
            counts[f"with {side} longer than {limit}"] = int(long.sum())
            if self.overlong == "drop":
                kept &= ~long
        return kept, {reason: count for reason, count in counts.items() if count}

    def collate(self, processor: Processor, columns: dict[str, list[Any]]) -> tuple[Source, Padded]:
        """Cut and pad the `source` and `target` columns, and `copies`, `symbols` and `alignment` where they are there.

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
        target = processor.target.collate(targets)
        if "alignment" in columns:
            assert isinstance(source, Padded)
            target = with_alignment(target, source, columns["alignment"])
        return source.to("cpu"), target.to("cpu")


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
        encoded: the columns that `RowEncoder.encode_all` made of it.
        limits: how arrays are cut.
        training: augment at random.

    Attributes:
        with_texts: whether sources for display and reference texts come with a batch; not when training, unless set.
        kept: positions of the examples within the limits.
        source_lengths: number of source positions of each of them, after the cut.
        target_lengths: number of target ids of each of them, after the cut; 0 without targets.
        row_numbers: the row of each of them.
        report: how many examples are kept, and what is wrong with others.

    Raises:
        UserError: if no example is within the limits.
    """

    def __init__(
        self, raw: Dataset, encoder: RowEncoder, encoded: EncodedRows, limits: Limits, *, training: bool = False
    ) -> None:
        self.raw = raw.select_columns([name for name in encoder.mapper.roots if name in raw.column_names])
        self.encoder, self.limits, self.training = encoder, limits, training
        self.with_texts = not training
        self.encoded = EncodedRows(encoded.sources.with_format("arrow"), encoded.examples.with_format("arrow"))
        feature = encoder.processor.source_feature
        self._anew = feature.stored_as is None or (training and feature.augments)  # whether sources are encoded anew
        self._targets_anew = training and encoder.processor.target.augments
        source, target = encoded.lengths()
        kept, counts = limits.select(source, target if encoder.targets else None, self._shown)
        problems = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        self.report = f"{kept.sum()} of {counted(len(kept), 'example')}" + (f" ({problems})" if problems else "")
        if not kept.any():
            raise UserError(f"expected examples to use, but there are {self.report}: check the columns and the limits")
        self.kept = np.flatnonzero(kept)
        self.source_lengths = source.clip(1, limits.max_source_length)[kept]
        self.target_lengths = target.clip(int(encoder.targets), limits.max_target_length)[kept]
        self.row_numbers = self.encoded.examples.data.column("row").to_numpy()[kept]

    def _shown(self, place: int) -> str:
        """Return the row of an example as a reader finds it in a file, whatever split was carved from it."""
        row = self.raw[self.encoded.examples.data.column("row")[place].as_py()]
        return f"{json.dumps(row, ensure_ascii=False, default=repr):.200}"

    @property
    def warnings(self) -> list[str]:
        """What is odd about the examples: that most symbols of a side are unknown."""
        sources, targets = self.encoder.processor.source_feature, self.encoder.processor.target
        shares = {
            "source": _unknown(sources, self.encoded.sources, "values"),
            "target": _unknown(targets, self.encoded.examples, "target"),
        }
        return [
            f"{share:.0%} of the {side} symbols are unknown to the vocabulary: check the columns, or learn it from "
            "this data (unset processor, or set extend_vocabulary)"
            for side, share in shares.items()
            if share > 0.5
        ]

    def __len__(self) -> int:
        return len(self.encoded.examples)

    @cached_property
    def fingerprint(self) -> str:
        """Tells examples and their order from others: all lengths and ids, and a hundred of sources of another kind."""
        found = blake2b(digest_size=8)
        for array in (self.kept, self.source_lengths, self.target_lengths, self.row_numbers):
            found.update(np.ascontiguousarray(array).data)
        columns = [self.encoded.examples.data.column("target")]
        if "values" in self.encoded.sources.column_names:
            values = self.encoded.sources.data.column("values")
            are_ids = np.issubdtype(values.type.value_type.to_pandas_dtype(), np.integer)
            some = np.linspace(0, len(values) - 1, min(len(values), 100), dtype=np.int64)
            columns.append(values if are_ids else values.take(some))
        for chunk in (chunk for column in columns for chunk in column.chunks):
            found.update(np.ascontiguousarray(chunk.flatten().to_numpy()).data)
        return found.hexdigest()

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        if self.training and isinstance(positions, BatchRows):
            with seeded(positions.seed):
                return self._batch(positions)
        return self._batch(positions)

    def _batch(self, positions: Sequence[int]) -> Batch:
        table = self.encoded.examples[list(positions)]
        rows = table["row"].to_numpy()
        distinct, places = np.unique(rows, return_inverse=True)  # a source shared by several examples is read once
        raw: Rows = self.raw[distinct.tolist()] if self.with_texts or self._anew or self._targets_anew else {}
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
        if self.encoder.mapper.alignment:
            columns["alignment"] = _arrays(table["alignment"])
        source, target = self.limits.collate(self.encoder.processor, columns)
        return Batch(
            source=source,
            target=target if self.encoder.targets else None,
            rows=torch.tensor(rows),
            references=self.encoder.references(raw) if self.with_texts else (),
            texts=self.encoder.show(raw, rows.tolist()) if self.with_texts else (),
            ends=self.encoder.ends(raw, rows.tolist()) if self.with_texts else (),
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


def _unknown(feature: Feature, table: Dataset, column: str) -> float:
    """Return the share of unknown symbols in a column of ids that end with EOS."""
    unknown = feature.unknown_id
    if unknown is None or column not in table.column_names:
        return 0.0
    chunks = [chunk.flatten().to_numpy() for chunk in table.data.column(column).chunks]
    symbols = sum(map(len, chunks)) - len(table)
    return sum(int(np.count_nonzero(chunk == unknown)) for chunk in chunks) / max(symbols, 1)


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
