"""What every encoder promises, whatever it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_seq2seq.types import CellState, Encoded, Padded, Source, UserError, Value

_KINDS = {None: "several sources", 2: "text", 3: "frames, as of recordings", 4: "images"}


@dataclass(frozen=True)
class EncoderShape:
    """Sizes that a decoder needs to know of its encoder.

    Attributes:
        memory_size: size M of the memory vectors.
        final_layers: number of layers whose final states are given.
        final_size: size F of each final output.
        others: sizes of what else the final states hold, such as LSTM cell vectors.
    """

    memory_size: int
    final_layers: int
    final_size: int
    others: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of all vectors in the final state of a layer, that of its output first."""
        return (self.final_size, *self.others)


class Encoder(nn.Module, ABC):
    """Base of all encoders: a padded source in, one memory vector per position and final states out.

    Example:
        >>> import torch
        >>> class WordVectors(Encoder):
        ...     shape = EncoderShape(memory_size=4, final_layers=1, final_size=4)
        ...     def __init__(self, source_size):
        ...         super().__init__()
        ...         self.embedding = nn.Embedding(source_size, 4)
        ...     def forward(self, source):
        ...         vectors = self.embedding(source.values) * source.mask[..., None]
        ...         return Encoded(Padded(vectors, source.lengths), CellState(vectors.sum(dim=1, keepdim=True)))
        >>> WordVectors(10)(Padded(torch.tensor([[4, 5], [6, 0]]), torch.tensor([2, 1]))).memory.values.shape
        torch.Size([2, 2, 4])
    """

    shape: EncoderShape
    """Sizes of what `forward` returns."""

    alone: ClassVar[bool] = False
    """Whether an exported graph of it reads one source at a time, without padding."""

    dimensions: ClassVar[int | None] = None
    """Of the values that it reads: 2 of symbols, 3 of frames, 4 of images; `None` if it says nothing of them."""

    resolves: ClassVar[tuple[str, ...]] = ()
    """Names of arguments that are in the description of every saved model; see `resolved`."""

    cure: ClassVar[str] = "choose another encoder, such as TextEncoder or PyramidalEncoder with bidirectional: false"
    """What to do where it has to read in pieces and cannot."""

    @property
    def shortest(self) -> int:
        """Number of positions that a source must have."""
        return 1

    @property
    def token_embedding(self) -> nn.Embedding | None:
        """The embedding of source symbols, for tying and for pretrained vectors; `None` where there is none."""
        return None

    @property
    def resolved(self) -> dict[str, Any]:
        """Settings that a saved model has beside those given, so that nothing else is needed to build it."""
        return {}

    def completed(self, description: dict[str, Any]) -> dict[str, Any]:
        """Return its own description with the settings that `resolved` gives."""
        return {**description, "init_args": {**description["init_args"], **self.resolved}}

    def __call__(self, source: Source) -> Encoded:
        """Encode a batch.

        Raises:
            UserError: the source is of another kind, such as text for an encoder of images.
        """
        given = source.values.dim() if isinstance(source, Padded) else None
        if self.dimensions is not None and given != self.dimensions:
            raise UserError(
                f"{type(self).__name__} reads {_KINDS[self.dimensions]}, but the source is "
                f"{_KINDS.get(given, 'of another kind')}: choose another encoder, or another data.source_feature"
            )
        encoded: Encoded = super().__call__(source)
        return encoded

    @abstractmethod
    def forward(self, source: Padded) -> Encoded:
        """Encode `source`, ids `(B, S)` or features `(B, S, F)`; padding must not influence the result."""

    def reach(self, count: int) -> int | None:
        """Tell how many source positions the first `count` memory vectors need; `None`: the whole source."""
        return None

    def span(self, count: int) -> int:
        """Tell how many source positions the first `count` memory vectors stand for, whatever else they have seen."""
        return count

    @property
    def lookahead(self) -> int | None:
        """Number of positions that a memory vector waits for after its own, at most; `None`: the whole source."""
        reach = self.reach(1)
        return None if reach is None else reach - 1

    def begin(self, batch_size: int) -> Value:
        """Make the state before the first piece of each of `batch_size` sources, or streams.

        A state has a constant size, and streams are its rows: `select` takes some of them, `Value.joined` puts those of
        several states together.

        Raises:
            UserError: the encoder needs the whole source.
        """
        raise UserError(f"{type(self).__name__} cannot read in pieces, as it needs the whole source: {self.cure}")

    def extend(self, state: Any, piece: Padded, last: Tensor) -> tuple[Padded, Any]:
        """Read on, in evaluation mode and without gradients: pieces together give what `forward` makes of the whole.

        Args:
            state: from `begin`, or of the pieces before.
            piece: `(B, P)` ids or `(B, P, F)` features that are new, as many of each stream as there are: also none.
            last: `(B,)` booleans, whether a stream ends with this piece. Nothing comes after its end.

        Returns:
            The memory vectors that are new, `(B, P', M)`, as many of each stream as there are; and the state.
        """
        raise NotImplementedError

    def final_state(self, state: Any) -> CellState:
        """Return the final states `(B, L, F)` of `forward`, of the streams that have ended."""
        raise NotImplementedError
