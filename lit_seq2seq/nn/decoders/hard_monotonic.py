"""The decoder that sums over all monotonic alignments."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lit_seq2seq.nn.bridges import LastState
from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.nn.decoders.aligned import NOWHERE, Aligned, AlignedDecoder, traced_back
from lit_seq2seq.nn.decoders.base import BridgeFactory, DecoderOutput, DecoderState
from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import masked_softmax, wide
from lit_seq2seq.nn.recurrent import CellFactory
from lit_seq2seq.types import Encoded, Padded

_LEAST = 1e-30


class HardMonotonicDecoder(AlignedDecoder):
    """Each symbol comes from one source position, none left of the last; their probabilities are summed exactly.

    Wu & Cotterell 2019 (arXiv:1905.06319). Recurrent layers read the target alone. From their output `h_t` and the
    memory vector `v_j` comes the symbol, `p(y_t | h_t, v_j) = softmax(P tanh(W h_t + U v_j + b))`, and the position is
    a hidden Markov chain: of order 0 `p(a_t = j | a_t-1 = i)` is proportional to `exp(h_t' T v_j)` for `j >= i`, of
    order 1 a softmax of `W' h_t + U' v_i + b'` over the `jumps` positions from i on. The forward algorithm gives
    `p(y_t | y_<t) = sum_j p(a_t = j | y_<t) p(y_t | h_t, v_j)`, which is what this decoder hands over: it needs the
    probabilities of symbols at every step, and so it has the output layer inside, where other decoders have attention.

    For character transduction, whose alignments are monotonic: time and memory grow with target x source x vocabulary.

    Args:
        hidden_size: size of the recurrent layers, and of the layer from which symbols are predicted.
        order: 0 or 1.
        jumps: of order 1, how many positions can be reached from one, which is the first of them.
        dropout: probability of dropping units of embeddings, between layers, and before the prediction.
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
        order: Literal[0, 1] = 0,
        jumps: int = 5,
        bridge: BridgeFactory = LastState,
        residual: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        state_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            vocab_size,
            encoder,
            embedding_dim,
            hidden_size,
            num_layers=num_layers,
            cell=cell,
            bridge=bridge,
            residual=residual,
            layer_norm=layer_norm,
            dropout=dropout,
            locked_dropout=locked_dropout,
            state_dropout=state_dropout,
        )
        if jumps < 1:
            raise ValueError(f"jumps must be at least 1, got {jumps}")
        self.order, self.jumps = order, jumps
        self.move = Linear(hidden_size, jumps) if order else None
        self.key = Linear(encoder.memory_size, jumps if order else hidden_size, bias=False)

    def start(self, encoded: Encoded) -> DecoderState:
        """Make the first state: at the first position, before any symbol."""
        state = super().start(encoded)
        assert state.memory is not None
        return replace(state, memory=replace(state.memory, keys=self.key(encoded.memory.values)))

    def run(self, tokens: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read whole targets `(B, T)`; see `Decoder.run`. Only the forward algorithm goes step by step."""
        embedded = self.embed(tokens)  # (B, T, E)
        hidden, cells = self.stack(embedded, state.cells)  # (B, T, H)
        symbols, moves = self.emit(hidden, state), self.transitions(hidden, state)  # (B, T, S, V), (B, T, S, S)
        aligned, places, seen = state.attention, [], state.seen.expand(-1, tokens.shape[1], -1)  # (B, T, S)
        for t, token in enumerate(tokens.unbind(dim=1)):
            assert isinstance(aligned, Aligned)
            aligned = Aligned(self.follow(aligned.read(token), moves[:, t], seen[:, t : t + 1]), symbols[:, t])
            places.append(aligned.places)
        output = self.output(hidden, torch.stack(places, dim=1), symbols, embedded)
        return output, replace(state, cells=cells, attention=aligned, visible=None)

    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one embedded token per hypothesis, `(N, E)`; see `Decoder.advance`."""
        assert isinstance(state.attention, Aligned)
        hidden, cells = self.stack.step(embedded, state.cells)  # (N, H)
        beside = state.per_source(hidden)  # (B, K, H)
        symbols = self.emit(beside, state).flatten(0, 1)  # (N, S, V)
        places = self.follow(state.attention, self.transitions(beside, state).flatten(0, 1), state.seen)
        output = self.output(hidden, places, symbols, embedded)
        return output, replace(state, cells=cells, attention=Aligned(places, symbols))

    def forced_align(self, tokens: Tensor, target: Padded, state: DecoderState) -> Tensor:
        """Find the most probable positions of given symbols; see `Decoder.forced_align`."""
        assert isinstance(state.attention, Aligned)
        hidden, _ = self.stack(self.embed(tokens), state.cells)  # (B, T, H)
        moves = self.transitions(hidden, state).clamp(min=_LEAST).log()  # (B, T, S, S)
        index = target.values[:, :, None, None].expand(-1, -1, moves.shape[2], 1)
        written = self.emit(hidden, state).gather(3, index)[..., 0].masked_fill(~state.seen, NOWHERE)  # (B, T, S)
        places, sources, there = state.attention.places, [], []
        for move, write in zip(moves.unbind(1), written.unbind(1), strict=True):
            best, source = (places[:, :, None] + move).max(dim=1)  # (B, S)
            places = best + write
            sources.append(source)
            there.append(places)
        ends = torch.stack(there, dim=1)[torch.arange(len(places), device=places.device), target.lengths - 1]  # (B, S)
        return traced_back(ends.argmax(dim=1), sources, target)

    def transitions(self, hidden: Tensor, state: DecoderState) -> Tensor:
        """Compute the probability of going from each position to each: `(B, K, H)` to `(B, K, S, S)`."""
        assert state.memory is not None
        keys, seen = state.memory.keys, state.seen
        places = torch.arange(seen.shape[2], device=seen.device)
        ahead = places - places[:, None]  # (S, S) from row to column
        allowed = (ahead >= 0) & seen[:, :, None]  # (B, K or 1, S, S)
        if self.move is None:
            scores = (hidden @ keys.mT.to(hidden.dtype))[:, :, None].expand(-1, -1, seen.shape[2], -1)
        else:
            allowed = allowed & (ahead < self.jumps)
            moves = self.move(hidden)[:, :, None] + keys[:, None]  # (B, K, S, jumps)
            scores = moves.gather(3, ahead.clamp(0, self.jumps - 1).expand(*moves.shape[:3], -1))
        return masked_softmax(wide(scores), allowed)

    def follow(self, aligned: Aligned, moves: Tensor, seen: Tensor) -> Tensor:
        """Compute the log-probability of each position that a step sees, after `moves (N, S, S)`: `(N, S)`."""
        before = aligned.places.softmax(dim=-1)  # (N, S)
        after = (before[:, :, None] * moves).sum(dim=1)  # by hand: a product would be in 16 bits under autocast
        places = after.clamp(min=_LEAST).log().view(seen.shape[0], -1, seen.shape[2])  # (B, K, S)
        return places.masked_fill(~seen, NOWHERE).flatten(0, 1)

    def output(self, hidden: Tensor, places: Tensor, symbols: Tensor, embedded: Tensor) -> DecoderOutput:
        """Sum over positions: places `(..., S)`, symbols `(..., S, V)`."""
        log_probs = (places[..., None] + symbols).logsumexp(dim=-2).log_softmax(dim=-1)  # (..., V), one without source
        return DecoderOutput(log_probs, places.exp().to(hidden.dtype), hidden, None, embedded)
