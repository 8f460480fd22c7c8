from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_seq2seq.nn.cells import CellName, State
from lit_seq2seq.nn.ops import dropout_mask
from lit_seq2seq.nn.recurrent import RecurrentLayer, RecurrentStack, StackMasks
from lit_seq2seq.types import CellState
from tests.nn.cases import FUSED, assert_close, disturb

LENGTHS = torch.tensor([5, 2, 0, 4])
Array = NDArray[np.float32]
both_directions = pytest.mark.parametrize("bidirectional", [False, True])
all_cells = pytest.mark.parametrize("cell", FUSED)


def first_state(cell: CellName, size: int) -> State:
    return tuple(torch.randn(4, size) for _ in range(2 if cell == "lstm" else 1))


def stack_state(cell: CellName, rows: int, depth: int) -> CellState:
    return CellState.of(torch.randn(rows, depth, 4) for _ in range(2 if cell == "lstm" else 1))


def rows(state: State, index: int) -> State:
    return tuple(part[index, None] for part in state)


@all_cells
@both_directions
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize("given", [False, True], ids=["from zero", "from state"])
def test_the_fused_pass_equals_the_loop(
    cell: CellName, bidirectional: bool, lengths: Tensor | None, given: bool
) -> None:
    layer = disturb(RecurrentLayer(3, 4, cell, bidirectional))
    x = torch.randn(4, 5, 3)
    state = first_state(cell, 8 if bidirectional else 4) if given else None
    assert_close(layer(x, state, lengths), layer.forward_stepwise(x, state, lengths))


@all_cells
@both_directions
def test_padding_is_not_read_and_an_empty_sequence_keeps_its_state(cell: CellName, bidirectional: bool) -> None:
    layer = disturb(RecurrentLayer(3, 4, cell, bidirectional))
    x = torch.randn(4, 5, 3, requires_grad=True)
    real = torch.arange(5)[None] < LENGTHS[:, None]
    state = first_state(cell, 8 if bidirectional else 4)
    for run in (layer.forward, layer.forward_stepwise):
        outputs, final = run(x, state, LENGTHS)
        (gradient,) = torch.autograd.grad(outputs.sum() + final[0].sum(), x)
        assert (gradient[~real] == 0).all()
        assert (gradient[real] != 0).any()
        assert (outputs[~real] == 0).all()
        assert_close(rows(final, 2), rows(state, 2))
        alone, alone_final = run(x[1:2, :2], rows(state, 1))
        assert_close(outputs[1:2, :2], alone)
        assert_close(rows(final, 1), alone_final)


@all_cells
@both_directions
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_stack_equals_torch(cell: CellName, bidirectional: bool, depth: int) -> None:
    stack = disturb(RecurrentStack(3, 8, depth, cell, bidirectional=bidirectional))
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}[cell]
    options = {"nonlinearity": cell[4:]} if kind is nn.RNN else {}
    directions = 2 if bidirectional else 1
    reference = kind(3, 8 // directions, depth, batch_first=True, bidirectional=bidirectional, **options)
    for level, layer in enumerate(stack.layers):
        for name, parameter in layer.rnn.named_parameters():
            getattr(reference, name.replace("_l0", f"_l{level}")).data.copy_(parameter)
    x, lengths = torch.randn(4, 5, 3), torch.tensor([5, 2, 1, 4])

    packed, final = reference(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    outputs, state = stack(x, lengths=lengths)
    assert_close(outputs, pad_packed_sequence(packed, batch_first=True)[0])
    for ours, theirs in zip(state.values, final if cell == "lstm" else [final], strict=True):
        assert_close(ours, theirs.unflatten(0, (depth, directions)).permute(2, 0, 1, 3).flatten(2))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm(weights: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = np.split(gates(weights, x, "ih") + gates(weights, h, "hh"), 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(weights: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    (r, z, n), (r_h, z_h, n_h) = (np.split(gates(weights, v, k), 3) for v, k in ((x, "ih"), (h, "hh")))
    n = np.tanh(n + sigmoid(r + r_h) * n_h)
    z = sigmoid(z + z_h)
    return (1 - z) * n + z * h, c


def rnn_tanh(weights: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    return np.tanh(gates(weights, x, "ih") + gates(weights, h, "hh")), c


def rnn_relu(weights: dict[str, Array], x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    return np.maximum(gates(weights, x, "ih") + gates(weights, h, "hh"), 0), c


def gates(weights: dict[str, Array], vector: Array, kind: str) -> Array:
    result: Array = weights[f"weight_{kind}_l0"] @ vector + weights[f"bias_{kind}_l0"]
    return result


@pytest.mark.parametrize("equations", [lstm, gru, rnn_tanh, rnn_relu], ids=lambda function: function.__name__)
def test_a_layer_follows_the_equations_of_its_cell(equations: Callable[..., tuple[Array, Array]]) -> None:
    layer = disturb(RecurrentLayer(3, 4, equations.__name__))  # type: ignore[arg-type]
    weights = {name: parameter.detach().numpy() for name, parameter in layer.rnn.named_parameters()}
    x = torch.randn(1, 6, 3)
    h, c = np.zeros(4, dtype=np.float32), np.zeros(4, dtype=np.float32)
    outputs, state = layer(x)
    for t in range(6):
        h, c = equations(weights, x[0, t].numpy(), h, c)
        np.testing.assert_allclose(outputs[0, t].detach().numpy(), h, rtol=1e-4, atol=1e-5)
    if len(state) > 1:
        np.testing.assert_allclose(state[1][0].detach().numpy(), c, rtol=1e-4, atol=1e-5)


@all_cells
@both_directions
def test_initialisation(cell: CellName, bidirectional: bool) -> None:
    size = 7
    layer = RecurrentLayer(5, size, cell, bidirectional)
    count = {"lstm": 4, "gru": 3}.get(cell, 1)
    for suffix in ("_l0", "_l0_reverse") if bidirectional else ("_l0",):
        for gate in getattr(layer.rnn, f"weight_hh{suffix}").view(count, size, size):
            assert_close(gate @ gate.T, torch.eye(size))
        for gate in getattr(layer.rnn, f"weight_ih{suffix}").view(count, size, 5):
            assert 0 < gate.abs().max() <= (6 / (size + 5)) ** 0.5
        bias = (getattr(layer.rnn, f"bias_ih{suffix}") + getattr(layer.rnn, f"bias_hh{suffix}")).view(count, size)
        expected = torch.zeros(count, size)
        if cell == "lstm":
            expected[1] = 1  # input, forget, candidate, output
        assert_close(bias, expected)


@all_cells
@pytest.mark.parametrize(
    "options", [{}, {"residual": True}, {"layer_norm": True}, {"residual": True, "context_size": 2}]
)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_stack_steps_like_it_runs(cell: CellName, options: dict[str, int], depth: int) -> None:
    stack = disturb(RecurrentStack(4, 4, depth, cell, **options))  # type: ignore[arg-type]
    x = torch.randn(3, 5, 4)
    context = torch.randn(3, 5, 2) if "context_size" in options else None
    state = stack_state(cell, 3, depth)
    outputs, final = stack(x, state, context=context)
    for t in range(5):
        output, state = stack.step(x[:, t], state, None if context is None else context[:, t])
        assert_close(output, outputs[:, t])
    assert_close(final.values, state.values)
    assert outputs.shape == (3, 5, stack.output_size)


def test_residual_connections_add_the_input_where_sizes_agree() -> None:
    plain, residual = (RecurrentStack(3, 4, 2, residual=flag) for flag in (False, True))
    residual.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 3)
    first, _ = plain.layers[0](x)  # sizes 3 and 4: nothing to add
    assert_close(residual(x)[0], plain.layers[1](first)[0] + first)


def test_layer_norm_normalises_outputs() -> None:
    outputs, _ = RecurrentStack(3, 16, 2, layer_norm=True)(torch.randn(2, 5, 3))
    assert_close(outputs.mean(dim=-1), torch.zeros(2, 5), rtol=0, atol=1e-5)
    assert_close(outputs.std(dim=-1, correction=0), torch.ones(2, 5), rtol=0, atol=1e-2)


@all_cells
@both_directions
def test_state_dropout_uses_one_mask_per_sequence(cell: CellName, bidirectional: bool) -> None:
    layer = disturb(RecurrentLayer(3, 4, cell, bidirectional, state_dropout=0.5))
    size = 8 if bidirectional else 4
    x, state = torch.randn(4, 6, 3), first_state(cell, size)
    torch.manual_seed(7)
    mask = dropout_mask(x, (4, size), 0.5)
    assert len(mask.unique(dim=0)) > 1
    torch.manual_seed(7)
    outputs = layer.train()(x, state, LENGTHS)
    assert_close(outputs, layer.forward_stepwise(x, state, LENGTHS, mask))
    assert not torch.allclose(outputs[0], layer.forward_stepwise(x, state, LENGTHS)[0])
    assert_close(layer.eval()(x, state, LENGTHS), layer.forward_stepwise(x, state, LENGTHS))


@all_cells
def test_the_state_mask_drops_what_the_gates_see(cell: CellName) -> None:
    layer = disturb(RecurrentLayer(3, 4, cell))
    x, (h, *c) = torch.randn(4, 3), first_state(cell, 4)
    nothing, other = torch.zeros(4, 4), torch.randn(4, 4)
    same = h if cell == "gru" else other  # a GRU carries its state past the gates, and that is never dropped
    assert_close(layer.step(x, (h, *c), nothing), layer.step(x, (same, *c), nothing))
    assert_close(layer.step(x, (h, *c), torch.ones(4, 4)), layer.step(x, (h, *c)))


def test_state_dropout_keeps_long_memories_bounded() -> None:
    """A GRU with its update gate open must not multiply its state by 1 / (1 - p) at every step."""
    layer = RecurrentLayer(3, 4, "gru", state_dropout=0.3).train()
    with torch.no_grad():
        layer.rnn.bias_ih_l0[4:8] = 5.0
    assert layer(torch.randn(2, 80, 3))[0].abs().max() <= 1


def observe_inputs(stack: RecurrentStack, level: int) -> list[Tensor]:
    """Collect what the layer receives, in whole passes."""
    seen: list[Tensor] = []
    stack.layers[level].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


@pytest.mark.parametrize("drop_input", [False, True])
def test_locked_dropout_is_constant_over_time_and_differs_between_rows(drop_input: bool) -> None:
    stack = RecurrentStack(8, 8, 2, dropout=0.5, locked_dropout=True, drop_input=drop_input).train()
    first, second = observe_inputs(stack, 0), observe_inputs(stack, 1)
    stack(torch.ones(16, 6, 8))
    for inputs in [second[0], first[0]] if drop_input else [second[0]]:
        dropped = inputs == 0  # (16, 6, 8)
        assert (dropped == dropped[:, :1]).all()
        assert len(dropped[:, 0].unique(dim=0)) > 1
    assert drop_input or (first[0] == 1).all()


def test_plain_dropout_differs_over_time() -> None:
    stack = RecurrentStack(8, 8, 2, dropout=0.5).train()
    seen = observe_inputs(stack, 1)
    stack(torch.ones(16, 6, 8))
    assert ((seen[0] == 0) != (seen[0][:, :1] == 0)).any()
    stack.eval()
    stack(torch.ones(16, 6, 8))
    assert (seen[1] != 0).all()


@all_cells
def test_stepping_with_masks_equals_the_locked_pass(cell: CellName) -> None:
    stack = disturb(RecurrentStack(4, 4, 2, cell, dropout=0.5, locked_dropout=True, state_dropout=0.5)).train()
    x = torch.randn(3, 5, 4)
    state = stack_state(cell, 3, 2)
    masks = stack.sample_masks(x)
    assert masks is not None
    assert masks.inputs[0] is None
    assert masks.inputs[1] is not None
    hidden, expected = x, []
    for level, layer in enumerate(stack.layers):
        inputs = hidden if masks.inputs[level] is None else hidden * masks.inputs[level][:, None]
        begin = tuple(part[:, level] for part in state.values)
        hidden, final = layer.forward_stepwise(inputs, begin, None, masks.states[level])
        expected.append(final[0])
    for t in range(5):
        output, state = stack.step(x[:, t], state, masks=masks)
        assert_close(output, hidden[:, t])
    assert_close(state.h, torch.stack(expected, dim=1))


def test_there_are_no_masks_without_locked_dropout_or_outside_training() -> None:
    like = torch.zeros(3, 4)
    assert RecurrentStack(4, 4, 2, dropout=0.5).train().sample_masks(like) is None
    locked = RecurrentStack(4, 4, 2, dropout=0.5, locked_dropout=True, state_dropout=0.5)
    assert isinstance(locked.train().sample_masks(like), StackMasks)
    assert locked.eval().sample_masks(like) is None


def test_an_odd_size_in_two_directions_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size must be even when bidirectional, got 5"):
        RecurrentStack(3, 5, bidirectional=True)


class Work(TorchDispatchMode):
    """Counts the numbers that operators write."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        self.written += sum(part.numel() for part in tree_leaves(made) if isinstance(part, Tensor))
        return made


@pytest.mark.parametrize("cell", FUSED)
def test_the_work_of_a_gradient_grows_with_the_length_and_not_with_its_square(cell: CellName) -> None:
    layer, found = RecurrentLayer(4, 4, cell, bidirectional=True), []
    for steps in (64, 256):
        outputs, _ = layer(torch.randn(2, steps, 4, requires_grad=True), None, torch.tensor([steps, steps // 2]))
        with Work() as work:
            outputs.sum().backward()
        found.append(work.written)
    assert found[1] < 5 * found[0]
