import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile

from lit_seq2seq.features import Feature, Frames, Image, LogMel, Processor, Records, Tokenizer
from lit_seq2seq.runtime.copying import CopyMap
from lit_seq2seq.runtime.errors import UserError
from lit_seq2seq.runtime.inputs import load_reader
from lit_seq2seq.types import SpecialIds

RANDOM = np.random.default_rng(0)
TEXTS = ["Ein Mann, eine Frau!", "größer  als <eos>", "日本語", "a"]
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
    "frames": (Frames(3, deltas=1, stack=2, normalize="none"), FRAMES),
    "images": (Image(24), PICTURES),
    "padded images": (Image(24, fit="pad", smallest_crop=0.5, mean=(0.5,) * 3, std=(0.2, 0.3, 0.4)), PICTURES),
}


def processor(name: str) -> Processor:
    feature, raw = CASES[name]
    target = Tokenizer("bpe", vocab_size=60)
    target.train(TEXTS)
    if feature is None:
        return Processor(target, target, source_prefix="say: ")
    feature.train([raw])
    return Processor(feature, target)


def specials(processor: Processor) -> dict[str, SpecialIds]:
    feature = processor.source_feature
    feature = feature.tokenizer if isinstance(feature, Records) else feature
    own = feature.specials if isinstance(feature, Tokenizer) else SpecialIds()
    return {"source": own, "target": processor.target.specials}


@pytest.mark.parametrize("name", CASES)
def test_inputs_become_the_arrays_of_the_feature(name: str, tmp_path: Path) -> None:
    made, raw = processor(name), CASES[name][1]
    made.save(tmp_path)
    reader, target = load_reader(tmp_path, specials(made))
    values, lengths = reader.collate([reader.truncate(array, 7) for array in reader.encode(raw)])
    expected = made.source(raw, max_length=7)
    np.testing.assert_array_equal(values, expected.values.numpy())
    np.testing.assert_array_equal(lengths, expected.lengths.numpy())
    assert values.dtype == expected.values.numpy().dtype
    for text in TEXTS:
        ids = made.target.encode_batch([text])[0]
        assert target.decode(ids) == made.target.decode(ids)
    for value in [*raw, None]:
        assert reader.is_missing(value) == made.source_feature.is_missing(value)


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
    texts = ["meet Wiseau at Wiseau", "noon Anna"]
    arrays = tokenizer.encode(texts)
    ids, symbols = CopyMap(target, target).source(texts, arrays)
    expected, names = made.copy_map.source(texts, arrays)
    assert [array.tolist() for array in ids] == [array.tolist() for array in expected]
    assert symbols == names == [("Wiseau",), ("Anna",)]
    assert target.decode([4, len(target)], ("Wiseau",)) == tokenizer.decode([4, len(target)], ("Wiseau",))


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    made = processor("images")
    made.save(tmp_path)
    reader, _ = load_reader(tmp_path, specials(made))
    with pytest.raises(UserError, match="expected an image, but the bytes cannot be read as one"):
        reader.encode([b"no image"])
    (tmp_path / "processor.json").write_text(
        (tmp_path / "processor.json").read_text().replace(".Image", ".Sculpture"), encoding="utf-8"
    )
    with pytest.raises(UserError, match="this runtime cannot read the inputs of Sculpture"):
        load_reader(tmp_path, specials(made))
