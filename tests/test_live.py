"""What is written while the input comes in is what is written of the whole."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
import torch

from lit_seq2seq import pipeline
from lit_seq2seq.features import Frames, LogMel, Processor
from lit_seq2seq.inference.live import Live, LiveStreams
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.inference.roads import StreamOutput
from lit_seq2seq.metrics import BLEU
from lit_seq2seq.nn import (
    CopyOutput,
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
from lit_seq2seq.reranking import MinimumBayesRisk
from lit_seq2seq.search import GenerationConfig, Monotonic, WaitK
from lit_seq2seq.search.constraints import Constraint, ConstraintState
from lit_seq2seq.types import Padded, UserError
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
    ("parallel", WaitK(1), {"prefix": "two one"}),
    ("parallel", WaitK(2), {"bad_words": ["one", "two"], "no_repeat_ngram_size": 2}),
    ("feeding", WaitK(2), {}),
    ("feeding", WaitK(2), {"num_beams": 3, "coverage_penalty": 0.5}),
    ("parallel", WaitK(2), {"details": ("times", "attention")}),
    ("hard", WaitK(2), {"num_beams": 3}),
    ("monotonic", Monotonic(), {"min_new_tokens": 4}),
    ("monotonic", Monotonic(), {"num_beams": 3, "min_new_tokens": 4}),
    ("mocha", Monotonic(), {"min_new_tokens": 4}),
]


@pytest.mark.parametrize(("decoder", "policy", "options"), CASES)
def test_a_policy_writes_live_what_it_writes_of_the_whole(decoder: str, policy: Any, options: dict[str, Any]) -> None:
    made = predictor(decoder)
    config = GenerationConfig(max_new_tokens=8, policy=policy, **options)
    expected = [next(made.stream([text], replace(config, details=())))[0].text for text in TEXTS]
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
        if len(sure) == config.max_new_tokens:
            break
        left = replace(config, max_new_tokens=8 - len(sure), min_new_tokens=max(0, 3 - len(sure)))
        outputs.append(made.fast.generate([" ".join(words[:count])], left, given)[0][0].tokens.tolist())
        if count > len(words):
            sure = outputs[-1]
        elif count >= agreement:
            columns = takewhile(lambda row: len(set(row)) == 1, zip(*outputs[-agreement:], strict=False))
            sure = [row[0] for row in columns]
        assert stream.ids == sure
    assert stream.done
    assert stream.ids == sure
    assert stream.text == made.model.processor.target.decode(sure)
    other.finish()
    streams.compute([other])
    assert other.done


def test_agreement_keeps_to_the_lengths_of_the_whole_output() -> None:
    made = predictor("parallel", partial(TextEncoder, **SIZES))
    config = GenerationConfig(max_new_tokens=6, min_new_tokens=5, prefix="two")
    streams = LiveStreams(made, config)
    opened, alone = [streams.open() for _ in TEXTS], [streams.open() for _ in TEXTS]
    for pieces in zip(*(cut(text + " ", 4) for text in TEXTS), strict=True):
        for several in (opened, alone):
            for stream, piece in zip(several, pieces, strict=True):
                stream.feed(piece)
        streams.compute(opened)
        for stream in alone:
            streams.compute([stream])
    for stream in (*opened, *alone):
        stream.finish()
    streams.compute(opened)
    for stream in alone:
        streams.compute([stream])
    assert [stream.ids for stream in opened] == [stream.ids for stream in alone]
    assert all(6 <= len(stream.ids) <= 7 and stream.done for stream in opened)
    short = LiveStreams(made, replace(config, min_new_tokens=3, max_new_tokens=3)).open()
    for word in TEXTS[2].split():
        short.feed(word + " ")
        short._streams.compute([short])
    assert short.done
    assert len(short.ids) == 4


def test_what_looks_at_whole_sources_is_refused() -> None:
    copies = make_model(output=CopyOutput, decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention))
    copies.attach(make_data(copy=True).processor)
    with pytest.raises(UserError, match="this model copies from its whole source, and a stream has none"):
        LiveStreams(Predictor(copies))
    for decoder, options, told in (
        ("parallel", {"replace_unknown": True}, "replace_unknown looks at the whole source"),
        ("transducer", {"replace_unknown": True}, "replace_unknown looks at the whole source"),
        ("transducer", {"policy": WaitK(2)}, "policy: a search frame by frame does not have it"),
        ("parallel", {"policy": WaitK(2), "num_beams": 2, "force_words": ["two"]}, "force_words needs a beam from the"),
    ):
        with pytest.raises(UserError, match=told):
            LiveStreams(predictor(decoder), GenerationConfig(**options))


def test_several_models_have_no_policy_but_agree() -> None:
    both = pipeline("translation", [predictor("parallel").model, predictor("parallel").model])
    with pytest.raises(UserError, match="a policy leads one model, but these are several: give one, or set policy to"):
        both.live(policy=WaitK(2))
    live = both.live()
    live.feed("eins zwei drei")
    assert live.finish() == both("eins zwei drei")[0]["translation_text"]


def test_streams_part_and_join_in_any_order() -> None:
    for decoder, policy in (("transducer", None), ("feeding", WaitK(2))):
        made = predictor(decoder)
        streams = LiveStreams(made, GenerationConfig(num_beams=2, max_new_tokens=12, policy=policy))
        generator = random.Random(3)
        texts = [*TEXTS, "zwei zwei", "eins vier drei"]
        whole = []
        for text in texts:
            live = Live(streams)
            live.feed(text)
            live.finish()
            whole.append(live.text)
        opened = [streams.open() for _ in texts]
        left = [list(text) for text in texts]
        while any(left) or not all(one.done for one in opened):
            some = generator.sample(range(len(texts)), generator.randint(1, len(texts)))
            for place in some:
                if left[place]:
                    opened[place].feed(left[place].pop(0))
                elif not opened[place].ended:
                    opened[place].finish()
            streams.compute([opened[place] for place in some])
        assert [one.text for one in opened] == whole


@dataclass(frozen=True)
class Breaks(Constraint):
    """Fails at the third token."""

    def start(self, task: Any) -> ConstraintState:
        return Broken()


@dataclass(frozen=True)
class Broken(ConstraintState):
    time: int = 0

    def allow(self, log_probs: Any) -> Any:
        if self.time == 3:
            raise RuntimeError("it breaks")
        return log_probs

    def update(self, tokens: Any) -> Any:
        return Broken(self.time + 1)

    def select(self, index: Any) -> Any:
        return self


class Fragile(PyramidalEncoder):
    """Computes NaN of numbers above 1e6, and fails above 1e9."""

    def extend(self, state: Any, piece: Padded, last: Any) -> tuple[Padded, Any]:
        if (piece.values > 1e9).any():
            raise RuntimeError("it breaks")
        made, after = super().extend(state, piece, last)
        wrong = (piece.values > 1e6).flatten(1).any(dim=1)
        return Padded(made.values.masked_fill(wrong[:, None, None], math.nan), made.lengths), after


def listener(encoder: Any = LISTENER) -> Predictor:
    feature = Frames(4, normalize="none")
    model = make_model(encoder=encoder, decoder=DECODERS["transducer"])
    model.attach(Processor(feature, make_data().processor.target))
    disturb(model.net, scale=2.0)
    return Predictor(model)


@pytest.mark.parametrize(
    ("number", "kind", "message"), [(1e7, UserError, "computes NaN"), (1e10, RuntimeError, "breaks")]
)
def test_a_stream_that_fails_ends_alone(number: float, kind: type[Exception], message: str) -> None:
    made = listener(partial(Fragile, hidden_size=12, factors=[1, 2], bidirectional=False))
    streams = LiveStreams(made)
    sound = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    alone = Live(streams)
    alone.feed(sound)
    alone.finish()
    good, bad, other = (streams.open() for _ in range(3))
    for wrong, told in (
        (np.full((2, 4), np.nan), "expected finite real numbers"),
        (np.full((2, 4), np.inf), "expected finite real numbers"),
        (np.zeros((2, 5)), r"expected frames \(T, 4\) with T >= 0, but got the shape \(2, 5\)"),
        ("eins", "cannot be read as numbers"),
    ):
        with pytest.raises(UserError, match=told):
            bad.feed(wrong)
    for start in range(0, 9, 3):
        good.feed(sound[start : start + 3])
        other.feed(sound[start : start + 3])
        if start == 3:
            bad.feed(np.full((3, 4), number, np.float32))
        streams.compute([good, bad, other])
    assert bad.done
    with pytest.raises(kind, match=message):
        bad.feed(sound)
    for one in (good, other):
        one.finish()
    streams.compute([good, other, bad])
    assert [good.text, other.text] == [alone.text] * 2


@pytest.mark.parametrize("beams", [1, 2])
def test_a_search_that_fails_ends_one_stream(beams: int) -> None:
    made = predictor("parallel")
    config = GenerationConfig(
        max_new_tokens=8, min_new_tokens=5, policy=WaitK(1), num_beams=beams, constraints=[Breaks()]
    )
    free = LiveStreams(made, replace(config, constraints=()))
    whole = Live(free)
    whole.feed(TEXTS[0])
    whole.finish()
    streams = LiveStreams(made, config)
    first, second = streams.open(), streams.open()
    first.feed("eins zwei drei ")  # three tokens
    second.feed("eins ")
    streams.compute([first, second])
    first.feed("vier fünf ")
    second.feed("zwei ")
    streams.compute([first, second])
    assert first.done
    assert isinstance(first.error, RuntimeError)
    assert second.error is None
    assert second.ids == whole._stream.ids[: len(second.ids)]
    live = Live(streams)
    with pytest.raises(RuntimeError, match="it breaks"):
        live.feed(TEXTS[2] + " ")


def test_threads_may_share_a_stream() -> None:
    made = listener()
    sound = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    live, whole = Live(LiveStreams(made)), Live(LiveStreams(made))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: live.feed(sound), range(60)))
    whole.feed(np.concatenate([sound] * 60))
    assert live.finish() or live.text
    whole.finish()
    assert live.text == whole.text
    with pytest.raises(UserError, match="this input has ended"):
        live.feed(sound)


def test_nothing_grows_in_silence() -> None:
    streams = LiveStreams(listener(), GenerationConfig(num_beams=3))
    stream, generator, sizes = streams.open(), np.random.default_rng(0), []
    for piece in range(60):
        frames = generator.normal(size=(2, 4)) if piece < 20 else np.zeros((2, 4))
        stream.feed(frames.astype(np.float32))
        streams.compute([stream])
        held: list[int] = []
        for row in stream._state[:2]:
            row.batch.map(lambda array, held=held: held.append(math.prod(array.shape)) or array)
        sizes.append(sum(held) + len(stream._latest) + len(stream._waiting))
    assert max(sizes[30:]) <= 1.5 * max(sizes[5:20])
    assert stream.ids


def test_text_is_written_in_constant_time_whatever_came_before() -> None:
    made = predictor("transducer")
    target = made.model.processor.target
    streams = LiveStreams(made)
    stream = streams.open()
    generator, ids = random.Random(1), []
    for _ in range(300):
        ids.append(generator.randrange(4, len(target)))
        stream._take(StreamOutput(stream._state, ids[-1:]), 0.0)
        assert len(stream._latest) <= 33
    stream.ended = True
    stream._take(StreamOutput(stream._state), 0.0)
    assert stream.text == target.decode(ids)
    assert stream.row()["prediction"] == stream.text


@pytest.mark.parametrize("decoder", ["parallel", "monotonic"])
def test_inputs_that_are_held_are_bounded(decoder: str) -> None:
    made = predictor(decoder)
    policy = Monotonic() if decoder == "monotonic" else None
    streams = LiveStreams(made, GenerationConfig(policy=policy), longest=40)
    stream = streams.open()
    stream.feed("eins " * 8)
    with pytest.raises(
        UserError, match="has become longer than 40 characters or frames, and this model holds all of it"
    ):
        stream.feed("zwei")
    stream.finish()
    streams.compute([stream])
    assert stream.done
    transducer = LiveStreams(predictor("transducer"), longest=40).open()
    transducer.feed("eins " * 30)
    with pytest.raises(UserError, match="expected the end of a word within 10,000 characters"):
        [transducer.feed(" " * 1000) for _ in range(11)]


def test_what_comes_after_the_output_is_not_held() -> None:
    made = predictor("parallel")
    streams = LiveStreams(made, GenerationConfig(max_new_tokens=2, min_new_tokens=2, policy=WaitK(1)))
    stream = streams.open()
    for _ in range(5):
        stream.feed("eins zwei ")
        streams.compute([stream])
    assert stream.done
    assert not stream._waiting
    stream.finish()
    assert len(stream.ids) == 2


@pytest.mark.parametrize(("decoder", "policy"), [("transducer", None), ("parallel", WaitK(2)), ("parallel", None)])
def test_rerankers_are_refused(decoder: str, policy: Any) -> None:
    made = predictor(decoder)
    if policy is None:
        with pytest.raises(UserError, match="MinimumBayesRisk chooses among whole outputs, but a stream writes while"):
            LiveStreams(made, GenerationConfig(num_beams=4, reranker=MinimumBayesRisk(BLEU)))
    else:
        with pytest.raises(
            UserError, match=r"policy=.*: must be None with MinimumBayesRisk, which chooses among whole"
        ):
            GenerationConfig(policy=policy, reranker=MinimumBayesRisk(BLEU))
    made.fast.reranker = MinimumBayesRisk(BLEU)
    with pytest.raises(UserError, match="MinimumBayesRisk chooses among whole outputs"):
        LiveStreams(made, GenerationConfig(num_beams=4, policy=policy))


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
