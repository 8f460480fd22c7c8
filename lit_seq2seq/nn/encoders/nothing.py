"""The encoder of models that have no source: language models."""

from __future__ import annotations

import torch

from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.types import CellState, Encoded, Padded


class NoSource(Encoder):
    """Reads nothing, so that the decoder alone is a language model, `p(y) = prod_t p(y_t | y_<t)`.

    Its memory is one vector, a lone zero, the same for all; give the decoder a bridge that needs none: `ZeroBridge`, or
    `LearnedBridge`. What it is given is a prompt, with which the output begins; see `lit_seq2seq.features.Prompt`.

    Args:
        source_size: 0, as there is nothing to read.
    """

    dimensions = 2
    shape = EncoderShape(memory_size=1, final_layers=1, final_size=1)

    def __init__(self, source_size: int) -> None:
        super().__init__()
        if source_size != 0:
            raise ValueError("NoSource reads no source, but the data has one: set data.columns.source to null")
        self.register_buffer("zero", torch.zeros(1, 1, 1), persistent=False)  # of the type and on the device

    def forward(self, source: Padded) -> Encoded:
        """Encode `(B, P)` ids of prompts."""
        nothing = self.get_buffer("zero").expand(source.lengths.shape[0], 1, 1)
        memory = Padded(nothing, torch.ones_like(source.lengths))
        return Encoded(memory, CellState(nothing), prefix=source.values)
