from functools import partial

import pytest
import torch

from lit_seq2seq.nn import Encoder, TextEncoder
from lit_seq2seq.types import Encoded, Padded, UserError
from tests.nn.cases import ENCODERS, SIZES, SOURCE, SOURCE_SIZE, assert_close, disturb, row, tensors, widen
from tests.nn.pieces import check_pieces

all_encoders = pytest.mark.parametrize("name", ENCODERS)


def build(name: str) -> Encoder:
    return disturb(ENCODERS[name](SOURCE_SIZE)).eval()


def assert_same(encoded: Encoded, expected: Encoded) -> None:
    """Compare final states, lengths and the real part of the memory."""
    assert_close(tensors(encoded.final), tensors(expected.final))
    assert_close(encoded.memory.lengths, expected.memory.lengths)
    mask = expected.memory.mask
    width = mask.shape[1]
    assert not encoded.memory.mask[:, width:].any()
    assert_close(encoded.memory.values[:, :width][mask], expected.memory.values[mask])


@all_encoders
def test_sizes_are_as_promised(name: str) -> None:
    encoder = build(name)
    encoded, shape = encoder(SOURCE), encoder.shape
    assert encoded.memory.values.shape == (*SOURCE.values.shape, shape.memory_size)
    assert encoded.final.h.shape == (len(SOURCE.lengths), shape.final_layers, shape.final_size)
    assert tuple(part.shape[-1] for part in encoded.final.values) == shape.sizes


@all_encoders
def test_batch_mates_change_nothing(name: str) -> None:
    encoder = build(name)
    batch = encoder(SOURCE)
    for index in range(len(SOURCE.lengths)):
        assert_same(batch.select(torch.tensor([index])), encoder(row(SOURCE, index)))


@all_encoders
def test_padding_changes_nothing(name: str) -> None:
    encoder = build(name)
    assert_same(encoder(widen(SOURCE, 3, fill=7)), encoder(SOURCE))


@all_encoders
def test_batch_order_changes_nothing(name: str) -> None:
    encoder, order = build(name), torch.tensor([3, 1, 0, 2])
    assert_same(encoder(SOURCE.select(order)), encoder(SOURCE).select(order))


@all_encoders
def test_padding_has_no_gradient(name: str) -> None:
    encoder = build(name)
    encoded = encoder(widen(SOURCE, 1, fill=1))
    (encoded.final.h.square().sum() + encoded.memory.values[encoded.memory.mask].square().sum()).backward()
    assert encoder.token_embedding is not None
    gradient = encoder.token_embedding.weight.grad
    assert gradient is not None
    assert (gradient[1] == 0).all()
    assert (gradient[5] != 0).any()


@all_encoders
def test_an_empty_source_is_finite_and_untouched_by_padding(name: str) -> None:
    encoder = build(name)
    empty = Padded(SOURCE.values, torch.tensor([5, 0, 4, 0]))
    encoded = encoder(empty)
    assert encoded.memory.values.isfinite().all()
    assert encoded.final.h.isfinite().all()
    assert_same(encoder(widen(empty, 2, fill=8)), encoded)


@all_encoders
def test_every_symbol_reaches_the_final_state(name: str) -> None:
    encoder = build(name)
    final = encoder(SOURCE).final.h
    for position in range(5):
        values = SOURCE.values.clone()
        values[0, position] = 1
        changed = encoder(Padded(values, SOURCE.lengths)).final.h
        assert not torch.allclose(changed[0], final[0], atol=1e-7)
        assert_close(changed[1:], final[1:])


@all_encoders
def test_pieces_give_what_the_whole_does(name: str) -> None:
    encoder = build(name)
    check_pieces(encoder, SOURCE)
    check_pieces(encoder, Padded(torch.randint(4, SOURCE_SIZE, (4, 13)), torch.tensor([13, 0, 6, 7])))


@pytest.mark.parametrize("options", [{}, {"reverse": True, "bidirectional": False}])
def test_an_encoder_that_reads_from_the_end_says_what_to_set(options: dict[str, bool]) -> None:
    encoder = partial(TextEncoder, SOURCE_SIZE)(**options)
    message = (
        "TextEncoder cannot read in pieces, as it needs the whole source: set bidirectional: false or backward_chunk, "
        "and reverse: false"
    )
    with pytest.raises(UserError, match=f"\\A{message}\\Z"):
        encoder.begin(1)


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({"bidirectional": False}, [1, 2, 3, 4, 5]),
        ({"num_layers": 2, "backward_chunk": 2}, [2, 2, 4, 4, 6]),
        ({"num_layers": 2, "backward_chunk": 2, "backward_lookahead": 1}, [5, 5, 7, 7, 9]),
    ],
)
def test_the_reach_of_layers_adds_up(options: dict[str, int], reach: list[int]) -> None:
    encoder = partial(TextEncoder, SOURCE_SIZE)(**options)
    assert [encoder.reach(count) for count in range(1, 6)] == reach
    assert encoder.lookahead == reach[0] - 1


def test_reverse_reads_the_last_symbol_first() -> None:
    forward, reverse = (TextEncoder(SOURCE_SIZE, bidirectional=False, reverse=flag, **SIZES) for flag in (False, True))
    reverse.load_state_dict(forward.state_dict())
    for index, length in enumerate(SOURCE.lengths):
        source = row(SOURCE, index)
        encoded = forward(Padded(source.values.flip(1), source.lengths))
        expected = Encoded(Padded(encoded.memory.values.flip(1), source.lengths), encoded.final)
        assert_same(reverse(source), expected)
        assert_close(reverse(SOURCE).memory.values[index, :length], expected.memory.values[0])


def test_locked_dropout_of_embeddings_holds_over_time_and_differs_between_rows() -> None:
    encoder = TextEncoder(SOURCE_SIZE, dropout=0.5, locked_dropout=True, **SIZES).train()
    torch.nn.init.ones_(encoder.embedding.weight)
    seen: list[torch.Tensor] = []
    encoder.stack.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(Padded(torch.full((16, 6), 4), torch.full((16,), 6)))
    assert (seen[0] == seen[0][:, :1]).all()
    assert len(seen[0][:, 0].unique(dim=0)) > 1


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5}, {"state_dropout": 0.5}, {"dropout": 0.5, "locked_dropout": True}]
)
def test_dropout_is_for_training_only(options: dict[str, float]) -> None:
    encoder = partial(TextEncoder, SOURCE_SIZE, num_layers=2, **SIZES)(**options)
    assert not torch.allclose(encoder.train()(SOURCE).memory.values, encoder(SOURCE).memory.values)
    assert_close(tensors(encoder.eval()(SOURCE)), tensors(encoder(SOURCE)), rtol=0, atol=0)


def test_reverse_in_two_directions_is_refused() -> None:
    with pytest.raises(ValueError, match="reverse needs bidirectional: false"):
        TextEncoder(SOURCE_SIZE, reverse=True)


def test_an_encoder_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        TextEncoder(SOURCE_SIZE, num_layers=0)
