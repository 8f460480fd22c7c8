"""Bridges: how an encoder's result becomes a decoder's first state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import masked_mean
from lit_seq2seq.types import CellState, Encoded


@dataclass(frozen=True)
class StateShape:
    """Shape of a decoder's recurrent state: `num_layers` vectors of `hidden_size`, and as many of each of `others`."""

    num_layers: int
    hidden_size: int
    others: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of all vectors of a layer, that of its output first."""
        return (self.hidden_size, *self.others)


class Bridge(nn.Module, ABC):
    """Base of all bridges.

    Args:
        encoder: sizes of the encoder's result.
        state: shape of the state to make.

    Example:
        >>> class Halved(Bridge):
        ...     def forward(self, encoded):
        ...         return CellState(encoded.final.h / 2)
        >>> bridge = Halved(EncoderShape(2, 1, 2), StateShape(1, 2))
        >>> from lit_seq2seq.types import Padded
        >>> encoded = Encoded(Padded(torch.ones(1, 3, 2), torch.tensor([3])), CellState(torch.ones(1, 1, 2)))
        >>> bridge(encoded).h
        tensor([[[0.5000, 0.5000]]])
    """

    reads_end: ClassVar[bool] = True
    """Whether it reads what an encoder knows only at the end of the source, so that no output can begin before."""

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__()
        self.encoder = encoder
        self.state = state

    @abstractmethod
    def forward(self, encoded: Encoded) -> CellState:
        """Make a decoder state `(B, L, H)`."""

    def _split(self, flat: Tensor) -> CellState:
        """Cut `(B, L * H + L * H_1 + ...)` into a state."""
        layers = self.state.num_layers
        parts = torch.split(flat, [layers * size for size in self.state.sizes], dim=1)
        return CellState.of(part.view(part.shape[0], layers, -1) for part in parts)

    @property
    def _flat_size(self) -> int:
        return self.state.num_layers * sum(self.state.sizes)


class LastState(Bridge):
    """Copy the encoder's final states, layer by layer (Sutskever et al. 2014).

    Where depths differ, the topmost layers are matched and missing ones start from the encoder's top layer. What the
    decoder's cells carry beside their outputs, and the encoder's do not in the same size, starts at zero.

    Raises:
        ValueError: sizes differ, so that a projection is needed.

    Example:
        >>> bridge = LastState(EncoderShape(2, 1, 2), StateShape(2, 2, (2,)))
        >>> from lit_seq2seq.types import Padded
        >>> encoded = Encoded(Padded(torch.ones(1, 3, 2), torch.tensor([3])), CellState(torch.ones(1, 1, 2)))
        >>> state = bridge(encoded)  # both layers start from the only one of the encoder
        >>> state.h.tolist(), state.others[0].tolist()
        ([[[1.0, 1.0], [1.0, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]])
    """

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__(encoder, state)
        if encoder.final_size != state.hidden_size:
            raise ValueError(
                f"the LastState bridge needs equal sizes, but the encoder's states have {encoder.final_size} units and "
                f"the decoder's {state.hidden_size}: make hidden_size equal or use the DenseBridge (the ZeroBridge "
                "where there is no source)"
            )

    def forward(self, encoded: Encoded) -> CellState:
        """Copy states."""
        first = self.encoder.final_layers - self.state.num_layers
        layers = [max(0, first + layer) if first >= 0 else min(layer, self.encoder.final_layers - 1)
                  for layer in range(self.state.num_layers)]  # fmt: skip
        h, *others = (part[:, layers] for part in encoded.final.values)  # (B, L, H)
        given = dict(enumerate(others))
        made = (
            given[place] if place in given and given[place].shape[-1] == size else h.new_zeros(*h.shape[:2], size)
            for place, size in enumerate(self.state.others)
        )
        return CellState(h, tuple(made))


class DenseBridge(Bridge):
    """Project all final states of the encoder by one dense layer with tanh (Cho et al. 2014, appendix A.1.1)."""

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__(encoder, state)
        size = encoder.final_layers * sum(encoder.sizes)
        self.dense = Linear(size, self._flat_size)

    def forward(self, encoded: Encoded) -> CellState:
        """Project states."""
        finals = [part.flatten(1) for part in encoded.final.values]
        return self._split(torch.tanh(self.dense(torch.cat(finals, dim=1))))


class MeanBridge(Bridge):
    """Project the mean of the memory by one dense layer with tanh (Sennrich et al. 2017)."""

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__(encoder, state)
        self.dense = Linear(encoder.memory_size, self._flat_size)

    def forward(self, encoded: Encoded) -> CellState:
        """Project the mean."""
        return self._split(torch.tanh(self.dense(masked_mean(encoded.memory.values, encoded.memory.mask))))


class ZeroBridge(Bridge):
    """Start from zeros: the decoder learns of the source through attention alone."""

    reads_end = False

    def forward(self, encoded: Encoded) -> CellState:
        """Make zeros."""
        values = encoded.memory.values
        return self._split(values.new_zeros(values.shape[0], self._flat_size))


class LearnedBridge(Bridge):
    """Start from learned vectors, the same for every source."""

    reads_end = False

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__(encoder, state)
        self.initial = nn.Parameter(torch.zeros(self._flat_size))

    def forward(self, encoded: Encoded) -> CellState:
        """Repeat the learned vectors."""
        return self._split(self.initial.expand(encoded.memory.values.shape[0], -1))
