"""Decoders: from an encoded source to one feature vector per target position."""

from lit_seq2seq.nn.decoders.base import Decoder, DecoderOutput, DecoderShape, DecoderState
from lit_seq2seq.nn.decoders.conditional import ConditionalGRUDecoder
from lit_seq2seq.nn.decoders.feeding import InputFeedingDecoder
from lit_seq2seq.nn.decoders.hard_monotonic import HardMonotonicDecoder
from lit_seq2seq.nn.decoders.parallel import ParallelDecoder
from lit_seq2seq.nn.decoders.transducer import TransducerDecoder

__all__ = [
    "ConditionalGRUDecoder",
    "Decoder",
    "DecoderOutput",
    "DecoderShape",
    "DecoderState",
    "HardMonotonicDecoder",
    "InputFeedingDecoder",
    "ParallelDecoder",
    "TransducerDecoder",
]
