"""The network: cells, encoders, attentions, bridges, decoders and the model they make."""

from lit_seq2seq.nn.attention import (
    AdditiveAttention,
    Attention,
    AttentionHistory,
    AttentionMemory,
    DotAttention,
    GeneralAttention,
    LocationAwareAttention,
    MultiHeadAttention,
)
from lit_seq2seq.nn.attention_losses import AttentionLoss, CoverageLoss, DoublyStochasticLoss
from lit_seq2seq.nn.auxiliary import CTC, Auxiliary
from lit_seq2seq.nn.bridges import Bridge, DenseBridge, LastState, LearnedBridge, MeanBridge, StateShape, ZeroBridge
from lit_seq2seq.nn.cells import RecurrentLayer, RecurrentStack
from lit_seq2seq.nn.decoders import (
    ConditionalGRUDecoder,
    Decoder,
    DecoderOutput,
    DecoderShape,
    DecoderState,
    InputFeedingDecoder,
    ParallelDecoder,
)
from lit_seq2seq.nn.encoders import (
    ConvEncoder,
    Encoder,
    EncoderShape,
    JoinedMemory,
    MultiSourceEncoder,
    PyramidalEncoder,
    SpeechBackbone,
    TextBackbone,
    TextEncoder,
    VisionBackbone,
)
from lit_seq2seq.nn.ensemble import Ensemble
from lit_seq2seq.nn.hierarchical import HierarchicalAttention, HierarchicalMemory
from lit_seq2seq.nn.losses import projected_cross_entropy
from lit_seq2seq.nn.network import EncoderDecoder
from lit_seq2seq.nn.output import CopyOutput, Output, OutputLayer
from lit_seq2seq.settings.arguments import check_constructors

__all__ = [
    "CTC",
    "AdditiveAttention",
    "Attention",
    "AttentionHistory",
    "AttentionLoss",
    "AttentionMemory",
    "Auxiliary",
    "Bridge",
    "ConditionalGRUDecoder",
    "ConvEncoder",
    "CopyOutput",
    "CoverageLoss",
    "Decoder",
    "DecoderOutput",
    "DecoderShape",
    "DecoderState",
    "DenseBridge",
    "DotAttention",
    "DoublyStochasticLoss",
    "Encoder",
    "EncoderDecoder",
    "EncoderShape",
    "Ensemble",
    "GeneralAttention",
    "HierarchicalAttention",
    "HierarchicalMemory",
    "InputFeedingDecoder",
    "JoinedMemory",
    "LastState",
    "LearnedBridge",
    "LocationAwareAttention",
    "MeanBridge",
    "MultiHeadAttention",
    "MultiSourceEncoder",
    "Output",
    "OutputLayer",
    "ParallelDecoder",
    "PyramidalEncoder",
    "RecurrentLayer",
    "RecurrentStack",
    "SpeechBackbone",
    "StateShape",
    "TextBackbone",
    "TextEncoder",
    "VisionBackbone",
    "ZeroBridge",
    "projected_cross_entropy",
]

check_constructors(__name__)
