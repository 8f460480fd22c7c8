"""Features in pieces: whatever the pieces are, they give what the whole gives."""

import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lit_seq2seq.features
from lit_seq2seq.features import (
    Feature,
    Frames,
    Image,
    LogMel,
    MultiSource,
    Prompt,
    Records,
    SherpaLogMel,
    Tokenizer,
    Waveform,
)
from lit_seq2seq.features.frames import Running
from lit_seq2seq.features.streams import begins_character
from lit_seq2seq.types import UserError
from tests.features.test_other_tokenizers import KINDS
from tests.tiny import pairs

RATE = 8000
RNG = np.random.default_rng(0)
WORDS = [
    "a",
    "dog",
    "Dog,",
    "don't",
    "İŁ",
    "ὈΔΟΣ.",
    "한글",
    "ﬁn",
    "2024",
    "¼",
    "ｶﾞ",
    "क़ि",
    "(x)",
    "東京",
    "👩‍🚀",
    "￭",
    "▁",
]
PARTS = [*WORDS, *"aZé.,'!⟨⟩<>￭▁´ﬁ \u00a0\n\t\u2003\u200b\u0300\u0323\u1100\u1161\u11a8\uff9e\ud83d\ude00\x00\x1c"]
PARTS += ["⟨past⟩", "⟨V⟩ ", "⟨P", "<eos>", "<unk>", " ", " ", "  ", "\r\n"]
TEXTS = [
    "",
    " ",
    "a",
    "a dog  barks, ",
    "  Two dogs.\nDon't ",
    "⟨V⟩ ⟨PST⟩ go",
    "⟨V⟩go ⟨PST",
    "⟨V⟩\nx⟨P\x1c⟩⟨past⟩´x",
    "e\u0301 x\u0323\u0307",
    *["".join(RNG.choice(PARTS, size)) for size in (2, 3, 5, 9, 20, 40, 80) for _ in range(25)],
    *[" ".join(RNG.choice(WORDS, size)) for size in (3, 9, 20) for _ in range(10)],
]
SOUND = (0.3 * RNG.normal(size=4321) * np.sin(np.arange(4321) / 400)).astype(np.float32)
SOUNDS = [SOUND, SOUND[:700], SOUND[:150], SOUND[:1], np.zeros(3000, np.float32), SOUND * (np.arange(4321) > 2000)]
MATRICES = [RNG.normal(3, 2, size=(length, 3)).astype(np.float32) for length in (1, 2, 3, 5, 31)]


def tokenizer(model: Any, **options: Any) -> Tokenizer:
    made = Tokenizer(model, vocab_size=150, **options)
    made.train([*pairs(40)["source"], *WORDS, "a b, c. ⟨past⟩ ⟨V⟩ x", *TEXTS[3:30]])
    return made


def trained(feature: Frames | LogMel | SherpaLogMel | Waveform, values: list[Any]) -> Feature:
    feature.train([values])
    return feature


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    f"{model} {' '.join(f'{name}={value}' for name, value in options.items())}": lambda model=model, options=options: (
        tokenizer(model, **options)
    )
    for model in ("word", "char", "byte", "bpe", "unigram")
    for options in (
        {},
        {"lowercase": True, "normalization": "nfkc"},
        {"normalization": "nfkd"},
        {"normalization": "none", "pretokenized": True},
        {"pretokenized": True, "normalization": "nfkc"},
    )
}
VECTORS: dict[str, tuple[Feature, list[Any]]] = {
    "log-mel": (LogMel(RATE, 6, normalize="none"), SOUNDS),
    "log-mel, all at once": (
        trained(LogMel(RATE, 6, deltas=2, normalize="running", stack=3), [SOUND, SOUND[:999]]),
        SOUNDS,
    ),
    "log-mel, gaps": (trained(LogMel(RATE, 4, 0.01, 0.035, normalize="global", stack=2), [SOUND]), SOUNDS),
    "sherpa's log-mel": (trained(SherpaLogMel(20, stack=3), [SOUND]), SOUNDS),
    "waveform": (Waveform(RATE, normalize="none"), SOUNDS),
    "waveform, running": (trained(Waveform(RATE, normalize="running"), [SOUND]), SOUNDS),
    "frames": (Frames(3, normalize="none"), MATRICES),
    "frames, deltas": (trained(Frames(3, deltas=1, normalize="global"), MATRICES), MATRICES),
    "frames, all at once": (trained(Frames(3, deltas=2, normalize="running", stack=4), MATRICES), MATRICES),
}


def cuts(value: Any, seed: int) -> Iterator[list[Any]]:
    """Cut a text or an array: whole, one by one, and at random with pieces of nothing."""
    rng = np.random.default_rng(seed)
    yield [value]
    yield [value[place : place + 1] for place in range(min(len(value), 400))] + [value[400:]]
    for count in (1, 3, 9):
        places = [0, *sorted(rng.integers(0, len(value) + 1, count)), len(value)]
        yield [value[start:stop] for start, stop in pairwise(places)]


def read(feature: Feature, pieces: list[Any], **options: Any) -> np.ndarray:
    stream = feature.in_pieces(**options)
    return np.concatenate([*map(stream.feed, pieces), stream.finish()])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_in_pieces_have_the_ids_of_the_whole(name: str) -> None:
    feature = TOKENIZERS[name]()
    for seed, text in enumerate(TEXTS):
        expected = feature.encode([text])[0]
        for pieces in cuts(text, seed):
            found = read(feature, pieces)
            assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist()), pieces


@pytest.mark.parametrize("kind", KINDS)
def test_vocabularies_of_others_read_in_pieces(kind: str, tmp_path: Path) -> None:
    make, roles, _ = KINDS[kind]
    make().save(str(tmp_path / "tokenizer.json"))
    feature = Tokenizer(file=str(tmp_path / "tokenizer.json"), **roles)
    for seed, text in enumerate(TEXTS):
        expected = feature.encode([text])[0].tolist()
        for pieces in cuts(text, seed):
            assert read(feature, pieces).tolist() == expected, pieces


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_in_pieces_are_those_of_the_whole(name: str) -> None:
    feature, values = VECTORS[name]
    for seed, value in enumerate(values):
        expected = feature.encode([value])[0]
        for pieces in cuts(value, seed):
            np.testing.assert_allclose(read(feature, pieces), expected, atol=1e-5)


@pytest.mark.parametrize("rate", [4000, 11025, 44100])
def test_sound_at_another_rate_is_converted_as_it_comes(rate: int) -> None:
    feature = LogMel(RATE, 6, normalize="none")
    for seed, value in enumerate(SOUNDS):
        expected = feature.encode([{"array": value, "sampling_rate": rate}])[0]
        for pieces in cuts(value, seed):
            np.testing.assert_allclose(read(feature, pieces, sampling_rate=rate), expected, atol=1e-5)
        named = [{"array": piece, "sampling_rate": rate} for piece in (value[:99], value[99:])]
        np.testing.assert_allclose(read(feature, named, sampling_rate=rate), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "float64"])
def test_samples_of_fixed_types_keep_their_scale_in_pieces(kind: str) -> None:
    full, zero = (1, 0) if kind == "float64" else (np.iinfo(kind).max, 0)
    values = (np.abs(SOUND).clip(0, 0.9) * full + zero).astype(kind)
    feature = Waveform(RATE, normalize="none")
    for pieces in cuts(values, 0):
        np.testing.assert_array_equal(read(feature, pieces), feature.encode([values])[0])


def test_what_is_open_is_held_and_nothing_more() -> None:
    words, characters = tokenizer("bpe"), tokenizer("char")
    stream = words.in_pieces()
    found = [words.decode(stream.feed(piece).tolist()) for piece in ("a", " do", "g", " ", "b")]
    assert found == ["", "a", "", "dog", ""]
    stream = characters.in_pieces()
    found = [characters.decode(stream.feed(piece).tolist()) for piece in ("e", chr(0x301), "d", "⟨past", "⟩", "a", "x")]
    assert found == ["", "", "é", "d", "", "⟨past⟩", "a"]
    frames = LogMel(RATE, 6, normalize="none").in_pieces()
    assert [len(frames.feed(SOUND[:count])) for count in (199, 1, 79, 1, 160)] == [0, 1, 0, 1, 2]


def test_running_normalisation_is_the_formula() -> None:
    feature = trained(Frames(3, normalize="running"), MATRICES)
    mean, deviation = np.array(feature.statistics)
    frames = MATRICES[-1].astype(np.float64)
    for time, row in enumerate(feature.encode([MATRICES[-1]])[0], start=1):
        moment = (100 * mean + frames[:time].sum(0)) / (100 + time)
        square = (100 * (mean**2 + deviation**2) + (frames[:time] ** 2).sum(0)) / (100 + time)
        np.testing.assert_allclose(row, (frames[time - 1] - moment) / np.sqrt(square - moment**2), atol=1e-5)
    far = 1e6 + RNG.normal(size=(20_000, 1))
    np.testing.assert_allclose(Running(([1e6], [1.0]))(far, True)[-1], (far[-1] - far.mean()) / far.std(), atol=0.05)
    copy = Frames.from_dict(feature.to_dict())
    np.testing.assert_array_equal(copy.encode([frames])[0], feature.encode([frames])[0])


def test_only_marks_and_jamo_join_what_stands_before() -> None:
    parts = (unicodedata.decomposition(chr(code)).split() for code in range(0x110000))
    second = {chr(int(part[1], 16)) for part in parts if len(part) == 2 and not part[0].startswith("<")}
    syllables = {chr(code) for start, stop in ((0x1161, 0x1176), (0x11A8, 0x11C3)) for code in range(start, stop)}
    joining = {c for c in second | syllables if unicodedata.normalize("NFC", "a" + c) != "a" + c} | second | syllables
    assert not any(map(begins_character, joining))
    assert all(map(begins_character, "aÉ1 .\n가東\u1100"))


WHOLE = {
    "Image": lambda: Image(16),
    "Records": lambda: Records(),
    "Prompt": lambda: Prompt(),
    "MultiSource": lambda: MultiSource({"a": Frames(2)}),
    "Frames": lambda: Frames(2),
    "LogMel": lambda: LogMel(RATE, normalize="speaker"),
    "Waveform": lambda: Waveform(RATE),
    "SherpaLogMel": lambda: SherpaLogMel(normalize="utterance"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_reads_the_whole_says_what_to_set(name: str) -> None:
    with pytest.raises(UserError, match=r"as a whole.*set it to|reads the whole input: set it to") as caught:
        WHOLE[name]().in_pieces()
    assert "\n" not in str(caught.value)


def test_every_feature_of_the_package_is_in_these_tests() -> None:
    classes = [getattr(lit_seq2seq.features, name) for name in lit_seq2seq.features.__all__]
    names = {found.__name__ for found in classes if issubclass(found, Feature) and not found.__abstractmethods__}
    assert names == {*WHOLE, "Tokenizer", "PretrainedTokenizer"}


BAD = [
    ("a", np.zeros(3), "expected a text, but it is of type ndarray"),
    ("a", None, "expected a text, but it is of type NoneType"),
    ("a", b"a", "expected a text, but it is of type bytes"),
    (SOUND, "a", "expected a piece of sound as samples .* but it is 'a'"),
    (SOUND, None, "expected a piece of sound as samples"),
    (SOUND, b"abc", "but it is 3 bytes: decode it first"),
    (SOUND, ["a"], "type <U1"),
    (SOUND, np.zeros((2, 2)), r"expected samples \(N,\), but got an array of shape \(2, 2\)"),
    (SOUND, np.array([0.0, np.nan]), "not finite or far beyond"),
    (SOUND, np.array([0.0, -np.inf]), "not finite or far beyond"),
    (SOUND, [1, 2], "as int16 or as floats from -1 to 1, but it has the type int64"),
    (SOUND, {"array": SOUND, "sampling_rate": 16000}, r"at 8000 Hz, but it has 16000 Hz: begin with in_pieces\("),
    (SOUND, {"bytes": b"abc"}, "decode it first"),
    (MATRICES[1], "a", "cannot be read as numbers"),
    (MATRICES[1], "", "cannot be read as numbers"),
    (MATRICES[1], np.zeros((2, 4)), r"expected frames \(T, 3\) with T >= 0, but got the shape \(2, 4\)"),
    (MATRICES[1], np.full((2, 3), np.nan), "expected finite real numbers"),
]


@pytest.mark.filterwarnings("ignore:some recordings have samples far beyond")
@pytest.mark.parametrize(("good", "bad", "message"), BAD)
def test_a_bad_piece_is_refused_in_one_line_and_changes_nothing(good: Any, bad: Any, message: str) -> None:
    feature = tokenizer("char") if isinstance(good, str) else VECTORS["log-mel" if good.ndim == 1 else "frames"][0]
    stream = feature.in_pieces()
    found = [stream.feed(good)]
    with pytest.raises(UserError, match=message) as caught:
        stream.feed(bad)
    assert "\n" not in str(caught.value)
    joined = np.concatenate([*found, stream.feed(good), stream.finish()])
    np.testing.assert_allclose(joined, read(feature, [good, good]))


def test_nothing_comes_after_the_end() -> None:
    for feature, value in ((tokenizer("char"), "a"), (LogMel(RATE, normalize="none"), SOUND)):
        stream = feature.in_pieces()
        stream.feed(value)
        stream.finish()
        for late in (lambda stream=stream, value=value: stream.feed(value), stream.finish):
            with pytest.raises(UserError, match="this input has ended: begin another one"):
                late()


def test_an_end_without_sound_is_refused_and_one_without_text_is_empty() -> None:
    stream = LogMel(RATE, normalize="none").in_pieces()
    stream.feed([])
    with pytest.raises(UserError, match="nothing to read: the input has ended before any sound or frames came"):
        stream.finish()
    assert len(stream.feed(SOUND))
    assert tokenizer("word").in_pieces().finish().tolist() == [3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tokenizer("char").in_pieces(8000), "a text has no sampling rate"),
        (lambda: Frames(2, normalize="none").in_pieces(8000), "frames have no sampling rate"),
        (lambda: LogMel(RATE, normalize="none").in_pieces(0), "a sampling rate of 0 Hz, too far from"),
        (lambda: LogMel(RATE, normalize="running").in_pieces(), "this feature has no statistics yet"),
        (lambda: Tokenizer("char").in_pieces().feed("a b"), "this tokenizer has no vocabulary yet"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("minutes", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_what_is_held_of_sound_does_not_grow(minutes: int) -> None:
    feature = trained(LogMel(16_000, 40, deltas=2, normalize="running", stack=3), [SOUND])
    piece = (0.1 * RNG.normal(size=4410)).astype(np.float32)  # 100 ms
    stream, held = feature.in_pieces(sampling_rate=44_100), []
    tracemalloc.start()
    for _ in range(6):
        for _ in range(100 * minutes):
            stream.feed(piece)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(held[1:]) - held[0] < 10_000
    assert max(held) < 250_000
