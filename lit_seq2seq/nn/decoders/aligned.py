"""What the decoders share that sum over alignments with the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_seq2seq.nn.attention import AttentionMemory
from lit_seq2seq.nn.bridges import LastState, StateShape
from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.nn.decoders.base import BridgeFactory, Decoder, DecoderOutput, DecoderState
from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import dropout_mask, wide
from lit_seq2seq.nn.recurrent import CellFactory, RecurrentStack, kernel_of
from lit_seq2seq.types import Encoded, Padded, Value

NOWHERE = -1e30
"""The log-probability of an impossible position: finite, so that differences of such numbers are."""


@dataclass(frozen=True)
class Aligned(Value):
    """Which source position the last symbol came from.

    Attributes:
        places: `(N, S)` log-probability of each position, given all symbols before the last.
        symbols: `(N, S, V)` log-probability of each symbol there.
    """

    places: Tensor
    symbols: Tensor

    def read(self, tokens: Tensor) -> Aligned:
        """Weigh positions by how probable the last symbol, `(N,)`, was there: no longer normalised."""
        index = tokens[:, None, None].expand(-1, self.symbols.shape[1], 1)
        return replace(self, places=self.places + self.symbols.gather(2, index)[..., 0])


class AlignedDecoder(Decoder):
    """Base of decoders that predict a symbol at each source position, and sum over the positions.

    Recurrent layers read the target alone. From their output `h` and a memory vector `v` comes the symbol,
    `p(y | h, v) = softmax(P tanh(W h + U v + b))`. What such a decoder hands over are the log-probabilities of symbols:
    it has the output layer inside, where other decoders have attention.

    Args:
        joint_size: size of the layer from which symbols are predicted; `hidden_size` if `None`.
        dropout: probability of dropping units of embeddings, between layers, and before the prediction.
    """

    predicts = True

    def __init__(
        self,
        vocab_size: int,
        encoder: EncoderShape,
        embedding_dim: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        cell: CellName | CellFactory = "lstm",
        joint_size: int | None = None,
        bridge: BridgeFactory = LastState,
        residual: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        state_dropout: float = 0.0,
    ) -> None:
        shape = StateShape(num_layers, hidden_size, kernel_of(cell, hidden_size, hidden_size)[1])
        super().__init__(
            vocab_size, encoder, shape, embedding_dim, bridge=bridge, dropout=dropout, locked_dropout=locked_dropout
        )
        self.stack = RecurrentStack(
            embedding_dim,
            hidden_size,
            num_layers,
            cell,
            residual=residual,
            layer_norm=layer_norm,
            dropout=dropout,
            locked_dropout=locked_dropout,
            state_dropout=state_dropout,
        )
        joint_size = hidden_size if joint_size is None else joint_size
        self.query = Linear(hidden_size, joint_size)
        self.value = Linear(encoder.memory_size, joint_size, bias=False)
        self.symbols = Linear(joint_size, vocab_size)
        self.output_size = vocab_size

    @property
    def attention_module(self) -> None:
        """None: where it looks and what it writes are one distribution."""
        return None

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """The weights and the biases of the prediction."""
        return [self.symbols.weight, self.symbols.bias]

    def start(self, encoded: Encoded) -> DecoderState:
        """Make the first state: at the first position, before any symbol."""
        mask, values = encoded.memory.mask, self.value(encoded.memory.values)  # (B, S), (B, S, J)
        nowhere = wide(mask.to(values.dtype)) * 0.0  # (B, S)
        places = torch.cat([nowhere[:, :1], nowhere[:, 1:] + NOWHERE], dim=1)
        symbols = nowhere[..., None].expand(-1, -1, self.output_size).contiguous()
        memory = AttentionMemory(values, values, mask)
        return DecoderState(memory, None, self.bridge(encoded), attention=Aligned(places, symbols))

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one token per hypothesis, `(N,)`; see `Decoder.step`."""
        assert isinstance(state.attention, Aligned)
        return super().step(tokens, replace(state, attention=state.attention.read(tokens)))

    def emit(self, hidden: Tensor, state: DecoderState) -> Tensor:
        """Compute the log-probability of each symbol at each position: `(B, K, H)` to `(B, K, S, V)`."""
        assert state.memory is not None
        return self.join(state.memory.values[:, None], self.query(hidden)[:, :, None])

    def join(self, values: Tensor, queries: Tensor) -> Tensor:
        """Compute the log-probability of each symbol from memory and target, both `(..., J)`: `(..., V)`.

        In training the same units are dropped at all positions of the source, as in Gal & Ghahramani (2016).
        """
        inner = torch.tanh(queries + values)
        if self.training and self.dropout:
            inner = inner * dropout_mask(inner, queries.shape, self.dropout)
        return wide(self.symbols(inner)).log_softmax(dim=-1)


def traced_back(last: Tensor, sources: Sequence[Tensor], target: Padded) -> Tensor:
    """Follow a best path back from its end.

    Args:
        last: `(B,)` position of the last symbol of each target, EOS.
        sources: of each of the T symbols `(B, S)`, the best position of the symbol before if it is at this one.
        target: `(B, T)`.

    Returns:
        `(B, T)` positions of all symbols; at padding that of the last.
    """
    found, place = [], last
    for mask, source in zip(reversed(target.mask.unbind(1)), reversed(sources), strict=True):
        found.append(place)
        place = torch.where(mask, source.gather(1, place[:, None])[:, 0], place)
    return torch.stack(found[::-1], dim=1)
