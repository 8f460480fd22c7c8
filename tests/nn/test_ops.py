import pytest
import torch
from torch.testing import assert_close

from lit_seq2seq.nn.ops import dropout, dropout_mask, masked_mean, masked_softmax


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


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 3, 7)])
def test_dropout_masks_have_the_shape_and_type_asked_for(shape: tuple[int, ...]) -> None:
    mask = dropout_mask(torch.zeros(1, dtype=torch.bfloat16), shape, 0.5)
    assert (tuple(mask.shape), mask.dtype) == (shape, torch.bfloat16)
    assert set(mask.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_dropout_masks_drop_units_independently_and_keep_the_mean(probability: float) -> None:
    mask = dropout_mask(torch.zeros(1), (50_000, 4), probability)
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - probability)])
    dropped = (mask == 0).float()
    assert_close(dropped.mean(dim=0), torch.full((4,), probability), rtol=0, atol=0.01)
    assert_close(dropped.T.corrcoef(), torch.eye(4), rtol=0, atol=0.02)


def test_dropout_scales_what_is_left_and_its_gradient() -> None:
    x = torch.randn(30, 30, requires_grad=True)
    dropped = dropout(x, 0.25)
    dropped.sum().backward()
    assert x.grad is not None
    assert_close(dropped, x * x.grad)
    assert x.grad.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropout(x, 0.25, training=False) is x
    assert dropout(x, 0.0) is x
