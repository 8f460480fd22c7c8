"""Chunks of time change the memory of training and nothing else."""

import pytest
import torch

from lit_seq2seq.nn.recurrent import RecurrentLayer


def outcomes(layer, x, lengths, state):
    """Outputs, final state and all gradients of a pass whose loss sees every real output and the state."""
    inputs = [x.clone().requires_grad_(), *(part.clone().requires_grad_() for part in state)]
    outputs, final = layer(inputs[0], tuple(inputs[1:]) or None, lengths)
    results = [outputs, *final]
    weights = [torch.linspace(-1, 1, result.numel()).view_as(result) for result in results]
    loss = sum((result * weight).sum() for result, weight in zip(results, weights, strict=True))
    return results + list(torch.autograd.grad(loss, [*inputs, *layer.parameters()]))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_chunks_give_the_same_outputs_and_gradients(cell, bidirectional, padded, started):
    torch.manual_seed(0)
    whole = RecurrentLayer(3, 4, cell, bidirectional).double()
    chunked = RecurrentLayer(3, 4, cell, bidirectional, chunk_size=3).double()
    chunked.load_state_dict(whole.state_dict())
    x = torch.randn(4, 8, 3, dtype=torch.double)
    lengths = torch.tensor([8, 1, 4, 0 if started else 7]) if padded else None
    size = 8 if bidirectional else 4
    parts = 2 if cell == "lstm" else 1
    state = [torch.randn(4, size, dtype=torch.double) for _ in range(parts if started else 0)]
    expected, found = outcomes(whole, x, lengths, state), outcomes(chunked, x, lengths, state)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


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
        ({"cell": "rnn_tanh", "chunk_size": 4}, "chunk_size is for lstm and gru"),
        ({"state_dropout": 0.1, "chunk_size": 4}, "chunk_size is for lstm and gru"),
        ({"chunk_size": 0}, "at least 1"),
        ({"truncate": True}, "set chunk_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RecurrentLayer(3, 4, **options)
