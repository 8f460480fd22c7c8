"""Exported models write while they read what the model in torch writes."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_seq2seq.export import export_model
from lit_seq2seq.features import LogMel, Processor
from lit_seq2seq.inference.live import LiveStreams
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import LearnedBridge, PyramidalEncoder, TextEncoder, TransducerDecoder
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.search import Monotonic, WaitK
from lit_seq2seq.types import UserError
from tests.nn.cases import disturb
from tests.test_live import SIZES, TEXTS, cut, predictor
from tests.tiny import make_data, make_model


def both(made: Any, folder: Path, pieces: list[list[Any]], **options: Any) -> tuple[list[str], list[str]]:
    """Texts of the model and of the exported one, the inputs side by side."""
    exported, found = Model(folder, threads=1), []
    config = made.model.generation.changed(options)
    for streams in (LiveStreams(made, config), exported.streams(exported.network.config.changed(options))):
        opened = [streams.open() for _ in pieces]
        for step in range(max(map(len, pieces))):
            for stream, own in zip(opened, pieces, strict=True):
                if step < len(own):
                    stream.feed(own[step])
            streams.compute(opened)
        for stream in opened:
            stream.finish()
        streams.compute(opened)
        found.append([stream.text for stream in opened])
    return found[0], found[1]


def test_a_transducer_reads_text_without_torch(tmp_path: Path) -> None:
    made = predictor("transducer")
    export_model(made.model, tmp_path, ["fp32"])
    seen = set()
    for seed, beams in enumerate((1, 3)):
        expected, found = both(made, tmp_path, [list(cut(text, seed)) for text in TEXTS], num_beams=beams)
        assert found == expected
        seen |= set(expected)
    assert len(seen) > 1
    live = Model(tmp_path, threads=1).live()
    for piece in cut(TEXTS[2], 5):
        live.feed(piece)
    assert live.read() + live.finish() == both(made, tmp_path, [[TEXTS[2]]])[0][0]
    expected = both(made, tmp_path, [[text] for text in TEXTS])[0]
    lines = "\n".join(TEXTS) + "\n"
    assert streamed(["runtime", "--live", "true"], lines, cwd=tmp_path).splitlines() == expected
    assert streamed(["lit_seq2seq", "stream", "--model", str(tmp_path)], lines).splitlines() == expected
    command = [sys.executable, "-m", "runtime", "--live", "true"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, cwd=tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"eins zwei drei vier\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"", b"")
        assert process.returncode == 130


def streamed(command: list[str], text: str, **options: Any) -> str:
    done = subprocess.run([sys.executable, "-m", *command], input=text, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_a_transducer_reads_sound_without_torch(variant: Any, tmp_path: Path) -> None:
    feature = LogMel(sampling_rate=800, n_mels=4, window=0.02, hop=0.01, fmin=0, deltas=1, normalize="none", stack=2)
    encoder = partial(PyramidalEncoder, hidden_size=12, factors=[1, 2], backward_chunk=4, backward_lookahead=2)
    model = make_model(encoder=encoder, decoder=partial(TransducerDecoder, **SIZES, bridge=LearnedBridge))
    model.attach(Processor(feature, make_data().processor.target))
    disturb(model.net, scale=2.0)
    export_model(model, tmp_path, [variant])
    sounds = [np.random.default_rng(size).normal(0, 0.3, size).astype(np.float32) for size in (900, 331, 50)]
    exported, texts = Model(tmp_path, variant, threads=1), []
    for size in (1000, 37):
        live = [exported.live() for _ in sounds]
        for one, sound in zip(live, sounds, strict=True):
            for start in range(0, len(sound), size):
                one.feed(sound[start : start + size])
            one.finish()
        texts.append([one.text for one in live])
    assert texts[0] == texts[1]
    if variant == "fp32":
        command = [sys.executable, "-m", "runtime", "--live", "true", "--sampling_rate", "-3"]
        done = subprocess.run(command, input=b"abcd", capture_output=True, check=False, cwd=tmp_path)
        assert done.returncode == 1
        assert b"set --sampling_rate" in done.stderr
        assert both(Predictor(model.model), tmp_path, [[sound] for sound in sounds])[0] == texts[0]


POLICIES: list[Any] = [
    ("parallel", {"policy": WaitK(2)}),
    ("parallel", {"policy": WaitK(3, catchup=0.3), "num_beams": 4}),
    ("feeding", {"policy": WaitK(1)}),
    ("hard", {"policy": WaitK(2)}),
    ("mocha", {"policy": Monotonic(), "min_new_tokens": 4}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "options"), POLICIES)
def test_a_policy_is_followed_without_torch(decoder: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = predictor(decoder)
    export_model(made.model, tmp_path, ["fp32"])
    for seed in range(3):
        pieces = [list(cut(text, seed)) for text in TEXTS]
        expected, found = both(made, tmp_path, pieces, max_new_tokens=8, **options)
        assert found == expected
        assert len(set(found)) > 1


@pytest.mark.slow
def test_other_models_agree_with_themselves(tmp_path: Path) -> None:
    made = predictor("feeding", partial(TextEncoder, **SIZES))
    export_model(made.model, tmp_path, ["fp32"])
    expected, found = both(made, tmp_path, [list(cut(text, 1)) for text in TEXTS], max_new_tokens=8)
    assert found == expected
    with pytest.raises(UserError, match="policy: this model needs its whole source"):
        Model(tmp_path).live(policy={"class_path": "WaitK", "init_args": {"k": 2}})
