"""The simple recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.cells.base import Cell, State
from lit_seq2seq.nn.kernels.scan import elementwise_scan
from lit_seq2seq.types import Padded

SHUT = 1e4  # in a gate, what makes it exactly 1


class SRU(Cell):
    """Simple recurrent unit (Lei et al. 2018, equations 1 to 4): all matrix products before the loop over time.

    `f = sigmoid(W_f x + v_f c + b_f)`, `c' = f c + (1 - f) (W x)`, `r = sigmoid(W_r x + v_r c + b_r)`,
    `h = r c' + (1 - r) x` (https://arxiv.org/abs/1709.02755). Inputs of another size than the output are projected for
    the last term.
    """

    reads_output = False

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.projects = input_size != hidden_size
        self.inputs = nn.Linear(input_size, (4 if self.projects else 3) * hidden_size, bias=False)
        self.peep = nn.Parameter(torch.empty(2, hidden_size).uniform_(-(3**0.5) / hidden_size, 3**0.5 / hidden_size))
        self.bias = nn.Parameter(torch.zeros(2, hidden_size))

    @property
    def others(self) -> tuple[int, ...]:
        """The cell vector."""
        return (self.hidden_size,)

    def enter(self, x: Tensor) -> Tensor:
        """Compute the products, and the input as it passes by: `(..., 4 H)`."""
        return self.inputs(x) if self.projects else torch.cat([self.inputs(x), x], dim=-1)

    def advance(self, entered: Tensor, state: State, mask: Tensor | None = None) -> State:
        """Make h and c; see `Cell.advance`."""
        new, forget, reset, passing = entered.chunk(4, dim=-1)
        c = _next(state[1], new, forget + self.bias[0], self.peep[0])
        return self._output(c, state[1], reset, passing), c

    def scan(
        self,
        x: Tensor,
        state: State,
        lengths: Tensor | None = None,
        reverse: bool = False,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read whole sequences by a loop over the cell vector alone; see `Cell.scan`."""
        real = Padded(x, torch.full((len(x),), x.shape[1]) if lengths is None else lengths).mask[..., None]  # (B, T, 1)
        entered = self.enter(x)
        if reverse:
            entered, real = entered.flip(1), real.flip(1)
        new, forget, reset, passing = entered.chunk(4, dim=-1)
        forget = (forget + self.bias[0]).masked_fill(~real, SHUT)  # padding holds the cell vector
        cs = elementwise_scan(_next, state[1], [new * real, forget], [self.peep[0]])
        outputs = self._output(cs, torch.cat([state[1][:, None], cs[:, :-1]], dim=1), reset, passing) * real
        last = (real * torch.arange(x.shape[1], device=x.device)[:, None]).argmax(dim=1, keepdim=True)  # (B, 1, 1)
        h = torch.where(real.any(dim=1), outputs.gather(1, last.expand(-1, -1, self.hidden_size))[:, 0], state[0])
        return outputs.flip(1) if reverse else outputs, (h, cs[:, -1])

    def _output(self, c: Tensor, before: Tensor, reset: Tensor, passing: Tensor) -> Tensor:
        return passing + torch.sigmoid(reset + self.peep[1] * before + self.bias[1]) * (c - passing)


def _next(c: Tensor, new: Tensor, forget: Tensor, peep: Tensor) -> Tensor:
    return new + torch.sigmoid(forget + peep * c) * (c - new)
