"""Transducers for sherpa-onnx: its features, its layout, and the same texts as from our own stream."""

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kaldi_native_fbank as knf
import numpy as np
import onnx
import pytest
import torch

from lit_seq2seq.cli import main
from lit_seq2seq.export import export_sherpa
from lit_seq2seq.features import LogMel, Processor, SherpaLogMel, Tokenizer
from lit_seq2seq.inference.live import LiveStreams
from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import LearnedBridge, PyramidalEncoder, TransducerDecoder
from lit_seq2seq.runtime.network import Session
from lit_seq2seq.types import UserError
from tests.nn.cases import disturb
from tests.tiny import make_model

RATE, PIECE = 16_000, 1700
NOTES = {"a": 440, "b": 900, "c ": 1600, "d": 2700}
BANDS = 20


@pytest.mark.parametrize("bands", [20, 80, 128])
@pytest.mark.parametrize("length", [16_000, 16_079, 5_040, 420, 90])
def test_energies_equal_those_of_sherpa(bands: int, length: int) -> None:
    samples = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    options = knf.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither, options.frame_opts.snip_edges = RATE, 0, False
    options.frame_opts.remove_dc_offset, options.frame_opts.window_type = False, "hann"
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = bands, 0, 8000
    options.mel_opts.is_librosa = True
    kaldi = knf.OnlineFbank(options)
    kaldi.accept_waveform(RATE, samples.tolist())
    kaldi.input_finished()
    expected = np.stack([kaldi.get_frame(place) for place in range(kaldi.num_frames_ready)])
    feature = SherpaLogMel(bands, normalize="none")
    np.testing.assert_allclose(feature.encode([samples])[0], expected, atol=5e-4)
    assert feature.measure([samples]) == [len(expected)]
    for size in (1 if length < 500 else 37, 200, 20_000):
        stream = feature.in_pieces()
        pieces = [stream.feed(samples[start : start + size]) for start in range(0, length, size)]
        np.testing.assert_allclose(np.concatenate([*pieces, stream.finish()]), expected, atol=5e-4)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(UserError, match="n_mels must be"):
        SherpaLogMel(400)
    with pytest.raises(UserError, match="max_seconds"):
        SherpaLogMel(max_seconds=0)


def sound(text: str, draw: np.random.Generator) -> np.ndarray[Any, Any]:
    """Play the notes of a text one after the other."""
    parts = [np.zeros(draw.integers(400, 2000))]
    for note in (name for letter in text for name in NOTES if name[0] == letter):
        time = np.arange(draw.integers(1600, 3200)) / RATE
        parts += [draw.uniform(0.1, 0.4) * np.sin(2 * np.pi * NOTES[note] * time), np.zeros(draw.integers(800, 2000))]
    whole = np.concatenate(parts)
    return (whole + draw.normal(0, 0.002, len(whole))).astype(np.float32)


def some(count: int, seed: int) -> tuple[list[str], list[Any]]:
    draw = np.random.default_rng(seed)
    texts = ["".join(draw.choice(list(NOTES), draw.integers(2, 6))).strip() for _ in range(count)]
    return texts, [sound(text, draw) for text in texts]


@pytest.fixture(scope="module")
def processor() -> Processor:
    texts, sounds = some(40, 0)
    feature, target = SherpaLogMel(BANDS, stack=2), Tokenizer("char")
    feature.train(sounds)
    target.train(texts)
    return Processor(feature, target)


ONWARD = partial(PyramidalEncoder, hidden_size=24, factors=[1, 2], bidirectional=False)
AHEAD = partial(PyramidalEncoder, hidden_size=24, factors=[1, 2], backward_chunk=6, backward_lookahead=4)
CONVOLVED = partial(PyramidalEncoder, hidden_size=24, factors=[2], convolutions=1, filters=4, bidirectional=False)


def made(encoder: Any, processor: Processor) -> Seq2SeqModel:
    """A model that writes a lot, and other texts for other sounds."""
    decoder = partial(TransducerDecoder, embedding_dim=8, hidden_size=24, num_layers=2, bridge=LearnedBridge)
    model = make_model(encoder=encoder, decoder=decoder)
    model.attach(processor)
    disturb(model.net, scale=0.8)
    with torch.no_grad():
        bias = model.net.get_parameter("decoder.symbols.bias")
        bias[model.net.specials.eos] += 3
        bias[model.net.specials.unk] -= 30  # which sherpa-onnx leaves out of texts
        bias[model.processor.target.encode([" "])[0][0]] -= 3
    return model.model.eval()


def ours(model: Seq2SeqModel, sounds: list[Any]) -> list[str]:
    """What our own streams write."""
    streams = LiveStreams(Predictor(model))
    streams.road.search.most = 10  # type: ignore[attr-defined] # tokens at one frame
    opened = [streams.open() for _ in sounds]
    for start in range(0, max(map(len, sounds)), PIECE):
        for stream, samples in zip(opened, sounds, strict=True):
            stream.feed(samples[start : start + PIECE])
        streams.compute(opened)
    for stream in opened:
        stream.finish()
    streams.compute(opened)
    return [stream.text for stream in opened]


def by_contract(folder: Path, frames: Any) -> str:
    """Do with the graphs what the recogniser for transducers of NeMo does, greedily; `frames (T, F)`."""
    encoder, decoder, joiner = (Session(folder / f"{part}.onnx", 1) for part in ("encoder", "decoder", "joiner"))
    known = {one.key: one.value for one in onnx.load(folder / "encoder.onnx").metadata_props}
    lines = [line.rsplit(" ", 1) for line in (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()]
    names, blank = {int(place): name for name, place in lines}, int(known["vocab_size"])
    assert names[blank] == "<blk>"
    assert len(names) == blank + 1
    size, shift = int(known["window_size"]), int(known["chunk_shift"])
    shapes = [[int(known[f"cache_last_{kind}_dim{place}"]) for place in (1, 2, 3)] for kind in ("channel", "time")]
    caches = [*(np.zeros((1, *shape), np.float32) for shape in shapes), np.zeros(1, np.int64)]
    states = [np.zeros((int(known["pred_rnn_layers"]), 1, int(known["pred_hidden"])), np.float32)] * 2

    def read(token: int) -> tuple[Any, list[Any]]:
        given = [np.array([[token]], np.int32), np.array([1], np.int32), *states]
        query, _, *after = decoder(dict(zip(decoder.inputs, given, strict=True))).values()
        return query, after

    query, states = read(blank)
    tokens: list[int] = []
    for start in range(0, len(frames) - size, shift):
        given = [frames[start : start + size].T[None], np.array([size]), *caches]
        found, _, *caches = encoder(dict(zip(encoder.inputs, given, strict=True))).values()
        for place in range(found.shape[2]):
            for _ in range(10):
                given = [found[:, :, place : place + 1], query]
                token = int(joiner(dict(zip(joiner.inputs, given, strict=True)))["outputs"].argmax())
                if token == blank:
                    break
                tokens.append(token)
                query, states = read(token)
    return "".join(names[token] for token in tokens).replace("▁", " ").strip()


@pytest.mark.parametrize(
    "encoder", [ONWARD, *(pytest.param(one, marks=pytest.mark.slow) for one in (AHEAD, CONVOLVED))]
)
def test_the_texts_are_those_of_our_own_streams(encoder: Any, processor: Processor, tmp_path: Path) -> None:
    model = made(encoder, processor)
    model.save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "sherpa")]
    assert main(["export", *options, "--format", "sherpa-onnx"]) == 0
    sounds, expected = some(6, 2)[1], []
    energies = SherpaLogMel(BANDS, normalize="none").encode(sounds)
    for text, frames in zip(ours(model, sounds), energies, strict=True):
        expected.append(by_contract(tmp_path / "sherpa", frames))  # it does not read what is left at the end
        assert text.strip().startswith(expected[-1])
        assert len(expected[-1]) > len(text.strip()) / 2
    assert len(set(expected)) > 2
    if importlib.util.find_spec("sherpa_onnx") is None:
        pytest.skip("sherpa-onnx is not installed: its contract was tried without it")
    assert list(recognised(tmp_path / "sherpa", sounds)) == expected


def recognised(folder: Path, sounds: list[Any]) -> Iterator[str]:
    """Write several recordings side by side by sherpa-onnx itself."""
    import sherpa_onnx

    parts = {part: str(folder / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")}
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / "tokens.txt"), **parts, num_threads=1, feature_dim=BANDS
    )
    streams = [recognizer.create_stream() for _ in sounds]
    for start in range(0, max(map(len, sounds)), PIECE):
        for stream, samples in zip(streams, sounds, strict=True):
            if start < len(samples):
                stream.accept_waveform(RATE, samples[start : start + PIECE])
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
    for stream in streams:
        yield recognizer.get_result(stream)


def test_models_that_are_not_for_sherpa_are_refused_in_one_line(processor: Processor, tmp_path: Path) -> None:
    def built(encoder: Any = ONWARD, feature: Any = processor.source_feature, target: Any = processor.target) -> Any:
        decoder = partial(TransducerDecoder, embedding_dim=8, hidden_size=12)
        model = make_model(encoder=encoder, decoder=decoder)
        model.attach(Processor(feature, target))
        model.net.decoder.embedding.weight.data += 0.1  # no longer as it was drawn
        return model

    plain, words = LogMel(RATE, BANDS, normalize="none"), Tokenizer("word")
    words.train(["one, two (three)"])
    other = SherpaLogMel(BANDS, normalize="utterance")
    ended = partial(PyramidalEncoder, hidden_size=12)
    for model, expected in [
        (built(feature=plain), "train with data.source_feature SherpaLogMel"),
        (built(target=words), "train with target_tokenizer char"),
        (built(feature=other), "normalize=utterance .*: set it to global"),
        (built(encoder=ended), "needs the whole source"),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            export_sherpa(model, tmp_path / "sherpa")
        assert chr(10) not in str(error.value)
    assert not list(tmp_path.iterdir())
