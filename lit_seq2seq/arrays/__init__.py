"""The array functions that search needs, by NumPy or by torch, each the fast way of its library."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

Array: TypeAlias = Any
"""An array of NumPy or a tensor of torch."""
F = TypeVar("F", bound=Callable[..., Any])


def is_array(value: object) -> bool:
    """Whether a value is an array of either library."""
    return hasattr(value, "ndim")


def of(array: Array) -> Arrays:
    """Return the functions for arrays of this one's library, on its device."""
    if isinstance(array, np.ndarray):
        return NUMPY
    return on(array.device)


def on(device: Any) -> Arrays:
    """Return the functions for tensors of torch on a device; `None`: for arrays of NumPy."""
    if device is None:
        return NUMPY
    from lit_seq2seq.arrays.tensors import Tensors

    return Tensors(device)


def quiet(function: F) -> F:
    """Run a search function, which takes `device`, without warnings about infinity and without gradients."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        with on(options.get("device", "cpu")).quiet():
            return function(*args, **options)

    return cast(F, run)


def log_mean(arrays: Sequence[Array]) -> Array:
    """Average probabilities that are given as logarithms: a new array, with at least 32 bits."""
    xp = of(arrays[0])
    return functools.reduce(xp.logaddexp, map(xp.wide, arrays)) - math.log(len(arrays))


def _logaddexp(first: Array, second: Array) -> Array:
    """Add what is given as logarithms; `np.logaddexp` takes up to ten times as long."""
    highest = np.maximum(first, second).clip(-1e30)
    with np.errstate(divide="ignore"):
        return highest + np.log(np.exp(first - highest) + np.exp(second - highest))


class Arrays:
    """Functions of NumPy, under the same names as those of torch in `lit_seq2seq.arrays.tensors.Tensors`.

    Only what the two libraries spell differently is here: indexing, comparisons, `+`, `sum`, `reshape` and so on are
    the same in both. New arrays of integers have 64 bits, others 32.
    """

    log: Any = staticmethod(np.log)
    exp: Any = staticmethod(np.exp)
    where: Any = staticmethod(np.where)
    logaddexp: Any = staticmethod(_logaddexp)
    full_like: Any = staticmethod(np.full_like)

    def quiet(self) -> AbstractContextManager[object]:
        """Return a context without warnings about infinity and without gradients."""
        return np.errstate(divide="ignore", invalid="ignore", over="ignore")

    def array(self, values: Any) -> Array:
        """Make an array of numbers, or of an array of NumPy."""
        made = np.asarray(values)
        return made.astype(np.float32) if made.dtype == np.float64 and not isinstance(values, np.ndarray) else made

    def random(self, seed: int | None) -> np.random.Generator:
        """Return a random generator, repeatable if there is a seed, which may be negative."""
        return np.random.default_rng(None if seed is None else seed % 2**64)

    def host(self, array: Array) -> Array:
        """Move an array to the CPU."""
        return array

    def arange(self, stop: int) -> Array:
        """Count from 0 to below `stop`."""
        return np.arange(stop)

    def full(self, shape: Sequence[int], value: bool | int | float) -> Array:
        """Make an array of one value."""
        return np.full(shape, value, np.float32 if isinstance(value, float) else None)

    def wide(self, array: Array, copy: bool = False) -> Array:
        """Turn numbers into floats of at least 32 bits."""
        return array.astype(np.promote_types(array.dtype, np.float32), copy=copy)

    def single(self, array: Array) -> Array:
        """Turn numbers into floats of 32 bits."""
        return array.astype(np.float32)

    def integers(self, array: Array) -> Array:
        """Turn ids into integers of 64 bits, on the device."""
        return self.array(array).astype(np.int64, copy=False)

    def copy(self, array: Array) -> Array:
        """Copy an array."""
        return array.copy()

    def double(self, array: Array) -> Array:
        """Turn numbers into floats of 64 bits."""
        return array.astype(np.float64)

    def take(self, array: Array, index: Array) -> Array:
        """Take rows by their numbers."""
        return array[index]

    def repeat(self, array: Array, times: int) -> Array:
        """Repeat each row in place: `a a b b ...`."""
        return np.repeat(array, times, axis=0)

    def concat(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        """Join arrays."""
        return np.concatenate(arrays, axis)

    def gather(self, array: Array, index: Array, axis: int = -1) -> Array:
        """Take values along an axis by an index of as many dimensions."""
        return np.take_along_axis(array, index, axis)

    def put(self, array: Array, index: Array, value: float | Array) -> Array:
        """Write values in place, along the last axis."""
        np.put_along_axis(array, index, value, -1)
        return array

    def counts(self, ids: Array, size: int) -> Array:
        """Count how often each of `size` ids stands in each row of `(B, M)`: `(B, size)` floats."""
        found = np.zeros((len(ids), size), np.float32)
        np.add.at(found, (np.arange(len(ids))[:, None], ids), 1)
        return found

    def nonzero(self, mask: Array) -> Array:
        """List where a mask of one dimension is true."""
        return np.flatnonzero(mask)

    def amax(self, array: Array, axis: int = -1, keepdims: bool = False) -> Array:
        """Take the largest values along an axis."""
        return array.max(axis, keepdims=keepdims)

    def first(self, mask: Array) -> Array:
        """Find the first place along the last axis where a mask is true."""
        return mask.argmax(-1)

    def cumsum(self, array: Array) -> Array:
        """Sum up along the last axis, in double precision."""
        return np.cumsum(array, axis=-1, dtype=np.float64 if array.dtype.kind == "f" else None)

    def logcumsumexp(self, array: Array) -> Array:
        """Sum up along the last axis what is given as logarithms."""
        return np.logaddexp.accumulate(array, axis=-1)

    def logsumexp(self, array: Array, axis: int = -1) -> Array:
        """Sum along an axis what is given as logarithms."""
        highest = array.max(axis, keepdims=True).clip(-1e30)
        return np.log(np.exp(array - highest).sum(axis)) + highest.squeeze(axis)

    def softmax(self, array: Array) -> Array:
        """Turn scores into probabilities, along the last axis."""
        values = np.exp(array - array.max(-1, keepdims=True))
        return values / values.sum(-1, keepdims=True)

    def windows(self, array: Array, size: int) -> Array:
        """List all runs of `size` neighbours in rows of `(N, T)`: `(N, T - size + 1, size)`."""
        return np.lib.stride_tricks.sliding_window_view(array, size, axis=1)

    def sort_down(self, array: Array) -> tuple[Array, Array]:
        """Sort the last axis in descending order, stably; also return where each value was. NaN comes first."""
        order = np.argsort(np.where(np.isnan(array), -np.inf, -array), axis=-1, kind="stable")
        return np.take_along_axis(array, order, -1), order

    def largest(self, array: Array, count: int) -> tuple[Array, Array]:
        """Find the `count` largest along the last axis and their places, equal ones by place."""
        if count == 1:
            index = array.argmax(-1)[..., None]
        elif count < array.shape[-1]:
            index = np.sort(np.argpartition(-array, count - 1, axis=-1)[..., :count], axis=-1)
        else:
            index = np.broadcast_to(np.arange(array.shape[-1]), array.shape)
        values, order = self.sort_down(np.take_along_axis(array, index, -1))
        return values, np.take_along_axis(index, order, -1)

    def top(self, log_probs: Array, offsets: Array, count: int) -> tuple[Array, Array, Array]:
        """Find the best continuations; see `Tensors.top`."""
        size = log_probs.shape[-1]
        scores, tokens = self.largest(log_probs, min(count, size))  # (B, K, C)
        sums, places = self.largest(
            (offsets[..., None] + scores).reshape(len(scores), -1), min(count, offsets.shape[1] * size)
        )
        return sums, places // scores.shape[2], np.take_along_axis(tokens.reshape(len(tokens), -1), places, 1)


NUMPY = Arrays()
