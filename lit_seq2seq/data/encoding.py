"""Rows to ids, kept on disk, and ids to batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from lit_seq2seq.data.rows import RowMapper, Rows
from lit_seq2seq.features import Feature, Processor
from lit_seq2seq.features.feature import Array
from lit_seq2seq.types import Batch, Padded, UserError

_VERSION = 1  # of the encoded columns: raise it when their meaning changes
Lengths = npt.NDArray[np.int32]


def cache_folder() -> Path:
    """Return the folder for tokenizers and encoded columns, inside the cache of `datasets` (`HF_DATASETS_CACHE`)."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "lit_seq2seq"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Encoder:
    """Turns raw rows into id columns; where text is missing the ids are an empty list.

    Args:
        mapper: finds the texts; resolved.
        processor: encodes them.
        targets: whether there are targets.
        alternatives: make one example of each alternative target, not of the first only.
    """

    mapper: RowMapper
    processor: Processor
    targets: bool = True
    alternatives: bool = False

    def __call__(self, rows: Rows, indices: Sequence[int], training: bool = False) -> dict[str, list[Any]]:
        """Encode a batch of rows that stand at `indices`, with random augmentation when training."""
        sources = self._sources(self.mapper.sources(rows), training)
        texts = self.mapper.targets(rows) if self.targets else [[] for _ in indices]
        chosen = [(group if self.alternatives else group[:1]) or [""] for group in texts]
        return {
            "row": [index for index, group in zip(indices, chosen, strict=True) for _ in group],
            "choice": [choice for group in chosen for choice in range(len(group))],
            "source": [ids for ids, group in zip(sources, chosen, strict=True) for _ in group],
            "target": _encode(self.processor.target, [text for group in chosen for text in group], training),
        }

    def choose(self, rows: Rows, choices: Sequence[int]) -> dict[str, list[Any]]:
        """Encode the given alternative of each row anew, with random augmentation."""
        chosen = [(group or [""])[choice] for group, choice in zip(self.mapper.targets(rows), choices, strict=True)]
        return {
            "source": self._sources(self.mapper.sources(rows), training=True),
            "target": _encode(self.processor.target, chosen, training=True),
        }

    def _sources(self, texts: list[str], training: bool) -> list[Array]:
        prefix = self.processor.source_prefix
        return _encode(self.processor.source_feature, [prefix + text if text else "" for text in texts], training)

    def encode_all(self, raw: Dataset, num_proc: int | None, description: str) -> Dataset:
        """Encode a whole split into columns on disk, or find them in the cache.

        Args:
            raw: the split.
            num_proc: number of processes; `None` for this one.
            description: label of the progress bar.
        """
        state = (_VERSION, raw._fingerprint, self.mapper, self.targets, self.alternatives)
        fingerprint = Hasher.hash((state, json.dumps(self.processor.to_dict(), sort_keys=True)))
        ids = List(Value("int32"))
        return raw.map(
            self,
            batched=True,
            with_indices=True,
            remove_columns=raw.column_names,
            features=Features({"row": Value("int64"), "choice": Value("int32"), "source": ids, "target": ids}),
            num_proc=num_proc,
            cache_file_name=str(cache_folder() / f"{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            load_from_cache_file=True,
            desc=description,
        )


def _encode(feature: Feature, texts: list[str], training: bool) -> list[Array]:
    present = [text for text in texts if text and not text.isspace()]
    encoded = iter(feature.encode(present, training=training))
    return [next(encoded) if text and not text.isspace() else np.empty(0, np.int32) for text in texts]


@dataclass(frozen=True)
class Limits:
    """What to do with rows that are empty or too long.

    Args:
        max_source_length: greatest number of source ids, EOS counted; `None` for no limit.
        max_target_length: the same for targets.
        overlong: cut longer rows, or drop them.
        empty: drop rows without source or target, keep them as a lone EOS, or raise an error.
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
            source: `(N,)` source lengths, 0 for a missing text.
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
                    f"expected text in every row, but {empty.sum()} have no {side}, the first is row "
                    f"{int(np.argmax(empty))}: mend them, or set empty to drop or keep"
                )
            if self.empty == "drop":
                kept &= ~empty
            long = lengths > limit if limit else np.zeros_like(empty)
            counts[f"with {side} longer than {limit}"] = int(long.sum())
            if self.overlong == "drop":
                kept &= ~long
        return kept, {reason: count for reason, count in counts.items() if count}

    def collate(self, processor: Processor, columns: dict[str, list[Array]]) -> tuple[Padded, Padded]:
        """Cut and pad the `source` and `target` columns."""
        return (
            _collate(processor.source_feature, columns["source"], self.max_source_length),
            _collate(processor.target, columns["target"], self.max_target_length),
        )


def _collate(feature: Feature, arrays: list[Array], limit: int | None) -> Padded:
    if any(len(array) == 0 for array in arrays):
        nothing = feature.encode([""])[0]
        arrays = [array if len(array) else nothing for array in arrays]
    return feature.collate(arrays if limit is None else [feature.truncate(array, limit) for array in arrays])


class Examples(torch.utils.data.Dataset[Batch]):
    """The encoded examples of a split, read from disk; indexing by a list of positions gives a `Batch`.

    Args:
        raw: the split as it came.
        encoder: what encodes it.
        encoded: the columns that `Encoder.encode_all` made of it.
        limits: how ids are cut.
        texts: give raw sources and reference texts with the batch.
        augment: encode anew each time, with random augmentation.

    Attributes:
        kept: positions of the examples within the limits.
        source_lengths: number of source ids of each of them, after the cut.
        target_lengths: number of target ids of each of them, after the cut; 0 without targets.
        report: how many examples are kept, and what is wrong with others.

    Raises:
        UserError: if no example is within the limits.
    """

    def __init__(
        self,
        raw: Dataset,
        encoder: Encoder,
        encoded: Dataset,
        limits: Limits,
        texts: bool = False,
        augment: bool = False,
    ) -> None:
        self.raw = raw.select_columns([name for name in encoder.mapper.roots if name in raw.column_names])
        self.encoder = encoder
        self.encoded = encoded.with_format("arrow")
        self.limits = limits
        self.texts = texts
        self.augment = augment
        source, target = self._lengths("source"), self._lengths("target")
        kept, counts = limits.select(source, target if encoder.targets else None)
        problems = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        self.report = f"{kept.sum()} of {len(kept)} examples" + (f" ({problems})" if problems else "")
        if not kept.any():
            raise UserError(f"expected examples to use, but there are {self.report}: check the columns and the limits")
        self.kept = np.flatnonzero(kept)
        self.source_lengths = source.clip(1, limits.max_source_length)[kept]
        self.target_lengths = target.clip(int(encoder.targets), limits.max_target_length)[kept]

    def __len__(self) -> int:
        return len(self.encoded)

    def _lengths(self, side: str) -> Lengths:
        chunks = self.encoded.data.column(side).chunks
        return np.concatenate([chunk.value_lengths().to_numpy().astype(np.int32) for chunk in chunks])

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        table = self.encoded[list(positions)]
        rows = table["row"].to_numpy()
        raw: Rows = self.raw[rows.tolist()] if self.texts or self.augment else {}
        if self.augment:
            columns = self.encoder.choose(raw, table["choice"].to_pylist())
        else:
            columns = {side: _arrays(table[side]) for side in ("source", "target")}
        source, target = self.limits.collate(self.encoder.processor, columns)
        mapper, targets = self.encoder.mapper, self.encoder.targets
        return Batch(
            source=source,
            target=target if targets else None,
            rows=torch.tensor(rows),
            references=tuple(mapper.all_references(raw)) if self.texts and targets else (),
            texts=tuple(mapper.sources(raw)) if self.texts else (),
        )


def _arrays(column: Any) -> list[Array]:
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy()
    return np.split(array.values.to_numpy()[offsets[0] : offsets[-1]], offsets[1:-1] - offsets[0])
