"""What every built-in dataset is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
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


def read_table(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the columns of a table of this folder, its fields divided by tabs."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return tuple(zip(*(line.split("\t") for line in lines), strict=True))


class GeneratedDataset(BuiltinDataset):
    """Splits whose rows a function yields; `datasets` keeps them in its cache by that function and its arguments.

    A subclass names the function in `generate`, and passes on in `added` what it takes beside `split`, `size` and
    `seed`. What it gets as `version` is for the key of the cache alone.

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
    edition: ClassVar[int] = 1
    """To be raised when a change of the code changes the rows."""
    makers: ClassVar[Sequence[str]] = ()
    """Packages that write the rows, another version of which may write others."""

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
        edition = [str(self.edition), *(f"{name} {version(name)}" for name in self.makers)]
        known = {"split": split, "size": self.sizes[split], "seed": self.seed, "version": " ".join(edition)}
        return known | self.added

    def load(self) -> DatasetDict:
        """Return the splits, made at the first call and read from the cache of `datasets` afterwards."""
        return DatasetDict({split: self._load(split) for split in self.sizes})

    def _load(self, split: str, **more: Any) -> Dataset:
        arguments, named = {**self.arguments(split), **more}, NamedSplit(split)
        try:
            return Dataset.from_generator(self.generate, self.features, gen_kwargs=arguments, split=named)
        except DatasetGenerationError as error:
            raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None
