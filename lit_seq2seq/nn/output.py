"""Output layers: from what the decoder hands over to a distribution over target symbols."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_seq2seq.nn.decoders.base import DecoderOutput, DecoderShape
from lit_seq2seq.nn.kernels.cross_entropy import BLOCK_SCORES, projected_cross_entropy
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.types import Copies, Padded, UserError

_LEAST = 1e-30  # probability of copying that counts as none: its logarithm and gradient stay finite
_CERTAIN = 1e4  # logit of a gate that is fully open


class Output(nn.Module, ABC):
    """Base of all output layers.

    Args:
        shape: sizes of what the decoder hands over.
        vocab_size: number of target symbols V.
        embedding: target embedding whose weight is shared (Press & Wolf 2017), or `None` for weights of its own.

    Example:
        >>> class Unigrams(Output):
        ...     def __init__(self, shape, vocab_size, embedding=None):
        ...         super().__init__()
        ...         self.bias = nn.Parameter(torch.zeros(vocab_size))
        ...     def scores(self, output, copies):
        ...         return self.bias.expand(*output.features.shape[:-1], -1)
        ...     def log_probs(self, output, copies):
        ...         return self.scores(output, copies).log_softmax(dim=-1)
        ...     def loss(self, output, target, copies, smoothing):
        ...         found = self.log_probs(output, copies).gather(-1, target.values[..., None])[..., 0]
        ...         nll = -(found * target.mask).sum()
        ...         return nll, nll.detach()
        >>> features = torch.zeros(1, 8)
        >>> output = DecoderOutput(features, None, features, None, features)
        >>> Unigrams(DecoderShape(8), vocab_size=2).log_probs(output, None).exp()
        tensor([[0.5000, 0.5000]], grad_fn=<ExpBackward0>)
    """

    copies: ClassVar[bool] = False
    """Whether source symbols can be produced that the target's vocabulary lacks: ids from V on, see `Copies`."""

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """Parameters with a row for each target symbol, which stay when a vocabulary grows."""
        return []

    @abstractmethod
    def scores(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Score every symbol: `(..., V)` or `(..., V + extra)`, whose softmax are the probabilities."""

    @abstractmethod
    def log_probs(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Compute the log-probability of every symbol in 32 bits or more, in the shape of `scores`."""

    def likelihoods(self, output: DecoderOutput, target: Padded, copies: Copies | None) -> Tensor:
        """Compute the log-probability of every token of given targets, with gradient: `(B, T)`, zero at padding."""
        chosen = self.log_probs(output, copies).gather(-1, target.values[..., None]).squeeze(-1)  # (B, T)
        return chosen.masked_fill(~target.mask, 0)

    def restricted(self, symbols: Tensor) -> nn.Module:
        """Return what scores features `(..., F)` for some symbols only, `(U,)` ids: `(..., U)`, without gradient.

        Raises:
            UserError: the layer has to know all symbols.
        """
        raise UserError(f"shortlist: {type(self).__name__} scores all symbols or none: set shortlist to false")

    @property
    def tables(self) -> dict[str, Tensor]:
        """What the runtime needs to score the symbols of a shortlist only; nothing if it cannot."""
        return {}

    def exported(self, output: DecoderOutput) -> dict[str, Tensor]:
        """Return what scores symbols in an exported model: `log_probs (B, K, V)`."""
        # copied: they may be the features themselves, and a graph gives back none of its inputs
        return {"log_probs": self.log_probs(output, None).clone()}

    @abstractmethod
    def loss(
        self, output: DecoderOutput, target: Padded, copies: Copies | None, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Sum the loss over the real target tokens; see `projected_cross_entropy`."""


class OutputLayer(Output):
    """Scores of all target symbols, `W x + b`, projecting features to the embedding size first where W is tied."""

    def __init__(self, shape: DecoderShape, vocab_size: int, embedding: nn.Embedding | None = None) -> None:
        super().__init__()
        size = shape.features if embedding is None else embedding.embedding_dim
        same = size == shape.features
        self.bottleneck = nn.Identity() if same else Linear(shape.features, size, bias=False)
        self.projection = Linear(size, vocab_size)
        nn.init.zeros_(self.projection.bias)
        if embedding is not None:
            self.projection.weight = embedding.weight

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """The weights and the biases."""
        return [self.projection.weight, self.projection.bias]

    def forward(self, features: Tensor) -> Tensor:
        """Score features `(..., F)`: `(..., V)`."""
        logits: Tensor = self.projection(self.bottleneck(features))
        return logits

    def restricted(self, symbols: Tensor) -> nn.Module:
        """Return a layer that has only the rows of `symbols`."""
        layer = copy.copy(self)
        layer._modules = {**self._modules, "projection": self.projection.rows(symbols)}
        return layer

    @property
    def tables(self) -> dict[str, Tensor]:
        """The weights and biases; nothing for a class derived from it, which may score in another way."""
        if type(self) is not OutputLayer:
            return {}
        found = {"weight": self.projection.weight, "bias": self.projection.bias}
        return found if isinstance(self.bottleneck, nn.Identity) else found | {"bottleneck": self.bottleneck.weight}

    def scores(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Score every symbol: logits `(..., V)`."""
        logits: Tensor = self(output.features)
        return logits

    def log_probs(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Compute the log-probability of every symbol, `(..., V)`."""
        return torch.log_softmax(wide(self(output.features)), dim=-1)

    def likelihoods(self, output: DecoderOutput, target: Padded, copies: Copies | None) -> Tensor:
        """Compute `Output.likelihoods` a few tokens at a time, where they are many; their scores are made twice."""
        if type(self) is not OutputLayer:  # it may score in another way
            return super().likelihoods(output, target, copies)
        rows = max(1, BLOCK_SCORES // self.projection.weight.shape[0])
        features, ids = output.features[target.mask], target.values[target.mask]  # (N, F), (N,)
        places = [slice(start, start + rows) for start in range(0, max(1, len(ids)), rows)]
        if len(places) == 1:
            found = self._chosen(features, ids)
        else:
            parts = [checkpoint(self._chosen, features[one], ids[one], use_reentrant=False) for one in places]
            found = torch.cat(parts)
        return found.new_zeros(target.values.shape).masked_scatter(target.mask, found)

    def _chosen(self, features: Tensor, ids: Tensor) -> Tensor:
        return torch.log_softmax(wide(self(features)), dim=-1).gather(1, ids[:, None])[:, 0]

    def loss(
        self, output: DecoderOutput, target: Padded, copies: Copies | None, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy over the real target tokens."""
        return self.cross_entropy(output.features[target.mask], target.values[target.mask], smoothing)

    def cross_entropy(
        self, features: Tensor, targets: Tensor, smoothing: float, mixture: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of features `(N, F)` against ids `(N,)`; see `projected_cross_entropy`."""
        projection = self.projection
        features = self.bottleneck(features)
        return projected_cross_entropy(
            features, projection.weight, projection.bias, targets, smoothing=smoothing, mixture=mixture
        )


class GivenOutput(Output):
    """What stands after a decoder that predicts symbols by itself: nothing to learn."""

    def scores(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Return the log-probability of every symbol, `(..., V)`."""
        return output.features

    def log_probs(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Return the log-probability of every symbol, `(..., V)`."""
        return output.features

    def loss(
        self, output: DecoderOutput, target: Padded, copies: Copies | None, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy over the real target tokens."""
        log_probs = output.features[target.mask]  # (N, V)
        nll = -log_probs.gather(1, target.values[target.mask][:, None]).sum()
        return (1 - smoothing) * nll - smoothing * log_probs.mean(dim=1).sum(), nll.detach()


class CopyOutput(Output):
    """Generates or copies: `p(w) = g p_vocab(w) + (1 - g) sum_{i: w_i = w} a_i` (See et al. 2017, eq. 8 and 9).

    `a` is the attention of the step and `g = sigmoid(w_c c + w_h h + w_e e + b)` the probability of generating. Symbols
    of the source that the vocabulary lacks have ids from V on, per source; the decoder reads them as unknown. In
    training only the probabilities of the targets are computed: memory grows with the attention weights `(B, T, S)`,
    never with `(B, T, V + S)`. Label smoothing concerns `p_vocab` alone. The data must name the source symbols by
    target ids: `copy` of `Seq2SeqDataModule`, which recipes set by themselves.

    Raises:
        ValueError: the decoder has no attention.
    """

    copies = True

    def __init__(self, shape: DecoderShape, vocab_size: int, embedding: nn.Embedding | None = None) -> None:
        super().__init__()
        if not shape.context:
            raise ValueError("CopyOutput copies what attention looks at: give the decoder an attention")
        self.vocab_size = vocab_size
        self.generate = OutputLayer(shape, vocab_size, embedding)
        self.gate = Linear(shape.hidden + shape.context + shape.embedded, 1)

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """Those of the layer that generates."""
        return self.generate.symbol_parameters

    def scores(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Compute the log-probability of every symbol, `(..., V + extra)`."""
        return self.log_probs(output, copies)

    def exported(self, output: DecoderOutput) -> dict[str, Tensor]:
        """Return `log_copy (B, K, 1)` and `copy_weights (B, K, S)` too, to be spread over the symbols of the source."""
        log_generate, log_copy, weights = self._mixture(output)
        log_probs = log_generate + self.generate.log_probs(output, None)
        return {"log_probs": log_probs, "log_copy": log_copy, "copy_weights": weights}

    def log_probs(self, output: DecoderOutput, copies: Copies | None) -> Tensor:
        """Compute the log-probability of every symbol, `(..., V + extra)`, minus infinity for other sources' own."""
        known = _require(copies)
        log_generate, log_copy, weights = self._mixture(output)  # (..., 1), (..., 1), (..., S)
        ids, repeated = (_like(x, weights) for x in (known.ids, known.repeated))  # (..., S)
        log_probs = log_generate + self.generate.log_probs(output, copies)  # (..., V)
        size = self.vocab_size + known.extra
        log_probs = F.pad(log_probs, (0, known.extra + 1), value=-torch.inf)  # (..., V + extra + 1)
        copied = torch.zeros_like(log_probs).scatter_add(-1, ids, weights).gather(-1, ids)  # (..., S)
        mixed = torch.logaddexp(log_probs.gather(-1, ids), log_copy + copied.clamp(min=_LEAST).log())
        # each symbol is written once, repetitions go to a column that is cut off: gradients would count them again
        return log_probs.scatter(-1, ids.masked_fill(repeated, size), mixed)[..., :size]

    def loss(
        self, output: DecoderOutput, target: Padded, copies: Copies | None, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Sum `-log p(y)` over the real target tokens."""
        mask, ids = target.mask, target.values
        log_generate, log_copy, weights = self._mixture(output)  # (B, T, 1), (B, T, 1), (B, T, S)
        same = _require(copies).ids[:, None] == ids[:, :, None]  # (B, T, S)
        copied = (weights * same).sum(dim=-1)  # (B, T)
        log_copied = log_copy[..., 0] + copied.clamp(min=_LEAST).log()
        beyond = ids >= self.vocab_size
        log_generated = log_generate[..., 0].masked_fill(beyond, -torch.inf)
        features, targets = output.features[mask], ids.masked_fill(beyond, 0)[mask]
        return self.generate.cross_entropy(features, targets, smoothing, (log_generated[mask], log_copied[mask]))

    def _mixture(self, output: DecoderOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of generating and of copying `(..., 1)`, and weights `(..., S)` that sum to one.

        Without any source position there is nothing to copy, and the probability of generating is one.
        """
        assert output.attention is not None
        assert output.context is not None
        weights = wide(output.attention)
        total = weights.sum(dim=-1, keepdim=True)  # (..., 1), not quite one in 16 bits
        gate = wide(self.gate(torch.cat([output.hidden, output.context, output.embedded], dim=-1)))
        gate = gate.masked_fill(total == 0, _CERTAIN)
        return F.logsigmoid(gate), F.logsigmoid(-gate), weights / total.clamp(min=_LEAST)


def _like(x: Tensor, weights: Tensor) -> Tensor:
    """Give each hypothesis and step the row of its source: `(B, S)` to the shape of `weights`."""
    rows = x.repeat_interleave(weights.shape[0] // x.shape[0], dim=0)  # (N, S)
    return rows if weights.dim() == 2 else rows[:, None].expand(weights.shape)


def _require(copies: Copies | None) -> Copies:
    if copies is None:
        raise ValueError("CopyOutput needs a source whose symbols have target ids, a CopySource: set copy on the data")
    return copies
