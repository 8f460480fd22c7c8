"""Encoder of symbol sequences: words, subwords, characters, bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.ops import dropout, dropout_mask
from lit_seq2seq.nn.recurrent import CellFactory, RecurrentStack, StackReading
from lit_seq2seq.types import CellState, Encoded, Padded, Value


def embed(tokens: Tensor, embedding: nn.Embedding, probability: float, locked: bool, *, training: bool) -> Tensor:
    """Look up `tokens (B, T)` and drop units, with one mask per sequence if `locked`: `(B, T, E)`."""
    vectors: Tensor = embedding(tokens)
    if locked and training and probability > 0:
        return vectors * dropout_mask(vectors, (vectors.shape[0], 1, vectors.shape[2]), probability)
    return dropout(vectors, probability, training)


def new_embedding(num_embeddings: int, embedding_dim: int) -> nn.Embedding:
    """Create an embedding drawn from N(0, 1 / sqrt(embedding_dim)).

    As input to a recurrent layer it should have a variance of about 1, as tied output weights one of 1 / embedding_dim
    (Vaswani et al. 2017, section 3.4, scale it in between): this is their geometric mean. Where the weights are small
    and scaled up instead, each step of Adam moves the inputs by that scale, which keeps a network of recurrent layers
    from settling (`docs/results.md`).
    """
    if num_embeddings < 1:
        raise ValueError("there are no source symbols to embed: set model.encoder to lit_seq2seq.nn.NoSource")
    embedding = nn.Embedding(num_embeddings, embedding_dim)
    nn.init.normal_(embedding.weight, std=embedding_dim**-0.25)
    return embedding


class TextEncoder(Encoder):
    """Embedding and recurrent layers over symbol ids (Sutskever et al. 2014; Cho et al. 2014; Bahdanau et al. 2015).

    Args:
        vocab_size: number of source symbols.
        embedding_dim: size of the symbol vectors.
        hidden_size: size of the memory vectors; with `bidirectional`, half of it goes to either direction.
        num_layers: number of recurrent layers.
        cell: kind of cell.
        bidirectional: read in both directions.
        residual: see `RecurrentStack`.
        layer_norm: see `RecurrentStack`.
        dropout: probability of dropping units of embeddings and between layers.
        locked_dropout: use one mask for all steps of a sequence (Gal & Ghahramani 2016).
        state_dropout: see `RecurrentLayer`.
        reverse: feed the source last symbol first (Sutskever et al. 2014, section 3.3); for one direction only.
        chunk_size: for long sources, see `RecurrentLayer`.
        truncate: see `RecurrentLayer`.
        backward_chunk: see `RecurrentStack`.
        backward_lookahead: see `RecurrentStack`.
    """

    dimensions = 2
    cure = "set bidirectional: false or backward_chunk, and reverse: false"

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int = 256,
        hidden_size: int = 512,
        num_layers: int = 1,
        *,
        cell: CellName | CellFactory = "lstm",
        bidirectional: bool = True,
        residual: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        state_dropout: float = 0.0,
        reverse: bool = False,
        chunk_size: int | None = None,
        truncate: bool = False,
        backward_chunk: int | None = None,
        backward_lookahead: int = 0,
    ) -> None:
        super().__init__()
        if reverse and bidirectional:
            raise ValueError(
                "reverse needs bidirectional: false, since a bidirectional encoder already reads both ways"
            )
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.embedding = new_embedding(vocab_size, embedding_dim)
        self.stack = RecurrentStack(
            embedding_dim,
            hidden_size,
            num_layers,
            cell,
            bidirectional=bidirectional,
            residual=residual,
            layer_norm=layer_norm,
            dropout=dropout,
            locked_dropout=locked_dropout,
            state_dropout=state_dropout,
            chunk_size=chunk_size,
            truncate=truncate,
            backward_chunk=backward_chunk,
            backward_lookahead=backward_lookahead,
        )
        self.dropout = dropout
        self.locked_dropout = locked_dropout
        self.reverse = reverse
        self.shape = EncoderShape(hidden_size, num_layers, hidden_size, self.stack.others)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The embedding of source symbols."""
        return self.embedding

    def forward(self, source: Padded) -> Encoded:
        """Encode ids `(B, S)`."""
        tokens = _reverse(source) if self.reverse else source.values
        vectors = embed(tokens, self.embedding, self.dropout, self.locked_dropout, training=self.training)  # (B, S, E)
        outputs, final = self.stack(vectors, lengths=source.lengths)  # (B, S, H)
        memory = Padded(outputs, source.lengths)
        if self.reverse:  # position s of the memory belongs to position s of the source
            memory = Padded(_reverse(memory), source.lengths)
        return Encoded(memory, final)

    def reach(self, count: int) -> int | None:
        """Tell what the layers need; see `Encoder.reach`."""
        return None if self.reverse else self.stack.reach(count)

    def begin(self, batch_size: int) -> Value:
        """Make the state before the first piece; see `Encoder.begin`."""
        return super().begin(batch_size) if self.lookahead is None else self.stack.begin(batch_size)

    def extend(self, state: StackReading, piece: Padded, last: Tensor) -> tuple[Padded, StackReading]:
        """Read on; see `Encoder.extend`."""
        return self.stack.extend(state, Padded(self.embedding(piece.values), piece.lengths), last)

    def final_state(self, state: StackReading) -> CellState:
        """Return the final states; see `Encoder.final_state`."""
        return state.cells


def _reverse(sequences: Padded) -> Tensor:
    """Reverse each sequence within its real length, leaving padding in place."""
    values = sequences.values
    positions = sequences.mask.long().cumsum(dim=1) - 1  # (B, S): 0 1 2 2 2 ...
    index = (sequences.lengths.clamp(min=1)[:, None] - 1 - positions).clamp(min=0)
    index = index.where(sequences.mask, torch.arange(values.shape[1], device=values.device))
    return values.gather(1, index if values.dim() == 2 else index[..., None].expand_as(values))
