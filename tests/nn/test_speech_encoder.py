"""The contracts of encoders, for those that read vectors and return fewer positions."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lit_seq2seq.nn import (
    EncoderDecoder,
    InputFeedingDecoder,
    LocationAwareAttention,
    PyramidalEncoder,
    ZeroBridge,
)
from lit_seq2seq.types import Encoded, Padded
from tests.nn.cases import SIZES, TARGET, TARGET_SIZE, assert_close, disturb, step_log_probs, tensors
from tests.nn.pieces import check_pieces

CHANNELS = 5
SOURCE = Padded(torch.randn(4, 9, CHANNELS, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 2, 5, 1]))
CASES: dict[str, Callable[[int], PyramidalEncoder]] = {
    "no reduction": partial(PyramidalEncoder, hidden_size=6, factors=[1, 1]),
    "pyramid": partial(PyramidalEncoder, hidden_size=6, factors=[1, 2, 2]),
    "by three, gru": partial(PyramidalEncoder, hidden_size=6, factors=[3], cell="gru"),
    "convolutions": partial(PyramidalEncoder, hidden_size=6, factors=[1, 2], convolutions=2, filters=8),
    "norm": partial(PyramidalEncoder, hidden_size=6, factors=[2, 1], layer_norm=True),
}
REDUCTION = {"no reduction": 1, "pyramid": 4, "by three, gru": 3, "convolutions": 8, "norm": 2}
for name in list(CASES):
    CASES[f"forward {name}"], REDUCTION[f"forward {name}"] = partial(CASES[name], bidirectional=False), REDUCTION[name]
    controlled = partial(CASES[name], backward_chunk=2 * REDUCTION[name], backward_lookahead=3)
    CASES[f"latency-controlled {name}"], REDUCTION[f"latency-controlled {name}"] = controlled, REDUCTION[name]
all_cases = pytest.mark.parametrize("name", CASES)


def build(name: str) -> PyramidalEncoder:
    return disturb(CASES[name](CHANNELS)).eval()


def widened(source: Padded, columns: int, fill: float) -> Padded:
    more = torch.cat([source.values, source.values.new_zeros(len(source.values), columns, CHANNELS)], dim=1)
    wide = Padded(more, source.lengths)
    return Padded(wide.values.where(wide.mask[..., None], torch.tensor(fill)), source.lengths)


def assert_same(encoded: Encoded, expected: Encoded) -> None:
    assert_close(tensors(encoded.final), tensors(expected.final))
    assert encoded.memory.lengths.tolist() == expected.memory.lengths.tolist()
    mask = expected.memory.mask
    assert_close(encoded.memory.values[:, : mask.shape[1]][mask], expected.memory.values[mask])


@all_cases
def test_sizes_and_lengths_are_as_promised(name: str) -> None:
    encoder = build(name)
    encoded, shape, factor = encoder(SOURCE), encoder.shape, REDUCTION[name]
    assert encoded.memory.lengths.tolist() == [-(-length // factor) for length in (9, 2, 5, 1)]
    assert encoded.memory.values.shape == (4, -(-9 // factor), shape.memory_size)
    assert encoded.final.h.shape == (4, shape.final_layers, shape.final_size)
    assert tuple(part.shape[-1] for part in encoded.final.values) == shape.sizes


@all_cases
def test_padding_mates_and_order_change_nothing(name: str) -> None:
    encoder = build(name)
    batch = encoder(SOURCE)
    assert_same(encoder(widened(SOURCE, 3, fill=7.0)), batch)
    order = torch.tensor([3, 1, 0, 2])
    assert_same(encoder(SOURCE.select(order)), batch.select(order))
    for index, length in enumerate(SOURCE.lengths.tolist()):
        alone = Padded(SOURCE.values[index : index + 1, :length], SOURCE.lengths[index : index + 1])
        assert_same(batch.select(torch.tensor([index])), encoder(alone))


@all_cases
def test_padding_has_no_gradient_and_every_frame_has_one(name: str) -> None:
    encoder, values = build(name), SOURCE.values.clone().requires_grad_()
    encoder(Padded(values, SOURCE.lengths)).memory.values.square().sum().backward()
    assert values.grad is not None
    moved = values.grad.abs().sum(-1) > 0
    assert torch.equal(moved, SOURCE.mask)


@all_cases
def test_an_empty_source_is_finite(name: str) -> None:
    encoded = build(name)(Padded(SOURCE.values, torch.tensor([9, 0, 4, 0])))
    assert all(tensor.isfinite().all() for tensor in tensors(encoded))
    assert encoded.memory.lengths[1] == 0


@all_cases
def test_pieces_give_what_the_whole_does(name: str) -> None:
    check_pieces(build(name), SOURCE)
    check_pieces(build(name), Padded(torch.randn(3, 34, CHANNELS), torch.tensor([34, 0, 19])))


@all_cases
def test_stepping_over_a_shorter_memory_equals_the_parallel_pass(name: str) -> None:
    decoder = partial(InputFeedingDecoder, **SIZES, bridge=ZeroBridge, attention=partial(LocationAwareAttention))
    model = disturb(EncoderDecoder(CHANNELS, TARGET_SIZE, CASES[name], decoder)).eval()
    log_probs = step_log_probs(model, model.shift(TARGET), model.start(model.encode(SOURCE)))
    assert_close(log_probs, model(SOURCE, TARGET).log_softmax(dim=-1))


def test_reach_is_in_source_positions() -> None:
    make = partial(PyramidalEncoder, CHANNELS, hidden_size=6, factors=[1, 2, 2])
    assert make(bidirectional=False).reach(3) == 12
    assert make(bidirectional=False, convolutions=1).reach(3) == 24
    assert make(backward_chunk=8).reach(3) == 16
    assert make(backward_chunk=8, backward_lookahead=4).reach(2) == 28  # 8 + 4 are in 16, 16 + 4 in 24
    assert make().reach(1) is None


def test_a_chunk_that_cuts_memory_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backward_chunk must be a multiple of 4, as so many .*, got 6"):
        PyramidalEncoder(CHANNELS, backward_chunk=6)


@pytest.mark.parametrize("options", [{"factors": []}, {"factors": [0]}, {"convolutions": -1}])
def test_sizes_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="at least"):
        PyramidalEncoder(CHANNELS, **options)
