"""Batches from data that is read as it comes, for sets larger than the disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset

from lit_seq2seq.data.batching import BucketBatchSampler
from lit_seq2seq.data.encoding import Encoder, Limits
from lit_seq2seq.types import Batch


class BatchStream(torch.utils.data.IterableDataset[Batch]):
    """Reads rows into a buffer, cuts the buffer into batches of similar length, and goes on.

    Each pass is shuffled anew by seed. Under several processes each reads its own rows, and their numbers of batches
    differ: bound the epoch by `limit_train_batches` or `max_steps`.

    Args:
        raw: the rows of this process.
        encoder: what encodes them.
        limits: which rows are dropped or cut.
        max_tokens: as for `BucketBatchSampler`.
        batch_size: as for `BucketBatchSampler`.
        seed: of the shuffling.
        buffer_size: number of rows that are sorted by length together; ten times what the source feature holds in
            memory at once if `None`.
    """

    def __init__(
        self,
        raw: IterableDataset,
        encoder: Encoder,
        limits: Limits,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        buffer_size: int | None = None,
    ) -> None:
        buffer_size = buffer_size or 10 * encoder.processor.source_feature.rows_at_once
        self.raw = raw.shuffle(seed=seed, buffer_size=buffer_size)
        self.encoder, self.limits = encoder, limits
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.seed, self.buffer_size = seed, buffer_size
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        self.raw.set_epoch(epoch)
        rows = iter(self.raw)
        for part in itertools.count():
            buffer = list(itertools.islice(rows, self.buffer_size))
            if not buffer:
                return
            names = self.encoder.mapper.roots
            columns = {name: [row[name] for row in buffer] for name in names if name in buffer[0]}
            start = part * self.buffer_size
            indices = range(start, start + len(buffer))
            sources = self.encoder.sources(columns, indices, training=True)
            examples = self.encoder.examples(columns, indices, training=True)
            examples["source"] = [sources[row - start] for row in examples["row"]]
            if self.encoder.processor.copy:  # of these very sources, which may be encoded at random
                ids, symbols = self.encoder.copies(columns, sources)
                examples["copies"] = [ids[row - start] for row in examples["row"]]
                examples["symbols"] = [symbols[row - start] for row in examples["row"]]
            yield from self._batches(examples, hash((self.seed, epoch, part)) % 2**32)

    def _batches(self, examples: dict[str, list[Any]], seed: int) -> Iterator[Batch]:
        feature = self.encoder.processor.source_feature
        source = np.array([feature.positions(array) if len(array) else 0 for array in examples["source"]], np.int32)
        target = np.array([len(ids) for ids in examples["target"]], np.int32)
        kept, _ = self.limits.select(source, target)
        if not kept.any():
            return
        source = np.minimum(source, self.limits.max_source_length or source.max()).clip(1)[kept]
        target = np.minimum(target, self.limits.max_target_length or target.max()).clip(1)[kept]
        sampler = BucketBatchSampler(
            source, target, self.max_tokens, self.batch_size, indices=np.flatnonzero(kept), seed=seed
        )
        for positions in sampler:
            columns = {name: [column[position] for position in positions] for name, column in examples.items()}
            columns["source"] = [feature.augment(array) if len(array) else array for array in columns["source"]]
            padded = self.limits.collate(self.encoder.processor, columns)
            yield Batch(*padded, rows=torch.tensor([examples["row"][position] for position in positions]))
