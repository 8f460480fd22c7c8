"""Latency-controlled layers: the direction from the end, a window at a time."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lit_seq2seq.nn import Cell, RecurrentStack, TextEncoder
from lit_seq2seq.nn.cells import CellName
from tests.nn.cases import KINDS_OF_CELLS, assert_close, disturb, gradient_of, tensors

LENGTHS = torch.tensor([11, 4, 0, 7])
CHUNK, LOOKAHEAD = 3, 2
every_cell = pytest.mark.parametrize("cell", KINDS_OF_CELLS.values(), ids=KINDS_OF_CELLS)
Kind = CellName | Callable[[int, int], Cell]


def pair(cell: Kind, chunk: int = CHUNK, **options: object) -> tuple[RecurrentStack, RecurrentStack]:
    """A latency-controlled layer, and a bidirectional one of the same weights."""
    make = partial(RecurrentStack, 5, 8, 1, cell, bidirectional=True)
    whole = disturb(make()).double()
    controlled = make(backward_chunk=chunk, backward_lookahead=LOOKAHEAD, **options).double()  # type: ignore[arg-type]
    controlled.load_state_dict(whole.state_dict())
    return controlled, whole


def by_window(whole: RecurrentStack, x: Tensor, length: int) -> Tensor:
    """What a sequence `(1, T, D)` has to give: the direction back is read off windows that run alone."""
    onward = whole(x[:, :length])[0][0, :, :4]
    windows = [whole(x[:, begin : min(begin + CHUNK + LOOKAHEAD, length)])[0] for begin in range(0, length, CHUNK)]
    return torch.cat([onward, torch.cat([window[0, :CHUNK, 4:] for window in windows])[:length]], dim=-1)


@every_cell
@pytest.mark.parametrize("training", [False, True])
def test_each_window_runs_back_by_itself(cell: Kind, training: bool) -> None:
    controlled, whole = (stack.train(training) for stack in pair(cell))
    x = torch.randn(4, 11, 5).double()
    outputs, final = controlled(x, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        if length and not (training and "zoneout" in str(cell).lower()):
            expected = by_window(whole, x[row : row + 1], length)
            assert_close(outputs[row, :length], expected)
            assert_close(final.h[row, 0, :4], expected[-1, :4])
            assert_close(final.h[row, 0, 4:], expected[(length - 1) // CHUNK * CHUNK, 4:])
        assert (outputs[row, length:] == 0).all()


@every_cell
def test_gradients_are_those_of_windows_that_run_alone(cell: Kind) -> None:
    controlled, whole = (stack.eval() for stack in pair(cell))
    x = torch.randn(1, 11, 5).double()
    found = controlled(x)[0].square().sum(), by_window(whole, x, 11).square().sum()
    ours, theirs = (list(stack.parameters()) for stack in (controlled, whole))
    assert_close(gradient_of(found[0], ours), gradient_of(found[1], theirs))


@every_cell
def test_a_window_over_all_is_a_bidirectional_layer(cell: Kind) -> None:
    controlled, whole = (stack.eval() for stack in pair(cell, chunk=11))
    x = torch.randn(4, 11, 5).double()
    found, expected = (stack(x, lengths=LENGTHS) for stack in (controlled, whole))
    assert_close(found[0], expected[0])
    assert_close(tensors(found[1]), tensors(expected[1]))


@every_cell
def test_training_with_little_memory_gives_the_same(cell: Kind) -> None:
    if "zoneout" in str(cell).lower():
        pytest.skip("it draws other masks")
    x, found = torch.randn(4, 11, 5).double(), []
    torch.manual_seed(0)
    plain, _ = pair(cell)
    for stack in (plain, pair(cell, chunk_size=2)[0]):
        stack.load_state_dict(plain.state_dict())
        outputs, _ = stack.train()(x, lengths=LENGTHS)
        found.append(gradient_of(outputs.square().sum(), list(stack.parameters())))
    assert_close(*found)


def test_dropped_units_of_the_state_are_the_same_in_all_windows() -> None:
    controlled, _ = pair("lstm", state_dropout=0.5)
    x = torch.randn(1, 3, 5).double().repeat(1, 4, 1)
    outputs, _ = controlled.train()(x[:, :8])  # windows of the same inputs, but for the last
    assert_close(outputs[:, :3, 4:], outputs[:, 3:6, 4:])
    assert not torch.allclose(outputs, controlled(x[:, :8])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backward_chunk": 4, "bidirectional": False}, "set backward_chunk and bidirectional: true"),
        ({"backward_lookahead": 4}, "set backward_chunk and bidirectional: true"),
        ({"backward_chunk": 0}, "backward_chunk must be at least 1 and .* got 0 and 0"),
        ({"backward_chunk": 1, "backward_lookahead": -1}, "backward_lookahead at least 0, got 1 and -1"),
    ],
)
def test_windows_without_a_meaning_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partial(TextEncoder, 9)(**options)
