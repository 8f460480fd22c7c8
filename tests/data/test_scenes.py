import io
import random

import datasets
import numpy as np
import PIL.Image
import pytest

from lit_seq2seq.builtin import BuiltinDataset, ShapeScenes
from lit_seq2seq.builtin.scenes import (
    COMBINATIONS,
    OPPOSITE,
    RADII,
    Scene,
    Thing,
    draw_scene,
    generate,
    held_out,
)
from lit_seq2seq.types import UserError

SPLITS = ("train", "validation", "test")
CIRCLE, SQUARE, STAR = Thing("small", "red", "circle"), Thing("", "blue", "square"), Thing("large", "orange", "star")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


def pixels(scene: Scene, seed: int = 0) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(scene.draw(random.Random(seed))))).astype(int)


def centre(image: np.ndarray, colour: str) -> tuple[float, float]:
    """Mean place, down and across, of the pixels that are clearly red or blue."""
    red, blue = image[..., 0], image[..., 2]
    down, across = np.nonzero((red - blue if colour == "red" else blue - red) > 80)
    return float(down.mean()), float(across.mean())


def test_captions_tell_a_scene_from_either_end() -> None:
    assert Scene((CIRCLE,), ()).captions == ["a small red circle"]
    assert Scene((CIRCLE, SQUARE), ("above",)).captions == [
        "a small red circle above a blue square",
        "a blue square below a small red circle",
    ]
    assert Scene((CIRCLE, SQUARE, STAR), ("above", "left of")).captions == [
        "a small red circle above a blue square left of a large orange star",
        "a large orange star right of a blue square below a small red circle",
    ]
    assert str(Thing("", "orange", "star")) == "an orange star"


@pytest.mark.parametrize("relation", OPPOSITE)
@pytest.mark.parametrize("seed", range(5))
def test_things_stand_as_the_caption_says(relation: str, seed: int) -> None:
    image = pixels(Scene((CIRCLE, SQUARE), (relation,)), seed)
    (down, across), (other_down, other_across) = centre(image, "red"), centre(image, "blue")
    expected = {
        "above": down < other_down,
        "below": down > other_down,
        "left of": across < other_across,
        "right of": across > other_across,
    }
    assert expected[relation]
    vertical = abs(down - other_down) > abs(across - other_across)
    assert vertical == (relation in ("above", "below"))


def test_sizes_differ_and_everything_is_inside_the_picture() -> None:
    for seed in range(10):
        areas = []
        for size in ("small", "", "large"):
            image = pixels(Scene((Thing(size, "red", "circle"),), ()), seed)
            red = (image[..., 0] - image[..., 1]) > 90
            areas.append(int(red.sum()))
            assert areas[-1] == pytest.approx(np.pi * RADII[size] ** 2, rel=0.25)
        assert areas[0] * 1.5 < areas[1] < areas[2] / 1.5
    three = Scene((Thing("large", "red", "star"),) * 3, ("above", "above"))
    for seed in range(10):
        image = pixels(three, seed)
        assert image.shape == (64, 64, 3)
        edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edges[:, 0] - edges[:, 1] < 90).mean() > 0.98


def test_held_out_combinations_are_seen_in_their_split_alone() -> None:
    validation, test = held_out("validation", 3), held_out("test", 3)
    assert len(validation) == len(test) == 80
    assert not validation & test
    assert validation != held_out("validation", 4)
    for split, own in (("train", set()), ("validation", validation), ("test", test)):
        others = (validation | test) - own
        for row in generate(split, 100, 3):
            shown = combinations(row["captions"])
            assert not shown & others
            assert not own or shown & own


def combinations(captions: list[str]) -> set[tuple[str, ...]]:
    """Read the combinations from the captions, by other means than the data makes them."""
    found = set()
    for caption in captions:
        text = caption.replace("left of", "left_of").replace("right of", "right_of")
        words = [word for word in text.split() if word not in ("a", "an", "small", "large")]
        for place in range(2, len(words), 3):
            if words[place] in ("above", "left_of"):
                found.add(tuple(word.replace("_", " ") for word in words[place - 2 : place + 3]))
    return found


def test_most_of_the_other_combinations_are_seen_in_a_small_training_split() -> None:
    seen = set()
    for row in generate("train", 3000, 0):
        seen |= combinations(row["captions"])
    known = set(COMBINATIONS) - held_out("validation", 0) - held_out("test", 0)
    assert seen <= known
    assert len(seen) > 0.8 * len(known)
    for place in (slice(0, 3), slice(2, 5)):  # of one thing with its relation, every combination
        assert {one[place] for one in seen} == {one[place] for one in COMBINATIONS}


def test_no_relation_is_followed_by_its_opposite() -> None:
    rng = random.Random(0)
    for _ in range(300):
        first, second = draw_scene(rng, 3).relations
        assert second != OPPOSITE[first]


def test_the_seed_decides_the_rows_and_larger_splits_begin_alike() -> None:
    first, again, longer, other = (list(generate("test", *pair)) for pair in ((5, 0), (5, 0), (9, 0), (5, 1)))
    assert first == again == longer[:5]
    assert first != other


def test_load_gives_the_asked_rows_and_columns() -> None:
    splits = ShapeScenes(train_size=12, validation_size=4, test_size=5).load()
    assert issubclass(ShapeScenes, BuiltinDataset)
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 12, "validation": 4, "test": 5}
    assert splits["test"][0]["image"].size == (64, 64)
    assert all(len(captions) == 2 for captions in splits["test"]["captions"])


def test_a_wrong_size_is_explained() -> None:
    with pytest.raises(UserError, match="expected test_size from 1 to 100000, but it is 0"):
        ShapeScenes(test_size=0)
