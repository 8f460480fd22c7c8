"""What every built-in dataset is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from datasets import DatasetDict


class BuiltinDataset(ABC):
    """Data that is made on the machine, without download."""

    @abstractmethod
    def load(self) -> DatasetDict:
        """Return the splits `train`, `validation` and `test`."""
