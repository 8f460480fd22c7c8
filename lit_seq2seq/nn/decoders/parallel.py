"""The decoder whose teacher-forced pass is one fused call per layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lit_seq2seq.nn.attention import Attention
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
from lit_seq2seq.nn.recurrent import CellFactory, RecurrentStack, kernel_of
from lit_seq2seq.types import CellState


class ParallelDecoder(Decoder):
    """Recurrent layers that never wait for attention: all target steps are computed at once when training.

    Without attention this is the encoder-decoder of Sutskever et al. (2014), or, with `use_summary`, that of Cho et al.
    (2014), which shows the fixed-length vector to every step. With attention on top it is Luong et al. (2015) without
    input feeding. With attention after the `first` layer the context is fed to every layer above (GNMT v2, after Wu et
    al. 2016).

    Args:
        attention: how to look at the source; `None` for the fixed-length vector alone.
        attention_after: the layer whose output is the query.
        use_summary: concatenate the fixed-length vector to the input of every step.
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
        attention: AttentionFactory | None = None,
        attention_after: Literal["first", "top"] = "top",
        bridge: BridgeFactory = LastState,
        use_summary: bool = False,
        combine: Combine = "tanh",
        residual: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        state_dropout: float = 0.0,
    ) -> None:
        shape = StateShape(num_layers, hidden_size, kernel_of(cell, hidden_size, hidden_size)[1])
        super().__init__(
            vocab_size,
            encoder,
            shape,
            embedding_dim,
            bridge=bridge,
            use_summary=use_summary,
            dropout=dropout,
            locked_dropout=locked_dropout,
        )
        self.attention = None if attention is None else attention(hidden_size, encoder.memory_size)
        context_size = 0 if self.attention is None else self.attention.context_size
        below = 1 if attention_after == "first" and self.attention is not None else num_layers
        inputs = embedding_dim + (encoder.final_size if use_summary else 0)
        shared: dict[str, Any] = {
            "residual": residual,
            "layer_norm": layer_norm,
            "dropout": dropout,
            "locked_dropout": locked_dropout,
            "state_dropout": state_dropout,
        }
        self.below = RecurrentStack(inputs, hidden_size, below, cell, **shared)
        self.above = RecurrentStack(
            hidden_size, hidden_size, num_layers - below, cell, **shared, context_size=context_size, drop_input=True
        )
        self.combination = Combination(combine, hidden_size, context_size, embedding_dim)
        self.output_size = self.combination.size

    @property
    def attention_module(self) -> Attention | None:
        """The attention, if there is one."""
        return self.attention

    def forward(self, tokens: Tensor, state: DecoderState) -> DecoderOutput:
        """Read whole targets `(B, T)` in one pass; see `Decoder.forward`."""
        return self._pass(tokens, state)[0]

    def run(self, tokens: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read in one pass, too, unless attention remembers what it did; see `Decoder.run`."""
        if state.attention is not None:
            return super().run(tokens, state)
        output, cells = self._pass(tokens, state)
        return output, replace(state, cells=cells, visible=None)

    def _pass(self, tokens: Tensor, state: DecoderState) -> tuple[DecoderOutput, CellState]:
        embedded = self.embed(tokens)  # (B, T, E)
        inputs = embedded
        if self.use_summary:
            summary = state.summaries(tokens.shape[0])[:, None].expand(-1, tokens.shape[1], -1)
            inputs = torch.cat([embedded, summary], dim=-1)
        cut = len(self.below.layers)
        hidden, lower = self.below(inputs, state.cells.layers(0, cut))  # (B, T, H)
        context, weights = None, None
        if self.attention is not None:
            assert state.memory is not None
            # (B, T, C), (B, T, S)
            context, weights = self.attention.scan(hidden, state.memory, state.attention, state.visible)
        hidden, upper = self.above(hidden, state.cells.layers(cut), context=context)
        return self._output(hidden, context, embedded, weights), _join(lower, upper)

    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one embedded token per hypothesis, `(N, E)`; see `Decoder.advance`."""
        inputs = torch.cat([embedded, state.summaries(embedded.shape[0])], dim=-1) if self.use_summary else embedded
        cut = len(self.below.layers)
        hidden, lower = self.below.step(inputs, state.cells.layers(0, cut))  # (N, H)
        context, weights, attention = None, None, None
        if self.attention is not None:
            context, weights, attention = self.attend(hidden, state)  # (N, C), (N, S)
        cells = lower
        if len(self.above.layers):
            hidden, upper = self.above.step(hidden, state.cells.layers(cut), context=context)
            cells = _join(lower, upper)
        output = self._output(hidden, context, embedded, weights)
        return output, replace(state, cells=cells, attention=attention)

    def _output(
        self, hidden: Tensor, context: Tensor | None, embedded: Tensor, weights: Tensor | None
    ) -> DecoderOutput:
        features = self.combination(hidden, context, embedded)
        return DecoderOutput(self.drop(features), weights, hidden, context, embedded)


def _join(lower: CellState, upper: CellState) -> CellState:
    return CellState.of(torch.cat(parts, dim=1) for parts in zip(lower.values, upper.values, strict=True))
