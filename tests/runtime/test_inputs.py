"""Features in a process without torch, as in an exported model: they give what they give here."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile

from lit_seq2seq.features import (
    Feature,
    Frames,
    Image,
    LogMel,
    MultiSource,
    Processor,
    Records,
    Tokenizer,
    Waveform,
)
from lit_seq2seq.types import UserError

RANDOM = np.random.default_rng(0)
TEXTS = ["Ein Mann, eine Frau!", "größer  als <eos>", "日本語", "a", "half \ud83d of"]
RECORDS = [{"name": "Blue Spice", "food": "Thai"}, "name[The Eagle], near[Blue Spice]", {"food": ["Thai", "Lao"]}]


def sound(rate: int, channels: int = 1, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, RANDOM.uniform(-0.9, 0.9, (rate // 3, channels)), rate, format=form)
    return file.getvalue()


def picture(mode: str, size: tuple[int, int], form: str) -> bytes:
    file = io.BytesIO()
    pixels = RANDOM.integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    PIL.Image.fromarray(pixels.squeeze(), mode).save(file, form)
    return file.getvalue()


SOUNDS: list[Any] = [sound(8000), sound(11025, 2), sound(8000, 1, "FLAC"), RANDOM.uniform(-1, 1, 900)]
PICTURES: list[Any] = [
    picture("RGB", (40, 30), "PNG"),
    picture("L", (20, 90), "PNG"),
    picture("RGB", (300, 200), "JPEG"),
]
FRAMES: list[Any] = [RANDOM.normal(size=(length, 3)).tolist() for length in (1, 8, 5)]

COPIED = ["meet Wiseau at Wiseau", "noon Anna", "half \ud83d"]

CASES: dict[str, tuple[Feature | None, list[Any]]] = {
    "shared vocabulary": (None, TEXTS),
    "copied": (Tokenizer("word"), COPIED),
    "characters": (Tokenizer("char"), TEXTS),
    "bytes": (Tokenizer("byte"), TEXTS),
    "words": (Tokenizer("word", lowercase=True), TEXTS),
    "records": (Records(), RECORDS),
    "sorted records": (Records(values="symbols", sort=True), RECORDS),
    "hidden records": (Records(delexicalize=["name", "near"]), RECORDS[:2]),
    "log-mel": (LogMel(8000, n_mels=6), SOUNDS),
    "log-mel, global": (LogMel(8000, n_mels=6, deltas=2, normalize="global", stack=3), SOUNDS),
    "samples": (Waveform(8000), SOUNDS),
    "frames": (Frames(3, deltas=1, stack=2, normalize="none"), FRAMES),
    "images": (Image(24), PICTURES),
    "several": (
        MultiSource(
            {
                "text": Tokenizer("word"),
                "image": Image(16),
                "tags": Tokenizer("char"),
                "sound": Waveform(8000),
                "gesture": Frames(3, deltas=1, stack=2, normalize="none"),
            }
        ),
        [
            {"text": TEXTS[0], "image": PICTURES[0], "tags": "ab", "sound": SOUNDS[0], "gesture": FRAMES[1]},
            {"text": TEXTS[1], "tags": ""},
            {"image": PICTURES[1], "sound": SOUNDS[3][:5]},
            json.dumps({"text": TEXTS[3], "image": None, "gesture": FRAMES[0]}),
        ],
    ),
    "padded images": (Image(24, fit="pad", smallest_crop=0.5, mean=(0.5,) * 3, std=(0.2, 0.3, 0.4)), PICTURES),
}


def processor(name: str) -> Processor:
    feature, raw = CASES[name]
    target = Tokenizer("bpe", vocab_size=60)
    target.train(TEXTS)
    if feature is None:
        return Processor(target, target, source_prefix="say: ")
    for part in feature.features.values() if isinstance(feature, MultiSource) else [feature]:
        part.train([TEXTS if isinstance(feature, MultiSource) else ["meet at noon"] if name == "copied" else raw])
    return Processor(feature, target, copy=name == "copied")


ODD: list[Any] = [
    *("", " ", b"", [], {}, 3, 0.5, "none.wav", b"neither", "[1]", "no JSON", "null", {"bytes": None, "path": None}),
    *({"bytes": b"", "path": ""}, {"array": None, "sampling_rate": 8000}, {"samples": [0.5]}, {"sampling_rate": 8000}),
    *({"text": 3}, '{"text": NaN}', {"text": "a", "image": b""}, {"text": "a", "image": {"path": None}}),
    *({"text": "a", "sound": {"array": None, "sampling_rate": 8000}}, {"text": "a", "sound": "none.wav"}),
    *(
        {"text": "a", "gesture": []},
        {"text": "a", "picture": 1},
        np.zeros(0),
        np.zeros((0, 3)),
        picture("L", (2, 900), "PNG"),
    ),
]


def read(made: Processor, raw: list[Any]) -> dict[str, Any]:
    """What a processor makes of inputs; what cannot be read becomes its error."""
    feature, found = made.source_feature, {}
    arrays = [feature.truncate(array, 7) for array in made.encode(raw, [str(place) for place in range(len(raw))])]
    found["batch"] = {name: np.asarray(values) for name, values in made.collate(arrays, raw).named().items()}
    found["sizes"] = [feature.positions(array) for array in feature.encode(made.prefixed(raw))]
    found["restored"] = [feature.restore("__name__ is nice", value) for value in raw]
    found["texts"] = [made.target.decode(ids) for ids in made.target.encode_batch(TEXTS)]
    found["missing"] = [feature.is_missing(value) for value in [*raw, *ODD]]
    found["odd"] = [read_one(made, value) for value in ODD if not feature.is_missing(value)]
    return found


def read_one(made: Processor, value: Any) -> object:
    try:
        (array,) = made.encode([value], ["it"])
    except UserError as error:
        return str(error)
    return [part.tolist() for part in array] if array.dtype == object else array.tolist()


PROGRAM = """
import pathlib, pickle, sys
import lit_seq2seq.features
for path in pathlib.Path(lit_seq2seq.features.__file__).parent.glob("*.py"):
    if path.stem != "pixels":  # which images are decoded by
        __import__(f"lit_seq2seq.features.{path.stem}")
heavy = {"torch", "datasets", "lightning", "PIL", "soundfile", "transformers", "jsonargparse"} & sys.modules.keys()
assert not heavy, heavy
sys.modules["torch"] = None
from tests.runtime.test_inputs import CASES, Processor, read
folder = pathlib.Path(sys.argv[1])
found = {name: read(Processor.load(folder / name), raw) for name, (_, raw) in CASES.items()}
(folder / "found").write_bytes(pickle.dumps(found))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Processor]:
    """A processor for each case, read from the folder of its name in `folder`."""
    folder = tmp_path_factory.getbasetemp() / "processors"
    for name in CASES:
        processor(name).save(folder / name)
    return {name: Processor.load(folder / name) for name in CASES}


@pytest.fixture(scope="module")
def elsewhere(saved: dict[str, Processor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process without torch reads of all cases."""
    folder = tmp_path_factory.getbasetemp() / "processors"
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], check=True)
    found: dict[str, dict[str, Any]] = pickle.loads((folder / "found").read_bytes())
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_process_without_torch_reads_the_same(
    name: str, saved: dict[str, Processor], elsewhere: dict[str, dict[str, Any]]
) -> None:
    raw = CASES[name][1]
    np.testing.assert_equal(elsewhere[name], read(saved[name], raw))
    tensors = saved[name].source(raw, max_length=7).named()
    assert list(tensors) == list(elsewhere[name]["batch"])
    for role, values in elsewhere[name]["batch"].items():
        np.testing.assert_array_equal(values, tensors[role].numpy(), strict=True)


def test_what_is_nothing_depends_on_what_is_read(saved: dict[str, Processor]) -> None:
    for name in ("words", "records", "log-mel", "frames", "padded images", "several"):
        feature = saved[name].source_feature
        assert feature.is_missing({"bytes": None, "path": None}) == (name not in ("words", "several"))
        assert not feature.is_missing({"samples": [0.5]})


def test_placeholders_are_restored(elsewhere: dict[str, dict[str, Any]]) -> None:
    assert elsewhere["hidden records"]["restored"] == ["Blue Spice is nice", "The Eagle is nice"]


def test_symbols_to_copy_are_named(elsewhere: dict[str, dict[str, Any]], saved: dict[str, Processor]) -> None:
    first, *_ = saved["copied"].collate(saved["copied"].encode(COPIED, ["", "", ""]), COPIED).symbols
    assert first == ("meet", "Wiseau", "at")
    size = saved["copied"].target.size
    assert elsewhere["copied"]["batch"]["copy_ids"].max() == size + 2
    assert saved["copied"].target.decode([4, size], ("Wiseau",)) == "!Wiseau"


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    made = processor("images")
    made.save(tmp_path)
    assert made.collate([made.source_feature.nothing()], [None]).values.shape == (1, 24, 24, 3)
    with pytest.raises(UserError, match="input 0: expected an image, but the bytes cannot be read as one"):
        made.source([b"no image"])
    described = (tmp_path / "processor.json").read_text(encoding="utf-8")
    (tmp_path / "processor.json").write_text(described.replace(".Image", ".Sculpture"), encoding="utf-8")
    with pytest.raises(UserError, match=r"there is no class lit_seq2seq.features.Sculpture"):
        Processor.load(tmp_path)


@pytest.mark.parametrize("raw", ["no JSON", "[1]", {"picture": b""}, 3])
def test_what_is_no_mapping_of_the_sources_is_explained(raw: Any) -> None:
    with pytest.raises(UserError, match="expected a mapping with text, image, tags, sound, gesture, "):
        processor("several").source([raw])
