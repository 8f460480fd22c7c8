"""Recurrent cells, each in the file that bears its name."""

from lit_seq2seq.nn.cells.base import Cell, CellName, State
from lit_seq2seq.nn.cells.elman import Elman
from lit_seq2seq.nn.cells.gru import GRU
from lit_seq2seq.nn.cells.lstm import LSTM
from lit_seq2seq.nn.cells.mingru import MinGRU
from lit_seq2seq.nn.cells.minlstm import MinLSTM
from lit_seq2seq.nn.cells.rglru import RGLRU
from lit_seq2seq.nn.cells.slstm import SLSTM
from lit_seq2seq.nn.cells.sru import SRU
from lit_seq2seq.nn.cells.transition import DeepTransition
from lit_seq2seq.nn.cells.zoneout import Zoneout

__all__ = [
    "GRU",
    "LSTM",
    "RGLRU",
    "SLSTM",
    "SRU",
    "Cell",
    "CellName",
    "DeepTransition",
    "Elman",
    "MinGRU",
    "MinLSTM",
    "State",
    "Zoneout",
]
