from functools import partial

import pytest
import torch

from lit_seq2seq.nn import (
    AdditiveAttention,
    ConvEncoder,
    DoublyStochasticLoss,
    EncoderDecoder,
    MeanBridge,
    ParallelDecoder,
)
from lit_seq2seq.types import Padded
from tests.nn.cases import IMAGES, SIZES, assert_close, widen


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
    assert_close(DoublyStochasticLoss(0.5)(weights, mask).item(), 0.5 * expected)


def test_the_term_is_added_to_the_loss_of_a_captioning_network_and_has_a_gradient() -> None:
    decoder = partial(ParallelDecoder, attention=AdditiveAttention, bridge=MeanBridge, **SIZES)
    encoder = partial(ConvEncoder, hidden_size=6, widths=[16], blocks=1)
    with_term = EncoderDecoder(3, 9, encoder, decoder, attention_losses=[partial(DoublyStochasticLoss, weight=2.0)])
    plain = EncoderDecoder(3, 9, encoder, decoder)
    plain.load_state_dict(with_term.state_dict())
    target = Padded(torch.tensor([[4, 5, 3], [6, 3, 0], [3, 0, 0]]), torch.tensor([3, 2, 1]))
    expected = DoublyStochasticLoss(2.0)(plain.teach(IMAGES, target).attention, target.mask)
    assert expected > 0
    assert_close(with_term.loss(IMAGES, target)[0], plain.loss(IMAGES, target)[0] + expected)
    assert_close(with_term.loss(IMAGES, widen(target, 2, fill=5))[0], with_term.loss(IMAGES, target)[0])
    expected.backward()
    gradient = plain.encoder.project.weight.grad
    assert gradient is not None
    assert gradient.any()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight of DoublyStochasticLoss must be at least 0, got -1"):
        DoublyStochasticLoss(-1)
