"""Whatever comes in, out comes a correct answer or an error that explains itself."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from lit_seq2seq.features import Image, LogMel, Tokenizer
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.types import UserError


@dataclass
class Outcome:
    """The error of a user, if there was one; any other fails the test."""

    error: str = ""


@contextmanager
def explained() -> Iterator[Outcome]:
    outcome = Outcome()
    try:
        yield outcome
    except UserError as error:
        outcome.error = str(error)


many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
ANY = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=40)  # lone surrogates and NUL too


def trained(model: str, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(model, **({"vocab_size": 80} if model in ("bpe", "unigram") else {}))
    tokenizer.train(texts)
    return tokenizer


TOKENIZERS = {model: trained(model, ["abc def ghi", "é中 x", "zz  top"]) for model in ("char", "word", "byte", "bpe")}


@pytest.mark.parametrize("model", TOKENIZERS)
@many
@given(text=ANY, learned=st.lists(ANY, max_size=4))
def test_any_text_is_encoded_and_learned(model, text, learned):
    tokenizer = TOKENIZERS[model]
    ids = tokenizer.encode([text])[0].tolist()
    assert ids[-1] == tokenizer.specials.eos
    assert all(0 <= index < tokenizer.size for index in ids)
    tokenizer.decode(ids)
    assert trained(model, learned).encode([text])[0][-1] == tokenizer.specials.eos


def test_half_characters_are_replaced():
    tokenizer = TOKENIZERS["byte"]
    assert tokenizer.decode(tokenizer.encode(["a\ud800b"])[0].tolist()) == "a\ufffdb"


def test_a_line_of_a_megabyte():
    tokenizer = TOKENIZERS["byte"]
    assert len(tokenizer.encode(["ab" * 500_000])[0]) == 1_000_001


@st.composite
def damaged(draw: st.DrawFn, wholes: list[bytes]) -> bytes:
    """One of some files with a few bytes changed, perhaps cut off."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(1, len(data)))])


def picture(form: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, (20, 30)).save(file, form, **options)
    return file.getvalue()


PICTURES = [picture("PNG"), picture("JPEG"), picture("BMP"), picture("TIFF"), picture("WEBP"), picture("JPEG", "CMYK")]
PICTURES.append(picture("GIF", "P", save_all=True, append_images=[Pillow.new("P", (20, 30), 1)]))


@settings(many, max_examples=200)
@given(damaged(PICTURES))
def test_damaged_images(data):
    with explained() as outcome:
        assert Image(16).encode([data])[0].shape == (16, 16, 3)
    assert "\n" not in outcome.error


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20_000)])
def test_images_of_odd_sizes(size):
    file = io.BytesIO()
    Pillow.new("1", size).save(file, "PNG")
    with pytest.raises(UserError, match=r"at least 2 x 2 pixels|too large"):
        Image(16).encode([file.getvalue()])


def sound(subtype: str = "PCM_16", channels: int = 1, form: str = "WAV", count: int = 400) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(0).normal(0, 0.1, (count, channels))
    soundfile.write(file, samples, 8000, subtype=subtype, format=form)
    return file.getvalue()


SOUNDS = [sound(), sound("PCM_U8"), sound(channels=7), sound("FLOAT"), sound(form="FLAC"), sound(count=0)]


@settings(many, max_examples=200)
@given(damaged(SOUNDS))
def test_damaged_recordings(data):
    feature = LogMel(8000, 20)
    with explained() as outcome:
        feature.measure([data])
        energies = feature.encode([data])[0]
        assert np.isfinite(energies).all()
        assert energies.shape[1] == 20
    assert "\n" not in outcome.error


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_samples_that_are_no_sound(value):
    with pytest.raises(UserError, match="expected samples from -1 to 1, but some of the array are not finite or far"):
        LogMel(8000, 20).encode([np.full(400, value, np.float32)])


CHECKPOINT = io.BytesIO()
torch.save({"state_dict": {"weight": torch.zeros(3)}, "epoch": 1}, CHECKPOINT)


@settings(many, max_examples=100)
@given(data=damaged([CHECKPOINT.getvalue()]))
def test_damaged_checkpoints(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(data)
    with explained() as outcome:
        assert set(load_checkpoint(path)) >= {"state_dict"}
    assert "\n" not in outcome.error


@settings(many, max_examples=100)
@given(data=damaged([TOKENIZERS["char"].to_json().encode(), json.dumps([1]).encode()]))
def test_damaged_tokenizer_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "tokenizer.json"
    path.write_bytes(data)
    with explained() as outcome:
        tokenizer = Tokenizer(file=str(path))
        assert tokenizer.encode(["abc"])[0][-1] == tokenizer.specials.eos
    assert not outcome.error or "tokenizer.json" in outcome.error
