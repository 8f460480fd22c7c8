import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lit_seq2seq.nn import label_smoothed_nll
from lit_seq2seq.nn.ops import masked_mean, masked_softmax


def test_masked_softmax_is_the_softmax_of_what_is_left() -> None:
    scores, mask = torch.randn(4, 3, 6), torch.rand(4, 1, 6) > 0.4
    mask[1] = False
    weights = masked_softmax(scores, mask)
    for b in (0, 2, 3):
        assert_close(weights[b][:, mask[b, 0]], scores[b][:, mask[b, 0]].softmax(dim=-1))
    assert (weights.masked_select(~mask) == 0).all()
    assert (weights[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_softmax_stands_extreme_scores(dtype: torch.dtype) -> None:
    scores = torch.tensor([[6e4, -6e4, 0.0], [-6e4, -6e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    weights = masked_softmax(scores, mask)
    assert weights.dtype == dtype
    assert weights.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]]


def test_masked_softmax_has_finite_gradients_where_everything_is_masked() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    masked_softmax(scores, torch.tensor([[True, True, False], [False, False, False]])).square().sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad[1] == 0).all()
    assert (scores.grad[0, :2] != 0).all()


def test_masked_mean() -> None:
    values, lengths = torch.randn(3, 4, 2), torch.tensor([4, 1, 0])
    mean = masked_mean(values, torch.arange(4) < lengths[:, None])
    assert_close(mean, torch.stack([values[0].mean(dim=0), values[1, 0], torch.zeros(2)]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_equals_cross_entropy(smoothing: float) -> None:
    logits, targets = torch.randn(7, 5) * 3, torch.randint(5, (7,))
    loss, nll = label_smoothed_nll(logits, targets, smoothing)
    assert_close(loss, F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing))
    assert_close(nll, F.cross_entropy(logits, targets, reduction="sum"))


def test_the_loss_is_computed_in_float32() -> None:
    logits, targets = torch.randn(7, 5).bfloat16(), torch.randint(5, (7,))
    loss, _ = label_smoothed_nll(logits, targets, 0.1)
    assert loss.dtype == torch.float32
    assert_close(loss, label_smoothed_nll(logits.float(), targets, 0.1)[0])


def test_the_loss_of_no_tokens_is_zero() -> None:
    loss, nll = label_smoothed_nll(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 0.1)
    assert (loss.item(), nll.item()) == (0, 0)
