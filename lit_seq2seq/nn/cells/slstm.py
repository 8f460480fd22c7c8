"""The LSTM with exponential gates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_seq2seq.nn.cells.base import State
from lit_seq2seq.nn.cells.gates import GatedCell


class SLSTM(GatedCell):
    """Scalar LSTM of xLSTM (Beck et al. 2024, equations 8 to 17), with one head.

    `i = exp(W x + R h + b)`, `f = sigmoid(...)`, `z = tanh(...)`, `o = sigmoid(...)`, `c' = f c + i z`,
    `n' = f n + i`, `h' = o c' / n'` (https://arxiv.org/abs/2405.04517). The stabiliser `m' = max(log f + m, log i)` is
    taken off both logarithms, which changes no output. The bias of the forget gate starts from 3 to 6.

    Args:
        hidden_size: size H of the output, the cell vector, the normaliser and the stabiliser.
    """

    mixes = False
    gates = 4

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.inputs.bias.data[hidden_size : 2 * hidden_size] = torch.linspace(3.0, 6.0, hidden_size)

    @property
    def others(self) -> tuple[int, ...]:
        """Cell vector, normaliser, stabiliser."""
        return (self.hidden_size,) * 3

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h, c, n and m; see `Cell.advance`."""
        h, c, n, m = state
        let_in, forget, new, out = (entered + self.from_output(h, mask)).chunk(4, dim=-1)
        kept = F.logsigmoid(forget) + m
        stable = torch.maximum(kept, let_in)
        keep, enters = torch.exp(kept - stable), torch.exp(let_in - stable)
        # a bridge may start n below 0, where it never is
        c, n = keep * c + enters * torch.tanh(new), keep * n.relu() + enters
        return torch.sigmoid(out) * c / n, c, n, stable
