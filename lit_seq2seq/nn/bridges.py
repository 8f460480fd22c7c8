"""Bridges: how an encoder's result becomes a decoder's first state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.ops import masked_mean
from lit_seq2seq.nn.products import Linear
from lit_seq2seq.types import CellState, Encoded


@dataclass(frozen=True)
class StateShape:
    """Shape of a decoder's recurrent state: `num_layers` vectors of `hidden_size`, twice if `has_c`."""

    num_layers: int
    hidden_size: int
    has_c: bool


class Bridge(nn.Module, ABC):
    """Base of all bridges.

    Args:
        encoder: sizes of the encoder's result.
        state: shape of the state to make.
    """

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__()
        self.encoder = encoder
        self.state = state

    @abstractmethod
    def forward(self, encoded: Encoded) -> CellState:
        """Make a decoder state `(B, L, H)`."""

    def _split(self, flat: Tensor) -> CellState:
        """Cut `(B, parts * L * H)` into a state."""
        parts = flat.view(flat.shape[0], 2 if self.state.has_c else 1, self.state.num_layers, self.state.hidden_size)
        return CellState(parts[:, 0], parts[:, 1] if self.state.has_c else None)

    @property
    def _flat_size(self) -> int:
        return (2 if self.state.has_c else 1) * self.state.num_layers * self.state.hidden_size


class LastState(Bridge):
    """Copy the encoder's final states, layer by layer (Sutskever et al. 2014).

    Where depths differ, the topmost layers are matched and missing ones start from the encoder's top layer. A missing
    cell vector starts at zero.

    Raises:
        ValueError: sizes differ, so that a projection is needed.
    """

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__(encoder, state)
        if encoder.final_size != state.hidden_size:
            raise ValueError(
                f"the LastState bridge needs equal sizes, but the encoder's states have {encoder.final_size} units and "
                f"the decoder's {state.hidden_size}: make hidden_size equal or use the DenseBridge"
            )

    def forward(self, encoded: Encoded) -> CellState:
        """Copy states."""
        first = self.encoder.final_layers - self.state.num_layers
        layers = [max(0, first + layer) if first >= 0 else min(layer, self.encoder.final_layers - 1)
                  for layer in range(self.state.num_layers)]  # fmt: skip
        h = encoded.final.h[:, layers]  # (B, L, H)
        if not self.state.has_c:
            return CellState(h)
        return CellState(h, torch.zeros_like(h) if encoded.final.c is None else encoded.final.c[:, layers])


class DenseBridge(Bridge):
    """Project all final states of the encoder by one dense layer with tanh (Cho et al. 2014, appendix A.1.1)."""

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__(encoder, state)
        size = encoder.final_layers * encoder.final_size * (2 if encoder.has_c else 1)
        self.dense = Linear(size, self._flat_size)

    def forward(self, encoded: Encoded) -> CellState:
        """Project states."""
        finals = [encoded.final.h] if encoded.final.c is None else [encoded.final.h, encoded.final.c]
        return self._split(torch.tanh(self.dense(torch.cat([f.flatten(1) for f in finals], dim=1))))


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

    def forward(self, encoded: Encoded) -> CellState:
        """Make zeros."""
        values = encoded.memory.values
        return self._split(values.new_zeros(values.shape[0], self._flat_size))


class LearnedBridge(Bridge):
    """Start from learned vectors, the same for every source."""

    def __init__(self, encoder: EncoderShape, state: StateShape) -> None:
        super().__init__(encoder, state)
        self.initial = nn.Parameter(torch.zeros(self._flat_size))

    def forward(self, encoded: Encoded) -> CellState:
        """Repeat the learned vectors."""
        return self._split(self.initial.expand(encoded.memory.values.shape[0], -1))
