"""What is written while the input comes in is what is written of the whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
import torch

from lit_seq2seq import pipeline
from lit_seq2seq.features import LogMel, Processor
from lit_seq2seq.inference.live import LiveStreams
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import (
    GeneralAttention,
    HardMonotonicDecoder,
    InputFeedingDecoder,
    LocationAwareAttention,
    MoChA,
    MonotonicAttention,
    ParallelDecoder,
    PyramidalEncoder,
    TextEncoder,
    TransducerDecoder,
    ZeroBridge,
)
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import GenerationConfig, Monotonic, WaitK
from lit_seq2seq.types import UserError
from tests.nn.cases import disturb
from tests.tiny import SIZES, make_data, make_model

TEXTS = ["eins zwei drei", "fünf", "vier drei eins zwei fünf fünf eins"]
ENCODER = partial(TextEncoder, **SIZES, bidirectional=False)
DECODERS = {
    "parallel": partial(ParallelDecoder, **SIZES, attention=GeneralAttention, bridge=ZeroBridge),
    "feeding": partial(InputFeedingDecoder, **SIZES, attention=LocationAwareAttention, bridge=ZeroBridge),
    "hard": partial(HardMonotonicDecoder, **SIZES, bridge=ZeroBridge),
    "monotonic": partial(ParallelDecoder, **SIZES, attention=MonotonicAttention, bridge=ZeroBridge),
    "transducer": partial(TransducerDecoder, **SIZES),
    "mocha": partial(ParallelDecoder, **SIZES, attention=partial(MoChA, chunk_size=2), bridge=ZeroBridge),
}


def predictor(decoder: str, encoder: Any = ENCODER, **options: Any) -> Predictor:
    model = make_model(encoder=encoder, decoder=DECODERS[decoder], **options)
    model.attach(make_data().processor)
    disturb(model.net, scale=2.0)
    if decoder == "monotonic":  # so that attention stops at some positions
        torch.nn.init.zeros_(model.net.get_parameter("decoder.attention.energy.offset"))
    return Predictor(model)


def cut(text: str, seed: int) -> Iterator[str]:
    """Cut a text anywhere, also into pieces of nothing."""
    places = sorted(random.Random(seed).choices(range(len(text) + 1), k=5))
    yield from (text[start:stop] for start, stop in zip([0, *places], [*places, len(text)], strict=True))


CASES = [
    ("parallel", WaitK(1), {}),
    ("parallel", WaitK(3, catchup=0.3), {"num_beams": 4}),
    ("parallel", WaitK(2), {"repetition_penalty": 3.0}),
    ("parallel", WaitK(2), {"do_sample": True, "seed": 3}),
    ("feeding", WaitK(2), {}),
    ("hard", WaitK(2), {"num_beams": 3}),
    ("monotonic", Monotonic(), {"min_new_tokens": 4}),
    ("monotonic", Monotonic(), {"num_beams": 3, "min_new_tokens": 4}),
    ("mocha", Monotonic(), {"min_new_tokens": 4}),
]


@pytest.mark.parametrize(("decoder", "policy", "options"), CASES)
def test_a_policy_writes_live_what_it_writes_of_the_whole(decoder: str, policy: Any, options: dict[str, Any]) -> None:
    made = predictor(decoder)
    config = GenerationConfig(max_new_tokens=8, policy=policy, **options)
    expected = [next(made.stream([text], config))[0].text for text in TEXTS]
    assert len(set(expected)) > 1
    streams = LiveStreams(made, config)
    for seed in range(3):
        side_by_side = [streams.open() for _ in TEXTS]
        for pieces in zip(*(cut(text, seed) for text in TEXTS), strict=True):
            for stream, piece in zip(side_by_side, pieces, strict=True):
                stream.feed(piece)
            streams.compute(side_by_side)
        for stream in side_by_side:
            stream.finish()
        streams.compute(side_by_side)
        assert [stream.text for stream in side_by_side] == expected
        assert all(stream.done for stream in side_by_side)


LISTENER = partial(PyramidalEncoder, hidden_size=12, factors=[1, 2], bidirectional=False)


def test_sound_is_read_in_pieces_of_any_size() -> None:
    feature = LogMel(sampling_rate=800, n_mels=4, window=0.02, hop=0.01, fmin=0, deltas=1, normalize="none", stack=2)
    model = make_model(encoder=LISTENER, decoder=DECODERS["parallel"])
    model.attach(Processor(feature, make_data().processor.target))
    disturb(model.net, scale=2.0)
    made, config = Predictor(model), GenerationConfig(max_new_tokens=9, min_new_tokens=5, policy=WaitK(2))
    generator = np.random.default_rng(1)
    sounds = [generator.normal(size=size).astype(np.float32) / 4 for size in (900, 50, 331)]
    expected = [next(made.stream([sound], config))[0].text for sound in sounds]
    assert len(set(expected)) > 1
    streams = LiveStreams(made, config)
    for size in (1, 37, 2000):
        opened = [streams.open() for _ in sounds]
        for start in range(0, 900, size):
            for stream, sound in zip(opened, sounds, strict=True):
                stream.feed(sound[start : start + size])
            streams.compute(opened)
        for stream in opened:
            stream.finish()
        streams.compute(opened)
        assert [stream.text for stream in opened] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("decoder", ["parallel", "transducer"])
def test_other_types_of_numbers_read_in_pieces_too(decoder: str, dtype: torch.dtype) -> None:
    if not computes_in(dtype, "cpu"):
        pytest.skip(f"this CPU has no kernels for {dtype}")
    made = Predictor(predictor(decoder).model, dtype=dtype)
    streams = LiveStreams(made, GenerationConfig(policy=WaitK(2)) if decoder == "parallel" else None)
    stream = streams.open()
    for piece in cut(TEXTS[2], 1):
        stream.feed(piece)
        streams.compute([stream])
    stream.finish()
    streams.compute([stream])
    assert stream.text


@pytest.mark.parametrize("beams", [1, 3])
def test_a_transducer_writes_at_frames(beams: int) -> None:
    made = predictor("transducer")
    config = GenerationConfig(num_beams=beams)
    streams = LiveStreams(made, config)
    whole = []
    for text in TEXTS:
        stream = streams.open()
        stream.feed(text)
        stream.finish()
        streams.compute([stream])
        whole.append(stream.text)
    assert len(set(whole)) > 1
    for seed in range(3):
        opened = [streams.open() for _ in TEXTS]
        for pieces in zip(*(cut(text, seed) for text in TEXTS), strict=True):
            for stream, piece in zip(opened, pieces, strict=True):
                stream.feed(piece)
            streams.compute(opened)
        for stream in opened:
            stream.finish()
        streams.compute(opened)
        assert [stream.text for stream in opened] == whole


@pytest.mark.parametrize(("agreement", "prefix"), [(2, ""), (3, "vier ")])
def test_agreement_keeps_what_outputs_in_a_row_begin_with(agreement: int, prefix: str) -> None:
    made = predictor("parallel", partial(TextEncoder, **SIZES))
    made.model.processor.source_prefix = prefix
    config = GenerationConfig(max_new_tokens=8, min_new_tokens=3, num_beams=2)
    words = TEXTS[2].split()
    streams = LiveStreams(made, config, agreement)
    stream, other = streams.open(), streams.open()
    outputs: list[list[int]] = []
    sure: list[int] = []
    for count in range(1, len(words) + 2):
        if count <= len(words):
            stream.feed(words[count - 1][:2])
            other.feed(" ")
            stream.feed(words[count - 1][2:] + " ")
        else:
            stream.finish()
        streams.compute([stream, other])
        given = torch.tensor([sure]) if sure else None
        outputs.append(made.fast.generate([" ".join(words[:count])], config, given)[0][0].tokens.tolist())
        if count > len(words):
            sure = outputs[-1]
        elif count >= agreement:
            columns = takewhile(lambda row: len(set(row)) == 1, zip(*outputs[-agreement:], strict=False))
            sure = [row[0] for row in columns]
        assert stream.ids == sure
    assert stream.done
    assert stream.text == made.model.processor.target.decode(sure)
    other.finish()
    streams.compute([other])
    assert other.done


def test_mistakes_are_explained() -> None:
    live = pipeline("translation", predictor("parallel").model).live(policy=WaitK(2))
    live.feed("eins ")
    with pytest.raises(UserError, match="expected a text"):
        live.feed(np.zeros(3))
    live.feed("zwei")
    assert live.finish() or live.text
    for again in (lambda: live.feed("drei"), live.finish):
        with pytest.raises(UserError, match="this input has ended"):
            again()
    with pytest.raises(UserError, match=r"generation.policy writes before the source has ended, but TextEncoder"):
        pipeline("translation", predictor("parallel", partial(TextEncoder, **SIZES)).model).live(policy=WaitK(2))
    with pytest.raises(UserError, match="agreement=1: must be at least 2"):
        pipeline("translation", predictor("parallel").model).live(agreement=1)
    with pytest.raises(UserError, match="a text has no sampling rate"):
        pipeline("translation", predictor("parallel").model).live(sampling_rate=8000)


def test_a_word_is_given_as_soon_as_it_is_written() -> None:
    made = predictor("parallel")
    config = GenerationConfig(max_new_tokens=8, min_new_tokens=8, policy=WaitK(1))
    text = "vier drei eins zwei fünf fünf eins"
    [[whole]] = made.stream([text], config)
    streams = LiveStreams(made, config)
    stream = streams.open()
    for letter in text:
        stream.feed(letter)
        streams.compute([stream])
    stream.finish()
    streams.compute([stream])
    found = stream.row()
    assert found["prediction"] == whole.text
    assert found["delays"] == [*whole.delays[:6], 8, 8]  # the last word is known to be whole when the text has ended
    assert whole.delays[:7] == (1, 2, 3, 4, 5, 6, 7)
