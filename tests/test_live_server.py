"""Live streams over WebSockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lit_seq2seq.features import LogMel, Processor
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import (
    GeneralAttention,
    ParallelDecoder,
    PyramidalEncoder,
    TextEncoder,
    TransducerDecoder,
    ZeroBridge,
)
from lit_seq2seq.search import GenerationConfig, WaitK
from lit_seq2seq.serve import api
from lit_seq2seq.serve.schema import RequestLimits
from lit_seq2seq.serve.service import Service
from tests.nn.cases import disturb
from tests.tiny import SIZES, make_data, make_model

TEXTS = ["eins zwei drei", "fünf", "vier drei eins zwei fünf fünf eins"]
LIMITS = RequestLimits(max_length=200, timeout=20.0, max_sessions=3)
TRANSLATOR = {
    "encoder": partial(TextEncoder, **SIZES, bidirectional=False),
    "decoder": partial(ParallelDecoder, **SIZES, attention=GeneralAttention, bridge=ZeroBridge),
    "generation": GenerationConfig(max_new_tokens=8, min_new_tokens=3, policy=WaitK(1)),
}
LISTENER = {
    "encoder": partial(PyramidalEncoder, hidden_size=12, factors=[1, 2], bidirectional=False),
    "decoder": partial(TransducerDecoder, **SIZES),
}


def predictor(options: dict[str, Any], feature: Any = None, scale: float = 2.0) -> Predictor:
    model = make_model(**options)
    processor = make_data().processor
    model.attach(Processor(feature, processor.target) if feature else processor)
    disturb(model.net, scale=scale)
    return Predictor(model)


@contextmanager
def connected(made: Predictor, limits: RequestLimits = LIMITS) -> Iterator[TestClient]:
    app = api.make_app(Service(made, limits), "name", 8, 0.01)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def answers(session: Any) -> tuple[str, dict[str, Any]]:
    """Read until a session ends; return its text and its last message."""
    text = ""
    while True:
        told = session.receive_json()
        text += told.get("text", "")
        if "done" in told or "error" in told:
            return text, told


def test_sessions_side_by_side_write_what_generate_does() -> None:
    made = predictor(TRANSLATOR)
    expected = [row[0].text for row in made.stream(TEXTS)]

    def ask(text: str) -> str:
        with client.websocket_connect("ws://localhost/live") as session:
            for character in text:
                session.send_json({"text": character})
            session.send_json({"end": True})
            return answers(session)[0]

    with connected(made) as client, ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, TEXTS)) == expected
        with client.websocket_connect("ws://localhost/live?max_new_tokens=2&min_new_tokens=0") as session:
            session.send_json({"text": TEXTS[2]})
            session.send_json({"end": True})
            text, told = answers(session)
            assert told["done"] is True
            assert len(text.split()) <= 2


def test_sound_comes_as_samples() -> None:
    feature = LogMel(sampling_rate=800, n_mels=4, window=0.02, hop=0.01, fmin=0, normalize="none")
    made = predictor(LISTENER, feature)
    samples = np.random.default_rng(2).integers(-9000, 9000, 1111).astype("<i2")
    found = set()
    with connected(made) as client:
        for size in (40, 1111):
            with client.websocket_connect("ws://localhost/live?sampling_rate=800") as session:
                for start in range(0, 1111, size):
                    session.send_bytes(samples[start : start + size].tobytes())
                session.send_bytes(b"")
                session.send_json({"end": True})
                found.add(answers(session)[0])
        assert len(found) == 1
        assert found != {""}
        for wrong, message in [
            (lambda one: one.send_json({"text": "eins"}), 'expected samples as bytes or {"end": true}, but got'),
            (lambda one: one.send_bytes(b"abc"), "expected samples of 16 bits, but got 3 bytes"),
            (lambda one: one.send_text("eins"), "expected JSON, but it cannot be read"),
            (lambda one: one.send_json({"end": True}), "expected sound or frames before the end"),
        ]:
            with client.websocket_connect("ws://localhost/live") as session:
                wrong(session)
                assert message in session.receive_json()["error"]
                with pytest.raises(WebSocketDisconnect) as closed:
                    session.receive_json()
                assert closed.value.code == 1008


def test_what_goes_wrong_is_explained_and_harms_no_other_session() -> None:
    made = predictor(TRANSLATOR)
    with connected(made) as client, client.websocket_connect("ws://localhost/live") as good:
        good.send_json({"text": "eins "})
        for address, message in [
            ("ws://localhost/live?num_beams=99", "num_beams=99: must be at most 10 here"),
            ("ws://localhost/live?sampling_rate=8000", "a text has no sampling rate"),
        ]:
            with client.websocket_connect(address) as session:
                assert message in session.receive_json()["error"]
        with client.websocket_connect("ws://localhost/live?nonsense=1") as session:
            assert session.receive_json()["error"][0]["loc"] == ["nonsense"]
        for wrong in (5, None, ["eins"]):
            with client.websocket_connect("ws://localhost/live") as session:
                session.send_json({"text": wrong})
                assert 'expected {"text": ...} or {"end": true}, but got' in session.receive_json()["error"]
        with client.websocket_connect("ws://localhost/live") as session:
            session.send_bytes(b"1234")
            assert 'expected JSON with "text", but got 4 bytes' in session.receive_json()["error"]
        with client.websocket_connect("ws://localhost/live") as session:
            session.send_json({"text": "eins zwei " * 30})
            assert "the input has become too long" in session.receive_json()["error"]
        address = "ws://localhost/live"
        with (
            client.websocket_connect(address),
            client.websocket_connect(address),
            client.websocket_connect(address) as fourth,
        ):
            assert "there are 3 sessions, as many as allowed" in fourth.receive_json()["error"]
        elsewhere = client.websocket_connect(address, headers={"origin": "http://elsewhere.example"})
        with pytest.raises(WebSocketDisconnect), elsewhere:
            pass
        good.send_json({"text": "zwei drei"})
        good.send_json({"end": True})
        assert answers(good)[0] == next(made.stream([TEXTS[0]]))[0].text
    with (
        connected(made, RequestLimits(timeout=0.2)) as client,
        client.websocket_connect("ws://localhost/live") as session,
    ):
        assert "for 0.2 seconds" in session.receive_json()["error"]


def test_a_server_keeps_sessions_and_ends_them_when_it_stops(tmp_path: Path) -> None:
    predictor(TRANSLATOR).model.save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import lit_seq2seq.serve.http as http\nhttp.HEADER_SECONDS = 0.3\n"
        "from lit_seq2seq.cli import main\nraise SystemExit(main())"
    )
    command = [sys.executable, "-c", code, "serve", "--model", str(tmp_path / "model"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert b"serving" in server.stdout.readline()
        time.sleep(0.5)
        with connect(f"ws://127.0.0.1:{port}/live", open_timeout=60) as session:
            session.send(json.dumps({"text": "eins zwei "}))
            first = json.loads(session.recv(timeout=60))
            time.sleep(0.8)  # longer than a request may take to send its headers
            session.send(json.dumps({"text": "drei"}))
            session.send(json.dumps({"end": True}))
            told = first
            text = told["text"]
            while "done" not in told:
                told = json.loads(session.recv(timeout=60))
                text += told["text"]
            assert text.split()
        with connect(f"ws://127.0.0.1:{port}/live", open_timeout=60) as session:
            session.send(json.dumps({"text": "eins "}))
            server.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                [session.recv(timeout=60) for _ in range(99)]
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        assert server.wait(60) == 0
