"""Batches of examples of similar length, under a token budget."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from lit_seq2seq.settings.arguments import checked_fields
from lit_seq2seq.types import UserError

Ints = npt.NDArray[np.integer]
T = TypeVar("T")
_BUCKETS = 8  # source lengths in one bucket differ by a factor of exp(1 / 8) at most


class Budget(TypedDict):
    """The limits of a batch, of which one at least is set."""

    max_tokens: int | None
    batch_size: int | None


@checked_fields
@dataclass(frozen=True, kw_only=True)
class Batches:
    """How examples are put into batches.

    Args:
        max_tokens: greatest number of source positions and target tokens in a batch, padding counted; 4,096 if
            neither this nor `size` is set.
        size: greatest number of examples in a batch.
        eval_max_tokens: greatest number of tokens in a batch outside training.
        eval_size: greatest number of examples in a batch outside training; if neither is set, as in training.
        keep_targets_together: put the alternative targets of a training row into one batch, so that their source is
            encoded once for all: several times faster for images with several captions.
        longest_first: start each epoch with the largest batch, so that one too large for the memory fails at once.
        bptt: join the targets to running text, in `size` streams side by side that are read in pieces of so many
            symbols: the state is carried from batch to batch, and gradients end where a batch begins (truncated
            backpropagation through time). Needs `columns.source: null`. `None` reads each target by itself.
        num_workers: processes that load batches.
    """

    max_tokens: int | None = None
    size: int | None = None
    eval_max_tokens: int | None = None
    eval_size: int | None = None
    keep_targets_together: bool = False
    longest_first: bool = False
    bptt: int | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        limits = dict.fromkeys(("max_tokens", "size", "eval_max_tokens", "eval_size", "bptt"), 1) | {"num_workers": 0}
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"expected batches.{name} to be at least {least}, but it is {value}")
        if self.bptt is not None and self.size is None:
            raise UserError("expected batches.size beside batches.bptt, the number of streams, but it is not set")

    @property
    def training(self) -> Budget:
        """The limits of a training batch."""
        unset = self.max_tokens is None and self.size is None
        return {"max_tokens": 4096 if unset else self.max_tokens, "batch_size": self.size}

    @property
    def evaluation(self) -> Budget:
        """The limits of a batch outside training."""
        if self.eval_max_tokens is None and self.eval_size is None:
            return self.training
        return {"max_tokens": self.eval_max_tokens, "batch_size": self.eval_size}


@dataclass(frozen=True)
class Position:
    """How far the training data has been used.

    Attributes:
        epoch: number of the epoch, from 0.
        batches: how many batches of it each process has taken.
        world_size: number of processes that took them.
        before: the same two numbers for each other number of processes that took batches of the epoch before these did.
    """

    epoch: int = 0
    batches: int = 0
    world_size: int = 1
    before: tuple[tuple[int, int], ...] = ()

    @property
    def taken(self) -> tuple[tuple[int, int], ...]:
        """Batches of the epoch that each process took, and number of processes, in turn."""
        return (*self.before, (self.batches, self.world_size)) if self.batches else self.before

    def after(self, batches: int, world_size: int) -> Position:
        """Return where each of so many processes stands that has gone on from here with so many batches."""
        if world_size == self.world_size:
            return replace(self, batches=self.batches + batches)
        return Position(self.epoch, batches, world_size, self.taken)


class BatchRows(list[int]):
    """What a batch holds, and the seed of what is random in making it."""

    def __init__(self, rows: list[int], seed: int) -> None:
        super().__init__(rows)
        self.seed = seed


class EpochSampler(Sampler[T], ABC):
    """What gives the batches of an epoch, and goes on within one that was interrupted.

    Args:
        start: where an interrupted run goes on.
    """

    def __init__(self, start: Position) -> None:
        self.start, self.epoch = start, start.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches of an epoch."""

    @property
    @abstractmethod
    def batches_done(self) -> int:
        """Number of batches that this process need not take in the epoch it starts with."""


class BucketBatchSampler(EpochSampler[list[int]]):
    """Cuts examples sorted by length into batches, and shuffles the batches.

    Every epoch has other batches: lengths are multiplied by `1 + noise u`, u uniform in [-1, 1], before they are
    sorted, and the edges of the buckets of source lengths move. An epoch is a pure function of `(seed, epoch)`. Every
    epoch, and every process, has the same number of batches.

    Args:
        source: `(N,)` source lengths.
        target: `(N,)` target lengths.
        max_tokens: greatest size of a batch of B examples, padding counted: `B (max source + max target)`, where B is
            rounded down to few sizes; a longer example makes a batch of its own.
        batch_size: greatest number of examples of a batch; at least one of the two limits is needed.
        indices: `(N,)` what the batches hold; `None` for the positions 0 to N - 1.
        shuffle: shuffle; otherwise batches come from the shortest to the longest, the same each epoch.
        longest_first: let the largest batch come first, so that one too large for the memory fails at once.
        seed: of the shuffling.
        rank: which of the processes this is.
        world_size: number of processes; together they cover every example once.
        by_length: sort by length; otherwise training batches are drawn at random from all examples.
        groups: `(N,)` examples with the same number come into the same batch; `None` for each by itself.
        noise: relative noise of the lengths, in [0, 1).
        start: where an interrupted run goes on: its epoch leaves out the batches that were taken, and shares the others
            among the processes there are now.

    Raises:
        UserError: if there is no limit, or there are fewer examples than processes.

    Example:
        >>> import numpy as np
        >>> sampler = BucketBatchSampler(np.array([5, 2, 5, 2]), np.array([5, 2, 5, 2]), max_tokens=20, shuffle=False)
        >>> list(sampler)
        [[1, 3], [0, 2]]
    """

    def __init__(
        self,
        source: Ints,
        target: Ints,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        *,
        indices: Ints | None = None,
        shuffle: bool = True,
        longest_first: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        noise: float = 0.05,
        start: Position = Position(),
        groups: Ints | None = None,
        by_length: bool = True,
    ) -> None:
        super().__init__(start)
        if max_tokens is None and batch_size is None:
            raise UserError("expected max_tokens or batch_size, but both are unset: set one")
        numbers = np.arange(len(source))
        indices = numbers if indices is None else indices
        groups = numbers if groups is None else groups
        together = np.argsort(groups, kind="stable")
        _, starts = np.unique(groups[together], return_index=True)
        if len(starts) < world_size:
            raise UserError(
                f"expected at least {world_size} examples for {world_size} processes, but got {len(starts)}"
            )
        self.source, self.target = (np.maximum.reduceat(lengths[together], starts) for lengths in (source, target))
        self.indices, self.offsets = indices[together], starts
        self.sizes = np.diff(starts, append=len(source))
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.shuffle, self.longest_first = shuffle, longest_first
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.noise, self.by_length = noise, by_length
        self._count = self._fixed_count()

    def __len__(self) -> int:
        return self._count // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._left() if self.epoch == self.start.epoch else self._batches()
        left = len(batches) // self.world_size
        for step in range(left):
            batch = batches[step * self.world_size + self.rank]
            place = (len(self) - left + step) * self.world_size + self.rank
            yield BatchRows(self._examples(batch), seed_of(self.seed, self.epoch, place))

    def _examples(self, groups: Ints) -> list[int]:
        pairs = zip(self.offsets[groups].tolist(), self.sizes[groups].tolist(), strict=True)
        return [index for start, size in pairs for index in self.indices[start : start + size].tolist()]

    @property
    def batches_done(self) -> int:
        """Number of batches that this process need not take in the epoch it starts with."""
        return len(self) - len(self._left()) // self.world_size if self.start.taken else 0

    def _batches(self) -> list[Ints]:
        """Return the batches of this epoch for all processes: those of its first step, of its second, ..."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order, bounds = self._draw(rng)
        steps = np.arange(len(self))  # one step: neighbouring batches, one for each process
        if self.shuffle:
            rng.shuffle(steps)
        if self.longest_first:
            largest = int(np.argmax(self._tokens(order, bounds))) // self.world_size
            steps = np.concatenate([[largest], steps[steps != largest]])
        numbers = (steps[:, None] * self.world_size + np.arange(self.world_size)).reshape(-1)
        return [order[bounds[number] : bounds[number + 1]] for number in numbers.tolist()]

    def _left(self) -> list[Ints]:
        """Return what is left of the epoch that an interrupted run goes on with."""
        taken = self.start.taken
        first = self._among(taken[0][1] if taken else self.world_size)
        first.epoch = self.start.epoch
        left = first._batches()
        for batches, world_size in taken:
            left = self._shared(left, world_size)[batches * world_size :]
        return self._shared(left, self.world_size)

    def _shared(self, batches: list[Ints], world_size: int) -> list[Ints]:
        """Change the bounds of batches so that so many processes get equally many."""
        rows = sum(map(len, batches))
        count = min(-(-len(batches) // world_size), rows // world_size) * world_size
        if count in (0, len(batches)):
            return batches[:count]
        order = np.concatenate(batches)
        bounds = self._fit(order, np.cumsum([0, *map(len, batches)]), count)
        return np.split(order, bounds[1:-1])

    def _among(self, world_size: int) -> Self:
        """Return the sampler for another number of processes."""
        other = copy.copy(self)
        if world_size != self.world_size:
            other.world_size = world_size
            other._count = other._fixed_count()
        return other

    def _fixed_count(self) -> int:
        """Choose the number of batches of every epoch; a little room lets nearly every shuffled order fit."""
        count = len(self._bounds(self._order(None))) - 1
        if self.shuffle:
            shuffled = len(self._bounds(self._order(np.random.default_rng((self.seed, 0))))) - 1
            count = max(count, math.ceil(1.01 * shuffled))
        total = len(self.source)
        multiple = -(-count // self.world_size) * self.world_size
        return min(multiple, total // self.world_size * self.world_size)

    def _draw(self, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return an order of the examples `(N,)` and the bounds `(count + 1,)` of the batches in it."""
        for source_of_chance in [rng] * 5 + [None] if self.shuffle else [None]:
            order = self._order(source_of_chance)
            bounds = self._bounds(order)
            if len(bounds) - 1 <= self._count:
                break
        return order, self._fit(order, bounds, self._count)

    def _fit(self, order: Ints, bounds: Ints, count: int) -> Ints:
        """Change the bounds of the batches so that there are `count` of them."""
        while len(bounds) - 1 < count:  # split the batches of most examples
            sizes = np.diff(bounds)
            largest = np.argsort(-sizes, kind="stable")[: count + 1 - len(bounds)]
            largest = largest[sizes[largest] > 1]
            halves = [_round(half) for half in (sizes[largest] // 2).tolist()]
            bounds = np.sort(np.concatenate([bounds, bounds[largest] + halves]))
        while len(bounds) - 1 > count:  # only where single examples cannot be shared out evenly
            pairs = self._tokens(order, bounds)
            bounds = np.delete(bounds, 1 + int(np.argmin(pairs[1:] + pairs[:-1])))
        return bounds

    def _order(self, rng: np.random.Generator | None) -> Ints:
        """Sort by buckets of source length, by target length up and down in turn within them; or shuffle."""
        if rng is not None and not self.by_length:
            return rng.permutation(len(self.source))
        source, target = self.source.astype(np.float64), self.target.astype(np.float64)
        phase, ties = 0.0, np.arange(len(source), dtype=np.float64)
        if rng is not None:
            source *= 1 + self.noise * rng.uniform(-1, 1, len(source))
            target *= 1 + self.noise * rng.uniform(-1, 1, len(source))
            phase, ties = rng.random(), rng.random(len(source))
        bucket = np.floor(_BUCKETS * np.log1p(source) + phase).astype(np.int64)
        return np.lexsort((ties, np.where(bucket % 2, -target, target), bucket))

    def _bounds(self, order: Ints) -> Ints:
        """Cut an order greedily under the limits."""
        budget = self.max_tokens or math.inf
        most = self.batch_size or math.inf
        lengths = list(zip(*(column[order].tolist() for column in (self.source, self.target, self.sizes)), strict=True))
        bounds, position, count, widest, tallest = [0], 0, 0, 0, 0
        while position < len(lengths):
            source, target, size = lengths[position]
            widest = source if source > widest else widest
            tallest = target if target > tallest else tallest
            count += size
            if count > size and (count > most or count * (widest + tallest) > budget):
                if count <= most:
                    position = bounds[-1] + _round(position - bounds[-1])
                bounds.append(position)
                count, widest, tallest = 0, 0, 0
            else:
                position += 1
        return np.array([*bounds, len(order)])

    def _tokens(self, order: Ints, bounds: Ints) -> Ints:
        widest, tallest = (np.maximum.reduceat(x[order], bounds[:-1]) for x in (self.source, self.target))
        return np.add.reduceat(self.sizes[order], bounds[:-1]) * (widest.astype(np.int64) + tallest)


def _round(rows: int) -> int:
    """Round a number of rows down to its four highest binary digits, such as 8, 9, ... 15, 16, 18, ... 30, 32, 36.

    Batches then come in fewer shapes, for each of which oneDNN makes kernels and keeps them.
    """
    step = 1 << max(0, rows.bit_length() - 4)
    return rows - rows % step


def seed_of(*numbers: int) -> int:
    """Mix numbers into a seed."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)
