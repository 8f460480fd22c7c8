import pytest
import torch
from torch.testing import assert_close

from lit_seq2seq.nn import DenseBridge, EncoderShape, LastState, LearnedBridge, MeanBridge, StateShape, ZeroBridge
from lit_seq2seq.types import CellState, Encoded, Padded
from tests.nn.cases import BRIDGES, disturb, tensors

LENGTHS = torch.tensor([4, 2, 0])


def encoded(layers: int = 2, size: int = 6, has_c: bool = True) -> Encoded:
    c = torch.randn(3, layers, size) if has_c else None
    return Encoded(Padded(torch.randn(3, 4, 5), LENGTHS), CellState(torch.randn(3, layers, size), c))


def shape(value: Encoded) -> EncoderShape:
    return EncoderShape(5, *value.final.h.shape[1:], has_c=value.final.c is not None)


@pytest.mark.parametrize("name", BRIDGES)
@pytest.mark.parametrize("encoder_has_c", [False, True])
@pytest.mark.parametrize("decoder_has_c", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_states_have_the_shape_asked_for(name: str, encoder_has_c: bool, decoder_has_c: bool, depth: int) -> None:
    value = encoded(has_c=encoder_has_c)
    state = disturb(BRIDGES[name](shape(value), StateShape(depth, 6, decoder_has_c)))(value)
    assert state.h.shape == (3, depth, 6)
    assert (state.c is not None) == decoder_has_c
    for part in (state.h, state.c):
        assert part is None or part.isfinite().all()
    order = torch.tensor([2, 0, 1])
    moved = disturb(BRIDGES[name](shape(value), StateShape(depth, 6, decoder_has_c)), scale=0)
    assert_close(moved(value.select(order)).h, moved(value).h[order])


@pytest.mark.parametrize(
    ("encoder_layers", "decoder_layers", "expected"),
    [(1, 1, [0]), (3, 1, [2]), (3, 2, [1, 2]), (2, 2, [0, 1]), (2, 3, [0, 1, 1]), (1, 3, [0, 0, 0])],
)
def test_last_state_copies_layers(encoder_layers: int, decoder_layers: int, expected: list[int]) -> None:
    value = encoded(encoder_layers)
    state = LastState(shape(value), StateShape(decoder_layers, 6, True))(value)
    assert_close(tensors(state), [value.final.h[:, expected], value.final.c[:, expected]])


def test_last_state_starts_a_missing_cell_vector_at_zero() -> None:
    value = encoded(has_c=False)
    state = LastState(shape(value), StateShape(2, 6, True))(value)
    assert_close(state.h, value.final.h)
    assert (state.c == 0).all()


def test_last_state_refuses_unequal_sizes() -> None:
    with pytest.raises(ValueError, match=r"LastState.*states have 6 units and the decoder's 8: .*use the DenseBridge"):
        LastState(shape(encoded()), StateShape(1, 8, True))


def test_dense_bridge_projects_all_states() -> None:
    value = encoded()
    bridge = DenseBridge(shape(value), StateShape(3, 4, True))
    state = bridge(value)
    flat = torch.cat([value.final.h.flatten(1), value.final.c.flatten(1)], dim=1)
    assert_close(torch.cat([state.h.flatten(1), state.c.flatten(1)], dim=1), bridge.dense(flat).tanh())


def test_mean_bridge_projects_the_mean_of_real_positions() -> None:
    value = encoded()
    bridge = disturb(MeanBridge(shape(value), StateShape(1, 4, False)))
    mean = torch.stack([value.memory.values[0].mean(0), value.memory.values[1, :2].mean(0), torch.zeros(5)])
    assert_close(bridge(value).h[:, 0], bridge.dense(mean).tanh())


def test_zero_and_learned_states_are_the_same_for_all_sources() -> None:
    value = encoded()
    assert (ZeroBridge(shape(value), StateShape(2, 4, True))(value).h == 0).all()
    learned = LearnedBridge(shape(value), StateShape(2, 4, True))
    assert (learned(value).c == 0).all()
    state = disturb(learned)(value)
    assert_close(state.h, learned.initial[:8].view(1, 2, 4).expand(3, -1, -1))
    assert_close(state.c, learned.initial[8:].view(1, 2, 4).expand(3, -1, -1))
