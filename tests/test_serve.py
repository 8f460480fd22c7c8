import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from fastapi import HTTPException, Request
from starlette.responses import JSONResponse

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.features import Frames, Image, LogMel, Processor, Records, Tokenizer
from lit_seq2seq.nn import ConvEncoder, GeneralAttention, MeanBridge, ParallelDecoder, PyramidalEncoder
from lit_seq2seq.pipelines import load_model
from lit_seq2seq.predictor import Predictor
from lit_seq2seq.serve import make_server
from lit_seq2seq.serve.api import Api, GenerateApi, StreamApi
from lit_seq2seq.serve.schema import FileRequest, FramesRequest, Limits, RecordRequest, TextRequest, request_of
from lit_seq2seq.types import UserError
from tests.test_untrusted import OwnMetric
from tests.tiny import SIZES, make_data, make_model, make_trainer, needs_bfloat16, pairs, rows

LIMITS = Limits(max_length=60, max_bytes=100_000, max_new_tokens=50, max_beams=4, timeout=20.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve")
    made = make_model(optimizer=partial(torch.optim.Adam, lr=0.03))
    make_trainer(path, max_epochs=2).fit(made, datamodule=make_data(rows(120), batch_size=16))
    made.save_pretrained(path / "model")
    return path / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> LitSeq2Seq:
    return LitSeq2Seq.from_pretrained(folder)


def endpoint(
    kind: type[Api], folder: Path, model: LitSeq2Seq, limits: Limits = LIMITS, dtype: torch.dtype = torch.float32
) -> Any:
    api = kind(str(folder), {}, model.generation, TextRequest, limits, 1, dtype, max_batch_size=8)
    api.setup("cpu")
    return api


def request(body: bytes) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-length", str(len(body)).encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}, receive)


# the endpoints, without a server


def test_a_batch_of_different_options_gives_what_each_request_asks_for(folder: Path, model: LitSeq2Seq) -> None:
    api = endpoint(GenerateApi, folder, model)
    translate = pipeline("translation", model)
    asked = [TextRequest(text=text, num_beams=beams) for beams in (1, 3) for text in pairs(6)["source"]]
    answers = [api.encode_response(found) for found in api.predict([api.decode_request(one) for one in asked])]
    assert [answer.outputs[0].text for answer in answers] == [
        translate(one.text, num_beams=one.num_beams)[0]["translation_text"] for one in asked
    ]


def test_an_input_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    target = Tokenizer("word")
    target.train(["one two"])
    encoder = partial(PyramidalEncoder, hidden_size=12, factors=[1])
    made = make_model(encoder=encoder, decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention))
    made.attach(Processor(LogMel(sampling_rate=8000, n_mels=5), target))
    made.save_pretrained(tmp_path)
    api = GenerateApi(str(tmp_path), {}, made.generation, FileRequest, LIMITS, 1, torch.float32)
    api.setup("cpu")
    good, bad = (FileRequest(data=base64.b64encode(data)) for data in (sound(), b"no sound"))
    first, refused, last = (
        api.encode_response(one) for one in api.predict([api.work(one) for one in (good, bad, good)])
    )
    assert first == last
    assert isinstance(refused, JSONResponse)
    assert refused.status_code == 422
    assert "not a recording that soundfile can read" in json.loads(refused.body)["detail"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"text": "a" * 61}, 413, "the input has a length of 61: must be at most 60"),
        ({"text": "a", "num_beams": 5}, 422, "num_beams=5: must be at most 4 here"),
        ({"text": "a", "max_new_tokens": 51}, 422, "max_new_tokens=51: must be at most 50 here"),
        ({"text": "a", "num_return_sequences": 3}, 422, "num_return_sequences=3: must be at most num_beams=1"),
        ({"text": "a", "do_sample": True, "num_beams": 2}, 422, "num_beams=2: must be 1 with do_sample=True"),
        ({"text": "a" * 100_001}, 413, "the request must have at most 100000 bytes"),
    ],
)
def test_requests_beyond_the_limits_are_refused(
    body: dict[str, object], status: int, message: str, folder: Path, model: LitSeq2Seq
) -> None:
    api = endpoint(GenerateApi, folder, model)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(api.authorize(request(json.dumps(body).encode())))
    assert refused.value.status_code == status
    assert message in refused.value.detail


def test_what_is_allowed_is_admitted(folder: Path, model: LitSeq2Seq) -> None:
    api = endpoint(GenerateApi, folder, model)
    asyncio.run(api.authorize(request(b'{"text": "eins", "num_beams": 4, "max_new_tokens": 50}')))
    asyncio.run(api.authorize(request(b'{"text": 3}')))  # the server itself says what is wrong


def test_a_stream_joins_to_the_output(folder: Path, model: LitSeq2Seq) -> None:
    api = endpoint(StreamApi, folder, model)
    lines = list(api.encode_response(api.predict(api.work(TextRequest(text="eins zwei drei")))))
    found = [json.loads(line) for line in lines]
    assert found[-1] == {"done": True}
    assert (
        "".join(piece["text"] for piece in found[:-1])
        == pipeline("translation", model)("eins zwei drei")[0]["translation_text"]
    )
    with pytest.raises(UserError, match="num_beams=2: must be 1 to stream, use /predict"):
        api.work(TextRequest(text="eins", num_beams=2))


def test_a_stream_ends_when_its_time_is_over(folder: Path, model: LitSeq2Seq) -> None:
    api = endpoint(StreamApi, folder, model, Limits(timeout=0.0))
    found = list(api.predict(api.work(TextRequest(text="eins zwei drei", min_new_tokens=6))))
    assert json.loads(found[-1]) == {"error": "the output took more than 0 seconds"}


def test_a_package_that_is_trusted_is_served(tmp_path: Path) -> None:
    made = make_model(metrics=[OwnMetric])
    made.attach(make_data().processor)
    made.save_pretrained(tmp_path)
    (api,) = make_server(str(tmp_path), LIMITS, stream=False, trust=["tests"]).litapi_connector
    api.setup("cpu")  # as its worker does
    assert isinstance(api.predictor.model.scores.metrics[0], OwnMetric)


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_bfloat16), torch.int8])
def test_it_computes_in_what_is_asked_for(folder: Path, dtype: torch.dtype) -> None:
    (api,) = make_server(str(folder), LIMITS, stream=False, dtype=dtype).litapi_connector
    api.setup("cpu")
    asked = [api.work(TextRequest(text=text)) for text in ("eins zwei", "drei")]
    direct = pipeline("translation", str(folder), dtype=dtype).predictor.stream(["eins zwei", "drei"], asked[0].config)
    assert api.predict(asked) == list(direct)
    full = Predictor(load_model(str(folder))).stream(["eins zwei", "drei"], asked[0].config)
    assert [row[0].score for row in api.predict(asked)] != [row[0].score for row in full]


def test_every_feature_has_its_request() -> None:
    kinds = [Records(), Frames(3), LogMel(), Image(), Tokenizer("char")]
    assert [request_of(kind) for kind in kinds] == [RecordRequest, FramesRequest, FileRequest, FileRequest, TextRequest]


def test_the_command_explains_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--model", str(tmp_path), "--port", "80"]) == 1
    assert "port=80: must be from 1024 to 65535" in capsys.readouterr().err
    assert main(["serve", "--model", str(tmp_path), "--device", "cuda", "--dtype", "int8"]) == 1
    assert "device cuda cannot compute in torch.int8 here: leave dtype out" in capsys.readouterr().err
    assert main(["serve", "--model", str(tmp_path), "--port", "8000"]) == 1
    assert "is not a model folder" in capsys.readouterr().err


# the real server on a loopback port

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"


class Client:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def open(self, path: str, body: object = None) -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=300)

    def call(self, path: str, body: object = None) -> tuple[int, Any]:
        try:
            with self.open(path, body) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, port: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lit_seq2seq", "serve", "--model", str(folder), "--port", str(port), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait(process: subprocess.Popen[str], client: Client, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with client.open("/health") as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise AssertionError(f"the server did not start: {process.communicate()[0]}")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Client]:
    client = Client(free_port())
    process = start(folder, int(client.url.rsplit(":", 1)[1]), *options)
    wait(process, client)
    try:
        yield client
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with serving(folder, "--max_length", "60", "--max_bytes", "100000", "--batch_timeout", "0.05") as client:
        yield client


@pytest.mark.slow
def test_many_clients_get_what_the_pipeline_gives(client: Client, model: LitSeq2Seq) -> None:
    translate = pipeline("translation", model)
    texts = pairs(24, seed=8)["source"]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda text: client.call("/predict", {"text": text, "num_beams": 2}), texts))
    assert [status for status, _ in answers] == [200] * len(texts)
    expected = [row["translation_text"] for row in translate(texts, num_beams=2)]
    assert [body["outputs"][0]["text"] for _, body in answers] == expected


@pytest.mark.slow
def test_streams_come_in_lines(client: Client, model: LitSeq2Seq) -> None:
    with client.open("/stream", {"text": "eins zwei drei"}) as answer:
        lines = [json.loads(line) for line in answer]
    assert lines[-1] == {"done": True}
    expected = pipeline("translation", model)("eins zwei drei")[0]["translation_text"]
    assert "".join(line["text"] for line in lines[:-1]) == expected


WRONG: dict[str, object] = {
    "half a JSON": b'{"text": ',
    "not UTF-8": b'{"text": "\xff"}',
    "no input": {"txt": "eins"},
    "an option that there is not": {"text": "eins", "beams": 3},
    "a number for a text": {"text": 3},
    "no beams": {"text": "eins", "num_beams": 0},
    "too many beams": {"text": "eins", "num_beams": 11},
    "too long a text": {"text": "a" * 61},
    "too many bytes": {"text": "a" * 200_000},
}


def told() -> dict[str, tuple[int, str]]:
    """Read the table of wrong requests."""
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: (int(status), message) for name, status, message in rows}


def test_the_page_tells_every_wrong_request() -> None:
    assert list(told()) == list(WRONG)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/predict", "/stream"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_get_the_answer_that_the_page_says(path: str, case: str, client: Client) -> None:
    status, message = told()[case]
    found, answer = client.call(path, WRONG[case])
    assert found == status
    assert message in str(answer["detail"])


def ask(command: str, client: Client) -> str:
    """Run a `curl` of the page against a running server."""
    moved = command.replace("localhost:8000", client.url.removeprefix("http://")).replace("curl ", "curl -sf ", 1)
    return subprocess.run(["bash", "-c", moved], capture_output=True, text=True, check=True).stdout


def forms(lines: str) -> list[object]:
    """Say what lines of JSON look like, whatever their texts and numbers."""

    def form(value: object) -> object:
        if isinstance(value, dict):
            return {name: form(inner) for name, inner in value.items()}
        return [form(inner) for inner in value] if isinstance(value, list) else type(value)

    found: list[object] = []
    for line in lines.splitlines():
        if (new := form(json.loads(line))) not in found:
            found.append(new)
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_requests_of_the_page_get_what_it_shows(client: Client) -> None:
    shown = re.findall(
        r"^```bash\n(curl [^\n]*)\n```\n\n```json\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    assert len(shown) == 2
    for command, answer in shown:
        assert forms(ask(command, client)) == forms(answer)


def sound() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(4000) / 5), 8000, format="WAV")
    return file.getvalue()


def picture() -> bytes:
    file = io.BytesIO()
    PIL.Image.effect_noise((20, 16), 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


FILES = {
    "recording": (LogMel(sampling_rate=8000, n_mels=5), partial(PyramidalEncoder, hidden_size=12, factors=[1]), sound),
    "image": (Image(16), partial(ConvEncoder, hidden_size=12, widths=[16], blocks=1), picture),
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("kind", FILES)
def test_a_file_may_be_the_whole_request(kind: str, tmp_path: Path) -> None:
    feature, encoder, make = FILES[kind]
    target = Tokenizer("char")
    target.train(["one two"])
    made = make_model(encoder=encoder, decoder=partial(ParallelDecoder, **SIZES, bridge=MeanBridge))
    made.attach(Processor(feature, target))
    made.save_pretrained(tmp_path)
    file = make()
    (tmp_path / "speech.wav").write_bytes(file)
    expected = pipeline("text2text-generation", made)(file, num_beams=4)[0]["generated_text"]
    limits = ("--stream", "false", "--max_bytes", str(len(file)), "--max_beams", "4")
    with serving(tmp_path, *limits) as client:
        status, answer = client.call("/predict/file?num_beams=4&num_return_sequences=2", file)
        assert (status, len(answer["outputs"])) == (200, 2)
        assert answer["outputs"][0]["text"] == expected
        (shown,) = re.findall(r"^curl --data-binary.*$", PAGE.read_text(encoding="utf-8"), re.M)
        assert json.loads(ask(f"cd {tmp_path}; {shown}", client))["outputs"] == answer["outputs"][:1]
        for query, body, refused, message in (
            ("num_beams=5", file, 422, "num_beams=5: must be at most 4 here"),
            ("num_beams=0", file, 422, "greater than or equal to 1"),
            ("beams=2", file, 422, "Extra inputs are not permitted"),
            ("", file + b" ", 413, "Payload too large"),
            ("", b"neither", 422, "expected an image" if kind == "image" else "not a recording"),
        ):
            status, answer = client.call(f"/predict/file?{query}", body)
            assert (status, message in str(answer["detail"])) == (refused, True), answer


@pytest.mark.slow
def test_the_pages_of_the_server(client: Client) -> None:
    with client.open("/openapi.json") as answer:
        described = json.loads(answer.read())
    assert {"/predict", "/stream", "/health"} <= described["paths"].keys()
    assert {"TextRequest", "GenerateResponse"} <= described["components"]["schemas"].keys()
    with client.open("/docs") as answer:
        assert answer.status == 200
    assert client.call("/info")[1]["model"]["task"] == "translation"


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_answers_what_it_has_begun(folder: Path) -> None:
    client = Client(free_port())
    process = start(folder, int(client.url.rsplit(":", 1)[1]), "--batch_timeout", "2.0", "--stream", "false")
    wait(process, client)
    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(client.call("/predict", {"text": "eins zwei"})))
    thread.start()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    thread.join(60)
    output, _ = process.communicate(timeout=300)
    assert answers
    assert answers[0][0] == 200
    assert process.returncode == 0, output
    with pytest.raises(urllib.error.URLError):
        client.open("/health")
