"""Captioning data made on the machine: drawn scenes of shapes, with what stands where said in words."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import datasets
import PIL.Image
from datasets import Features, List, Value
from PIL import ImageDraw

from lit_seq2seq.builtin.base import GeneratedDataset

SIDE = 64  # pixels
_FINER = 4  # drawn so many times larger, then reduced
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 145, 30),
    "yellow": (240, 220, 50),
    "green": (45, 160, 70),
    "blue": (40, 90, 215),
    "purple": (140, 60, 175),
    "black": (25, 25, 25),
}
CORNERS = {"triangle": (3, 1.0), "square": (4, 1.0), "star": (10, 0.42), "circle": (48, 1.0)}
"""Of each shape the number of corners, and how near to the centre every other one lies."""
RADII = {"small": 4.5, "": 6.75, "large": 9.5}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
Combination = tuple[str, str, str, str, str]

COMBINATIONS: list[Combination] = list(itertools.product(COLOURS, CORNERS, ("above", "left of"), COLOURS, CORNERS))
"""Colour and shape of a thing, how it stands to another, and colour and shape of that: 1,568 combinations."""
_HELD_OUT = 80  # of each split


@dataclass(frozen=True)
class Thing:
    """A shape with its colour and size."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        words = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return f"{'an' if words.startswith('o') else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """One to three things in a chain: the first stands in the first relation to the second, and so on."""

    things: tuple[Thing, ...]
    relations: tuple[str, ...]

    @property
    def captions(self) -> list[str]:
        """What is to be seen, told from either end."""
        back = Scene(self.things[::-1], tuple(OPPOSITE[relation] for relation in reversed(self.relations)))
        return list(dict.fromkeys([self._told(), back._told()]))

    @property
    def combinations(self) -> set[Combination]:
        """What stands above or left of what, by colour and shape."""
        found = set()
        for (one, other), relation in zip(itertools.pairwise(self.things), self.relations, strict=True):
            if relation in ("above", "left of"):
                found.add((one.colour, one.shape, relation, other.colour, other.shape))
            else:
                found.add((other.colour, other.shape, OPPOSITE[relation], one.colour, one.shape))
        return found

    def _told(self) -> str:
        links = ("", *(f" {relation} " for relation in self.relations))
        return "".join(f"{link}{thing}" for link, thing in zip(links, self.things, strict=True))

    def draw(self, rng: random.Random) -> bytes:
        """Draw the scene as a PNG file; place, angle, background and shades are drawn by chance."""
        shade = rng.randint(170, 255)
        background = tuple(min(255, shade + rng.randint(-12, 12)) for _ in range(3))
        image = PIL.Image.new("RGB", (SIDE * _FINER, SIDE * _FINER), background)
        pen = ImageDraw.Draw(image)
        for thing, (x, y) in zip(self.things, self._places(rng), strict=True):
            colour = tuple(min(255, max(0, value + rng.randint(-18, 18))) for value in COLOURS[thing.colour])
            corners = _outline(thing.shape, RADII[thing.size], rng.uniform(-0.2, 0.2))
            pen.polygon([((x + dx) * _FINER, (y + dy) * _FINER) for dx, dy in corners], fill=colour)
        file = io.BytesIO()
        image.reduce(_FINER).save(file, "PNG")
        return file.getvalue()

    def _places(self, rng: random.Random) -> list[tuple[float, float]]:
        """Draw the centre of each thing, in pixels."""
        radii = [RADII[thing.size] for thing in self.things]
        places = [(0.0, 0.0)]
        for index, relation in enumerate(self.relations):
            across, down = RELATIONS[relation]
            distance = radii[index] + radii[index + 1] + rng.uniform(0.5, 3)
            aside = rng.uniform(-2, 2)
            x, y = places[-1]
            places.append((x - across * distance + down * aside, y - down * distance + across * aside))
        moves = []
        for axis in (0, 1):
            least = min(place[axis] - radius for place, radius in zip(places, radii, strict=True))
            most = max(place[axis] + radius for place, radius in zip(places, radii, strict=True))
            moves.append(rng.uniform(-least, max(-least, SIDE - most)))
        return [(x + moves[0], y + moves[1]) for x, y in places]


def _outline(shape: str, radius: float, angle: float) -> list[tuple[float, float]]:
    count, inner = CORNERS[shape]
    start = angle - math.pi / (4 if shape == "square" else 2)
    outline = []
    for corner in range(count):
        length = radius * (inner if corner % 2 else 1.0)
        turn = start + 2 * math.pi * corner / count
        outline.append((length * math.cos(turn), length * math.sin(turn)))
    return outline


@cache
def held_out(split: str, seed: int) -> frozenset[Combination]:
    """Return the combinations that only scenes of `split` show: 80 for validation, 80 for test, none for training."""
    chosen = random.Random(f"combinations/{seed}").sample(COMBINATIONS, 2 * _HELD_OUT)
    return frozenset({"train": [], "validation": chosen[:_HELD_OUT], "test": chosen[_HELD_OUT:]}[split])


def fits(scene: Scene, split: str, seed: int) -> bool:
    """Tell whether a scene may be one of `split`: it shows what is held out for that, and nothing of the others'."""
    own, shown = held_out(split, seed), scene.combinations
    others = (held_out("validation", seed) | held_out("test", seed)) - own
    return not shown & others and (split == "train" or bool(shown & own))


def draw_scene(rng: random.Random, count: int) -> Scene:
    """Draw things and relations by chance; no thing stands opposite to where the chain came from."""
    things = tuple(
        Thing(rng.choice(list(RADII)), rng.choice(list(COLOURS)), rng.choice(list(CORNERS))) for _ in range(count)
    )
    relations: list[str] = []
    for _ in range(count - 1):
        relations.append(rng.choice([r for r in RELATIONS if not relations or r != OPPOSITE[relations[-1]]]))
    return Scene(things, tuple(relations))


def generate(split: str, size: int, seed: int, version: str = "") -> Iterator[dict[str, object]]:
    """Yield `size` rows of `split`, no two of which show the same scene of several things; see `fits`."""
    rng = random.Random(f"{split}/{seed}")
    seen: set[Scene] = set()
    made = 0
    while made < size:
        scene = draw_scene(rng, rng.choice((1, 2, 2, 3) if split == "train" else (2, 2, 3)))
        if not fits(scene, split, seed) or (scene.relations and scene in seen):
            continue
        seen.add(scene)
        made += 1
        file = {"bytes": scene.draw(rng), "path": None}
        yield {"image": file, "captions": scene.captions, "shapes": len(scene.things)}


class DrawnDataset(GeneratedDataset):
    """Rows with a drawn scene; for the arguments see `ShapeScenes`."""

    edition = 2

    def __init__(
        self, train_size: int = 8_000, validation_size: int = 400, test_size: int = 1_000, seed: int = 0
    ) -> None:
        super().__init__(train_size, validation_size, test_size, seed, most=100_000)


class ShapeScenes(DrawnDataset):
    """Drawings of one to three shapes, with captions such as "a small red circle above a blue square".

    A caption names size (`small`, `large` or nothing), colour, shape and how neighbours stand to each other; a scene of
    several things has two, told from either end. In every scene of the validation and test splits two neighbours are
    such as the training split never shows together in this relation, by colour and shape. Images are 64 x 64 pixels.
    The same arguments give the same rows; they are kept in the cache of `datasets`.

    Args:
        seed: draws which combinations are held out, and the scenes.
    """

    generate = staticmethod(generate)
    features = Features({"image": datasets.Image(), "captions": List(Value("string")), "shapes": Value("int32")})
