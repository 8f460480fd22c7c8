"""Encoders: a source in, one memory vector per position out."""

from lit_seq2seq.nn.encoders.base import Encoder, EncoderShape
from lit_seq2seq.nn.encoders.speech import PyramidalEncoder
from lit_seq2seq.nn.encoders.text import TextEncoder

__all__ = ["Encoder", "EncoderShape", "PyramidalEncoder", "TextEncoder"]
