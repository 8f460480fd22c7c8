"""Translation that needs a picture, made on the machine: phrases without a noun, whose gender only a drawing shows."""

from __future__ import annotations

import random
from collections.abc import Iterator

import datasets
from datasets import Features, Value

from lit_seq2seq.builtin.scenes import RADII, RELATIONS, DrawnDataset, Scene, Thing, fits

MASCULINE, FEMININE = ("circle", "square", "triangle"), ("star",)  # le cercle, le carré, le triangle; l'étoile
COLOURS = {  # without orange, before which both articles are l'
    "red": ("rouge", "rouge"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "black": ("noir", "noire"),
}
ADJECTIVES = {"small": ("petit", "petite"), "large": ("grand", "grande"), **COLOURS}
PLACES = {"above": "au-dessus de", "below": "au-dessous de", "left of": "à gauche de", "right of": "à droite de"}


def english(scene: Scene) -> str:
    """Say how two things stand to each other without naming their shapes."""
    first, second = (" ".join(["the", *_words(thing), "one"]) for thing in scene.things)
    return f"{first} is {scene.relations[0]} {second}"


def french(scene: Scene) -> str:
    """Say the same in French, where article and adjectives agree with the noun that is left out.

    Example:
        >>> french(Scene((Thing("small", "green", "star"), Thing("", "red", "circle")), ("above",)))
        'la petite verte est au-dessus du rouge'
    """
    first, second = map(_agreeing, scene.things)
    return f"{first} est {PLACES[scene.relations[0]]} {second}".replace(" de le ", " du ")


def _words(thing: Thing) -> list[str]:
    return [word for word in (thing.size, thing.colour) if word]


def _agreeing(thing: Thing) -> str:
    gender = int(thing.shape in FEMININE)
    return " ".join([("le", "la")[gender], *(ADJECTIVES[word][gender] for word in _words(thing))])


def generate(split: str, size: int, seed: int, version: str = "") -> Iterator[dict[str, object]]:
    """Yield `size` rows of `split`, whose drawings it may show; see `fits`."""
    rng = random.Random(f"ellipsis/{split}/{seed}")
    made = 0
    while made < size:
        shapes = [rng.choice((rng.choice(MASCULINE), rng.choice(FEMININE))) for _ in range(2)]
        things = tuple(Thing(rng.choice(list(RADII)), rng.choice(list(COLOURS)), shape) for shape in shapes)
        scene = Scene(things, (rng.choice(list(RELATIONS)),))
        if fits(scene, split, seed):
            made += 1
            file = {"bytes": scene.draw(rng), "path": None}
            yield {"image": file, "english": english(scene), "french": french(scene)}


class SceneTranslation(DrawnDataset):
    """Drawings of two shapes with an English sentence that does not name them, and its French translation.

    "the green one is above the red one" is "la verte est au-dessus du rouge" if the green thing is a star, "le vert
    ..." if it is a circle, a square or a triangle: half of all things are of either gender, so that without the drawing
    a quarter of the sentences can be right. In every drawing of the validation and test splits the two are such as the
    training split never shows together in this relation, by colour and shape. The same arguments give the same rows;
    they are kept in the cache of `datasets`.

    Args:
        seed: draws which combinations are held out, and the scenes.
    """

    generate = staticmethod(generate)
    features = Features({"image": datasets.Image(), "english": Value("string"), "french": Value("string")})
