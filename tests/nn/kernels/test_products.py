import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from lit_seq2seq.nn.kernels import products
from lit_seq2seq.nn.kernels.products import Linear, average, compare, gathering_gradients, linear, product


@pytest.fixture(autouse=True, params=[True, False], ids=["oneDNN", "MKL"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_beats_mkl", lambda: request.param)


def test_products_equal_those_of_torch_in_any_layout() -> None:
    a, b, bias = torch.randn(7, 5), torch.randn(5, 3), torch.randn(3)
    assert_close(product(a, b), a @ b)
    assert_close(product(a, b, bias), a @ b + bias)
    assert_close(product(b.t(), a.t(), torch.ones(7)), b.t() @ a.t() + 1)
    assert product(a[:0], b, bias).shape == (0, 3)
    assert (product(a[:, :0], b[:0]) == 0).all()


def test_products_of_16_bits_are_rounded_once() -> None:
    a, b, bias = (torch.randn(size).bfloat16() for size in ((7, 50), (50, 3), (3,)))
    exact = (a.float() @ b.float() + bias.float()).bfloat16()
    for made in (product(a, b, bias), product(a, b, bias.expand(7, 3))):
        assert_close(made, exact, rtol=2**-7, atol=1e-6)  # one unit in the last place


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_layer_has_the_outputs_and_gradients_of_torch(shape: tuple[int, ...], with_bias: bool) -> None:
    values = [torch.randn(shape, requires_grad=True), torch.randn(3, 5, requires_grad=True)]
    values += [torch.randn(3, requires_grad=True)] if with_bias else []
    made, expected = linear(*values), F.linear(*values)
    assert_close(made, expected)
    ones = torch.randn_like(expected)
    assert_close(torch.autograd.grad(made, values, ones), torch.autograd.grad(expected, values, ones))


def test_only_what_asks_for_it_gets_a_gradient() -> None:
    layer = Linear(5, 3)
    layer.weight.requires_grad_(False)
    layer(torch.randn(2, 5)).sum().backward()
    assert layer.weight.grad is None
    assert_close(layer.bias.grad, torch.full((3,), 2.0))


def test_autocast_and_compiled_programs_keep_the_operators_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(products, "_multiply", refuse)
    layer = Linear(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 5)).dtype == torch.bfloat16
    program = torch.export.export(layer, (torch.randn(2, 5),))
    assert_close(program.module()(torch.ones(2, 5)), F.linear(torch.ones(2, 5), layer.weight, layer.bias))


def test_a_matrix_with_gaps_between_its_rows_is_multiplied_right() -> None:
    x, wide = torch.randn(4, 3), torch.randn(6, 5)
    assert_close(product(x, wide[:, :3].t()), x @ wide[:, :3].t())
    assert_close(product(x.expand(4, 3), torch.ones(1).expand(3, 2)), x.sum(dim=1, keepdim=True).expand(4, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_gathered_over_steps_equal_those_added_up(dtype: torch.dtype) -> None:
    h = torch.randn(2, 5, dtype=dtype)
    keys = torch.randn(2, 4, 5, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(5, 5, dtype=dtype, requires_grad=True), torch.randn(5, dtype=dtype, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        state = h
        for _ in range(3):
            state = torch.tanh(linear(state, weight, bias))
            state = state + average(compare(state[:, None], keys).softmax(dim=-1), keys)[:, 0]
        first = torch.autograd.grad(state.sum(), [weight, keys, bias], retain_graph=True)
        assert_close(torch.autograd.grad(state.sum(), [weight, keys, bias]), first)
        return first

    expected = run()
    with gathering_gradients():
        made = run()
    assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_a_part_of_the_gradients_asked_for_first_does_not_count_twice() -> None:
    x, weight = torch.randn(2, 5, requires_grad=True), torch.randn(5, 5, requires_grad=True)
    with gathering_gradients():
        made = linear(linear(x, weight), weight).sum()
    torch.autograd.grad(made, x, retain_graph=True)
    expected = torch.autograd.grad((x @ weight.t() @ weight.t()).sum(), weight)
    assert_close(torch.autograd.grad(made, weight), expected)


def test_frozen_matrices_are_not_gathered() -> None:
    weight, x = torch.randn(3, 3), torch.randn(2, 3, requires_grad=True)
    with gathering_gradients():
        linear(linear(x, weight), weight).sum().backward()
    assert weight.grad is None
    assert_close(x.grad, torch.ones(2, 3) @ weight @ weight)
