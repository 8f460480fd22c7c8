import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile

from lit_seq2seq.export.graphs import inputs_of
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
from lit_seq2seq.runtime.copying import CopyMap
from lit_seq2seq.runtime.inputs import load_reader
from lit_seq2seq.types import SpecialIds, UserError

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

CASES: dict[str, tuple[Feature | None, list[Any]]] = {
    "shared vocabulary": (None, TEXTS),
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
        part.train([TEXTS if isinstance(feature, MultiSource) else raw])
    return Processor(feature, target)


def specials(processor: Processor) -> dict[str, SpecialIds]:
    return {"target": processor.target.specials, **processor.source_feature.special_ids("source")}


@pytest.mark.parametrize("name", CASES)
def test_inputs_become_the_arrays_of_the_feature(name: str, tmp_path: Path) -> None:
    made, raw = processor(name), CASES[name][1]
    made.save(tmp_path)
    reader, target = load_reader(tmp_path, specials(made))
    found = reader.collate([reader.truncate(array, 7) for array in reader.encode(raw)])
    expected = inputs_of(made.source(raw, max_length=7))
    assert list(found) == list(expected)
    for role, values in expected.items():
        np.testing.assert_array_equal(found[role], values.numpy(), strict=True)
    for text in TEXTS:
        ids = made.target.encode_batch([text])[0]
        assert target.decode(ids) == made.target.decode(ids)
    feature = made.source_feature
    sizes = [feature.positions(array) for array in feature.encode(made.prefixed(raw))]
    assert [reader.positions(array) for array in reader.encode(raw)] == sizes
    for value in [*raw, None, *([{}, {"text": " "}, " "] if name == "several" else [])]:
        assert reader.is_missing(value) == made.source_feature.is_missing(value)


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


@pytest.mark.parametrize("name", ["words", "records", "log-mel", "frames", "padded images", "several"])
def test_odd_inputs_are_read_or_refused_as_by_the_feature(name: str, tmp_path: Path) -> None:
    made = processor(name)
    made.save(tmp_path)
    reader, feature = load_reader(tmp_path, specials(made))[0], made.source_feature

    def read(encode: Callable[[list[Any]], list[Any]], raw: Any) -> object:
        try:
            (array,) = encode([raw])
        except UserError as error:
            return str(error)
        return [part.tolist() for part in array] if name == "several" else array.tolist()

    for raw in ODD:
        assert reader.is_missing(raw) == feature.is_missing(raw), raw
        if not feature.is_missing(raw):
            assert read(reader.encode, raw) == read(feature.encode, raw), raw
    assert feature.is_missing({"bytes": None, "path": None}) == (name not in ("words", "several"))
    assert not feature.is_missing({"samples": [0.5]})


def test_placeholders_are_restored(tmp_path: Path) -> None:
    made = processor("hidden records")
    made.save(tmp_path)
    reader, _ = load_reader(tmp_path, specials(made))
    for record in RECORDS[:2]:
        assert reader.restore("__name__ is nice", record) == made.source_feature.restore("__name__ is nice", record)
    assert reader.restore("__name__ is nice", RECORDS[0]) == "Blue Spice is nice"


def test_symbols_to_copy_are_named_alike(tmp_path: Path) -> None:
    tokenizer = Tokenizer("word")
    tokenizer.train(["meet at noon"])
    made = Processor(tokenizer, tokenizer, copy=True)
    made.save(tmp_path)
    _, target = load_reader(tmp_path, specials(made))
    texts = ["meet Wiseau at Wiseau", "noon Anna", "half \ud83d"]
    arrays = tokenizer.encode(texts)
    ids, symbols = CopyMap(target, target).source(texts, arrays)
    expected, names = made.copy_map.source(texts, arrays)
    assert [array.tolist() for array in ids] == [array.tolist() for array in expected]
    assert symbols == names == [("Wiseau",), ("Anna",), ("half", "\ufffd")]
    assert target.decode([4, len(target)], ("Wiseau",)) == tokenizer.decode([4, len(target)], ("Wiseau",))


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    made = processor("images")
    made.save(tmp_path)
    reader, _ = load_reader(tmp_path, specials(made))
    assert reader.collate([reader.nothing()])["source"].shape == (1, 24, 24, 3)
    with pytest.raises(UserError, match="expected an image, but the bytes cannot be read as one"):
        reader.encode([b"no image"])
    (tmp_path / "processor.json").write_text(
        (tmp_path / "processor.json").read_text().replace(".Image", ".Sculpture"), encoding="utf-8"
    )
    with pytest.raises(UserError, match="this runtime cannot read the inputs of Sculpture"):
        load_reader(tmp_path, specials(made))


@pytest.mark.parametrize("raw", ["no JSON", "[1]", {"picture": b""}, 3])
def test_what_is_no_mapping_of_the_sources_is_explained(raw: Any, tmp_path: Path) -> None:
    made = processor("several")
    made.save(tmp_path)
    reader, _ = load_reader(tmp_path, specials(made))
    with pytest.raises(UserError, match="expected a mapping with text, image, tags, sound, gesture, "):
        reader.encode([raw])
