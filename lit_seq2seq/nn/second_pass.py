"""A second decoder over the same encoder, which rates the outputs of the first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.decoders.base import Decoder, DecoderOutput
from lit_seq2seq.nn.decoders.feeding import InputFeedingDecoder
from lit_seq2seq.nn.encoders.base import EncoderShape
from lit_seq2seq.nn.output import GivenOutput, OutputLayer
from lit_seq2seq.types import Encoded, Padded


class SecondPass(nn.Module):
    """A decoder that is trained beside the first, and rates its outputs when the source has ended.

    The two-pass model of Sainath et al. (2019, https://arxiv.org/abs/1908.10992): a transducer writes while its source
    comes in, and a decoder with attention, which sees the whole source, ranks what is left of its beam; see
    `lit_seq2seq.reranking.Rescoring`.
    The loss to minimise is `(1 - weight) first + weight second`, where `first` has its auxiliary losses.

    Args:
        vocab_size: number of target symbols.
        encoder: sizes of the encoder's result.
        decoder: makes the decoder from these; it may read the end of the source, whatever the first may do.
        weight: share of its loss, above 0 and at most 1.

    Raises:
        ValueError: the weight is out of its range.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder: EncoderShape,
        *,
        decoder: Callable[[int, EncoderShape], Decoder] = InputFeedingDecoder,
        weight: float = 0.3,
    ) -> None:
        super().__init__()
        if not 0 < weight <= 1:
            raise ValueError(f"weight of SecondPass must be above 0 and at most 1, got {weight}")
        self.weight = weight
        self.decoder = decoder(vocab_size, encoder)
        self.output = GivenOutput() if self.decoder.predicts else OutputLayer(self.decoder.shape, vocab_size)

    @property
    def symbol_parameters(self) -> list[Tensor]:
        """Parameters with a row for each target symbol, which stay when a vocabulary grows."""
        embedding: Tensor = self.decoder.embedding.weight
        return [embedding, *self.decoder.symbol_parameters, *self.output.symbol_parameters]

    def loss(self, encoded: Encoded, target: Padded, label_smoothing: float = 0.0) -> Tensor:
        """Sum the cross-entropy of targets that end with EOS."""
        return self.output.loss(self._teach(encoded, target), target, None, label_smoothing)[0]

    def log_probs(self, encoded: Encoded, target: Padded) -> Tensor:
        """Compute the log-probability of each target, EOS included: `(B,)`."""
        return self.output.likelihoods(self._teach(encoded, target), target, None).sum(dim=1)

    def _teach(self, encoded: Encoded, target: Padded) -> DecoderOutput:
        bos = torch.full_like(target.values[:, :1], self.decoder.specials.bos)
        output: DecoderOutput = self.decoder(
            torch.cat([bos, target.values[:, :-1]], dim=1), self.decoder.start(encoded)
        )
        return output
