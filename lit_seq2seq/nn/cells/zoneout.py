"""Zoneout, around any cell."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_seq2seq.nn.cells.base import Cell, State
from lit_seq2seq.nn.cells.lstm import LSTM


class Zoneout(Cell):
    """Units of the state that stay as they were (Krueger et al. 2017), at random while training.

    `s' = d s + (1 - d) cell(x, s)`, with d drawn anew for each unit of each vector of the state and each step; in
    evaluation d is its probability (https://arxiv.org/abs/1606.01305).

    Args:
        cell: makes the cell.
        probability: how often a unit stays.

    Example:
        >>> cell = Zoneout(3, 4, probability=0.5).eval()
        >>> before = cell.first(torch.ones(2, 3))
        >>> h, c = cell.step(torch.ones(2, 3), before)
        >>> torch.equal(h, cell.cell.step(torch.ones(2, 3), before)[0] / 2)
        True
    """

    def __init__(
        self, input_size: int, hidden_size: int, cell: Callable[[int, int], Cell] = LSTM, probability: float = 0.1
    ) -> None:
        super().__init__(input_size, hidden_size)
        if not 0 <= probability <= 1:
            raise ValueError(f"probability of Zoneout must be from 0 to 1, got {probability}")
        self.cell = cell(input_size, hidden_size)
        if not self.cell.mixes:
            raise ValueError(
                f"Zoneout is not for {type(self.cell).__name__}, whose vectors have another scale at each step: name "
                "another cell"
            )
        self.probability = probability
        self.reads_output = self.cell.reads_output

    @property
    def others(self) -> tuple[int, ...]:
        """Those of the cell."""
        return self.cell.others

    def enter(self, x: Tensor) -> Tensor:
        """Compute what the cell does."""
        return self.cell.enter(x)

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Let the cell make a state, of which units of the old one are kept; see `Cell.advance`."""
        new = self.cell.advance(entered, state, mask)
        return tuple(map(self._mixed, state, new))

    def _mixed(self, old: Tensor, new: Tensor) -> Tensor:
        if self.training:
            return torch.where(torch.rand(new.shape, device=new.device) < self.probability, old, new)
        return new + self.probability * (old - new)
