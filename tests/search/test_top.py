"""The most probable continuations are those that a sort would find."""

import pytest
import torch

from lit_seq2seq.arrays.tensors import BLOCK, Tensors


@pytest.mark.parametrize("size", [5, BLOCK * 8, BLOCK * 9 + 1, 1000])
@pytest.mark.parametrize("hypotheses", [1, 3, 12])
@pytest.mark.parametrize("count", [1, 6, 30])
def test_equals_a_stable_sort(size: int, hypotheses: int, count: int) -> None:
    generator = torch.Generator().manual_seed(size + hypotheses)
    log_probs = torch.randn(4, hypotheses, size, generator=generator).log_softmax(-1)
    log_probs[0, :, : size // 2] = -torch.inf
    log_probs[1, :, -3:] += 9
    offsets = -torch.rand(4, hypotheses, generator=generator)
    offsets[2, 1:] = -torch.inf
    values, rows, tokens = Tensors("cpu").top(log_probs, offsets, count)
    sums = log_probs + offsets[..., None]
    expected = sums.flatten(1).sort(dim=1, descending=True, stable=True).values[:, :count]
    assert torch.equal(values, expected)
    assert torch.equal(sums[torch.arange(4)[:, None], rows, tokens], values)


def test_equal_values_go_by_hypothesis_and_then_by_token() -> None:
    log_probs = torch.full((2, 10, 700), -5.0)
    log_probs[:, 1, [3, 650, 699]] = log_probs[:, 7, [0, 500]] = -1
    _, rows, tokens = Tensors("cpu").top(log_probs, torch.zeros(2, 10), 5)
    assert rows.tolist() == [[1, 1, 1, 7, 7]] * 2
    assert tokens.tolist() == [[3, 650, 699, 0, 500]] * 2
