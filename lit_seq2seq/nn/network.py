"""Encoder, decoder and output layer put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.decoders.base import Decoder, DecoderState
from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.losses import projected_cross_entropy
from lit_seq2seq.types import Encoded, Padded, SpecialIds, StepOutput

EncoderFactory = Callable[[int], Encoder]
DecoderFactory = Callable[[int, EncoderShape], Decoder]
Tie = Literal["none", "target", "all"]


class OutputLayer(nn.Module):
    """Scores of all target symbols, `W x + b`, projecting features to the embedding size first where W is tied.

    Args:
        feature_size: size of the decoder's features.
        vocab_size: number of target symbols.
        embedding: target embedding whose weight is shared (Press & Wolf 2017), or `None` for weights of its own.
    """

    def __init__(self, feature_size: int, vocab_size: int, embedding: nn.Embedding | None = None) -> None:
        super().__init__()
        size = feature_size if embedding is None else embedding.embedding_dim
        self.bottleneck = nn.Identity() if size == feature_size else nn.Linear(feature_size, size, bias=False)
        self.projection = nn.Linear(size, vocab_size)
        nn.init.zeros_(self.projection.bias)
        if embedding is not None:
            self.projection.weight = embedding.weight

    def forward(self, features: Tensor) -> Tensor:
        """Score features `(..., F)`: `(..., V)`."""
        logits: Tensor = self.projection(self.bottleneck(features))
        return logits


class EncoderDecoder(nn.Module):
    """A sequence-to-sequence model, `p(y|x) = prod_t p(y_t | y_<t, encode(x))` (Sutskever et al., Cho et al. 2014).

    Args:
        source_size: number of source symbols, or size of the source's feature vectors.
        target_size: number of target symbols.
        encoder: makes the encoder from the source size.
        decoder: makes the decoder from the target size and the encoder's shape.
        tie_embeddings: share no weights, those of target embedding and output layer, or of the source embedding too.
        specials: ids of the special target symbols.

    Raises:
        ValueError: embeddings that cannot be tied.

    Example:
        >>> from functools import partial
        >>> from lit_seq2seq.nn import ParallelDecoder, TextEncoder
        >>> small = dict(embedding_dim=4, hidden_size=6)
        >>> network = EncoderDecoder(10, 12, partial(TextEncoder, **small), partial(ParallelDecoder, **small))
        >>> source = Padded(torch.tensor([[4, 5, 6]]), torch.tensor([3]))
        >>> target = Padded(torch.tensor([[7, 8, 3]]), torch.tensor([3]))
        >>> network(source, target).shape
        torch.Size([1, 3, 12])
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        encoder: EncoderFactory,
        decoder: DecoderFactory,
        tie_embeddings: Tie = "none",
        specials: SpecialIds = SpecialIds(),  # noqa: B008  (immutable)
    ) -> None:
        super().__init__()
        self.specials = specials
        self.encoder = encoder(source_size)
        self.decoder = decoder(target_size, self.encoder.shape)
        target = self.decoder.embedding
        if tie_embeddings == "all":
            source = self.encoder.token_embedding
            if source is None or source.weight.shape != target.weight.shape:
                came = "none" if source is None else tuple(source.weight.shape)
                raise ValueError(
                    f"tie_embeddings: all needs source and target embeddings of one shape, got {came} and "
                    f"{tuple(target.weight.shape)}: use a shared vocabulary and equal embedding_dim"
                )
            source.weight = target.weight
        tied = None if tie_embeddings == "none" else target
        self.output = OutputLayer(self.decoder.output_size, target_size, tied)

    def encode(self, source: Padded) -> Encoded:
        """Encode a batch of sources."""
        encoded: Encoded = self.encoder(source)
        return encoded

    def start(self, encoded: Encoded) -> DecoderState:
        """Make the decoder's first state."""
        return self.decoder.start(encoded)

    def step(self, tokens: Tensor, state: DecoderState) -> StepOutput[DecoderState]:
        """Read one token per hypothesis; the step function for `lit_seq2seq.search`."""
        output, state = self.decoder.step(tokens, state)
        log_probs = torch.log_softmax(self.output(output.features).float(), dim=-1)  # (N, V)
        return StepOutput(log_probs, state, output.attention)

    def shift(self, target: Padded) -> Tensor:
        """Turn targets `y_1 .. y_n EOS` into decoder inputs `BOS y_1 .. y_n`, `(B, T)`."""
        bos = target.values.new_full((target.values.shape[0], 1), self.specials.bos)
        return torch.cat([bos, target.values[:, :-1]], dim=1)

    def features(self, source: Padded, target: Padded) -> Tensor:
        """Run the teacher-forced pass up to the output layer: `(B, T, F)`."""
        features: Tensor = self.decoder(self.shift(target), self.start(self.encode(source))).features
        return features

    def forward(self, source: Padded, target: Padded) -> Tensor:
        """Score every symbol at every target position: logits `(B, T, V)`."""
        logits: Tensor = self.output(self.features(source, target))
        return logits

    def loss(self, source: Padded, target: Padded, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Compute the summed loss over real target tokens; see `projected_cross_entropy`."""
        mask = target.mask
        features = self.output.bottleneck(self.features(source, target)[mask])  # (tokens, F)
        last = self.output.projection
        return projected_cross_entropy(features, last.weight, last.bias, target.values[mask], label_smoothing)

    @torch.no_grad()
    def score(self, source: Padded, target: Padded) -> Tensor:
        """Compute the log-probability of every token of given targets: `(B, T)`, zero at padding."""
        log_probs = torch.log_softmax(self(source, target).float(), dim=-1)
        chosen = log_probs.gather(-1, target.values[..., None]).squeeze(-1)  # (B, T)
        return chosen * target.mask
