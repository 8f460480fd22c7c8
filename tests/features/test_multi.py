import io
import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from lit_seq2seq.features import Frames, Image, MultiSource, Processor, Records, Tokenizer
from lit_seq2seq.types import Sources, UserError
from tests.pictures import Pictures


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (20, 20), colour).save(file, "PNG")
    return file.getvalue()


def characters() -> Tokenizer:
    tokenizer = Tokenizer("char")
    tokenizer.train(["abc"])
    return tokenizer


def feature() -> MultiSource:
    return MultiSource({"text": characters(), "image": Image(16), "frames": Frames(2, normalize="none")})


RAW: list[dict[str, Any]] = [
    {"text": "abca", "image": png(), "frames": [[1.0, 2.0]]},
    {"text": "a", "image": None},
    {"frames": [[1.0, 2.0], [3.0, 4.0]]},
]


def test_each_source_is_read_by_its_feature_and_what_is_missing_as_nothing() -> None:
    made = feature()
    sources = made.collate(made.encode(RAW))
    assert sources.parts["text"].values.tolist() == [[4, 5, 6, 4, 3], [4, 3, 0, 0, 0], [3, 0, 0, 0, 0]]
    assert sources.parts["frames"].lengths.tolist() == [1, 1, 2]
    expected = made.features["image"].collate([made.features["image"].encode([png()])[0]])
    assert np.array_equal(sources.parts["image"].values[:1], expected.values)
    assert made.size == {"text": 7, "image": 3, "frames": 2}
    assert sources.lengths.tolist() == [5 + 16 + 1, 2 + 16 + 1, 1 + 16 + 2]


def test_json_text_is_an_input() -> None:
    made = feature()
    given = {"text": "ab", "frames": [[1.0, 2.0]]}
    for read, expected in zip(made.encode([json.dumps(given)])[0], made.encode([given])[0], strict=True):
        np.testing.assert_array_equal(read, expected)
    assert made.accepts(given)
    assert made.accepts(json.dumps(given))
    assert not made.accepts([given])


def test_an_input_is_missing_if_all_its_sources_are() -> None:
    made = feature()
    missing = [None, {}, "", " ", {"text": " ", "image": None}]
    assert all(made.is_missing(raw) for raw in missing)
    assert not any(made.is_missing(raw) for raw in [*RAW, "{}", "no JSON"])


def test_positions_are_those_of_all_sources() -> None:
    made = feature()
    arrays = made.encode(RAW)
    assert [made.positions(array) for array in arrays] == made.measure(RAW) == [5 + 1 + 1, 2 + 1 + 1, 1 + 1 + 2]
    assert made.positions(made.nothing()) == 3


@pytest.mark.parametrize(
    ("lengths", "limit", "left"),
    [((9, 3), 12, (9, 3)), ((9, 3), 11, (8, 3)), ((9, 3), 8, (5, 3)), ((9, 3), 4, (2, 2)), ((9, 9), 1, (1, 1))],
)
def test_long_sources_are_cut_before_short_ones(lengths: tuple[int, int], limit: int, left: tuple[int, int]) -> None:
    made = MultiSource({name: Frames(1, normalize="none") for name in ("one", "other")})
    raw = {name: [[0.0]] * length for name, length in zip(made.features, lengths, strict=True)}
    cut = made.truncate(made.encode([raw])[0], limit)
    assert tuple(map(len, cut)) == left


def test_each_source_is_augmented_by_its_feature_when_training() -> None:
    made = MultiSource({"picture": Pictures(mirror=True), "text": characters()})
    raw = {"picture": bytes(range(25)), "text": "ab"}
    drawn = {made.augment(made.encode([raw], training=True)[0])[0].tobytes() for _ in range(30)}
    assert len(drawn) == 8  # four crops, mirrored or not
    assert len({made.encode([raw])[0][0].tobytes() for _ in range(5)}) == 1


def test_it_comes_back_from_a_folder(tmp_path) -> None:
    processor = Processor(feature(), characters())
    processor.save(tmp_path)
    loaded = Processor.load(tmp_path)
    assert loaded.identity() == processor.identity()
    assert loaded.to_dict() == processor.to_dict()
    first, again = (p.source(RAW) for p in (processor, loaded))
    assert isinstance(first, Sources)
    assert isinstance(again, Sources)
    for name in first.parts:
        assert torch.equal(first.parts[name].values, again.parts[name].values)


def test_a_feature_of_the_user_is_loaded_if_trusted(tmp_path) -> None:
    Processor(MultiSource({"picture": Pictures(), "text": characters()}), characters()).save(tmp_path)
    with pytest.raises(UserError, match=r"names tests\.pictures\.Pictures, which is outside the trusted packages"):
        Processor.load(tmp_path)
    loaded = Processor.load(tmp_path, trust=("tests",))
    assert isinstance(loaded.source_feature, MultiSource)
    assert isinstance(loaded.source_feature.features["picture"], Pictures)


def test_random_settings_are_no_part_of_its_identity() -> None:
    one, other = (MultiSource({"image": Image(16, flip=flip), "text": characters()}) for flip in (True, False))
    assert one.identity() == other.identity() != MultiSource({"image": Image(32), "text": characters()}).identity()


def test_it_describes_its_sources_and_shows_images() -> None:
    made = feature()
    assert made.show(RAW[0]).startswith("text: abca; image: image of 20 x 20 pixels; frames: ")
    assert list(made.pictures(RAW[0])) == ["image"]
    assert made.pictures(RAW[0])["image"].shape == (16, 16, 3)
    texts = MultiSource({"text": characters(), "tags": characters()})
    source = texts.collate(texts.encode([{"text": "ab", "tags": "c"}]))
    assert texts.labels(source, 0) == ["a", "b", "<eos>", "c", "<eos>"]
    assert made.labels(made.collate(made.encode(RAW)), 0) == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a b", "expected a mapping with text, image, frames, or its JSON text, but 'a b' is not JSON: "),
        ("[1]", "expected a mapping with text, image, frames, but it is of type list"),
        ({"text": "a", "picture": b""}, "expected a mapping with text, image, frames, but it has 'picture'"),
        ({"text": "a", "image": b"x"}, "image: expected an image, but the bytes cannot be read as one"),
    ],
)
def test_what_cannot_be_read_is_explained(raw: object, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        feature().encode([raw])


def test_features_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="expected features for the sources, but there is none"):
        MultiSource({})
    with pytest.raises(UserError, match="expected a feature of one source for 'both', but got a MultiSource"):
        MultiSource({"both": feature()})
    with pytest.raises(UserError, match="expected a feature that hides nothing for 'record': leave delexicalize out"):
        MultiSource({"record": Records(delexicalize=["name"])})
    with pytest.raises(UserError, match="a MultiSource does not learn as a whole"):
        feature().train([])
    assert not MultiSource({"text": Tokenizer()}).is_trained
