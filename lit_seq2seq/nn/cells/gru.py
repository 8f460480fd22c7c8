"""The gated recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_seq2seq.nn.cells.base import CellName, State
from lit_seq2seq.nn.cells.gates import GatedCell


class GRU(GatedCell):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as in cuDNN.

    `r, z = sigmoid(W x + U h + b)`, `n = tanh(W x + r (U h + b'))`, `h' = (1 - z) n + z h`. Under state dropout the
    gates see h dropped, and z carries it whole: the scale of the mask would grow with time.

    Args:
        layer_norm: normalise `W x` and `U h` (after Ba et al. 2016). Runs step by step.
    """

    gates = 3

    @property
    def kernel(self) -> CellName | None:
        """That of torch, without normalisation."""
        return "gru" if self.norm is None else None

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h; see `Cell.advance`."""
        (h,) = state
        (r, z, n), (r_h, z_h, n_h) = entered.chunk(3, dim=-1), self.from_output(h, mask).chunk(3, dim=-1)
        new = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
        return (new + torch.sigmoid(z + z_h) * (h - new),)
