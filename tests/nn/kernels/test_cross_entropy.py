import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from lit_seq2seq.nn import projected_cross_entropy
from lit_seq2seq.nn.kernels import cross_entropy

TOKENS, SIZE, VOCAB = 23, 6, 11


@pytest.fixture(params=[1 << 20, 4 * VOCAB, 1], ids=["one chunk", "chunks of four", "chunks of one"])
def _chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_SCORES", request.param)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Features, weight and bias, all to be differentiated, and targets."""
    shapes = [(TOKENS, SIZE), (VOCAB, SIZE), (VOCAB,)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes], torch.randint(VOCAB, (TOKENS,))


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_loss_and_gradients_equal_cross_entropy(smoothing: float) -> None:
    values, targets = inputs()
    loss, nll = projected_cross_entropy(*values, targets, smoothing=smoothing)
    logits = F.linear(*values)
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    assert_close(loss, expected)
    assert_close(nll, F.cross_entropy(logits, targets, reduction="sum").detach())
    gradients = torch.autograd.grad(3 * loss, values)
    assert_close(gradients, torch.autograd.grad(3 * expected, values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 65, 127])
@pytest.mark.parametrize("block", [1 << 24, 40 * VOCAB], ids=["one block", "blocks of forty"])
def test_any_number_of_rows_is_padded_without_effect(rows: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK_SCORES", block)
    values, _ = inputs()
    values[0], targets = torch.randn(rows, SIZE, requires_grad=True), torch.randint(VOCAB, (rows,))
    loss, _ = projected_cross_entropy(*values, targets, smoothing=0.1)
    expected = F.cross_entropy(F.linear(*values), targets, reduction="sum", label_smoothing=0.1)
    assert_close(loss, expected)
    gradients = torch.autograd.grad(loss / rows, values)
    assert_close(gradients, torch.autograd.grad(expected / rows, values), rtol=1e-4, atol=1e-5)


def test_few_numbers_of_rows_are_multiplied() -> None:
    rounded = [cross_entropy._rounded(rows) for rows in range(1, 4097)]
    assert all(rows <= made < rows * 17 / 16 for rows, made in enumerate(rounded, 1))
    assert len(set(rounded)) < 32 + 16 * 8


def test_gradients_are_scaled_in_place_and_so_given_once() -> None:
    values, targets = inputs()
    loss, _ = projected_cross_entropy(*values, targets)
    torch.autograd.grad(2 * loss, values, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, values)


@pytest.mark.usefixtures("_chunked")
def test_nothing_is_kept_without_gradients() -> None:
    values, targets = inputs()
    expected = projected_cross_entropy(*values, targets, smoothing=0.1)
    with torch.no_grad():
        loss, nll = projected_cross_entropy(*values, targets, smoothing=0.1)
    assert not loss.requires_grad
    assert_close((loss, nll), tuple(value.detach() for value in expected))


def test_bfloat16_comes_close_and_gradients_keep_their_types() -> None:
    values, targets = inputs()
    expected = projected_cross_entropy(*values, targets, smoothing=0.1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, nll = projected_cross_entropy(values[0].bfloat16(), *values[1:], targets, smoothing=0.1)
    assert loss.dtype == nll.dtype == torch.float32
    assert_close(loss, expected, rtol=0.02, atol=0)
    gradients = torch.autograd.grad(loss, values)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, values), strict=True):
        assert (gradient - exact).norm() < 0.02 * exact.norm()


def test_large_scores_stay_finite() -> None:
    (features, weight, bias), targets = inputs()
    loss, nll = projected_cross_entropy(features * 1e4, weight, bias, targets, smoothing=0.1)
    assert torch.isfinite(torch.stack([loss, nll, *(g.sum() for g in torch.autograd.grad(loss, [weight, bias]))])).all()


def test_the_loss_of_no_tokens_is_zero() -> None:
    (features, weight, bias), targets = inputs()
    loss, nll = projected_cross_entropy(features[:0], weight, bias, targets[:0], smoothing=0.1)
    assert (loss.item(), nll.item()) == (0, 0)
    assert (torch.autograd.grad(loss, weight)[0] == 0).all()


def test_a_shared_weight_gets_both_gradients() -> None:
    """Tied embeddings: the weight makes the features and projects them."""
    values, targets = inputs()
    weight, bias = values[1], values[2]
    tokens = torch.randint(VOCAB, (TOKENS,))
    loss, _ = projected_cross_entropy(F.embedding(tokens, weight), weight, bias, targets)
    expected = F.cross_entropy(F.linear(F.embedding(tokens, weight), weight, bias), targets, reduction="sum")
    assert_close(torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight), rtol=1e-4, atol=1e-5)
