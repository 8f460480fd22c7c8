"""An encoder of encoders, for several sources at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.types import CellState, Encoded, Padded, Sources

_BEYOND = 1 << 40
"""More positions than there are."""


@dataclass(frozen=True)
class JoinedMemory(Padded):
    """Memories of several sources as one sequence: the real positions of the first, then those of the next.

    Attributes:
        parts: the memory of each source by its name, `(B, S_k, M)`.
        order: `(B, S)` where each position of this sequence stands in the padded `parts` laid side by side.
    """

    parts: Mapping[str, Padded]
    order: Tensor

    @classmethod
    def of(cls, parts: Mapping[str, Padded]) -> Self:
        """Join memories of one size.

        Example:
            >>> text = Padded(torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]]), torch.tensor([2, 1]))
            >>> image = Padded(torch.tensor([[[7.0]], [[8.0]]]), torch.tensor([1, 1]))
            >>> JoinedMemory.of({"text": text, "image": image}).values[..., 0].tolist()
            [[1.0, 2.0, 7.0], [3.0, 8.0, 0.0]]
        """
        padding = ~torch.cat([part.mask for part in parts.values()], dim=1)  # (B, S)
        places = torch.arange(padding.shape[1], device=padding.device)
        order = torch.where(padding, places + _BEYOND, places).argsort(dim=1)  # stable, as no two are alike
        values = torch.cat([part.values for part in parts.values()], dim=1)
        values = values.gather(1, order[..., None].expand_as(values))
        return cls(values, (~padding).sum(dim=1), parts, order)

    def regions(self, row: int) -> dict[str, int]:
        """Real positions of each source."""
        return {name: int(part.lengths[row]) for name, part in self.parts.items()}


class MultiSourceEncoder(Encoder):
    """Encodes each source by an encoder of its own (Zoph & Knight 2016, https://arxiv.org/abs/1601.00710).

    The memory vectors of every encoder are projected to `hidden_size`, by the `U_c` of Libovicky & Helcl (2017,
    https://arxiv.org/abs/1704.06567), and laid in one sequence. Any attention over it is their *flat* combination;
    `HierarchicalAttention` is their hierarchical one. The final states of all encoders together make one vector by a
    dense layer with tanh, from which any bridge starts the decoder.

    Args:
        sizes: of each source, as its feature gives it.
        encoders: makes the encoder of each source; the same names as in the data's `MultiSource`.
        hidden_size: size of the memory vectors and of the final state.

    Raises:
        ValueError: the names are others than those of the sources.
    """

    def __init__(
        self, sizes: Mapping[str, int] | int, encoders: Mapping[str, Callable[[Any], Encoder]], hidden_size: int = 512
    ) -> None:
        super().__init__()
        if not isinstance(sizes, Mapping) or set(encoders) != set(sizes):
            named = list(sizes) if isinstance(sizes, Mapping) else []
            raise ValueError(
                f"expected an encoder for each source, {', '.join(named) or 'but there is only one'}, got encoders for "
                f"{', '.join(encoders) or 'none'}: name the sources of data.source_feature, a MultiSource"
            )
        self.encoders = nn.ModuleDict({name: encoders[name](size) for name, size in sizes.items()})
        shapes = {name: self._encoder(name).shape for name in sizes}
        self.projections = nn.ModuleDict(
            {name: Linear(shape.memory_size, hidden_size, bias=False) for name, shape in shapes.items()}
        )
        finals = sum(shape.final_layers * sum(shape.sizes) for shape in shapes.values())
        self.final = Linear(finals, hidden_size)
        self.shape = EncoderShape(hidden_size, 1, hidden_size)

    def _encoder(self, name: str) -> Encoder:
        encoder = self.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder

    def completed(self, description: dict[str, Any]) -> dict[str, Any]:
        """Return its own description with the settings that each encoder has beside those given."""
        given = description["init_args"]["encoders"]
        encoders = {name: self._encoder(name).completed(given[name]) for name in self.encoders}
        return {**description, "init_args": {**description["init_args"], "encoders": encoders}}

    def forward(self, source: Sources) -> Encoded:  # type: ignore[override]
        """Encode all sources of each example."""
        encoded: dict[str, Encoded] = {name: encoder(source.parts[name]) for name, encoder in self.encoders.items()}
        parts = {
            name: Padded(self.projections[name](part.memory.values), part.memory.lengths)
            for name, part in encoded.items()
        }
        finals = [state.flatten(1) for part in encoded.values() for state in part.final.values]
        final = torch.tanh(self.final(torch.cat(finals, dim=1)))  # (B, M)
        return Encoded(JoinedMemory.of(parts), CellState(final[:, None]))
