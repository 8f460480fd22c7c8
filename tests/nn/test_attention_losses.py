from functools import partial

import pytest
import torch
from torch import Tensor

from lit_seq2seq.nn import (
    AdditiveAttention,
    ConvEncoder,
    CoverageLoss,
    DoublyStochasticLoss,
    EncoderDecoder,
    MeanBridge,
    ParallelDecoder,
    TextEncoder,
)
from lit_seq2seq.nn.attention import AttentionMemory
from lit_seq2seq.types import Padded, Value
from tests.nn.cases import IMAGES, SIZES, assert_close, cross_entropy, widen


def test_every_real_place_counts_by_how_far_its_total_is_from_one() -> None:
    weights = torch.rand(3, 5, 4).softmax(dim=-1)
    weights[1, :, 2:] = 0  # padding of the source
    lengths = torch.tensor([5, 2, 4])
    mask = Padded(torch.zeros(3, 5), lengths).mask
    expected = 0.0
    for b in range(3):
        for i in range(4 if b != 1 else 2):
            total = sum(float(weights[b, t, i]) for t in range(int(lengths[b])))
            expected += (1 - total) ** 2
    source = Padded(torch.zeros(3, 4), torch.tensor([4, 2, 4])).mask
    assert_close(DoublyStochasticLoss(0.5)(weights, mask, source).item(), 0.5 * expected)


@pytest.mark.parametrize(
    ("weights", "source", "expected"),
    [
        ([[[1.0, 0, 0]]], None, 2.0),  # eq. 14: two places were never looked at
        ([[[1.0, 0, 0]]], [[True, True, False]], 1.0),
        ([[[0.0, 0, 0]], [[1e-46, 1.0, 0]]], [[True, True, True], [True, True, False]], 4.0),
        ([[[0.0, 0, 0]]], [[False, False, False]], 0.0),
    ],
)
def test_a_real_place_without_weight_is_no_padding(weights: object, source: object, expected: float) -> None:
    term = torch.tensor(weights)
    mask = None if source is None else torch.tensor(source)
    assert DoublyStochasticLoss()(term, torch.ones(len(term), 1, dtype=torch.bool), mask).item() == expected


def test_padding_is_not_covered() -> None:
    weights, target = torch.full((2, 3, 4), 0.25), torch.ones(2, 3, dtype=torch.bool)
    source = Padded(torch.zeros(2, 4), torch.tensor([4, 1])).mask
    assert CoverageLoss()(weights, target, source).item() == pytest.approx(0.25 * 2 * (4 + 1))


def test_a_network_tells_its_losses_which_places_are_real() -> None:
    class Peaked(AdditiveAttention):
        def scores(self, query: Tensor, memory: AttentionMemory, state: Value | None) -> Tensor:
            scores = super().scores(query, memory, state) * 0
            return scores.index_fill(2, torch.tensor([0]), 1e4)  # all other weights underflow to zero

    encoder = partial(TextEncoder, bidirectional=False, **SIZES)
    decoder = partial(ParallelDecoder, attention=Peaked, bridge=MeanBridge, **SIZES)
    network = EncoderDecoder(9, 9, encoder, decoder, attention_losses=[DoublyStochasticLoss])
    plain = EncoderDecoder(9, 9, encoder, decoder)
    plain.load_state_dict(network.state_dict())
    source = Padded(torch.tensor([[4, 5, 6], [7, 4, 0]]), torch.tensor([3, 2]))
    target = Padded(torch.tensor([[4, 3], [3, 0]]), torch.tensor([2, 1]))
    term = cross_entropy(network, source, target)[0] - cross_entropy(plain, source, target)[0]
    assert_close(term, torch.tensor((2 - 1.0) ** 2 + 2 + 1))


def test_the_term_is_added_to_the_loss_of_a_captioning_network_and_has_a_gradient() -> None:
    decoder = partial(ParallelDecoder, attention=AdditiveAttention, bridge=MeanBridge, **SIZES)
    encoder = partial(ConvEncoder, hidden_size=6, widths=[16], blocks=1)
    with_term = EncoderDecoder(3, 9, encoder, decoder, attention_losses=[partial(DoublyStochasticLoss, weight=2.0)])
    plain = EncoderDecoder(3, 9, encoder, decoder)
    plain.load_state_dict(with_term.state_dict())
    target = Padded(torch.tensor([[4, 5, 3], [6, 3, 0], [3, 0, 0]]), torch.tensor([3, 2, 1]))
    expected = DoublyStochasticLoss(2.0)(plain.teach(plain.encode(IMAGES), target).attention, target.mask)
    assert expected > 0
    assert_close(cross_entropy(with_term, IMAGES, target)[0], cross_entropy(plain, IMAGES, target)[0] + expected)
    assert_close(
        cross_entropy(with_term, IMAGES, widen(target, 2, fill=5))[0], cross_entropy(with_term, IMAGES, target)[0]
    )
    expected.backward()
    gradient = plain.encoder.project.weight.grad
    assert gradient is not None
    assert gradient.any()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight of DoublyStochasticLoss must be at least 0, got -1"):
        DoublyStochasticLoss(-1)
