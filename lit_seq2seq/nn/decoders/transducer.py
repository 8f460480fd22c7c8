"""The decoder of transducers, whose alignments are summed exactly."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_seq2seq.nn.bridges import ZeroBridge
from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.nn.decoders.aligned import NOWHERE, Aligned, AlignedDecoder, traced_back
from lit_seq2seq.nn.decoders.base import BridgeFactory, DecoderOutput, DecoderState
from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.recurrent import CellFactory
from lit_seq2seq.types import CellState, Encoded, Padded, UserError

BLOCK = 2**23
"""Numbers of the joint layer that training holds at a time; the rest is computed again for the gradient."""


class TransducerDecoder(AlignedDecoder):
    """A recurrent transducer (Graves 2012, arXiv:1211.3711): at each source position any number of symbols, then on.

    Recurrent layers read the target alone, as a language model does; a joint layer looks at their output `g_u` after u
    symbols and at the memory vector `f_s` of one position, `p(k | s, u) = softmax(P tanh(W g_u + U f_s + b))`, where k
    is the next symbol or the blank, which goes on to the next position. The blank is EOS: at the last position there is
    nowhere to go on to.

    What this decoder hands over is the distribution of the next symbol, summed over all alignments. With a(s, u), the
    probability of having written `y_1 .. y_u` on coming to position s or there (Graves' forward variable),
    `p(y | y_1 .. y_u) = sum_s a(s, u) p(y | s, u) / p(y_1 .. y_u)`, and for EOS only the last position counts. So the
    cross-entropy of a target is the transducer's loss, and search is that of any decoder: `attention` tells where
    the next symbol is written.

    A target may be longer than its source. The loss takes time and memory in proportion to target x source; of the
    joint layer a part of the target is held at a time. The decoder can write before the source has ended if its bridge
    reads nothing of the end, as `ZeroBridge`.

    Args:
        hidden_size: size of the recurrent layers.
        joint_size: size of the joint layer; `hidden_size` if `None`.
        fast_emit: by how much more the symbols of the target count in the gradient than blanks do, from 0: they are
            written sooner (Yu et al. 2021, arXiv:2010.11148, whose lambda is 0.001 to 0.01).
        dropout: probability of dropping units of embeddings, between layers, and of the joint layer.
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
        joint_size: int | None = None,
        fast_emit: float = 0.0,
        bridge: BridgeFactory = ZeroBridge,
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
            joint_size=joint_size,
            bridge=bridge,
            residual=residual,
            layer_norm=layer_norm,
            dropout=dropout,
            locked_dropout=locked_dropout,
            state_dropout=state_dropout,
        )
        if fast_emit < 0:
            raise ValueError(f"fast_emit must be at least 0, got {fast_emit}")
        self.fast_emit = fast_emit

    def run(self, tokens: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read whole targets `(B, T)`, a part at a time where the joint layer is large; see `Decoder.run`."""
        assert isinstance(state.attention, Aligned)
        embedded = self.embed(tokens)  # (B, T, E)
        hidden, cells = self.stack(embedded, state.cells)  # (B, T, H)
        following = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], self.specials.eos)], dim=1)
        seen = state.seen.expand(-1, tokens.shape[1], -1)  # (B, T, S)
        size = self._at_once(state)
        again = torch.is_grad_enabled() and size < tokens.shape[1]
        aligned, found = state.attention, []
        for begin in range(0, tokens.shape[1], size):
            read, wanted, queried, shown = (x[:, begin : begin + size] for x in (tokens, following, hidden, seen))
            given = read, wanted, queried, aligned, replace(state, visible=shown)
            *both, aligned = checkpoint(self._part, *given, use_reentrant=False) if again else self._part(*given)
            found.append(both)
        features, weights = (torch.cat(one, dim=1) for one in zip(*found, strict=True))
        output = DecoderOutput(features, weights.to(hidden.dtype), hidden, None, embedded)
        return output, replace(state, cells=cells, attention=aligned, visible=None)

    def _part(
        self, tokens: Tensor, following: Tensor, hidden: Tensor, aligned: Aligned, state: DecoderState
    ) -> tuple[Tensor, Tensor, Aligned]:
        """Read a part `(B, t)` of each target: features `(B, t, V)`, attention `(B, t, S)`, and where it ends."""
        symbols = self.emit(hidden, state)  # (B, t, S, V)
        index = following[:, :, None, None].expand(-1, -1, symbols.shape[2], 1)  # (B, t, S, 1)
        written = symbols.gather(3, index)  # (B, t, S, 1)
        if self.fast_emit and self.training:
            more = self.fast_emit * (written - written.detach()) * (index != self.specials.eos)  # 0, with a gradient
            symbols, written = symbols.scatter_add(3, index, more), written + more
        entering, places = aligned.read(tokens[:, 0]).places, []
        by_step = self._stay(symbols), written[..., 0], state.seen  # (B, t, S) each
        for stay, writes, seen in zip(*(x.unbind(1) for x in by_step), strict=True):
            places.append(_follow(entering, stay, seen))
            entering = places[-1] + writes
        there = torch.stack(places, dim=1).to(symbols.dtype)  # (B, t, S)
        return *self._sum(there, symbols, state.seen), Aligned(there[:, -1], symbols[:, -1])

    def forced_align(self, tokens: Tensor, target: Padded, state: DecoderState) -> Tensor:
        """Find the most probable positions of given symbols, EOS at the last; see `Decoder.forced_align`."""
        assert isinstance(state.attention, Aligned)
        hidden, _ = self.stack(self.embed(tokens), state.cells)  # (B, T, H)
        entering, seen, sources = state.attention.places.double(), state.seen[:, 0], []  # (B, S) each
        size = self._at_once(state)
        for some, wanted in zip(*(torch.split(x, size, dim=1) for x in (hidden, target.values)), strict=True):
            symbols = self.emit(some, state)  # (B, t, S, V)
            written = symbols.gather(3, wanted[:, :, None, None].expand(-1, -1, symbols.shape[2], 1))[..., 0]
            for stay, write in zip(self._stay(symbols).unbind(1), written.unbind(1), strict=True):
                best, source = (entering - stay).cummax(dim=1)  # as `_follow`, with the greatest for the sum
                entering = (best + stay + write).masked_fill(~seen, NOWHERE)
                sources.append(source)
        return traced_back((seen.sum(dim=1) - 1).clamp(min=0), sources, target)

    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one embedded token per hypothesis, `(N, E)`; see `Decoder.advance`."""
        assert isinstance(state.attention, Aligned)
        hidden, cells = self.stack.step(embedded, state.cells)  # (N, H)
        symbols = self.emit(state.per_source(hidden), state)  # (B, K, S, V)
        entering = state.per_source(state.attention.places)  # (B, K, S)
        places = _follow(entering, self._stay(symbols), state.seen).to(symbols.dtype)  # (B, K, S)
        features, weights = self._sum(places, symbols, state.seen)
        output = DecoderOutput(features.flatten(0, 1), weights.to(hidden.dtype).flatten(0, 1), hidden, None, embedded)
        aligned = Aligned(places.flatten(0, 1), symbols.flatten(0, 1))
        return output, replace(state, cells=cells, attention=aligned)

    @property
    def transducer(self) -> TransducerDecoder:
        """Itself."""
        return self

    def frames(self, memory: Padded) -> Padded:
        """Compute what `join` reads of memory vectors, `(B, S, J)`."""
        return Padded(self.value(memory.values), memory.lengths)

    def begin(self, count: int) -> CellState:
        """Make the state of `count` outputs before BOS, of sources of which nothing is known yet.

        Raises:
            UserError: the bridge reads the end of the source.
        """
        if self.bridge.reads_end:
            raise UserError(
                f"a transducer writes before its source has ended, but the {type(self.bridge).__name__} bridge reads "
                "the end: set the decoder's bridge to lit_seq2seq.nn.ZeroBridge, and train again"
            )
        shape, weight = self.bridge.encoder, self.embedding.weight
        nothing = torch.zeros(count, dtype=torch.long, device=weight.device)
        final = CellState.of(weight.new_zeros(count, shape.final_layers, size) for size in shape.sizes)
        made: CellState = self.bridge(Encoded(Padded(weight.new_zeros(count, 0, shape.memory_size), nothing), final))
        return made

    def read(self, tokens: Tensor, cells: CellState) -> tuple[Tensor, CellState]:
        """Read one token per output, `(N,)`; return what `join` reads of it, `(N, J)`, and the state after."""
        hidden, cells = self.stack.step(self.embed(tokens[:, None])[:, 0], cells)
        return self.query(hidden), cells

    def _at_once(self, state: DecoderState) -> int:
        """Tell how many symbols of each target the joint layer reads at a time."""
        assert state.memory is not None
        batch, length, size = state.memory.values.shape
        return max(1, BLOCK // max(1, batch * length * max(self.output_size, size)))

    def _stay(self, symbols: Tensor) -> Tensor:
        """Compute the log-probability of nothing but blanks up to before each position, in 64 bits: `(B, K, S)`."""
        blank = symbols[..., self.specials.eos].double()
        return blank.cumsum(dim=-1) - blank

    def _sum(self, places: Tensor, symbols: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over positions: the next symbol, `(B, K, V)`, and where it is written, `(B, K, S)`.

        Args:
            places: `(B, K, S)` log-probability of coming to each position.
            symbols: `(B, K, S, V)` log-probability of each symbol there.
            seen: `(B, K, S)` or `(B, 1, S)` the positions that there are.
        """
        last = torch.arange(seen.shape[2], device=seen.device) == seen.sum(dim=2, keepdim=True) - 1  # as `seen`
        blank = symbols[..., self.specials.eos]  # (B, K, S)
        ended = (places + blank).masked_fill(~last, NOWHERE).amax(dim=-1, keepdim=True)  # (B, K, 1)
        ends = torch.arange(symbols.shape[3], device=seen.device) == self.specials.eos  # (V,)
        found = torch.where(ends, ended, (places[..., None] + symbols).logsumexp(dim=2))  # (B, K, V)
        weights = places.exp() * torch.where(last, 1.0, -torch.expm1(blank))
        # they sum to one by themselves, and so do the gradients, but for rounding and sources without positions
        return found - found.detach().logsumexp(dim=-1, keepdim=True), weights


def _follow(entering: Tensor, stay: Tensor, seen: Tensor) -> Tensor:
    """Solve `a(s) = a(s - 1) p(blank | s - 1) + p(s)`, the probability of having come to each position, in logarithms.

    Args:
        entering: `(..., S)` where the last symbol was written, `log p(s)`, normalised here.
        stay: `(..., S)` see `_stay`.
        seen: the positions that there are, broadcast.

    Returns:
        `(..., S)` of 64 bits.
    """
    entering = entering.double().log_softmax(dim=-1)
    return (stay + _logcumsumexp(entering - stay)).masked_fill(~seen, NOWHERE)


def _logcumsumexp(x: Tensor) -> Tensor:
    """Sum up along the last dimension; ONNX has no operator for it."""
    if not torch.compiler.is_exporting():
        return x.logcumsumexp(dim=-1)
    places = torch.arange(x.shape[-1], device=x.device)
    before = places <= places[:, None]  # (S, S)
    return x[..., None, :].masked_fill(~before, NOWHERE).logsumexp(dim=-1)
