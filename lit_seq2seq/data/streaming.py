"""Batches from data that is read as it comes, for sets larger than the disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import IterableDataset
from datasets.fingerprint import Hasher

from lit_seq2seq.data.batching import BucketBatchSampler, seed_of
from lit_seq2seq.data.encoding import RowEncoder
from lit_seq2seq.data.examples import Limits, seeded
from lit_seq2seq.files.remote import explained
from lit_seq2seq.types import Batch, UserError


class BatchStream(torch.utils.data.IterableDataset[Batch]):
    """Reads rows into a buffer, cuts the buffer into batches of similar length, and goes on.

    Each pass is shuffled anew by seed. Each of several processes reads all rows, cuts the same batches and takes its
    share of them, so that an epoch covers every row once and has as many batches for each.

    Args:
        raw: the rows.
        encoder: what encodes them.
        limits: which rows are dropped or cut.
        max_tokens: this, `batch_size`, `seed`, `rank` and `world_size` are as for `BucketBatchSampler`.
        keep_targets_together: put all targets of a row into the same batch.
        buffer_size: number of rows that are sorted by length together; ten times what the source feature holds in
            memory at once if `None`.

    Attributes:
        with_texts: whether sources for display and reference texts come with a batch.
    """

    def __init__(
        self,
        raw: IterableDataset,
        encoder: RowEncoder,
        limits: Limits,
        *,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        keep_targets_together: bool = False,
        buffer_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        buffer_size = buffer_size or 10 * encoder.processor.source_feature.rows_at_once
        self._rows, self.raw = raw, raw.shuffle(seed=seed, buffer_size=buffer_size)
        self.encoder, self.limits = encoder, limits
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.seed, self.buffer_size = seed, buffer_size
        self.rank, self.world_size = rank, world_size
        self.keep_targets_together = keep_targets_together
        self.epoch = 0
        self.with_texts = False

    def fingerprint(self, settings: object) -> str:
        """Tells a stream from others by its settings and its first rows."""
        with explained("the stream of training data"):
            rows = [[row[name] for name in sorted(row)] for row in itertools.islice(self._rows, 16)]
        return str(Hasher.hash((rows, settings)))

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        seeds = (self.seed, self.epoch, 0 if worker is None else worker.id)
        held: _Part | None = None
        for number, part in enumerate(self._parts(seeds)):
            if held is not None and len(part.source) < self.world_size:  # the last few rows, too few to share out
                held = held.joined(part)
                continue
            if held is not None:
                yield from self._batches(held, seed_of(*seeds, number))
            held = part
        if held is not None:
            yield from self._batches(held, seed_of(*seeds, 0))
        elif worker is None or worker.num_workers == 1:
            raise UserError(
                "expected rows in the stream of training data, but there is none: splits.validation_size and "
                "splits.test_size take its first rows, set them to less than there are"
            )

    def _parts(self, seeds: tuple[int, ...]) -> Iterator[_Part]:
        """Encode a buffer of rows at a time, and leave out what is beyond the limits."""
        self.raw.set_epoch(self.epoch)
        rows = iter(self.raw)
        for number in itertools.count():
            with explained("the stream of training data"):
                buffer = list(itertools.islice(rows, self.buffer_size))
            if not buffer:
                return
            names = self.encoder.mapper.roots
            columns = {name: [row[name] for row in buffer] for name in names if name in buffer[0]}
            start = number * self.buffer_size
            indices = range(start, start + len(buffer))
            with seeded(seed_of(*seeds, number, 1)):
                sources = self.encoder.sources(columns, indices, training=True)
                examples = self.encoder.examples(columns, indices, training=True)
            examples["source"] = [sources[row - start] for row in examples["row"]]
            if self.encoder.processor.copy:  # of these very sources, which may be encoded at random
                ids, symbols = self.encoder.copies(columns, sources)
                examples["copies"] = [ids[row - start] for row in examples["row"]]
                examples["symbols"] = [symbols[row - start] for row in examples["row"]]
            if self.with_texts:
                texts = {"references": self.encoder.references(columns), "texts": self.encoder.show(columns, indices)}
                examples |= {name: [own[row - start] for row in examples["row"]] for name, own in texts.items()}
            yield self._within_limits(examples)

    def _within_limits(self, examples: dict[str, list[Any]]) -> _Part:
        feature = self.encoder.processor.source_feature
        source = np.array([feature.positions(array) if len(array) else 0 for array in examples["source"]], np.int32)
        target = np.array([len(ids) for ids in examples["target"]], np.int32)
        kept, _ = self.limits.select(source, target)
        columns = {name: list(itertools.compress(column, kept)) for name, column in examples.items()}
        return _Part(
            columns,
            source[kept].clip(1, self.limits.max_source_length),
            target[kept].clip(1, self.limits.max_target_length),
        )

    def _batches(self, part: _Part, seed: int) -> Iterator[Batch]:
        if not len(part.source):
            return
        augment = self.encoder.processor.source_feature.augment
        for positions in BucketBatchSampler(
            part.source,
            part.target,
            self.max_tokens,
            self.batch_size,
            seed=seed,
            rank=self.rank,
            world_size=self.world_size,
            groups=np.array(part.columns["row"]) if self.keep_targets_together else None,
            by_length=not self.encoder.processor.source_feature.one_size,
        ):
            columns = {name: [column[position] for position in positions] for name, column in part.columns.items()}
            with seeded(seed_of(seed, *positions[:1], self.rank)):
                columns["source"] = [augment(array) if len(array) else array for array in columns["source"]]
            padded = self.limits.collate(self.encoder.processor, columns)
            references, texts = (tuple(columns.get(name, ())) for name in ("references", "texts"))
            yield Batch(*padded, torch.tensor(columns["row"]), references, texts)


@dataclass(frozen=True)
class _Part:
    """Encoded examples within the limits, and their source and target lengths `(N,)`."""

    columns: dict[str, list[Any]]
    source: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]

    def joined(self, other: _Part) -> _Part:
        columns = {name: column + other.columns[name] for name, column in self.columns.items()}
        source, target = np.append(self.source, other.source), np.append(self.target, other.target)
        return _Part(columns, source, target)
