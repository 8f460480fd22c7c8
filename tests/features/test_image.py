import io
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Value

from lit_seq2seq.features import Image
from lit_seq2seq.features.feature import encode_named
from lit_seq2seq.types import UserError

SIZE = 16


def noise(width: int = 40, height: int = 24, mode: str = "RGB", seed: int = 0) -> PIL.Image.Image:
    rng = np.random.default_rng(seed)
    return PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def file(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def one(raw: object, **options: object) -> np.ndarray:
    (array,) = Image(SIZE, **options).encode([raw])
    return array


def test_every_way_to_give_an_image_gives_the_same_pixels(tmp_path: Path) -> None:
    image, content, path = noise(), file(noise()), tmp_path / "a.png"
    path.write_bytes(content)
    expected = one(image)
    ways = [content, path, str(path), {"bytes": content}, {"bytes": None, "path": str(path)}]
    for raw in ways:
        assert Image().accepts(raw)
        np.testing.assert_array_equal(one(raw), expected)
    assert expected.shape == (SIZE, SIZE, 3)
    assert expected.dtype == np.uint8


def test_what_is_no_image_is_not_accepted() -> None:
    assert not any(Image().accepts(raw) for raw in (3, None, ["a.png"], {"a": 1}, [noise()]))
    accepted = [datasets.Image(decode=False), Value("binary"), Value("string"), {"bytes": Value("binary")}]
    assert all(Image().accepts_column(column) for column in accepted)
    assert not any(Image().accepts_column(column) for column in (Value("int64"), datasets.List(Value("string"))))
    assert [Image().is_missing(raw) for raw in (None, b"", "", {"bytes": None, "path": None}, b"x")] == [True] * 4 + [
        False
    ]


@pytest.mark.parametrize("raw", [np.zeros((8, 8), np.uint8), torch.zeros(3, 8, 8), None, 3, [[1]], {"bytes": None}])
def test_what_is_no_image_is_refused_in_one_line(raw: object) -> None:
    with pytest.raises(
        UserError, match=r"expected an image as a path, bytes or a Pillow image, but it is of type \w+$"
    ):
        Image(size=8).encode([raw])


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA", "I", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = PIL.Image.new("RGB", (20, 20), (255, 255, 255))
    if mode in ("I;16", "I", "F"):
        values = np.full((20, 20), {"I;16": 65535, "I": 2**31 - 1, "F": 1.0}[mode])
        values[:, 0] = 0
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = PIL.Image.fromarray(values.astype(kind))
        assert image.mode == mode
    else:
        image = grey.convert(mode)
    pixels = one(image)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert (pixels[:, -4:] >= 250).all()


@pytest.mark.parametrize(
    ("kind", "full"),
    [
        (np.uint16, 65535),
        (np.int32, 255),
        (np.int32, 65535),
        (np.int32, 2**31 - 1),
        (np.float32, 1.0),
        (np.float32, 255),
        (np.float32, 65535),
    ],
)
@pytest.mark.parametrize("form", ["memory", "TIFF"])
def test_grey_of_more_bits_keeps_its_brightness(kind: type, full: float, form: str) -> None:
    """Not stretched to the range of the image: a dark or flat one stays so."""
    expected = np.tile(np.array([0, 51, 102], np.uint8).repeat(8), (24, 1))
    for grey in (expected, expected // 3 + 60, np.full_like(expected, 204)):
        image = PIL.Image.fromarray((grey / 255 * full).astype(kind))
        raw = image if form == "memory" else file(image, form)
        found = np.asarray(Image(24, fit="stretch").decode(raw))
        assert np.abs(found - grey[..., None].astype(int)).max() <= 1


@pytest.mark.parametrize("dark", [100, 60_000])
def test_a_portable_grey_map_of_16_bits_keeps_its_brightness(dark: int) -> None:
    content = b"P5 16 16 65535\n" + np.full((16, 16), dark, ">u2").tobytes()
    assert one(content)[0, 0].tolist() == [round(dark / 257)] * 3


@pytest.mark.parametrize("values", [[[-1.0, 0.5]], [[0.0, np.nan]], [[0.0, np.inf]], [[0.0, 1e6]], [[-3, 40]]], ids=str)
def test_pixels_on_no_known_scale_are_refused(values: list) -> None:
    array = np.array(values, np.float32 if isinstance(values[0][1], float) else np.int32).repeat(20, 0).repeat(10, 1)
    with pytest.raises(UserError, match=r"expected pixels from 0 to .*, but the image has some from .*: convert it"):
        one(PIL.Image.fromarray(array))


def test_floats_a_little_beyond_their_scale_are_cut() -> None:
    array = np.tile(np.array([-0.01, 1.02], np.float32).repeat(10), (20, 1))
    assert sorted({*one(PIL.Image.fromarray(array), fit="stretch")[:, [0, -1]].ravel().tolist()}) == [0, 255]


def test_what_is_transparent_is_white() -> None:
    image = PIL.Image.new("RGBA", (20, 20), (200, 0, 0, 0))
    assert (one(file(image)) == 255).all()
    palette = PIL.Image.new("P", (20, 20), 0)
    assert (one(file(palette, "GIF", transparency=0)) == 255).all()


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    content = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert PIL.Image.open(io.BytesIO(content)).n_frames == 3
    assert (one(content)[0, 0] == [255, 0, 0]).all()


def test_the_orientation_of_a_camera_is_followed() -> None:
    image = PIL.Image.new("RGB", (20, 20), "white")
    image.paste("black", (0, 0, 20, 10))  # black above
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    assert one(file(image))[0, 0, 0] == 0
    assert one(file(image, exif=exif))[0, 0, 0] == 255


def test_shapes_become_a_square() -> None:
    image = PIL.Image.new("RGB", (64, 32), "white")
    image.paste("black", (16, 0, 48, 32))
    assert (one(image, fit="crop")[:, 1:-1] == 0).all()
    assert one(image, fit="stretch")[8, :, 0].tolist() == pytest.approx([255] * 4 + [0] * 8 + [255] * 4, abs=60)
    padded = one(image, fit="pad")
    assert (padded[0] == 128).all()
    assert padded[8, 8, 0] == 0


def test_pixels_are_normalised() -> None:
    feature = Image(SIZE, mean=[0.5, 0.0, 1.0], std=[0.5, 1.0, 2.0])
    batch = feature.collate(feature.encode([PIL.Image.new("RGB", (20, 20), (255, 255, 255))] * 2))
    assert batch.values.dtype == np.float32
    assert batch.values.shape == (2, SIZE, SIZE, 3)
    assert batch.lengths.tolist() == [SIZE, SIZE]
    assert batch.values[1, 3, 3].tolist() == [1, 1, 0]


def test_training_takes_random_parts_and_evaluation_none() -> None:
    feature = Image(SIZE, smallest_crop=0.3)
    image = noise()
    drawn = {feature.encode([image], training=True)[0].tobytes() for _ in range(6)}
    assert len(drawn) == 6
    assert len({feature.encode([image])[0].tobytes() for _ in range(3)}) == 1
    np.testing.assert_array_equal(feature.encode([image])[0], one(image))
    assert feature.augments
    assert not Image().augments


def test_random_parts_follow_the_random_state_of_torch_and_keep_their_share() -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 3))
    feature = Image(SIZE, smallest_crop=0.25)
    image = PIL.Image.fromarray(ramp)
    spans = []
    for seed in range(200):
        torch.manual_seed(seed)
        first = feature.encode([image], training=True)[0]
        torch.manual_seed(seed)
        np.testing.assert_array_equal(feature.encode([image], training=True)[0], first)
        spans.append(int(first[0, -1, 0]) - int(first[0, 0, 0]))
    assert min(spans) >= 200 * 0.5 * np.sqrt(3 / 4) * 0.9  # the narrowest part, less half a pixel at either end
    assert max(spans) > 170


def test_half_of_the_images_are_mirrored() -> None:
    feature, array = Image(SIZE, flip=True), one(noise())
    mirrored = [bool((feature.augment(array) == array[:, ::-1]).all()) for _ in range(200)]
    assert 60 < sum(mirrored) < 140
    assert (Image(SIZE).augment(array) == array).all()


def test_broken_images_are_explained_in_one_line(tmp_path: Path) -> None:
    png, jpeg = file(noise()), file(noise(200, 200), "JPEG")
    (tmp_path / "a.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    cases = {
        b"no image at all": "expected an image, but the bytes cannot be read as one: convert it",
        str(tmp_path / "a.jpg"): r"the image '.*a\.jpg' is broken: .*truncated",
        jpeg[: len(jpeg) // 2]: "the image is broken: .*truncated",
        png[: len(png) // 2]: "the image is broken",
        file(noise(1, 1)): "expected an image of at least 2 x 2 pixels, but it has 1 x 1: leave the row out",
        str(tmp_path / "none.jpg"): r"expected an image at '.*none\.jpg', but there is no such file",
        str(tmp_path): "there is no such file",
        "a dog " * 1000: "there is no such file",
    }
    for raw, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            one(raw)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="row 7: expected an image, but the bytes"):
        encode_named(Image(SIZE).encode, [png, b"x"], ["row 6", "row 7"])


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at most 900 pixels, but it has 40 x 24: make it smaller, or raise max_pixels"):
        one(noise(), max_pixels=900)
    bomb = file(noise())
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(UserError, match="too large"):
        one(bomb)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "ICNS", "TGA", "PCX", "DDS"])
def test_formats_that_run_programs_or_that_nobody_needs_are_not_read(kind: str, tmp_path: Path) -> None:
    content = file(noise(64, 64), kind)
    (tmp_path / "a.png").write_bytes(content)
    for raw in (content, str(tmp_path / "a.png"), {"bytes": content, "path": None}):
        with pytest.raises(UserError, match="cannot be read as one: convert it to PNG or JPEG"):
            one(raw)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "MPO"])
def test_common_formats_are_read(kind: str) -> None:
    assert one(file(noise(64, 64), kind)).shape == (SIZE, SIZE, 3)


def test_a_large_photograph_is_decoded_at_a_fraction() -> None:
    content = file(noise(1600, 1200), "JPEG")
    assert Image(SIZE).decode(content).size == (200, 150)
    assert Image(SIZE, smallest_crop=0.01).decode(content).size == (800, 600)
    smooth = PIL.Image.linear_gradient("L").resize((1600, 1200))
    near = np.abs(one(file(smooth, "JPEG", quality=95)).astype(int) - one(smooth).astype(int))
    assert near.max() <= 4


def test_settings_out_of_range_are_explained() -> None:
    for options, message in (
        ({"size": 4}, "size of an image must be at least 8 pixels, but is 4"),
        ({"fit": "wrap"}, "fit: expected one of 'crop', 'stretch', 'pad', got 'wrap'"),
        ({"std": [1, 1, 0]}, "mean and std must be 3 numbers each, std above 0"),
        ({"mean": [1]}, "mean and std must be 3 numbers each"),
        ({"smallest_crop": 0}, "smallest_crop must be above 0 and up to 1, but is 0"),
    ):
        with pytest.raises(UserError, match=message):
            Image(**options)


def test_a_saved_feature_is_the_same_and_augmentation_is_no_part_of_its_identity() -> None:
    feature = Image(SIZE, fit="pad", mean=(0.1, 0.2, 0.3), smallest_crop=0.5, flip=True)
    again = Image.from_dict(feature.to_dict())
    assert again.to_dict() == feature.to_dict()
    np.testing.assert_array_equal(again.encode([noise()])[0], feature.encode([noise()])[0])
    assert Image(SIZE, flip=True).identity() == Image(SIZE).identity() != Image(SIZE, fit="pad").identity()


def test_samples_show_what_an_image_is() -> None:
    feature = Image()
    assert feature.show(noise()) == "image of 40 x 24 pixels"
    assert feature.show({"bytes": file(noise()), "path": None}) == "image of 40 x 24 pixels"
    assert feature.show("photos/a.jpg") == "photos/a.jpg"
    assert feature.show(None) == "no image"
    assert feature.show(b"x") == "an image that cannot be read"


def test_positions_follow_the_size() -> None:
    feature = Image(40)
    assert feature.measure([b"not even decoded"] * 2) == [9, 9]
    assert feature.positions(feature.nothing()) == 9


def test_pixels_of_16_bits_are_converted_in_one_copy():
    image = PIL.Image.fromarray(np.full((1000, 1000), 65535, np.uint16))
    tracemalloc.start()
    try:
        Image(size=8).encode([image])
        assert tracemalloc.get_traced_memory()[1] < 14e6  # 8 MB are the copy
    finally:
        tracemalloc.stop()
