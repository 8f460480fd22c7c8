"""Text as the tokenizer of a pretrained model of `transformers` splits it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import tokenizers

from lit_seq2seq.features.feature import Array, TextFeature
from lit_seq2seq.features.text import whole
from lit_seq2seq.files.untrusted import check_special, check_tokenizer, tokenizing
from lit_seq2seq.types import UserError, install


class PretrainedTokenizer(TextFeature):
    """The tokenizer of a pretrained text encoder, with the special symbols that its model expects around a text.

    A saved model holds the tokenizer, so that loading does not look for `name`.

    Args:
        name: hub id or folder, as that of `lit_seq2seq.nn.TextBackbone`.

    Raises:
        UserError: transformers is not installed, or there is no such tokenizer, or none with a `tokenizer.json`.
    """

    input_limit: ClassVar[int | None] = 512

    def __init__(self, name: str) -> None:
        self.config = {"name": name}
        self._set(*_load(name))

    def _set(self, text: str, pad: int) -> None:
        self._json, self._pad = text, pad
        with tokenizing():
            self._backend = tokenizers.Tokenizer.from_str(text)
        self._size = 1 + max(self._backend.get_vocab().values(), default=-1)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True  # what a text holds is text, also "[SEP]"
        check_special([pad, *self.nothing().tolist()], self._size)

    @property
    def size(self) -> int:
        """Number of ids, the special ones included."""
        return self._size

    @property
    def symbols(self) -> list[str]:
        """Names of the symbols by id."""
        return [str(self._backend.id_to_token(index)) for index in range(self.size)]

    @property
    def padding(self) -> int:
        """Id that fills up a batch."""
        return self._pad

    def encode(self, raw: Sequence[str], training: bool = False) -> list[Array]:
        """Turn texts into id arrays `(T,)` with the special symbols of the model."""
        with tokenizing():
            found = self._backend.encode_batch_fast(list(map(whole, raw)), add_special_tokens=True)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in found]

    def nothing(self) -> Array:
        """Return the special symbols alone."""
        return self.encode([""])[0]

    def to_dict(self) -> dict[str, Any]:
        """Describe the tokenizer by plain JSON values."""
        return {"config": self.config, "tokenizer": json.loads(self._json), "pad": self._pad}

    @classmethod
    def from_dict(cls, values: dict[str, Any], trust: tuple[str, ...] = ()) -> Self:
        """Build the tokenizer that `to_dict` described."""
        feature = cls.__new__(cls)
        feature.config = values["config"]
        check_tokenizer(values["tokenizer"], gaps=True)
        feature._set(json.dumps(values["tokenizer"]), int(values["pad"]))
        return feature

    def identity(self) -> dict[str, Any]:
        """Return the vocabulary with its rules, wherever it came from."""
        return {"tokenizer": json.loads(self._json)}


def _load(name: str) -> tuple[str, int]:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError(f"PretrainedTokenizer needs transformers: {install('vision')}") from error
    try:
        found: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the tokenizer of '{name}' cannot be loaded: {reason}") from error
    if not found.is_fast:
        raise UserError(f"the tokenizer of '{name}' has no tokenizer.json: choose a model that has one")
    return str(found.backend_tokenizer.to_str()), int(found.pad_token_id or 0)
