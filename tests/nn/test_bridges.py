import pytest
import torch
from torch.testing import assert_close

from lit_seq2seq.nn import DenseBridge, EncoderShape, LastState, LearnedBridge, MeanBridge, StateShape, ZeroBridge
from lit_seq2seq.types import CellState, Encoded, Padded
from tests.nn.cases import BRIDGES, disturb, tensors

LENGTHS = torch.tensor([4, 2, 0])


def encoded(layers: int = 2, others: tuple[int, ...] = (6,)) -> Encoded:
    state = CellState.of(torch.randn(3, layers, size) for size in (6, *others))
    return Encoded(Padded(torch.randn(3, 4, 5), LENGTHS), state)


def shape(value: Encoded) -> EncoderShape:
    return EncoderShape(5, *value.final.h.shape[1:], others=tuple(part.shape[2] for part in value.final.others))


@pytest.mark.parametrize("name", BRIDGES)
@pytest.mark.parametrize("there", [(), (6, 2)])
@pytest.mark.parametrize("here", [(), (6, 2, 3)])
@pytest.mark.parametrize("depth", [1, 3])
def test_states_have_the_shape_asked_for_and_the_order_of_the_sources(
    name: str, there: tuple[int, ...], here: tuple[int, ...], depth: int
) -> None:
    value, order = encoded(others=there), torch.tensor([2, 0, 1])
    bridge = disturb(BRIDGES[name](shape(value), StateShape(depth, 6, here)))
    state = bridge(value)
    assert [tuple(part.shape) for part in state.values] == [(3, depth, size) for size in (6, *here)]
    assert_close(tensors(bridge(value.select(order))), tensors(state.select(order)))


@pytest.mark.parametrize("name", BRIDGES)
def test_a_bridge_says_whether_it_reads_the_end(name: str) -> None:
    first, second = encoded(), encoded()
    bridge = disturb(BRIDGES[name](shape(first), StateShape(1, 6)))
    assert bridge.reads_end != torch.equal(bridge(first).h, bridge(second).h)


@pytest.mark.parametrize(
    ("encoder_layers", "decoder_layers", "expected"),
    [(1, 1, [0]), (3, 1, [2]), (3, 2, [1, 2]), (2, 2, [0, 1]), (2, 3, [0, 1, 1]), (1, 3, [0, 0, 0])],
)
def test_last_state_copies_layers(encoder_layers: int, decoder_layers: int, expected: list[int]) -> None:
    value = encoded(encoder_layers)
    state = LastState(shape(value), StateShape(decoder_layers, 6, (6,)))(value)
    assert_close(tensors(state), [value.final.h[:, expected], value.final.others[0][:, expected]])


def test_last_state_starts_a_missing_cell_vector_at_zero() -> None:
    value = encoded(others=())
    state = LastState(shape(value), StateShape(2, 6, (6,)))(value)
    assert_close(state.h, value.final.h)
    assert (state.others[0] == 0).all()


def test_last_state_refuses_unequal_sizes() -> None:
    with pytest.raises(ValueError, match=r"LastState.*states have 6 units and the decoder's 8: .*use the DenseBridge"):
        LastState(shape(encoded()), StateShape(1, 8, (8,)))


def test_dense_bridge_projects_all_states() -> None:
    value = encoded()
    bridge = DenseBridge(shape(value), StateShape(3, 4, (4,)))
    state = bridge(value)
    flat = torch.cat([value.final.h.flatten(1), value.final.others[0].flatten(1)], dim=1)
    assert_close(torch.cat([state.h.flatten(1), state.others[0].flatten(1)], dim=1), bridge.dense(flat).tanh())


def test_mean_bridge_projects_the_mean_of_real_positions() -> None:
    value = encoded()
    bridge = disturb(MeanBridge(shape(value), StateShape(1, 4)))
    mean = torch.stack([value.memory.values[0].mean(0), value.memory.values[1, :2].mean(0), torch.zeros(5)])
    assert_close(bridge(value).h[:, 0], bridge.dense(mean).tanh())


def test_zero_and_learned_states_are_the_same_for_all_sources() -> None:
    value = encoded()
    assert (ZeroBridge(shape(value), StateShape(2, 4, (4,)))(value).h == 0).all()
    learned = LearnedBridge(shape(value), StateShape(2, 4, (4,)))
    assert (learned(value).others[0] == 0).all()
    state = disturb(learned)(value)
    assert_close(state.h, learned.initial[:8].view(1, 2, 4).expand(3, -1, -1))
    assert_close(state.others[0], learned.initial[8:].view(1, 2, 4).expand(3, -1, -1))
