"""What every decoder promises, its state, and the parts they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self, overload

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.attention import Attention, AttentionMemory
from lit_seq2seq.nn.attention.base import visible
from lit_seq2seq.nn.bridges import Bridge, LastState, StateShape
from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.encoders.text import embed, new_embedding
from lit_seq2seq.nn.kernels.products import Linear, gathering_gradients
from lit_seq2seq.nn.ops import dropout
from lit_seq2seq.nn.recurrent import StackMasks
from lit_seq2seq.nn.shortlist import Shortlisted
from lit_seq2seq.types import CellState, Copies, Encoded, Padded, SpecialIds, Value

AttentionFactory = Callable[[int, int], Attention]
BridgeFactory = Callable[[EncoderShape, StateShape], Bridge]
Combine = Literal["concat", "tanh", "deep"]


class DecoderOutput(NamedTuple):
    """What a decoder hands to the output layer: `(B, T, ...)` for whole targets, `(N, ...)` for a single step.

    Attributes:
        features: `(B, T, F)` what the next symbol is predicted from.
        attention: `(B, T, S)` weights over the source; `None` without attention.
        hidden: `(B, T, H)` the vectors that the features are made of: the recurrent layers' output,
        context: `(B, T, C)` what attention has found, `None` without attention,
        embedded: `(B, T, E)` and the symbol just read.
    """

    features: Tensor
    attention: Tensor | None
    hidden: Tensor
    context: Tensor | None
    embedded: Tensor


class DecoderShape(NamedTuple):
    """Sizes of the vectors in a `DecoderOutput`.

    Attributes:
        features: size F.
        hidden: size H.
        context: size C, 0 without attention.
        embedded: size E.
    """

    features: int
    hidden: int = 0
    context: int = 0
    embedded: int = 0


@dataclass(frozen=True)
class Past(Value):
    """What a decoder has made of outputs, apart from their sources; see `DecoderState`, whose fields these are."""

    cells: CellState
    fed: Tensor | None
    attention: Value | None

    @classmethod
    def joined(cls, values: Sequence[Self]) -> Self:
        """Return the rows of all, which may have seen more or less of their sources."""
        found = [tensor for one in values if one.attention is not None for tensor in _tensors(one.attention)]
        size = max((tensor.shape[1] for tensor in found if tensor.dim() > 1), default=0)
        alike = [one.attention and one.attention.map(lambda tensor: _wide(tensor, size)) for one in values]
        return super().joined([replace(one, attention=wide) for one, wide in zip(values, alike, strict=True)])


@dataclass(frozen=True)
class DecoderState(Value):
    """Where a decoder stands, for N = B * K hypotheses of B sources. Implements `SearchState`.

    Attributes:
        memory: the source as attention wants it, one row per *source*: never copied for the hypotheses of a beam.
        summary: `(B, F)` fixed-length vector of each source, for decoders that see it at every step.
        cells: `(N, L, H)` recurrent state.
        fed: `(N, F)` features of the step before, for decoders that feed them back.
        attention: state of the attention, where it has one.
        masks: dropout masks held fixed over the sequence while training; `None` otherwise.
        copies: what can be copied from each *source*.
        candidates: the symbols that may be produced for each *source*, if not all.
        visible: `(B, T, S)` which positions of the *source* each of the next T steps may look at, true where it may;
            `None`: all.
    """

    memory: AttentionMemory | None
    summary: Tensor | None
    cells: CellState
    fed: Tensor | None = None
    attention: Value | None = None
    masks: StackMasks | None = None
    copies: Copies | None = None
    candidates: Shortlisted | None = None
    visible: Tensor | None = None

    def narrowed(self, reach: Tensor) -> Self:
        """Show each of the next T steps only the first `reach (T,)` positions of its source."""
        assert self.memory is not None
        mask = self.memory.mask
        seen = torch.arange(mask.shape[1], device=mask.device) < reach[:, None]  # (T, S)
        return replace(self, visible=seen.expand(mask.shape[0], -1, -1))

    @property
    def seen(self) -> Tensor:
        """Which positions each of the next steps sees: `(B, T, S)`, or `(B, 1, S)` where they are always the same."""
        assert self.memory is not None
        return visible(self.memory, self.visible)

    @property
    def past(self) -> Past:
        """What has been made of the outputs so far, without the sources."""
        return Past(self.cells, self.fed, self.attention)

    def after(self, past: Past, seen: Tensor) -> Self:
        """Go on after `past` over sources of which more is known, this being the first state over them.

        Args:
            past: of outputs whose steps saw less.
            seen: `(B,)` the number of positions that the last step saw.
        """
        attention = self.attention
        if attention is not None and past.attention is not None:
            attention = _longer(past.attention, attention, seen)
        return replace(self, cells=past.cells, fed=past.fed, attention=attention)

    def select(self, index: Tensor) -> Self:
        """Reorder hypotheses by `index (B', K')` and drop the sources that are missing from it; see `SearchState`."""
        flat = index.flatten()
        state = replace(
            self,
            cells=self.cells.select(flat),
            fed=None if self.fed is None else self.fed.index_select(0, flat),
            attention=None if self.attention is None else self.attention.select(flat),
            masks=None if self.masks is None else self.masks.select(flat),
        )
        sources = self._sources
        if index.shape[0] == sources:
            return state
        kept = index[:, 0] // (self.cells.h.shape[0] // sources)  # (B',)
        return replace(
            state,
            memory=None if self.memory is None else self.memory.select(kept),
            summary=None if self.summary is None else self.summary.index_select(0, kept),
            copies=None if self.copies is None else self.copies.select(kept),
            candidates=None if self.candidates is None else self.candidates.select(kept),
            visible=None if self.visible is None else self.visible.index_select(0, kept),
        )

    @property
    def _sources(self) -> int:
        known = self.memory.keys if self.memory is not None else self.summary
        assert known is not None, "a decoder state holds a memory or a summary"
        return known.shape[0]

    def per_source(self, x: Tensor) -> Tensor:
        """View `(B * K, D)` as `(B, K, D)`, so that the K hypotheses of a source attend to it side by side."""
        return x.view(self._sources, -1, x.shape[-1])

    def summaries(self, hypotheses: int) -> Tensor:
        """Return the summary of each hypothesis' source, `(N, F)`."""
        assert self.summary is not None
        times = hypotheses // self.summary.shape[0]
        return self.summary[:, None].expand(-1, times, -1).flatten(0, 1)


def _tensors(value: Value) -> list[Tensor]:
    found: list[Tensor] = []
    value.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _wide(tensor: Tensor, size: int) -> Tensor:
    """Cut or pad the positions of a tensor `(B, S, ...)`; one without positions stays."""
    if tensor.dim() < 2:
        return tensor
    missing = tensor.new_zeros(len(tensor), max(0, size - tensor.shape[1]), *tensor.shape[2:])
    return torch.cat([tensor[:, :size], missing], dim=1)


def _longer(known: Value, start: Value, seen: Tensor) -> Value:
    """Give a state of attention the positions from `seen (B,)` on as they are before the first step."""
    old = iter(_tensors(known))

    def longer(new: Tensor) -> Tensor:
        before = next(old)
        if new.dim() < 2:
            return before
        there = torch.arange(new.shape[1], device=new.device) < seen[:, None]  # (B, S)
        return torch.where(there.view(*there.shape, *[1] * (new.dim() - 2)), _wide(before, new.shape[1]), new)

    return start.map(longer)


class Combination(nn.Module):
    """Join the decoder's hidden vector, the context and the last embedding into the vector given to the output layer.

    `concat`: `[h; c]`. `tanh`: `tanh(W [h; c])` (Luong et al. 2015, eq. 5). `deep`: `tanh(W [h; c; e])`, the deep
    output of Pascanu et al. (2014) as Bahdanau et al. (2015) use it, with tanh for maxout.

    Args:
        mode: which of the three.
        hidden_size: size of h.
        context_size: size of c, 0 for none.
        embedding_dim: size of e.
    """

    def __init__(self, mode: Combine, hidden_size: int, context_size: int, embedding_dim: int) -> None:
        super().__init__()
        joined = hidden_size + context_size + (embedding_dim if mode == "deep" else 0)
        self.deep = mode == "deep"
        self.size = joined if mode == "concat" else hidden_size
        self.dense = None if mode == "concat" else Linear(joined, self.size)

    def forward(self, hidden: Tensor, context: Tensor | None, embedded: Tensor) -> Tensor:
        """Join vectors of equal leading dimensions: `(..., size)`."""
        parts = [hidden] + ([] if context is None else [context]) + ([embedded] if self.deep else [])
        joined = torch.cat(parts, dim=-1) if len(parts) > 1 else hidden
        return joined if self.dense is None else self.activate(self.dense(joined))

    def activate(self, x: Tensor) -> Tensor:
        """Compute tanh."""
        return torch.tanh(x)

    def packed(self, dtype: torch.dtype) -> nn.Module:
        """Return what computes the same, faster on a CPU and without gradients."""
        from lit_seq2seq.nn.kernels.packed import PackedCombination

        return self if self.dense is None or type(self) is not Combination else PackedCombination.of(self, dtype)


class Decoder(nn.Module, ABC):
    """Base of all decoders: teacher-forced over whole targets (`forward`), or one token at a time (`step`), alike.

    The arguments from `hidden_size` on are those that decoders with recurrent layers have in common.

    Args:
        vocab_size: number of target symbols.
        encoder: sizes of the encoder's result.
        state: shape of the recurrent state.
        embedding_dim: size of the symbol vectors.
        bridge: makes the first state from the encoder's result.
        use_summary: keep the encoder's top final state for every step.
        dropout: probability of dropping units of embeddings, between layers, and of the features.
        locked_dropout: use one mask for all steps of a sequence (Gal & Ghahramani 2016).
        hidden_size: size of the recurrent layers.
        num_layers: number of recurrent layers.
        cell: kind of cell.
        attention: how to look at the source.
        combine: how the features are joined; see `Combination`.
        residual: see `RecurrentStack`.
        layer_norm: see `RecurrentStack`.
        state_dropout: see `RecurrentLayer`.

    Example:
        >>> class Bigrams(Decoder):
        ...     output_size, attention_module = 4, None
        ...     def advance(self, embedded, state):
        ...         return DecoderOutput(embedded, None, embedded, None, embedded), state
        >>> from lit_seq2seq.nn import TextEncoder
        >>> from lit_seq2seq.types import Padded
        >>> encoder = TextEncoder(10, embedding_dim=4, hidden_size=6)
        >>> decoder = Bigrams(12, encoder.shape, StateShape(1, 6), embedding_dim=4)
        >>> state = decoder.start(encoder(Padded(torch.tensor([[4, 5, 6]]), torch.tensor([3]))))
        >>> decoder(torch.tensor([[2, 7, 8]]), state).features.shape
        torch.Size([1, 3, 4])
    """

    output_size: int
    """Size F of the feature vectors."""
    predicts: ClassVar[bool] = False
    """Whether the feature vectors are log-probabilities of symbols, so that no output layer follows."""
    specials: SpecialIds = SpecialIds()
    """Ids of the special symbols; the network that has the decoder sets them."""

    def __init__(
        self,
        vocab_size: int,
        encoder: EncoderShape,
        state: StateShape,
        embedding_dim: int,
        *,
        bridge: BridgeFactory = LastState,
        use_summary: bool = False,
        dropout: float = 0.0,
        locked_dropout: bool = False,
    ) -> None:
        super().__init__()
        if state.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {state.num_layers}")
        self.dropout = dropout
        self.locked_dropout = locked_dropout
        self.hidden_size = state.hidden_size
        self.embedding = new_embedding(vocab_size, embedding_dim)
        self.bridge = bridge(encoder, state)
        self.use_summary = use_summary

    def start(self, encoded: Encoded) -> DecoderState:
        """Make the first state: bridge, attention keys, summary."""
        attention = self.attention_module
        memory = None if attention is None else attention.prepare(encoded.memory)
        keep_summary = self.use_summary or memory is None
        started = None if attention is None or memory is None else attention.start(memory)
        summary = encoded.final.h[:, -1] if keep_summary else None
        return DecoderState(memory, summary, self.bridge(encoded), attention=started, copies=encoded.copies)

    @property
    def transducer(self) -> Any:
        """What `lit_seq2seq.search.AlignmentSearch` asks of a model; `None` where outputs are not written at frames."""
        return None

    def forced_align(self, tokens: Tensor, target: Padded, state: DecoderState) -> Tensor | None:
        """Find where the best alignment writes each symbol of given targets; see `EncoderDecoder.forced_align`.

        Args:
            tokens: `(B, T)` what is read of them, BOS first.
            target: what is written, ending with EOS.
            state: from `start`.

        Returns:
            `(B, T)` positions of the memory; `None` for a decoder without alignments.
        """
        return None

    @property
    def shape(self) -> DecoderShape:
        """Sizes of what `forward` and `step` return."""
        attention = self.attention_module
        context = 0 if attention is None else attention.context_size
        return DecoderShape(self.output_size, self.hidden_size, context, self.embedding.embedding_dim)

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """Parameters with a row for each target symbol besides the embedding; see `Output`."""
        return []

    @property
    @abstractmethod
    def attention_module(self) -> Attention | None:
        """The attention, if there is one."""

    @abstractmethod
    def advance(self, embedded: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one embedded token per hypothesis, `(N, E)`; return features `(N, F)` and the state after."""

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Read one token per hypothesis, `(N,)`; return features `(N, F)` and the state after."""
        return self.advance(self.embed(tokens[:, None])[:, 0], state)

    def forward(self, tokens: Tensor, state: DecoderState) -> DecoderOutput:
        """Read whole targets `(B, T)`, BOS first; equal to T calls of `step`.

        Returns:
            Features `(B, T, F)`, attention `(B, T, S)`, and what the features are made of.
        """
        return self.run(tokens, state)[0]

    def run(self, tokens: Tensor, state: DecoderState) -> tuple[DecoderOutput, DecoderState]:
        """Do what `forward` does, and return the state after the last token, too: text that goes on goes on there."""
        outputs = []
        state, visible = self.lock_masks(state), state.visible
        embedded = self.embed(tokens)  # (B, T, E)
        with gathering_gradients():
            for t, column in enumerate(embedded.unbind(dim=1)):
                if visible is not None:
                    state = replace(state, visible=visible[:, t : t + 1])
                output, state = self.advance(column, state)
                outputs.append(output)
        features, attention, hidden, context, _ = zip(*outputs, strict=True)
        output = DecoderOutput(_stack(features), _stack(attention), _stack(hidden), _stack(context), embedded)
        return output, replace(state, masks=None, visible=None)

    def attend(self, query: Tensor, state: DecoderState) -> tuple[Tensor, Tensor, Value | None]:
        """Attend with one query per hypothesis, `(N, D)`: context `(N, C)`, weights `(N, S)`, attention's state."""
        assert self.attention_module is not None
        assert state.memory is not None
        query = state.per_source(query)  # (B, K, D)
        context, weights, after = self.attention_module(query, state.memory, state.attention, state.visible)
        return context.flatten(0, 1), weights.flatten(0, 1), after

    def embed(self, tokens: Tensor) -> Tensor:
        """Look up target symbols `(B, T)`: `(B, T, E)`."""
        return embed(tokens, self.embedding, self.dropout, self.locked_dropout, training=self.training)

    def drop(self, features: Tensor) -> Tensor:
        """Drop units of the features that go to the output layer."""
        return dropout(features, self.dropout, self.training)

    def lock_masks(self, state: DecoderState) -> DecoderState:
        """Draw the dropout masks that all steps of a training sequence share."""
        return state


@overload
def _stack(steps: tuple[Tensor, ...]) -> Tensor: ...
@overload
def _stack(steps: tuple[Tensor | None, ...]) -> Tensor | None: ...
def _stack(steps: tuple[Tensor | None, ...]) -> Tensor | None:
    """Put vectors `(N, D)` of each step side by side, `(N, T, D)`."""
    found = [step for step in steps if step is not None]
    return torch.stack(found, dim=1) if found else None
