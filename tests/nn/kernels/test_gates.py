from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_seq2seq.nn.kernels.gates import gru_step, lstm_step


def lstm(x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.lstm_cell(x, (h, c), *weights)


def gru(x: Tensor, h: Tensor, _: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return torch.gru_cell(x, h, *weights)


def carried(x: Tensor, h: Tensor, _: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return gru_step(x, h, h, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("step", "plain", "gates"), [(lstm_step, lstm, 4), (carried, gru, 3)], ids=["lstm", "gru"])
def test_a_step_has_the_outputs_and_gradients_of_torch(
    step: Callable[..., Tensor], plain: Callable[..., Tensor], gates: int, dtype: torch.dtype
) -> None:
    shapes = [(5, 2), (5, 3), (5, 3), (gates * 3, 2), (gates * 3, 3), (gates * 3,), (gates * 3,)]
    given = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]

    def run(kernel: Callable[..., Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        made = kernel(*given[:3], given[3:])
        joined = torch.cat(made, dim=1) if isinstance(made, tuple) else made  # a GRU has no c
        pulled = torch.linspace(-1, 1, joined.numel(), dtype=dtype).view_as(joined)
        return joined, torch.autograd.grad(joined, given, pulled, allow_unused=True, materialize_grads=True)

    assert_close(run(step), run(plain), rtol=1e-5, atol=1e-6)


def test_a_gru_carries_on_what_dropout_did_not_touch() -> None:
    """With z = 1 nothing of what the gates see reaches the next state."""
    weights = [torch.randn(9, 2), torch.randn(9, 3), torch.zeros(9), torch.zeros(9)]
    weights[2][3:6] = 1e4
    kept = torch.randn(4, 3)
    assert_close(gru_step(torch.randn(4, 2), torch.randn(4, 3), kept, weights), kept)
