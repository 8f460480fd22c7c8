"""Deep transitions between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell, State
from lit_seq2seq.nn.cells.gru import GRU


class DeepTransition(Cell):
    """Several cells one after the other within each step (Pascanu et al. 2014; Miceli Barone et al. 2017).

    `s_1 = cell_1(x, s)`, `s_i = cell_i(1, s_(i - 1))`: the first reads the input, the others nothing but the state. A 1
    stands in place of their input, whose weights are thus a bias (https://arxiv.org/abs/1707.07631).

    Args:
        cell: makes each of the cells, which must read the output of the one before.
        depth: how many, at least 1.
    """

    def __init__(
        self, input_size: int, hidden_size: int, cell: Callable[[int, int], Cell] = GRU, depth: int = 2
    ) -> None:
        super().__init__(input_size, hidden_size)
        if depth < 1:
            raise ValueError(f"DeepTransition needs a depth of at least 1, got {depth}")
        made = [cell(size, hidden_size) for size in [input_size] + [1] * (depth - 1)]
        if not made[0].reads_output:
            raise ValueError(
                f"DeepTransition needs a cell that reads its output, such as GRU, not {type(made[0]).__name__}"
            )
        self.cells: Sequence[Cell] = nn.ModuleList(made)  # type: ignore[assignment]

    @property
    def others(self) -> tuple[int, ...]:
        """Those of each of the cells."""
        return self.cells[0].others

    def enter(self, x: Tensor) -> Tensor:
        """Compute what the first cell does."""
        return self.cells[0].enter(x)

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Let the cells make a state, each from that of the one before; see `Cell.advance`."""
        state = self.cells[0].advance(entered, state, mask)
        for cell in self.cells[1:]:
            state = cell.step(state[0].new_ones(state[0].shape[0], 1), state, mask)
        return state
