"""Batches from data that is read as it comes, for sets larger than the disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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
        buffer_size: number of rows that are sorted by length together.
    """

    def __init__(
        self,
        raw: IterableDataset,
        encoder: Encoder,
        limits: Limits,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        buffer_size: int = 10_000,
    ) -> None:
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
            encoded = self.encoder(columns, range(part * self.buffer_size, part * self.buffer_size + len(buffer)), True)
            yield from self._batches(encoded, hash((self.seed, epoch, part)) % 2**32)

    def _batches(self, encoded: dict[str, list[np.ndarray]], seed: int) -> Iterator[Batch]:
        source, target = (np.array([len(ids) for ids in encoded[side]], np.int32) for side in ("source", "target"))
        kept, _ = self.limits.select(source, target)
        if not kept.any():
            return
        source = np.minimum(source, self.limits.max_source_length or source.max()).clip(1)[kept]
        target = np.minimum(target, self.limits.max_target_length or target.max()).clip(1)[kept]
        sampler = BucketBatchSampler(
            source, target, self.max_tokens, self.batch_size, indices=np.flatnonzero(kept), seed=seed
        )
        for positions in sampler:
            columns = {side: [encoded[side][position] for position in positions] for side in ("source", "target")}
            padded = self.limits.collate(self.encoder.processor, columns)
            yield Batch(*padded, rows=torch.tensor([encoded["row"][position] for position in positions]))
