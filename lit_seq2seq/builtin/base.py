"""What every built-in dataset is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict, Features, NamedSplit
from datasets.exceptions import DatasetGenerationError

from lit_seq2seq.types import UserError


class BuiltinDataset(ABC):
    """Data that is made on the machine, without download.

    Example:
        >>> class Doubled(BuiltinDataset):
        ...     def load(self):
        ...         rows = Dataset.from_dict({"source": ["a", "b"], "target": ["a a", "b b"]})
        ...         return DatasetDict(train=rows, validation=rows, test=rows)
        >>> Doubled().load()["train"][0]
        {'source': 'a', 'target': 'a a'}
    """

    @abstractmethod
    def load(self) -> DatasetDict:
        """Return the splits `train`, `validation` and `test`."""


class GeneratedDataset(BuiltinDataset):
    """Splits whose rows a function yields; `datasets` keeps them in its cache by that function and its arguments.

    A subclass names the function in `generate`, and passes on in `added` what it takes beside `split`, `size` and
    `seed`. A version among these, `version` or `makers`, gives new rows when the code changes: it is part of the key
    under which rows are cached.

    Args:
        train_size: rows of the train split.
        validation_size: rows of the validation split.
        test_size: rows of the test split.
        seed: draws the rows.
        most: greatest number of rows of a split: one for all, or one for each.
        added: what `generate` takes beside `split`, `size` and `seed`, the same for all splits.

    Raises:
        UserError: a size that is not from 1 to `most`.
    """

    generate: ClassVar[Callable[..., Iterator[Any]]]
    features: ClassVar[Features | None] = None

    def __init__(
        self,
        train_size: int,
        validation_size: int,
        test_size: int,
        seed: int,
        *,
        most: int | Mapping[str, int] = 10_000_000,
        **added: Any,
    ) -> None:
        self.sizes = {"train": train_size, "validation": validation_size, "test": test_size}
        self.seed, self.added = seed, added
        for split, size in self.sizes.items():
            limit = most if isinstance(most, int) else most[split]
            if not 1 <= size <= limit:
                raise UserError(f"expected {split}_size from 1 to {limit}, but it is {size}")

    def arguments(self, split: str) -> dict[str, Any]:
        """Return the arguments of `generate` for a split."""
        return {"split": split, "size": self.sizes[split], "seed": self.seed, **self.added}

    def load(self) -> DatasetDict:
        """Return the splits, made at the first call and read from the cache of `datasets` afterwards."""
        return DatasetDict({split: self._load(split) for split in self.sizes})

    def _load(self, split: str) -> Dataset:
        arguments, named = self.arguments(split), NamedSplit(split)
        try:
            return Dataset.from_generator(self.generate, self.features, gen_kwargs=arguments, split=named)
        except DatasetGenerationError as error:
            raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None
