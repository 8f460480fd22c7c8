"""The network: cells, encoders, attentions, bridges, decoders and the model they make."""

from lit_seq2seq.nn.attention import (
    AdditiveAttention,
    Attention,
    AttentionMemory,
    DotAttention,
    GeneralAttention,
    HierarchicalAttention,
    HierarchicalMemory,
    LocationAwareAttention,
    Looked,
    MoChA,
    MonotonicAttention,
    MultiHeadAttention,
)
from lit_seq2seq.nn.attention_losses import AttentionLoss, CoverageLoss, DoublyStochasticLoss, GuidedAlignment
from lit_seq2seq.nn.auxiliary import CTC, Auxiliary
from lit_seq2seq.nn.bridges import Bridge, DenseBridge, LastState, LearnedBridge, MeanBridge, StateShape, ZeroBridge
from lit_seq2seq.nn.cells import GRU, LSTM, RGLRU, SLSTM, SRU, Cell, DeepTransition, Elman, MinGRU, MinLSTM, Zoneout
from lit_seq2seq.nn.decoders import (
    ConditionalGRUDecoder,
    Decoder,
    DecoderOutput,
    DecoderShape,
    DecoderState,
    HardMonotonicDecoder,
    InputFeedingDecoder,
    ParallelDecoder,
    TransducerDecoder,
)
from lit_seq2seq.nn.encoders import (
    ConvEncoder,
    Encoder,
    EncoderShape,
    JoinedMemory,
    MultiSourceEncoder,
    NoSource,
    PyramidalEncoder,
    SpeechBackbone,
    TextBackbone,
    TextEncoder,
    VisionBackbone,
)
from lit_seq2seq.nn.ensemble import Ensemble
from lit_seq2seq.nn.kernels.cross_entropy import projected_cross_entropy
from lit_seq2seq.nn.network import EncoderDecoder
from lit_seq2seq.nn.output import CopyOutput, Output, OutputLayer
from lit_seq2seq.nn.recurrent import CellLayer, RecurrentLayer, RecurrentStack
from lit_seq2seq.nn.second_pass import SecondPass
from lit_seq2seq.settings.arguments import check_constructors

__all__ = [
    "CTC",
    "GRU",
    "LSTM",
    "RGLRU",
    "SLSTM",
    "SRU",
    "AdditiveAttention",
    "Attention",
    "AttentionLoss",
    "AttentionMemory",
    "Auxiliary",
    "Bridge",
    "Cell",
    "CellLayer",
    "ConditionalGRUDecoder",
    "ConvEncoder",
    "CopyOutput",
    "CoverageLoss",
    "Decoder",
    "DecoderOutput",
    "DecoderShape",
    "DecoderState",
    "DeepTransition",
    "DenseBridge",
    "DotAttention",
    "DoublyStochasticLoss",
    "Elman",
    "Encoder",
    "EncoderDecoder",
    "EncoderShape",
    "Ensemble",
    "GeneralAttention",
    "GuidedAlignment",
    "HardMonotonicDecoder",
    "HierarchicalAttention",
    "HierarchicalMemory",
    "InputFeedingDecoder",
    "JoinedMemory",
    "LastState",
    "LearnedBridge",
    "LocationAwareAttention",
    "Looked",
    "MeanBridge",
    "MinGRU",
    "MinLSTM",
    "MoChA",
    "MonotonicAttention",
    "MultiHeadAttention",
    "MultiSourceEncoder",
    "NoSource",
    "Output",
    "OutputLayer",
    "ParallelDecoder",
    "PyramidalEncoder",
    "RecurrentLayer",
    "RecurrentStack",
    "SecondPass",
    "SpeechBackbone",
    "StateShape",
    "TextBackbone",
    "TextEncoder",
    "TransducerDecoder",
    "VisionBackbone",
    "ZeroBridge",
    "Zoneout",
    "projected_cross_entropy",
]

check_constructors(__name__)
