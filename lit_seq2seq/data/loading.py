"""Loaders of batches, and where in the training data a run stands."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker, _ReadyCompletedTracker
from torch.utils.data import DataLoader, Dataset

from lit_seq2seq.data.batching import EpochSampler, Position
from lit_seq2seq.data.examples import Examples
from lit_seq2seq.data.running import RunningText
from lit_seq2seq.data.streaming import BatchStream
from lit_seq2seq.types import Batch, UserError


def make_loader(
    dataset: Examples | RunningText | FixedBatches | BatchStream,
    sampler: EpochSampler[Any] | None,
    num_workers: int,
    kind: type[DataLoader[Batch]] = DataLoader,
) -> DataLoader[Batch]:
    """Make a loader that takes no random number of those that the model draws."""
    return kind(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        persistent_workers=num_workers > 0 and sampler is not None,
        generator=torch.Generator(),
    )


class FixedBatches(Dataset[Batch]):
    """The batches of one pass, by their numbers."""

    def __init__(self, examples: Examples | RunningText, sampler: EpochSampler[Any]) -> None:
        self.examples, self.rows = examples, list(sampler)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Batch:
        return self.examples[self.rows[number]]


class TrainingLoader(DataLoader[Batch]):
    """Batches for training, which go on where an interrupted run stood.

    The data module tells the position to the loader when it is made, so that nothing depends on the moment at which the
    trainer restores its loops (lightning #20550 lost the state of loaders that had been made before); what the trainer
    restores must agree with it.
    """

    trainer: Trainer | None = None
    start: Position = Position()
    _epoch = -1

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not isinstance(self.dataset, BatchStream):
            return super().__iter__()
        if self.trainer is None:  # every pass is another epoch
            self._epoch += 1
        else:
            self._epoch = max(counts(self.trainer.fit_loop.epoch_progress.current).processed, self.start.epoch)
        self.dataset.epoch = self._epoch
        skipped = self.start.batches if self._epoch == self.start.epoch else 0
        return itertools.islice(super().__iter__(), skipped, None)

    def position(self) -> Position:
        """Return how far the trainer has come with these batches."""
        if self.trainer is None:
            return self.start
        sampler, world_size = self.sampler, self.trainer.world_size
        epoch = sampler.epoch if isinstance(sampler, EpochSampler) else self._epoch
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch:
            return Position(epoch + 1, 0, world_size)
        batches = counts(progress.current).processed
        if isinstance(sampler, EpochSampler) and epoch == self.start.epoch:
            return self.start.after(batches - sampler.batches_done, world_size)
        return Position(epoch, batches, world_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return asdict(self.position())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the loader stands where the trainer goes on."""
        saved = Position(**state_dict)
        if (saved.epoch, saved.batches) != (self.start.epoch, self.start.batches):
            raise UserError(
                f"the checkpoint stands at batch {saved.batches} of epoch {saved.epoch}, but the data module at batch "
                f"{self.start.batches} of epoch {self.start.epoch}: give the data module to trainer.fit as datamodule"
            )


def _start_worker(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def counts(tracker: _ReadyCompletedTracker) -> _ProcessedTracker:
    """Narrow the type of what counts epochs or batches."""
    assert isinstance(tracker, _ProcessedTracker)
    return tracker
