"""A network arranged for inference computes what the network does."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lit_seq2seq.nn import Ensemble, InputFeedingDecoder, TextEncoder
from lit_seq2seq.nn.kernels.packed import Product, prepare, quantized
from lit_seq2seq.nn.ops import computes_in
from tests.nn.cases import (
    DECODERS,
    KINDS_OF_CELLS,
    MAIN,
    SIZES,
    SOURCE,
    SOURCE_SIZE,
    TARGET,
    TARGET_SIZE,
    EncoderDecoder,
    assert_close,
    cross_entropy,
    disturb,
    network,
    row,
    step_log_probs,
)

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.int8: 0.03}
"""How far a probability may move because sums are rounded in another order, and then to the next step of the type."""
TYPES = [torch.float32, torch.int8] + [torch.bfloat16] * computes_in(torch.bfloat16, "cpu")


@torch.inference_mode()
def stepped(model: EncoderDecoder, index: int | None = None) -> Tensor:
    source, target = (SOURCE, TARGET) if index is None else (row(SOURCE, index), row(TARGET, index))
    return step_log_probs(model, model.shift(target), model.start(model.encode(source)))


@pytest.mark.parametrize("decoder", DECODERS)
def test_single_precision_rounds_hardly_more_than_the_network_does(decoder: str) -> None:
    model = network(decoder)
    exact = stepped(copy.deepcopy(model).double())
    plain, fast = (float((stepped(one) - exact).abs().max()) for one in (model, prepare(model)))
    assert exact.dtype == torch.double
    assert fast < 3 * plain + 2e-6


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", KINDS_OF_CELLS)
def test_any_cell_gives_nearly_the_same(name: str, dtype: torch.dtype) -> None:
    options = {"cell": KINDS_OF_CELLS[name], "num_layers": 2, **SIZES}
    made = EncoderDecoder(
        SOURCE_SIZE, TARGET_SIZE, partial(TextEncoder, **options), partial(InputFeedingDecoder, **options)
    )
    model = disturb(made).eval()
    fast = prepare(model, dtype)
    assert (stepped(fast).exp() - stepped(model).exp()).abs().max() < {torch.float32: 1e-5}.get(dtype, 0.05)
    assert not any(isinstance(module, nn.Linear) for module in fast.decoder.modules())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("decoder", MAIN)
def test_other_types_give_nearly_the_same_and_batch_mates_change_no_more_than_rounding(
    decoder: str, dtype: torch.dtype
) -> None:
    model = network(decoder)
    fast = prepare(model, dtype)
    whole = stepped(fast)
    assert (whole.exp() - stepped(model).exp()).abs().max() < 0.05
    for index in range(len(SOURCE.lengths)):
        alone = stepped(fast, index)
        assert (whole[index, : alone.shape[1]].exp() - alone[0].exp()).abs().max() < ROUNDING[dtype]


def test_the_network_itself_stays_and_can_be_trained() -> None:
    model = network("parallel general")
    before = stepped(model)
    fast = prepare(model, torch.int8)
    assert torch.equal(stepped(model), before)
    cross_entropy(model, SOURCE, TARGET)[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert fast.decoder.embedding is model.decoder.embedding


def test_every_product_of_the_decoder_is_arranged() -> None:
    fast = prepare(network("conditional additive coverage"), torch.int8)
    assert not any(isinstance(module, nn.Linear) for part in (fast.decoder, fast.output) for module in part.modules())


@torch.inference_mode()
def test_an_ensemble_can_be_arranged_too() -> None:
    model = Ensemble([network("parallel general"), network("feeding location")]).eval()
    states = [one.start(one.encode(SOURCE)) for one in (model, prepare(model))]
    for tokens in torch.tensor([[2, 2, 2, 2], [4, 5, 6, 7]]):
        plain, fast = (one.step(tokens, state) for one, state in zip((model, prepare(model)), states, strict=True))
        assert_close(fast.log_probs, plain.log_probs)
        states = [plain.state, fast.state]


@pytest.mark.parametrize("size", [1, 2, 37])
@pytest.mark.parametrize("bias", [True, False])
def test_integer_products_are_those_of_the_rounded_numbers_whatever_the_batch(bias: bool, size: int) -> None:
    layer, x = nn.Linear(size, 65, bias=bias), torch.randn(3, 5, size)
    x[0, 0] = 0
    product = Product(layer.weight, layer.bias, torch.int8)
    made = product(x)
    (values, scale), (weight, rows) = quantized(x.flatten(0, 1)), quantized(layer.weight.detach())
    expected = (values.double() * scale) @ (weight.double() * rows).T + (layer.bias.detach() if bias else 0)
    assert_close(made.flatten(0, 1).double(), expected)
    assert (made - layer(x)).abs().max() < 0.05
    assert torch.equal(product(x[1:2, 2:3]), made[1:2, 2:3])
