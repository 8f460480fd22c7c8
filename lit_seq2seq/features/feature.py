"""What turns the raw side of a row into arrays, and arrays into padded tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_seq2seq.types import Padded

Array = npt.NDArray[np.generic]


class Feature(ABC):
    """One kind of model input: text now, later images or speech.

    A feature is learned from data once (`train`), turns raw values into arrays with time as the first dimension
    (`encode`), and pads arrays into a batch (`collate`).
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of symbols of the vocabulary, or the dimension of a feature vector."""

    @property
    def augments(self) -> bool:
        """Whether `encode` is random when training."""
        return False

    @abstractmethod
    def train(self, raw: Iterable[Any], total: int | None = None) -> None:
        """Learn from raw training values.

        Args:
            raw: the values, or lists of them.
            total: how many there are, for the progress bar.
        """

    @abstractmethod
    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn raw values into arrays, each `(T,)` or `(T, F)` with T >= 1.

        Args:
            raw: the values.
            training: whether random augmentation may be applied.
        """

    @abstractmethod
    def truncate(self, array: Array, length: int) -> Array:
        """Shorten an encoded array to at most `length` positions."""

    @abstractmethod
    def collate(self, arrays: Sequence[Array]) -> Padded:
        """Pad encoded arrays at the end into one batch."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Describe the feature by plain JSON values."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> Feature:
        """Build the feature that `to_dict` described."""
