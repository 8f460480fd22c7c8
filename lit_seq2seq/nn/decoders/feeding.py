"""The decoder that feeds its attentional vector back into its next step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.attention import Attention, GeneralAttention
from lit_seq2seq.nn.bridges import LastState, StateShape
from lit_seq2seq.nn.cells import CellName
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
from lit_seq2seq.nn.kernels.feeding import FeedingInputs, run_feeding_loop
from lit_seq2seq.nn.kernels.products import linear
from lit_seq2seq.nn.ops import dropout_mask
from lit_seq2seq.nn.recurrent import CellFactory, RecurrentLayer, RecurrentStack, kernel_of
from lit_seq2seq.types import Encoded


class InputFeedingDecoder(Decoder):
    """Attention on top, whose vector `h~ = tanh(W [h; c])` joins the next input (Luong et al. 2015, section 3.3).

    Each step needs the one before, so training is a loop over time.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder: EncoderShape,
        embedding_dim: int = 256,
        hidden_size: int = 512,
        *,
        num_layers: int = 1,
        cell: CellName | CellFactory = "lstm",
        attention: AttentionFactory = GeneralAttention,
        bridge: BridgeFactory = LastState,
        combine: Combine = "tanh",
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
        self.attention = attention(hidden_size, encoder.memory_size)
        self.combination = Combination(combine, hidden_size, self.attention.context_size, embedding_dim)
        self.output_size = self.combination.size
        self.stack = RecurrentStack(
            embedding_dim + self.output_size,
            hidden_size,
            num_layers,
            cell,
            residual=residual,
            layer_norm=layer_norm,
            dropout=dropout,
            locked_dropout=locked_dropout,
            state_dropout=state_dropout,
        )
        self._plain = num_layers == 1 and not (layer_norm or residual or state_dropout)

    @property
    def attention_module(self) -> Attention:
        """The attention."""
        return self.attention

    def start(self, encoded: Encoded) -> DecoderState:
        """Make the first state; the vector fed back starts at zero."""
        state = super().start(encoded)
        return replace(state, fed=state.cells.h.new_zeros(state.cells.h.shape[0], self.output_size))

    def lock_masks(self, state: DecoderState) -> DecoderState:
        """Draw the dropout masks that all steps share."""
        return replace(state, masks=self.stack.sample_masks(state.cells.h))

    def forward(self, tokens: Tensor, state: DecoderState) -> DecoderOutput:
        """Read whole targets `(B, T)`; see `Decoder.forward`."""
        dense, scale = self.combination.dense, self.attention.product_scale
        if (
            not isinstance(dense, nn.Linear)
            or scale is None
            or not self._plain
            or not isinstance(layer := self.stack.recurrent_layers()[0], RecurrentLayer)
            or layer.cell != "lstm"
            or torch.compiler.is_compiling()
        ):
            return super().forward(tokens, state)
        assert state.memory is not None
        assert state.fed is not None
        memory, embedded = state.memory, self.embed(tokens)  # (B, T, E)
        w_x, w_h, b_x, b_h = layer.weights()
        symbols, joined = embedded.shape[-1], self.hidden_size + self.attention.context_size
        by_step = embedded.transpose(0, 1)  # (T, B, E)
        entering = linear(by_step, w_x[:, :symbols], b_x + b_h)
        steps, batch, _ = by_step.shape
        if self.combination.deep:
            offset = linear(by_step, dense.weight[:, joined:], dense.bias)
        else:
            offset = dense.bias.to(entering.dtype).expand(steps, batch, -1)
        inputs = FeedingInputs(
            entering=entering,
            recurrent=torch.cat([w_x[:, symbols:], w_h], dim=1).to(entering.dtype),
            fed=state.fed.to(entering.dtype),
            h=state.cells.h[:, 0].to(entering.dtype),
            c=state.cells.others[0][:, 0],
            keys=memory.keys * scale,
            values=memory.values,
            mask=state.seen.transpose(0, 1),
            offset=offset,
            combine=dense.weight[:, :joined].to(entering.dtype),
            dropped=dropout_mask(offset, offset.shape, self.dropout) if self.training and self.dropout else None,
        )
        features, weights, hidden, context = (made.transpose(0, 1) for made in run_feeding_loop(inputs))
        return DecoderOutput(features, weights, hidden, context, embedded)

    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one embedded token per hypothesis, `(N, E)`; see `Decoder.advance`."""
        assert state.fed is not None
        inputs = torch.cat([embedded, state.fed.to(embedded.dtype)], dim=-1)
        hidden, cells = self.stack.step(inputs, state.cells, masks=state.masks)  # (N, H)
        context, weights, attention = self.attend(hidden, state)  # (N, C), (N, S)
        features = self.drop(self.combination(hidden, context, embedded))  # (N, F)
        output = DecoderOutput(features, weights, hidden, context, embedded)
        return output, replace(state, cells=cells, fed=features, attention=attention)
