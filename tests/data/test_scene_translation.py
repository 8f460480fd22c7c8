import datasets
import pytest

from lit_seq2seq.builtin import SceneTranslation
from lit_seq2seq.builtin.ellipsis import FEMININE, MASCULINE, english, french, generate
from lit_seq2seq.builtin.scenes import CORNERS, Scene, Thing
from lit_seq2seq.types import UserError

STAR, CIRCLE = Thing("small", "green", "star"), Thing("", "black", "circle")


@pytest.mark.parametrize(
    ("scene", "source", "target"),
    [
        (
            Scene((STAR, CIRCLE), ("left of",)),
            "the small green one is left of the black one",
            "la petite verte est à gauche du noir",
        ),
        (
            Scene((CIRCLE, STAR), ("below",)),
            "the black one is below the small green one",
            "le noir est au-dessous de la petite verte",
        ),
    ],
)
def test_article_and_adjectives_agree_with_the_shape(scene: Scene, source: str, target: str) -> None:
    assert english(scene) == source
    assert french(scene) == target
    assert {*MASCULINE, *FEMININE} == set(CORNERS)


def test_the_drawing_decides_a_quarter_can_be_guessed() -> None:
    rows = list(generate("train", 2000, seed=0))
    starts = [str(row["french"]).split()[0] for row in rows]
    assert 0.45 < starts.count("la") / len(starts) < 0.55
    assert {str(row["english"]).split()[0] for row in rows} == {"the"}
    both = [("la" in text.split()[:1], " de la " in text) for text in (str(row["french"]) for row in rows)]
    assert all(0.2 < both.count(pair) / len(both) < 0.3 for pair in set(both))


def test_the_same_arguments_give_the_same_rows_and_splits_differ() -> None:
    assert list(generate("test", 5, seed=3)) == list(generate("test", 5, seed=3))
    assert list(generate("test", 5, seed=3)) != list(generate("test", 5, seed=4))
    assert list(generate("test", 5, seed=3)) != list(generate("validation", 5, seed=3))


def test_it_loads_as_splits(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    splits = SceneTranslation(train_size=6, validation_size=2, test_size=3).load()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "validation": 2, "test": 3}
    assert splits["train"][0]["image"].size == (64, 64)
    with pytest.raises(UserError, match="expected test_size from 1 to 100000, but it is 0"):
        SceneTranslation(test_size=0)
