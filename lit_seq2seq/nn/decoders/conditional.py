"""The conditional GRU of Nematus."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lit_seq2seq.nn.attention import AdditiveAttention, Attention
from lit_seq2seq.nn.bridges import MeanBridge, StateShape
from lit_seq2seq.nn.decoders.base import (
    AttentionFactory,
    BridgeFactory,
    Combination,
    Combine,
    Decoder,
    DecoderOutput,
    DecoderState,
)
from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.recurrent import RecurrentStack
from lit_seq2seq.types import CellState


class ConditionalGRUDecoder(Decoder):
    """Two GRU transitions a step with attention between them (Sennrich et al. 2017, Nematus, section 3).

    `s' = GRU1(e, s); c = attention(s'); s = GRU2(c, s')`, then a deep output over `[s; c; e]`. Further layers, if any,
    are stacked on top and see the context too.

    Args:
        num_layers: 1 for the conditional transition alone, more for GRU layers above it.
        residual: see `RecurrentStack`; for the layers above.
        layer_norm: see `RecurrentStack`; for the layers above.
        locked_dropout: see `RecurrentStack`; for the layers above.
        state_dropout: see `RecurrentLayer`; for the layers above.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder: EncoderShape,
        embedding_dim: int = 256,
        hidden_size: int = 512,
        *,
        num_layers: int = 1,
        attention: AttentionFactory = AdditiveAttention,
        bridge: BridgeFactory = MeanBridge,
        combine: Combine = "deep",
        residual: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        state_dropout: float = 0.0,
    ) -> None:
        shape = StateShape(num_layers, hidden_size)
        super().__init__(
            vocab_size, encoder, shape, embedding_dim, bridge=bridge, dropout=dropout, locked_dropout=locked_dropout
        )
        self.attention = attention(hidden_size, encoder.memory_size)
        context_size = self.attention.context_size
        self.read = RecurrentStack(embedding_dim, hidden_size, cell="gru")
        self.update = RecurrentStack(context_size, hidden_size, cell="gru")
        self.above = RecurrentStack(
            hidden_size,
            hidden_size,
            num_layers - 1,
            "gru",
            residual=residual,
            layer_norm=layer_norm,
            dropout=dropout,
            locked_dropout=locked_dropout,
            state_dropout=state_dropout,
            context_size=context_size,
            drop_input=True,
        )
        self.combination = Combination(combine, hidden_size, context_size, embedding_dim)
        self.output_size = self.combination.size

    @property
    def attention_module(self) -> Attention:
        """The attention."""
        return self.attention

    def lock_masks(self, state: DecoderState) -> DecoderState:
        """Draw the dropout masks that all steps share."""
        return replace(state, masks=self.above.sample_masks(state.cells.h))

    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one embedded token per hypothesis, `(N, E)`; see `Decoder.advance`."""
        query, cells = self.read.step(embedded, state.cells.layers(0, 1))  # (N, H)
        context, weights, attention = self.attend(query, state)  # (N, C), (N, S)
        hidden, first = self.update.step(context, cells)
        hidden, rest = self.above.step(hidden, state.cells.layers(1), context, state.masks)
        features = self.drop(self.combination(hidden, context, embedded))  # (N, F)
        cells = CellState(torch.cat([first.h, rest.h], dim=1))
        output = DecoderOutput(features, weights, hidden, context, embedded)
        return output, replace(state, cells=cells, attention=attention)
