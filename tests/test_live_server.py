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
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lit_seq2seq.features import Frames, LogMel, Processor
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
from tests.test_live import Fragile
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
            (lambda one: one.send_json({"end": True}), "there is nothing to read: the input has ended before"),
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
            assert "the input has become longer than 200 characters" in session.receive_json()["error"]
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


def test_a_session_that_cannot_be_computed_ends_alone() -> None:
    encoder = partial(Fragile, hidden_size=12, factors=[1, 2], bidirectional=False)
    made = predictor({**LISTENER, "encoder": encoder}, Frames(4, normalize="none"))
    frames = np.random.default_rng(2).normal(size=(8, 4)).round(3).tolist()
    with connected(made) as client:

        def ask(wrong: float | None) -> tuple[str, dict[str, Any]]:
            with client.websocket_connect("ws://localhost/live") as session:
                for start in range(0, 8, 2):
                    session.send_json({"frames": frames[start : start + 2]})
                    if start == 2 and wrong is not None:
                        session.send_json({"frames": [[wrong] * 4] * 2})
                session.send_json({"end": True})
                return answers(session)

        alone = ask(None)
        with ThreadPoolExecutor(3) as pool:
            good, nan, broken = pool.map(ask, (None, 1e7, 1e10))
        assert good == alone
        assert "the model computes NaN" in nan[1]["error"]
        assert broken[1]["error"] == "the server failed: its log says why"


def test_two_writers_on_a_session_take_turns() -> None:
    made = predictor(TRANSLATOR)
    with connected(made) as client, client.websocket_connect("ws://localhost/live") as session:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: session.send_json({"text": "eins "}), range(6)))
        session.send_json({"end": True})
        session.send_json({"text": "zu spät"})
        text, told = answers(session)
        assert told["done"] is True
        assert text == next(made.stream(["eins " * 6]))[0].text


@contextmanager
def served(folder: Path, code: str, *options: str) -> Iterator[tuple[Any, int]]:
    """Run a server, with some of its settings changed by `code`; give its process and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code += "\nfrom lit_seq2seq.cli import main\nraise SystemExit(main())"
    command = [sys.executable, "-c", code, "serve", "--model", str(folder), "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            assert b"serving" in server.stdout.readline()
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield server, port
        finally:
            server.terminate()


NARROW = """
import socket
import lit_seq2seq.serve as serve, lit_seq2seq.serve.http as http
http.CLOSE_SECONDS = 1.0
listener = serve._listener
def narrow(*given):
    made = listener(*given)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return made
serve._listener = narrow
"""


def test_a_client_that_stops_reading_is_dropped_and_others_go_on(tmp_path: Path) -> None:
    made = predictor(LISTENER, Frames(4, normalize="none"))
    made.model.net.get_parameter("decoder.symbols.bias").data[3] -= 30  # so that it writes at every frame
    made.model.save_pretrained(tmp_path / "model")
    options = ("--timeout", "6", "--max_sessions", "2")
    message = json.dumps({"frames": [[0.5] * 4] * 16})
    with served(tmp_path / "model", NARROW, *options) as (_, port), socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.settimeout(60)
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        head = f"GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n"
        deaf.sendall(head.encode())
        frame = b"\x81\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message.encode()  # masked by zeros

        def flood() -> str:
            try:
                for _ in range(100_000):
                    deaf.sendall(frame)
            except TimeoutError:
                return "held back"
            except OSError:
                return "dropped"
            return "all was taken"

        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(flood)
            while not end.done():
                with connect(f"ws://127.0.0.1:{port}/live", open_timeout=60) as session:
                    session.send(message)
                    session.send(json.dumps({"end": True}))
                    told = [json.loads(session.recv(timeout=60)) for _ in range(2)]
                    assert told[-1]["done"] is True
            assert end.result() == "dropped"


def test_a_server_keeps_sessions_and_ends_them_when_it_stops(tmp_path: Path) -> None:
    predictor(TRANSLATOR).model.save_pretrained(tmp_path / "model")
    patience = "import lit_seq2seq.serve.http as http\nhttp.HEADER_SECONDS = 0.3"
    with served(tmp_path / "model", patience) as (server, port):
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
