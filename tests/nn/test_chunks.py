"""Chunks of time change the memory of training and nothing else."""

from functools import partial

import pytest
import torch

from lit_seq2seq.nn import SLSTM
from lit_seq2seq.nn.recurrent import CellLayer, RecurrentLayer, RecurrentStack
from lit_seq2seq.types import CellState
from tests.nn.cases import KINDS_OF_CELLS


def slstm(input_size, hidden_size, **options):
    return CellLayer([SLSTM(input_size, hidden_size)], **options)


def outcomes(layer, x, lengths, state):
    """Outputs, final state and all gradients of a pass whose loss sees every real output and the state."""
    inputs = [x.clone().requires_grad_(), *(part.clone().requires_grad_() for part in state)]
    stacked = isinstance(layer, RecurrentStack)
    state = CellState.of(inputs[1:]) if stacked and state else tuple(inputs[1:]) or None
    outputs, final = layer(inputs[0], state, lengths)
    results = [outputs, *(final.values if stacked else final)]
    weights = [torch.linspace(-1, 1, result.numel()).view_as(result) for result in results]
    loss = sum((result * weight).sum() for result, weight in zip(results, weights, strict=True))
    return results + list(torch.autograd.grad(loss, [*inputs, *layer.parameters()], materialize_grads=True))


SETTINGS = [  # bidirectional, padded, started
    (False, False, True),
    (False, True, False),
    (True, False, False),
    (True, True, True),
]


@pytest.mark.parametrize("cell", KINDS_OF_CELLS)
@pytest.mark.parametrize(("bidirectional", "padded", "started"), SETTINGS)
def test_chunks_give_the_same_outputs_and_gradients(cell, bidirectional, padded, started):
    torch.manual_seed(0)

    def make(chunk_size=None):
        kind = KINDS_OF_CELLS[cell]
        return RecurrentStack(3, 8, 2, kind, bidirectional=bidirectional, chunk_size=chunk_size).double()

    whole, chunked = make(), make(chunk_size=3)
    chunked.load_state_dict(whole.state_dict())
    x = torch.randn(4, 8, 3, dtype=torch.double)
    lengths = torch.tensor([8, 1, 4, 0 if started else 7]) if padded else None
    state = [torch.rand(4, 2, size, dtype=torch.double) for size in (8, *whole.others)] if started else []
    torch.manual_seed(1)  # zoneout draws
    expected = outcomes(whole, x, lengths, state)
    torch.manual_seed(1)
    found = outcomes(chunked, x, lengths, state)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize(
    "make", [partial(RecurrentLayer, cell="lstm"), partial(RecurrentLayer, cell="rnn_tanh"), slstm]
)
def test_chunks_share_a_mask_of_state_dropout(make):
    whole, chunked = make(3, 4, state_dropout=0.5), make(3, 4, state_dropout=0.5, chunk_size=3)
    chunked.load_state_dict(whole.state_dict())
    x, lengths = torch.randn(4, 8, 3), torch.tensor([8, 1, 4, 0])
    found = []
    for layer in (whole, chunked):
        torch.manual_seed(1)
        found.append(outcomes(layer, x, lengths, []))
    torch.testing.assert_close(found[1], found[0])
    assert not torch.allclose(found[0][0], whole.eval()(x, None, lengths)[0])


def test_truncated_gradients_stay_within_their_chunk():
    layer = RecurrentLayer(3, 4, chunk_size=3, truncate=True)
    x = torch.randn(2, 8, 3, requires_grad=True)
    outputs, _ = layer(x)
    outputs[:, 4].sum().backward()
    steps = x.grad.abs().sum(dim=(0, 2)) > 0
    assert steps.tolist() == [False, False, False, True, True, False, False, False]


def test_chunks_keep_less_for_the_backward_pass():
    def kept(chunk_size):
        layer, total = RecurrentLayer(8, 8, chunk_size=chunk_size), []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.numel()) or t, lambda t: t)
        with hooks:
            layer(torch.randn(2, 512, 8), lengths=torch.tensor([512, 300]))
        return sum(total)

    assert kept(64) < kept(None) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "at least 1"),
        ({"truncate": True}, "set chunk_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    for make in (RecurrentLayer, slstm):
        with pytest.raises(ValueError, match=message):
            make(3, 4, **options)
