"""What every cell keeps to: whole sequences, steps and pieces give the same, and padding nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_seq2seq.nn import SLSTM, Cell, CellLayer, DeepTransition, Elman, MinGRU, RecurrentLayer, Zoneout
from lit_seq2seq.nn.cells import State
from tests.nn.cases import CELLS, assert_close, disturb

LENGTHS = torch.tensor([7, 3, 0, 5])
Array = NDArray[np.float64]
every_cell = pytest.mark.parametrize("name", CELLS)
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])


def cell_of(name: str, input_size: int = 3) -> Cell:
    return disturb(CELLS[name](input_size, 4)).double().eval()


def begin(cell: Cell, rows: int = 4) -> State:
    """A state as it may be in the middle of a sequence."""
    return cell.step(torch.randn(rows, cell.input_size).double(), cell.first(torch.randn(rows, 1).double()))


@every_cell
@directions
def test_steps_equal_the_whole(name: str, reverse: bool) -> None:
    cell, x = cell_of(name), torch.randn(4, 7, 3).double()
    state = begin(cell)
    outputs, final = cell.scan(x, state, reverse=reverse)
    for t in reversed(range(7)) if reverse else range(7):
        state = cell.step(x[:, t], state)
        assert_close(outputs[:, t], state[0])
    assert_close(final, state)
    assert [part.shape[1] for part in final] == [4, *cell.others]


@every_cell
@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_equal_the_whole(name: str, size: int) -> None:
    cell, x = cell_of(name), torch.randn(4, 7, 3).double()
    state = begin(cell)
    outputs, final = cell.scan(x, state, LENGTHS)
    found = []
    for start in range(0, 7, size):
        piece = x[:, start : start + size]
        made, state = cell.scan(piece, state, (LENGTHS - start).clamp(0, piece.shape[1]))
        found.append(made)
    assert_close(torch.cat(found, dim=1), outputs)
    assert_close(state, final)


@every_cell
@directions
def test_padding_is_not_read_and_an_empty_sequence_keeps_its_state(name: str, reverse: bool) -> None:
    cell, x = cell_of(name), torch.randn(4, 7, 3).double().requires_grad_()
    state, real = begin(cell), torch.arange(7)[None] < LENGTHS[:, None]
    outputs, final = cell.scan(x, state, LENGTHS, reverse)
    (gradient,) = torch.autograd.grad(outputs.sum() + sum(part.sum() for part in final), x)
    assert (gradient[~real] == 0).all()
    assert (gradient[real] != 0).any()
    assert (outputs[~real] == 0).all()
    for row, length in enumerate(LENGTHS):
        start = tuple(part[row : row + 1] for part in state)
        alone, end = cell.scan(x[row : row + 1, :length], start, reverse=reverse) if length else (None, start)
        assert_close([part[row : row + 1] for part in final], list(end))
        if alone is not None:
            assert_close(outputs[row : row + 1, :length], alone)


@every_cell
@directions
def test_gradients_are_those_of_the_loop(name: str, reverse: bool) -> None:
    cell = cell_of(name)
    x, state = torch.randn(4, 7, 3).double(), begin(cell)
    found = []
    for scan in (type(cell).scan, Cell.scan):
        inputs = [x.clone().requires_grad_(), *(part.detach().clone().requires_grad_() for part in state)]
        outputs, final = scan(cell, inputs[0], tuple(inputs[1:]), LENGTHS, reverse)
        loss = (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum()
        loss = loss + sum((part * torch.linspace(1, 2, part.numel()).view_as(part)).sum() for part in final)
        found.append(torch.autograd.grad(loss, [*inputs, *cell.parameters()]))
    assert_close(*found)


@pytest.mark.parametrize("name", [name for name, make in CELLS.items() if make(2, 2).kernel is not None])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_the_fused_layer_is_its_plain_twin(name: str, lengths: Tensor | None) -> None:
    plain = CellLayer([cell_of(name), cell_of(name)])
    kernel = plain.cells[0].kernel
    assert kernel is not None
    fused = RecurrentLayer(3, 4, kernel, bidirectional=True).double()
    for cell, suffix in zip(plain.cells, ("_l0", "_l0_reverse"), strict=True):
        for ours, theirs in (("inputs", "ih"), ("recurrent", "hh")):
            for part in ("weight", "bias"):
                getattr(fused.rnn, f"{part}_{theirs}{suffix}").data.copy_(cell.get_parameter(f"{ours}.{part}"))
    x = torch.randn(4, 7, 3).double()
    assert_close(plain(x, None, lengths), fused(x, None, lengths))
    mask = torch.rand(4, 4).double()
    state = tuple(part[:, :4] for part in plain(x)[1])
    assert_close(plain.step(x[:, 0], state, mask), fused.step(x[:, 0], state, mask))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def weights_of(cell: Cell) -> dict[str, Array]:
    return {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}


def positive(x: Array) -> Array:
    return np.where(x >= 0, x + 0.5, sigmoid(x))


def min_gru(w: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    z, new = np.split(w["inputs.weight"] @ x + w["inputs.bias"], 2)
    return [(1 - sigmoid(z)) * state[0] + sigmoid(z) * positive(new)]


def min_lstm(w: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    f, i, new = np.split(w["inputs.weight"] @ x + w["inputs.bias"], 3)
    total = sigmoid(f) + sigmoid(i)
    return [sigmoid(f) / total * state[0] + sigmoid(i) / total * positive(new)]


def rg_lru(w: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    r, i, x = np.split(w["inputs.weight"] @ x + w["inputs.bias"], 3)
    a = sigmoid(w["keep"]) ** (8 * sigmoid(r))
    return [a * state[0] + np.sqrt(1 - a**2) * sigmoid(i) * x]


def sru(w: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    new, f, r, passing = np.split(w["inputs.weight"] @ x, 4)
    f = sigmoid(f + w["peep"][0] * state[1] + w["bias"][0])
    r = sigmoid(r + w["peep"][1] * state[1] + w["bias"][1])
    c = f * state[1] + (1 - f) * new
    return [r * c + (1 - r) * passing, c]


def s_lstm(w: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    """Without the stabiliser: what it holds is the scale of c and n."""
    h, c, n, m = state
    total = w["inputs.weight"] @ x + w["inputs.bias"] + w["recurrent.weight"] @ h + w["recurrent.bias"]
    i, f, z, o = np.split(total, 4)
    c = sigmoid(f) * c * np.exp(m) + np.exp(i) * np.tanh(z)
    n = sigmoid(f) * n * np.exp(m) + np.exp(i)
    return [sigmoid(o) * c / n, c, n, np.zeros_like(m)]


EQUATIONS = {"minGRU": min_gru, "minLSTM": min_lstm, "RG-LRU": rg_lru, "SRU": sru, "sLSTM": s_lstm}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_cell_follows_the_equations_of_its_paper(name: str) -> None:
    cell, equations = cell_of(name), EQUATIONS[name]
    x = torch.randn(1, 6, 3).double()
    state = [part[0].numpy() for part in cell.first(x[:, 0])]
    outputs, _ = cell.scan(x, cell.first(x[:, 0]))
    for t in range(6):
        state = equations(weights_of(cell), x[0, t].numpy(), state)
        np.testing.assert_allclose(outputs[0, t].detach().numpy(), state[0], rtol=1e-5, atol=1e-7)


def test_an_sru_of_equal_sizes_passes_its_input_by() -> None:
    cell = cell_of("SRU", input_size=4)
    cell.get_parameter("bias").data[1] = -1e4  # r = 0
    x = torch.randn(2, 5, 4).double()
    assert_close(cell.scan(x, cell.first(x[:, 0]))[0], x)


@every_cell
def test_no_cell_overflows_over_a_long_sequence(name: str) -> None:
    cell = cell_of(name).float()
    if name == "rectified Elman":
        pytest.skip("unbounded by nature")
    outputs, final = cell.scan(30 * torch.randn(2, 300, 3), cell.first(torch.zeros(2, 3)))
    assert all(part.isfinite().all() for part in (outputs, *final))


def test_state_dropout_needs_a_cell_that_reads_its_output() -> None:
    with pytest.raises(ValueError, match="MinGRU read nothing of it: leave it out"):
        CellLayer([CELLS["minGRU"](3, 4)], state_dropout=0.1)


def test_zoneout_keeps_units_in_training_and_takes_the_expectation_in_evaluation() -> None:
    cell = Zoneout(3, 50, probability=0.3)
    x, state = torch.randn(200, 3), tuple(torch.randn(200, 50) for _ in range(2))
    plain = cell.cell.step(x, state)
    for old, new, mixed, mean in zip(state, plain, cell.step(x, state), cell.eval().step(x, state), strict=True):
        kept = mixed == old
        assert torch.equal(mixed, torch.where(kept, old, new))
        assert kept.float().mean() == pytest.approx(0.3, abs=0.02)
        assert_close(mean, 0.3 * old + 0.7 * new)


def test_further_cells_of_a_transition_read_the_state_alone() -> None:
    cell = DeepTransition(3, 4, Elman, depth=2)
    assert [one.input_size for one in cell.cells] == [3, 1]
    x, state = torch.randn(2, 3), (torch.randn(2, 4),)
    expected = cell.cells[1].step(torch.ones(2, 1), cell.cells[0].step(x, state))
    assert_close(cell.step(x, state), expected)


WRONG: list[tuple[Callable[[], Cell], str]] = [
    (lambda: Zoneout(3, 4, probability=1.1), "from 0 to 1, got 1.1"),
    (lambda: Zoneout(3, 4, SLSTM), "not for SLSTM"),
    (lambda: DeepTransition(3, 4, depth=0), "at least 1, got 0"),
    (lambda: DeepTransition(3, 4, MinGRU), "reads its output, such as GRU, not MinGRU"),
]


@pytest.mark.parametrize(("make", "said"), WRONG)
def test_cells_of_cells_refuse_what_does_not_go_together(make: Callable[[], Cell], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


SHORT: list[tuple[object, str]] = [("gru", "gru"), (CELLS["GRU"], "gru"), (CELLS["rectified Elman"], "rnn_relu")]


@pytest.mark.parametrize(("cell", "kernel"), SHORT)
def test_cells_with_kernels_use_them(cell: Callable[[int, int], Cell], kernel: str) -> None:
    from lit_seq2seq.nn import RecurrentStack

    torch.manual_seed(3)
    stack = RecurrentStack(3, 4, 2, cell)
    assert [layer.cell for layer in stack.layers] == [kernel] * 2
    torch.manual_seed(3)
    expected = RecurrentStack(3, 4, 2, kernel)  # type: ignore[arg-type]
    assert_close(list(stack.parameters()), list(expected.parameters()))


@pytest.mark.parametrize("name", ["minGRU", "minLSTM", "RG-LRU"])
def test_sixteen_bits_round_inputs_and_outputs_but_not_the_state(name: str) -> None:
    cell = CELLS[name](3, 4)
    with torch.no_grad():
        cell.get_submodule("inputs").bias[:4] = 9.0 if name == "minLSTM" else -9.0  # the state fades slowly
    x = torch.randn(2, 500, 3).bfloat16().float()
    exact, _ = cell.scan(x, cell.first(x[:, 0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, (last,) = cell.scan(x, cell.first(x[:, 0]))
    rounded = [cell.bfloat16().step(x[:, 0].bfloat16(), (last,))[0].dtype, last.dtype, outputs.dtype]
    assert rounded == [torch.float32, torch.float32, torch.bfloat16]
    torch.testing.assert_close(outputs.float(), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


@every_cell
def test_a_layer_of_sixteen_bits_gives_sixteen_bits(name: str) -> None:
    layer = CellLayer([CELLS[name](3, 4)]).bfloat16()
    x = torch.randn(2, 5, 3).bfloat16()
    outputs, state = layer(x)
    assert (outputs.dtype, layer.step(x[:, 0], state)[0].dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 1])], ids=["whole", "padded"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_a_layer_refuses_inputs_of_another_size(cell: str, lengths: Tensor | None) -> None:
    with pytest.raises(ValueError, match="expected inputs of 5 numbers each, got 4"):
        RecurrentLayer(5, 8, cell)(torch.zeros(2, 3, 4), lengths=lengths)
