"""What constraints and scorers may know about a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lit_seq2seq.arrays import Arrays
from lit_seq2seq.types import Padded, SpecialIds, StepFunction, UserError


class OutputVocabulary(Protocol):
    """What constraints ask of the output vocabulary."""

    @property
    def specials(self) -> SpecialIds:
        """Ids of the special symbols."""

    def __len__(self) -> int:
        """Return the number of symbols."""

    @property
    def symbols(self) -> list[str]:
        """Names of the symbols by id."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Turn texts into ids, without BOS and EOS."""

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Turn ids into texts."""


class OtherModel(Protocol):
    """What scorers ask of a model beside the one that searches."""

    @property
    def vocabulary(self) -> OutputVocabulary:
        """Its vocabulary of outputs."""

    @property
    def reads_sources(self) -> bool:
        """Whether its outputs are those of some source, unlike the texts of a language model."""

    def begin(self, raw: Sequence[Any]) -> tuple[StepFunction[Any], Any]:
        """Return its step function, and its state before BOS for some raw inputs, one hypothesis each."""


class Host(Protocol):
    """What scorers ask of the model that searches."""

    def other(self, name: str) -> OtherModel:
        """Return another model by its folder or name, loaded once.

        Raises:
            UserError: there is none.
        """

    def blind(self) -> tuple[StepFunction[Any], Any]:
        """Return the step function, and a first state that knows nothing about the sources.

        Raises:
            UserError: an exported model has none.
        """


@dataclass(frozen=True)
class Task:
    """What a search is about, for its constraints and scorers.

    Attributes:
        batch_size: number of sentences B.
        specials: ids of the special symbols.
        xp: functions of the arrays that the search is made with.
        vocabulary: of the outputs; `None` where ids are all that is known.
        raw: the raw input of each sentence; empty where they are not at hand.
        host: the model that searches; `None` where there is but a step function.
        frames: `(B, S, V)` log-probabilities that CTC gives symbols and the blank (padding); `None` without CTC.
    """

    batch_size: int
    specials: SpecialIds
    xp: Arrays
    vocabulary: OutputVocabulary | None = None
    raw: Sequence[Any] = ()
    host: Host | None = None
    frames: Padded | None = None

    @property
    def words(self) -> OutputVocabulary:
        """The vocabulary of the outputs.

        Raises:
            UserError: it is not known.
        """
        if self.vocabulary is None:
            raise UserError("options that are texts need a vocabulary: give search one, or call generate of a model")
        return self.vocabulary

    def other(self, name: str) -> OtherModel:
        """Return another model; see `Host.other`."""
        if self.host is None:
            raise UserError(f"{name} is asked for by a scorer, which needs a model to search with: use its generate")
        return self.host.other(name)

    def inputs(self, who: str) -> Sequence[Any]:
        """Return the raw inputs.

        Raises:
            UserError: they are not at hand.
        """
        if len(self.raw) != self.batch_size:
            raise UserError(
                f"{who} looks at the raw inputs, which are not at hand: use generate, a pipeline or predict"
            )
        return self.raw
