"""Encoders: a source in, one memory vector per position out."""

from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.encoders.image import ConvEncoder
from lit_seq2seq.nn.encoders.multi import JoinedMemory, MultiSourceEncoder
from lit_seq2seq.nn.encoders.nothing import NoSource
from lit_seq2seq.nn.encoders.pretrained import SpeechBackbone, TextBackbone
from lit_seq2seq.nn.encoders.speech import PyramidalEncoder
from lit_seq2seq.nn.encoders.text import TextEncoder
from lit_seq2seq.nn.encoders.vision import VisionBackbone

__all__ = [
    "ConvEncoder",
    "Encoder",
    "EncoderShape",
    "JoinedMemory",
    "MultiSourceEncoder",
    "NoSource",
    "PyramidalEncoder",
    "SpeechBackbone",
    "TextBackbone",
    "TextEncoder",
    "VisionBackbone",
]
