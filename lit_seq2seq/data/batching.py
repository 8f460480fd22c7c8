"""Batches of examples of similar length, under a token budget."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from lit_seq2seq.types import UserError

Ints = npt.NDArray[np.integer]
_BUCKETS = 8  # source lengths in one bucket differ by a factor of exp(1 / 8) at most


class BucketBatchSampler(Sampler[list[int]]):
    """Cuts examples sorted by length into batches, and shuffles the batches.

    Every epoch has other batches: lengths are multiplied by `1 + noise u`, u uniform in [-1, 1], before they are
    sorted, and the edges of the buckets of source lengths move. An epoch is a pure function of `(seed, epoch)`. Every
    epoch, and every process, has the same number of batches.

    Args:
        source: `(N,)` source lengths.
        target: `(N,)` target lengths.
        max_tokens: greatest size of a batch of B examples, padding counted: `B (max source + max target)`; a longer
            example makes a batch of its own.
        batch_size: greatest number of examples of a batch; at least one of the two limits is needed.
        indices: `(N,)` what the batches hold; `None` for the positions 0 to N - 1.
        shuffle: shuffle; otherwise batches come from the shortest to the longest, the same each epoch.
        longest_first: let the largest batch come first, so that one too large for the memory fails at once.
        seed: of the shuffling.
        rank: which of the processes this is.
        world_size: number of processes; together they cover every example once.
        noise: relative noise of the lengths, in [0, 1).

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
        indices: Ints | None = None,
        shuffle: bool = True,
        longest_first: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        noise: float = 0.05,
    ) -> None:
        check_limits(max_tokens, batch_size)
        if len(source) < world_size:
            raise UserError(
                f"expected at least {world_size} examples for {world_size} processes, but got {len(source)}"
            )
        self.source, self.target = source, target
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.indices = np.arange(len(source)) if indices is None else indices
        self.shuffle, self.longest_first = shuffle, longest_first
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.noise = noise
        self.epoch = 0
        self._count = self._fixed_count()

    def __len__(self) -> int:
        return self._count // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order, bounds = self._draw(rng)
        steps = np.arange(len(self))  # one step: neighbouring batches, one for each process
        if self.shuffle:
            rng.shuffle(steps)
        if self.longest_first:
            largest = int(np.argmax(self._tokens(order, bounds))) // self.world_size
            steps = np.concatenate([[largest], steps[steps != largest]])
        for batch in (steps * self.world_size + self.rank).tolist():
            yield self.indices[order[bounds[batch] : bounds[batch + 1]]].tolist()

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
        while len(bounds) - 1 < self._count:  # split the batches of most examples
            sizes = np.diff(bounds)
            largest = np.argsort(-sizes, kind="stable")[: self._count + 1 - len(bounds)]
            largest = largest[sizes[largest] > 1]
            bounds = np.sort(np.concatenate([bounds, bounds[largest] + sizes[largest] // 2]))
        while len(bounds) - 1 > self._count:  # only where single examples cannot be shared out evenly
            pairs = self._tokens(order, bounds)
            bounds = np.delete(bounds, 1 + int(np.argmin(pairs[1:] + pairs[:-1])))
        return order, bounds

    def _order(self, rng: np.random.Generator | None) -> Ints:
        """Sort by buckets of source length, and by target length up and down in turn within them."""
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
        size = self.batch_size or len(order)
        bounds, start, widest, tallest = [0], 0, 0, 0
        for position, (source, target) in enumerate(
            zip(self.source[order].tolist(), self.target[order].tolist(), strict=True)
        ):
            widest = source if source > widest else widest
            tallest = target if target > tallest else tallest
            count = position + 1 - start
            if count > 1 and (count > size or count * (widest + tallest) > budget):
                bounds.append(position)
                start, widest, tallest = position, source, target
        return np.array([*bounds, len(order)])

    def _tokens(self, order: Ints, bounds: Ints) -> Ints:
        widest = np.maximum.reduceat(self.source[order], bounds[:-1])
        tallest = np.maximum.reduceat(self.target[order], bounds[:-1])
        return np.diff(bounds) * (widest.astype(np.int64) + tallest)


def check_limits(max_tokens: int | None, batch_size: int | None) -> None:
    """Raise a `UserError` unless at least one of the two limits is given, and both are positive."""
    if max_tokens is None and batch_size is None:
        raise UserError("expected max_tokens or batch_size, but both are unset: set one")
    for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"expected {name} to be at least 1, but it is {value}")
