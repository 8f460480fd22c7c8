"""`lit-seq2seq stream`: pieces in, text out at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_seq2seq.cli import main
from lit_seq2seq.cli.summary import stream_command, typed
from lit_seq2seq.features import Frames, LogMel, Processor
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import GeneralAttention, ParallelDecoder, PyramidalEncoder, TextEncoder, ZeroBridge
from lit_seq2seq.search import GenerationConfig, WaitK
from tests.nn.cases import disturb
from tests.tiny import SIZES, make_data, make_model

TEXTS = ["eins zwei drei", "fünf", "vier drei eins zwei fünf fünf eins"]
LISTENER = partial(PyramidalEncoder, hidden_size=12, factors=[1, 2], bidirectional=False)


def save(folder: Path, feature: object = None) -> Predictor:
    encoder = LISTENER if feature else partial(TextEncoder, **SIZES, bidirectional=False)
    model = make_model(
        encoder=encoder,
        decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention, bridge=ZeroBridge),
        generation=GenerationConfig(max_new_tokens=8, min_new_tokens=3, policy=WaitK(1)),
    )
    processor = make_data().processor
    model.attach(Processor(feature, processor.target) if feature else processor)
    disturb(model.net, scale=2.0)
    model.save_pretrained(folder)
    return Predictor(model)


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["stream", *map(str, arguments)]) == 0
    return capfd.readouterr().out


def test_each_line_is_an_input(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = save(tmp_path / "model")
    (tmp_path / "in.txt").write_bytes("\ufeff".encode() + "\r\n".join(TEXTS).encode())
    written = run(capfd, "--model", tmp_path / "model", "--input", tmp_path / "in.txt").splitlines()
    assert written == [row[0].text for row in made.stream(TEXTS)]
    assert len(set(written)) == 3
    log = tmp_path / "log.jsonl"
    run(capfd, "--model", tmp_path / "model", "--input", tmp_path / "in.txt", "--log", log)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [row["prediction"] for row in rows] == written
    for row, text in zip(rows, TEXTS, strict=True):
        assert len(row["delays"]) == len(row["prediction"].split())
        assert row["source_length"] == len(text.split()) + 1
        assert row["delays"] == sorted(row["delays"])
    run(capfd, "--model", tmp_path / "model", "--input", tmp_path / "in.txt", "--picture", tmp_path / "live.svg")
    texts = [text.text for text in ET.parse(tmp_path / "live.svg").getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [*TEXTS[-1].split(), *written[-1].split()]


def test_a_finished_run_names_the_command_where_the_model_writes_early(tmp_path: Path) -> None:
    for feature, source, given in (
        (None, "eins zwei", "echo 'eins zwei' | {} stream --model m"),
        (LogMel(normalize="none"), [0.1, 0.2], "{} stream --model m --input FILE --pace true"),
    ):
        model = save(tmp_path / "model", feature).model
        command = given.format(typed("lit-seq2seq"))
        assert stream_command(source, model.processor.source_feature, model, Path("m")) == [command]
        model.generation = GenerationConfig()
        assert stream_command(source, model.processor.source_feature, model, Path("m")) == []


def test_words_come_before_the_input_has_ended(tmp_path: Path) -> None:
    save(tmp_path / "model")
    command = [sys.executable, "-m", "lit_seq2seq", "stream", "--model", str(tmp_path / "model")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"vier drei eins ")
        process.stdin.flush()
        early = os.read(process.stdout.fileno(), 1000).decode()
        process.stdin.close()
        late = process.stdout.read().decode()
    assert early.strip()
    assert late.endswith("\n")


def test_sound_comes_from_files_and_as_samples(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    soundfile = pytest.importorskip("soundfile")
    feature = LogMel(sampling_rate=800, n_mels=4, window=0.02, hop=0.01, fmin=0, normalize="none")
    made = save(tmp_path / "model", feature)
    samples = np.random.default_rng(2).integers(-9000, 9000, 1111).astype(np.int16)
    soundfile.write(tmp_path / "in.wav", samples, 800)
    [[expected]] = made.stream([str(tmp_path / "in.wav")])
    found = run(capfd, "--model", tmp_path / "model", "--input", tmp_path / "in.wav", "--piece", 0.03)
    assert found == expected.text + "\n"
    log = tmp_path / "log.jsonl"
    run(capfd, "--model", tmp_path / "model", "--input", tmp_path / "in.wav", "--piece", 0.03, "--log", log)
    row = json.loads(log.read_text(encoding="utf-8"))
    assert row["source_length"] == pytest.approx(1000 * 1111 / 800)
    assert row["delays"][0] < 400
    assert all(late > delay for late, delay in zip(row["elapsed"], row["delays"], strict=True))
    run(capfd, "--model", tmp_path / "model", "--input", tmp_path / "in.wav", "--picture", tmp_path / "live.svg")
    assert "<path" in (tmp_path / "live.svg").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "lit_seq2seq", "stream", "--model", str(tmp_path / "model")]
    given = {"input": samples.tobytes(), "capture_output": True, "check": False}
    answer = subprocess.run([*command, "--sampling_rate", "800"], **given)
    assert answer.stdout.decode() == expected.text + "\n"
    answer = subprocess.run(command, **given)
    assert answer.returncode == 1
    assert answer.stderr.decode().count("\n") == 1
    assert "set --sampling_rate" in answer.stderr.decode()
    given["input"] = (tmp_path / "in.wav").read_bytes()
    answer = subprocess.run([*command, "--sampling_rate", "800"], **given)
    assert answer.returncode == 1
    assert "has a file of sound, not raw samples: give its path" in answer.stderr.decode()
    for option, line in {
        "--sampling_rate=1600": "says its own sampling rate, 800: leave --sampling_rate out",
        "--picture=live.png": "--picture draws SVG: give it a name such as live.svg",
    }.items():
        assert main([*command[3:], "--input", str(tmp_path / "in.wav"), option]) == 1
        assert line in capfd.readouterr().err


def test_sound_where_a_model_reads_text_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "model")
    (tmp_path / "in.wav").write_bytes(b"RIFF\xff\xfe")
    assert main(["stream", "--model", str(tmp_path / "model"), "--input", str(tmp_path / "in.wav")]) == 1
    assert "this model reads text, but " in capfd.readouterr().err


RECORDER = """#!{python}
import pathlib, signal, sys, time
assert sys.argv[1:9] == ["-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r"], sys.argv
sound = pathlib.Path({sound!r}).read_bytes()
sys.stdout.buffer.write(sound)
sys.stdout.flush()
if {waits}:
    signal.sigwait([signal.SIGTERM])
if not sound:
    sys.exit("arecord: no soundcards found...")
"""


def record(folder: Path, sound: bytes, waits: bool = False) -> None:
    """Make an `arecord` that plays `sound`, and ends with it or waits to be stopped."""
    (folder / "sound").write_bytes(sound)
    program = folder / "arecord"
    program.write_text(RECORDER.format(python=sys.executable, sound=str(folder / "sound"), waits=waits))
    program.chmod(0o755)


def test_sound_comes_from_the_microphone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = LogMel(sampling_rate=800, n_mels=4, window=0.02, hop=0.01, fmin=0, normalize="none")
    made = save(tmp_path / "model", feature)
    samples = np.random.default_rng(2).integers(-9000, 9000, 1111).astype(np.int16)
    [[expected]] = made.stream([samples])
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # which is not to record what is said here
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["stream", "--model", str(tmp_path / "model"), "--input", "microphone"]
    assert main(command) == 1
    assert "nothing here can record from a microphone: in your clone" in capfd.readouterr().err
    record(tmp_path, b"")
    assert main(command) == 1
    assert "the microphone cannot be used at 800 Hz (arecord: no soundcards found...)" in capfd.readouterr().err
    record(tmp_path, samples.tobytes())
    assert run(capfd, *command[1:]) == expected.text + "\n"
    save(tmp_path / "translator")
    assert main(["stream", "--model", str(tmp_path / "translator"), "--input", "microphone"]) == 1
    assert "leave --input microphone out" in capfd.readouterr().err


def test_interrupting_the_recording_writes_the_rest(tmp_path: Path) -> None:
    feature = LogMel(sampling_rate=800, n_mels=4, window=0.02, hop=0.01, fmin=0, normalize="none")
    made = save(tmp_path / "model", feature)
    samples = np.random.default_rng(2).integers(-9000, 9000, 1111).astype(np.int16)
    [[expected]] = made.stream([samples])
    record(tmp_path, samples.tobytes(), waits=True)
    (tmp_path / "sounddevice.py").write_text("raise ImportError")
    places = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-m", "lit_seq2seq", "stream", "--model", str(tmp_path / "model"), "--input=microphone"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | places) as process:
        assert process.stdout is not None
        written = os.read(process.stdout.fileno(), 1000)
        assert expected.text.startswith(written.decode())
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        written += process.stdout.read()
    assert written.decode() == expected.text + "\n"
    assert process.returncode == 0


@pytest.mark.parametrize("kind", ["text", "sound"])
def test_interrupting_a_pipe_writes_the_rest(tmp_path: Path, kind: str) -> None:
    source: Any = "vier drei eins zwei fünf fünf eins"
    given, feature, options = source.encode(), None, []
    if kind == "sound":
        feature = LogMel(sampling_rate=800, n_mels=4, window=0.02, hop=0.01, fmin=0, normalize="none")
        source = np.random.default_rng(2).integers(-9000, 9000, 1111).astype(np.int16)
        given, options = source.tobytes(), ["--sampling_rate=800"]
    [[expected]] = save(tmp_path / "model", feature).stream([source])
    command = [sys.executable, "-m", "lit_seq2seq", "stream", "--model", str(tmp_path / "model"), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        early = len(given) * 2 // 3
        process.stdin.write(given[:early])
        process.stdin.flush()
        written = os.read(process.stdout.fileno(), 1000)
        process.send_signal(signal.SIGINT)  # what the program at the other end gets, too
        process.stdin.write(given[early:])
        process.stdin.close()
        written += process.stdout.read()
    assert written.decode() == expected.text + "\n"
    assert process.returncode == 0


def test_frames_come_as_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = save(tmp_path / "model", Frames(3, normalize="none"))
    frames = np.random.default_rng(2).normal(size=(2, 9, 3)).round(3).tolist()
    place = tmp_path / "in.jsonl"
    place.write_text("\n\n".join("\n".join(map(json.dumps, one)) for one in frames))
    written = run(capfd, "--model", tmp_path / "model", "--input", place).splitlines()
    assert written == [row[0].text for row in made.stream(frames)]
    assert main(["stream", "--model", str(tmp_path / "model"), "--input", str(place), "--picture", "live.svg"]) == 1
    assert "--picture shows text and sound, not frames: leave it out" in capfd.readouterr().err
    place.write_text("[1, 2, 3]\nnonsense\n")
    assert main(["stream", "--model", str(tmp_path / "model"), "--input", str(place)]) == 1
    assert "expected a frame as a list of numbers, but got 'nonsense'" in capfd.readouterr().err
