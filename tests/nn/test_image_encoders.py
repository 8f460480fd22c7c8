"""What every encoder of images promises; a new one joins by a line in `IMAGE_ENCODERS`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_seq2seq.nn import ConvEncoder, Encoder
from lit_seq2seq.types import Padded
from tests.nn.cases import IMAGE_ENCODERS, IMAGES, assert_close, disturb, tensors
from tests.nn.pieces import check_pieces

all_encoders = pytest.mark.parametrize("name", IMAGE_ENCODERS)


def build(name: str) -> Encoder:
    return disturb(IMAGE_ENCODERS[name](3), scale=0.05).eval()


@all_encoders
def test_sizes_are_as_promised(name: str) -> None:
    encoder = build(name)
    encoded, shape = encoder(IMAGES), encoder.shape
    assert encoded.memory.values.shape == (len(IMAGES.lengths), encoded.memory.lengths[0], shape.memory_size)
    assert encoded.memory.mask.all()
    assert encoded.final.h.shape == (len(IMAGES.lengths), shape.final_layers, shape.final_size)
    assert tuple(part.shape[-1] for part in encoded.final.values) == shape.sizes
    assert encoder.token_embedding is None


@all_encoders
def test_batch_mates_and_order_change_nothing(name: str) -> None:
    encoder, order = build(name), torch.tensor([2, 0, 1])
    batch = encoder(IMAGES)
    for index in range(len(order)):
        alone = encoder(IMAGES.select(torch.tensor([index])))
        assert_close(tensors(alone), tensors(batch.select(torch.tensor([index]))))
    assert_close(tensors(encoder(IMAGES.select(order))), tensors(batch.select(order)))


@all_encoders
def test_gradients_reach_every_parameter_that_learns(name: str) -> None:
    encoder = build(name).train()
    encoded = encoder(IMAGES)
    (encoded.memory.values.square().sum() + encoded.final.h.square().sum()).backward()
    learning = {key: parameter for key, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert learning
    assert [key for key, parameter in learning.items() if parameter.grad is None or not parameter.grad.any()] == []


@all_encoders
def test_every_part_of_an_image_counts(name: str) -> None:
    encoder = build(name)
    final = encoder(IMAGES).final.h
    side = IMAGES.values.shape[1]
    for row, column in ((0, 0), (0, side - 1), (side - 1, 0), (side // 2, side // 2)):
        values = IMAGES.values.clone()
        values[0, row, column] += 3
        changed = encoder(Padded(values, IMAGES.lengths)).final.h
        assert not torch.allclose(changed[0], final[0], atol=1e-7)
        assert_close(changed[1:], final[1:])


@all_encoders
def test_saved_weights_give_the_same_memory(name: str, tmp_path: Path) -> None:
    encoder, again = build(name), build(name)
    save_file(encoder.state_dict(), tmp_path / "weights.safetensors")
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert_close(tensors(again(IMAGES)), tensors(encoder(IMAGES)), rtol=0, atol=0)


def test_each_memory_vector_looks_at_its_own_place() -> None:
    encoder = disturb(ConvEncoder(3, hidden_size=32, widths=[16, 16], blocks=1), scale=0.05).eval()
    image = IMAGES.select(torch.tensor([0]))
    before = encoder(image).memory.values[0]
    for row, column in ((0, 0), (1, 3), (3, 0), (2, 2)):
        values = image.values.clone()
        values[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] *= -2
        changes = (encoder(Padded(values, image.lengths)).memory.values[0] - before).norm(dim=-1)  # (16,)
        most = int(changes.argmax())
        assert max(abs(most // 4 - row), abs(most % 4 - column)) <= 1


def test_the_grid_knows_where_it_is() -> None:
    encoder = ConvEncoder(3, hidden_size=64, widths=[16], blocks=1).eval()
    grid = encoder(Padded(torch.zeros(1, 8, 8, 3), torch.tensor([8]))).memory.values[0]  # of an even picture
    inner = grid.view(4, 4, 64)[1:3, 1:3].reshape(4, 64)  # away from the edges
    assert torch.cdist(inner, inner).fill_diagonal_(1).min() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_small_thing_stands_out_from_the_background_at_the_start(seed: int) -> None:
    torch.manual_seed(seed)
    encoder = ConvEncoder(3, hidden_size=64, widths=[16, 32, 32], blocks=1).train()
    pixels = 1.5 + 0.2 * torch.randn(16, 1, 1, 3).repeat(1, 32, 32, 1)  # bright, each in another shade
    pixels[:, 10:16, 10:16] += torch.randn(16, 1, 1, 3)  # a square of any colour, inside one place of the grid
    memory = encoder(Padded(pixels, torch.full((16,), 32))).memory.values.view(16, 4, 4, 64)
    differences, size = memory[:, 1, 1].std(dim=0).mean(), memory.square().mean().sqrt()
    assert differences > size / 2  # with group normalisation between a tenth and a fifth


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": []}, r"widths must be at least one number, each at least 1, got \[\]"),
        ({"widths": [16, 0]}, r"widths must be at least one number, each at least 1, got \[16, 0\]"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvEncoder(3, **options)


def test_the_default_has_the_size_that_the_documents_say() -> None:
    encoder = ConvEncoder(3)
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert 2.5 < millions < 3.2
    with torch.no_grad():
        assert encoder(Padded(torch.zeros(1, 128, 128, 3), torch.tensor([128]))).memory.lengths.tolist() == [64]


@all_encoders
def test_images_do_not_come_in_pieces(name: str) -> None:
    check_pieces(build(name), IMAGES)
