import pytest
import torch
from torch.testing import assert_close

from lit_seq2seq.nn import RecurrentLayer
from lit_seq2seq.nn.kernels.layers import run_layer
from lit_seq2seq.nn.operators import KERNELS

CELLS = ["gru", "rnn_tanh", "rnn_relu"]


def inputs(cell: str, steps: int = 6) -> list[torch.Tensor]:
    """Inputs, a state, and weights."""
    gates = 3 if cell == "gru" else 1
    shapes = [(2, steps, 3), (2, 4), (gates * 4, 3), (gates * 4, 4), (gates * 4,), (gates * 4,)]
    return [torch.randn(shape).double().requires_grad_() for shape in shapes]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [1, 6])
def test_outputs_and_gradients_are_those_of_pytorch(cell: str, steps: int) -> None:
    given = inputs(cell, steps)
    x, start, *weights = given
    found = run_layer(x, start, weights, cell)
    expected, _ = KERNELS[cell](x, start[None], weights, True, 1, 0.0, True, False, True)
    assert_close(found, expected)
    by = torch.randn_like(found)
    assert_close(torch.autograd.grad(found, given, by), torch.autograd.grad(expected, given, by))


@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bits_round_what_is_multiplied(cell: str) -> None:
    given = [tensor.detach().bfloat16().float().requires_grad_() for tensor in inputs(cell, 40)]
    exact = run_layer(given[0], given[1], given[2:], cell)
    by = torch.randn_like(exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run_layer(given[0], given[1], given[2:], cell)
    assert found.dtype == torch.float32
    if cell == "rnn_relu":  # grows without bound, and rounding with it
        return
    assert_close(found, exact, rtol=0.05, atol=0.05)
    pairs = zip(torch.autograd.grad(found, given, by), torch.autograd.grad(exact, given, by), strict=True)
    for rounded, whole in pairs:
        assert float((rounded - whole).norm() / whole.norm()) < 0.05


def test_padding_cannot_overflow() -> None:
    layer = RecurrentLayer(5, 16, "rnn_relu")
    for name, scale in (("weight_hh_l0", 1.6), ("weight_ih_l0", 1.0)):
        layer.rnn.get_parameter(name).data.mul_(scale).abs_()
    layer.rnn.get_parameter("bias_hh_l0").data.fill_(0.1)
    x = torch.zeros(2, 300, 5)
    x[0, :2], x[1] = 1, -50  # the first grows at its padding, the second not at all
    outputs, _ = layer(x, None, torch.tensor([2, 300], dtype=torch.int32))
    outputs.sum().backward()
    assert outputs.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())
    with torch.no_grad():
        assert_close(layer(x, None, torch.tensor([2, 300]))[0], outputs)


@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_of_no_rows_has_a_gradient(cell: str) -> None:
    x, start, *weights = inputs(cell)
    run_layer(x[:0], start[:0], weights, cell).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in weights)
