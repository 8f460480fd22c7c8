"""Attentions: how a decoder looks back at the source, one file each."""

from lit_seq2seq.nn.attention.additive import AdditiveAttention
from lit_seq2seq.nn.attention.base import Attention, AttentionMemory, Looked
from lit_seq2seq.nn.attention.dot import DotAttention
from lit_seq2seq.nn.attention.general import GeneralAttention
from lit_seq2seq.nn.attention.hierarchical import HierarchicalAttention, HierarchicalMemory
from lit_seq2seq.nn.attention.location import LocationAwareAttention
from lit_seq2seq.nn.attention.mocha import MoChA
from lit_seq2seq.nn.attention.monotonic import MonotonicAttention
from lit_seq2seq.nn.attention.multihead import MultiHeadAttention

__all__ = [
    "AdditiveAttention",
    "Attention",
    "AttentionMemory",
    "DotAttention",
    "GeneralAttention",
    "HierarchicalAttention",
    "HierarchicalMemory",
    "LocationAwareAttention",
    "Looked",
    "MoChA",
    "MonotonicAttention",
    "MultiHeadAttention",
]
