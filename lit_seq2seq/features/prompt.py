"""The input of a model without a source: what its output begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from lit_seq2seq.features.feature import Array, TextFeature, batch_of
from lit_seq2seq.features.tokenizer import Tokenizer
from lit_seq2seq.types import Padded, UserError


class Prompt(TextFeature):
    """Reads what an output begins with, for a model without a source, such as a language model; it may be empty.

    A prompt is a text in the symbols of the target. It becomes their ids and then padding, which stands for what is to
    be written; search takes them as given. There are none in training: the targets are all there is to learn from.

    Example:
        >>> target = Tokenizer("char")
        >>> target.train(["abc"])
        >>> [ids.tolist() for ids in Prompt().beside(target).encode(["ab", "", None])]
        [[4, 5, 0], [0], [0]]
    """

    input_kind: ClassVar[str] = "a text that the output begins with, or an empty one"
    begins_output: ClassVar[bool] = True

    def __init__(self) -> None:
        self.config = {}
        self._target: Tokenizer | None = None

    def beside(self, target: Tokenizer) -> Self:
        """Return a feature that has the symbols of this target."""
        found = type(self)()
        found._target = target
        return found

    @property
    def target(self) -> Tokenizer:
        """The tokenizer of outputs."""
        if self._target is None:
            raise UserError("a Prompt is read by the tokenizer of the target: put both into a Processor")
        return self._target

    @property
    def size(self) -> int:
        """0: no encoder has anything to read."""
        return 0

    @property
    def padding(self) -> int:
        """That of the target."""
        return self.target.padding

    def accepts(self, raw: object) -> bool:
        """Tell whether this is a text, or nothing."""
        return raw is None or isinstance(raw, str)

    def is_missing(self, raw: object) -> bool:
        """No prompt is one, too."""
        return False

    def typed(self, raw: Any) -> str:
        """Write no prompt as an empty line."""
        return raw or ""

    def encode(self, raw: Sequence[Any], training: bool = False) -> list[Array]:
        """Turn prompts into ids, then padding: `(P + 1,)`."""
        found = self.target.encode_batch(["" if text is None else text for text in raw])
        return [np.array([*ids, self.padding], np.int32) for ids in found]

    def nothing(self) -> Array:
        """Return padding alone."""
        return np.array([self.padding], np.int32)

    def random(self, count: int, length: int, generator: np.random.Generator) -> Padded:
        """Return no prompts, padded to a length."""
        return batch_of(np.full((count, length), self.padding), [1] * count)
