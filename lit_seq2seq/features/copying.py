"""Source symbols by their ids in the target's vocabulary, and new ids for those that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import numpy.typing as npt

from lit_seq2seq.features.tokenizer import Tokenizer

Array = npt.NDArray[np.generic]


class CopyMap:
    """Names what can be copied: per source a vocabulary of its own, which extends the target's (See et al. 2017).

    A source symbol has the id of the target symbol that is written alike. Symbols without one have ids V, V + 1, ... in
    the order of their first occurrence in the source; V is the size of the target's vocabulary. Words unknown to the
    source's vocabulary, too, are told apart where the tokenizer can say which they are; see `Tokenizer.unknown`.

    Args:
        source: tokenizer of the sources.
        target: tokenizer of the targets.

    Example:
        >>> tokenizer = Tokenizer("word")
        >>> tokenizer.train(["meet at noon"])
        >>> copy_map = CopyMap(tokenizer, tokenizer)
        >>> text = "meet Wiseau at noon"
        >>> copy_map.source([text], tokenizer.encode([text]))
        ([array([5, 7, 4, 6, 3])], [('Wiseau',)])
        >>> copy_map.target(["Wiseau"], tokenizer.encode(["Wiseau"]), [("Wiseau",)])
        [array([7, 3], dtype=int32)]
    """

    def __init__(self, source: Tokenizer, target: Tokenizer) -> None:
        self.source_tokenizer, self.target_tokenizer = source, target
        self.names = source.tokens(range(len(source)))
        self.table: npt.NDArray[np.int64] = np.array([self._find(name) for name in self.names])
        for role in ("pad", "unk", "bos", "eos"):  # they may be written differently
            self.table[getattr(source.specials, role)] = getattr(target.specials, role)
        if source.tells_unknown:
            self.table[source.specials.unk] = -1

    def source(self, texts: Sequence[str], arrays: Sequence[Array]) -> tuple[list[Array], list[tuple[str, ...]]]:
        """Name the symbols of sources.

        Args:
            texts: the sources.
            arrays: their ids `(S,)`, possibly cut.

        Returns:
            Per source its target ids `(S,)`, and the symbols V, V + 1, ...
        """
        named = [self._name(text, array) for text, array in zip(texts, arrays, strict=True)]
        return [ids for ids, _ in named], [symbols for _, symbols in named]

    def _name(self, text: str, array: Array) -> tuple[Array, tuple[str, ...]]:
        ids: npt.NDArray[np.int64] = self.table[array]
        places = np.flatnonzero(ids < 0)
        if not len(places):
            return ids, ()
        tokenizer = self.source_tokenizer
        unknown = iter(tokenizer.unknown(text) if tokenizer.tells_unknown else ())
        own: dict[str, int] = {}
        for place in places.tolist():
            index = int(array[place])
            name = next(unknown) if index == tokenizer.specials.unk else self.names[index]
            found = self._find(name)
            ids[place] = len(self.target_tokenizer) + own.setdefault(name, len(own)) if found < 0 else found
        return ids, tuple(own)

    def _find(self, name: str) -> int:
        """Id of the target symbol written like `name`, -1 if there is none; raw text never is a special symbol."""
        tokenizer = self.target_tokenizer
        index = tokenizer.backend.token_to_id(name)
        return -1 if index is None or index in astuple(tokenizer.specials) else int(index)

    def target(self, texts: Sequence[str], arrays: Sequence[Array], symbols: Sequence[tuple[str, ...]]) -> list[Array]:
        """Give unknown symbols of targets the ids that their sources have given them.

        Args:
            texts: the targets.
            arrays: their ids `(T,)`.
            symbols: per target the symbols that `source` has found.

        Returns:
            The ids; what the source does not have stays unknown.
        """
        return [self._extend(*row) for row in zip(texts, arrays, symbols, strict=True)]

    def _extend(self, text: str, array: Array, symbols: tuple[str, ...]) -> Array:
        unk = self.target_tokenizer.specials.unk
        places = np.flatnonzero(array == unk)
        if not len(places) or not symbols or not self.target_tokenizer.tells_unknown:
            return array
        own = {name: len(self.target_tokenizer) + index for index, name in enumerate(symbols)}
        ids = array.copy()
        ids[places] = [own.get(name, unk) for name in self.target_tokenizer.unknown(text)]
        return ids
