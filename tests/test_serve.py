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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import tokenizers
import torch
from starlette.testclient import TestClient

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.features import (
    Frames,
    Image,
    LogMel,
    MultiSource,
    PretrainedTokenizer,
    Processor,
    Records,
    Tokenizer,
    Waveform,
)
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import ConvEncoder, GeneralAttention, MeanBridge, ParallelDecoder, PyramidalEncoder, TextEncoder
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.search.config import search_options
from lit_seq2seq.serve import api, make_app
from lit_seq2seq.serve.api import Service, TokenStreams, Work
from lit_seq2seq.serve.schema import (
    FileRequest,
    FramesRequest,
    GenerateRequest,
    RecordRequest,
    RequestLimits,
    TextRequest,
    request_of,
)
from lit_seq2seq.types import Generated, UserError
from tests.nn.cases import disturb
from tests.test_untrusted import OwnReranker
from tests.tiny import SIZES, make_data, make_model, make_trainer, needs_bfloat16, pairs, rows

LIMITS = RequestLimits(max_length=60, max_bytes=100_000, max_new_tokens=50, max_beams=4, timeout=300.0)


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


@pytest.fixture(scope="module")
def service(folder: Path) -> Service:
    return Service(Predictor(load_model(str(folder))), LIMITS)


@contextmanager
def connected(service: Service, most: int = 8, wait: float = 0.05, **options: Any) -> Iterator[TestClient]:
    """Call the application without a port."""
    with TestClient(api.make_app(service, "name", most, wait, **options), base_url="http://localhost") as found:
        yield found


# the application, without a port


def test_a_batch_of_different_options_gives_what_each_request_asks_for(service: Service, model: LitSeq2Seq) -> None:
    translate = pipeline("translation", model)
    asked = [TextRequest(text=text, num_beams=beams) for beams in (1, 3) for text in pairs(6)["source"]]
    answers = service.generate([service.work(one) for one in asked])
    assert [answer[0].text for answer in answers] == [
        translate(one.text, num_beams=one.num_beams)[0]["translation_text"] for one in asked
    ]


def test_limits_of_requests_do_not_refuse_the_options_of_the_model(folder: Path) -> None:
    own = GenerationConfig(num_beams=6, max_new_tokens=70, min_new_tokens=60)
    loaded = LitSeq2Seq.from_pretrained(folder, changes={"generation": own})
    with connected(Service(Predictor(loaded), LIMITS)) as client:
        answer = client.post("/predict", json={"text": "eins", "details": "tokens"})
        assert answer.status_code == 200
        assert len(answer.json()["outputs"][0]["tokens"]) == LIMITS.max_new_tokens
        answer = client.post("/predict", json={"text": "eins", "num_beams": 6})
        assert answer.json() == {"detail": "num_beams=6: must be at most 4 here"}


def test_requests_that_wait_together_are_one_batch(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generate = service.generate

    def counted(batch: list[Work]) -> list[list[Generated] | Exception]:
        sizes.append(len(batch))
        return generate(batch)

    monkeypatch.setattr(service, "generate", counted)
    texts = pairs(16, seed=3)["source"]
    with connected(service, 8, 300) as client, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda text: client.post("/predict", json={"text": text}).json(), texts))
    assert sizes == [8, 8]
    expected = service.predictor.stream(texts, service.work(TextRequest(text="")).config)
    assert [one["outputs"][0]["text"] for one in found] == [outputs[0].text for outputs in expected]


def speech_service(limits: RequestLimits = LIMITS) -> Service:
    target = Tokenizer("word")
    target.train(["one two"])
    encoder = partial(PyramidalEncoder, hidden_size=12, factors=[1])
    made = make_model(encoder=encoder, decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention))
    made.attach(Processor(LogMel(sampling_rate=8000, n_mels=5), target))
    return Service(Predictor(made), limits)


def test_an_input_that_cannot_be_read_fails_alone() -> None:
    with connected(speech_service()) as client, ThreadPoolExecutor(3) as pool:
        bodies = [sound(), b"no sound", sound()]
        first, refused, last = pool.map(lambda body: client.post("/predict/file", content=body), bodies)
    assert first.json() == last.json()
    assert first.status_code == 200
    assert refused.status_code == 422
    assert "not a recording that soundfile can read" in refused.json()["detail"]
    assert " at 0x" not in refused.text


def test_a_failure_is_told_in_the_log_alone_and_the_server_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = service.predictor.stream

    def fails(raw: list[str], config: GenerationConfig) -> Iterator[list[Generated]]:
        if "drei" in raw:
            raise RuntimeError("secret")
        return stream(raw, config)

    monkeypatch.setattr(service.predictor, "stream", fails)
    app = api.make_app(service, "name", 8, 0.2)
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    with client, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda text: client.post("/predict", json={"text": text}), ["eins", "drei"]))
        assert [answer.status_code for answer in found] == [200, 500]
        assert found[1].json() == {"detail": "the server failed: its log says why"}
        assert client.post("/predict", json={"text": "eins"}).json() == found[0].json()


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
    body: dict[str, object], status: int, message: str, service: Service
) -> None:
    with connected(service) as client:
        refused = client.post("/predict", json=body)
        assert client.post("/predict", json={"text": "eins", "num_beams": 4, "max_new_tokens": 50}).status_code == 200
    assert refused.status_code == status
    assert message in refused.json()["detail"]


def test_a_request_that_waits_too_long_is_told_so(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Service(service.predictor, replace(LIMITS, timeout=2.0))
    begun, go_on = threading.Event(), threading.Event()

    def slow(batch: list[Work]) -> list[list[Generated] | Exception]:
        begun.set()
        go_on.wait(300)
        return [[Generated("done")] for _ in batch]

    monkeypatch.setattr(busy, "generate", slow)
    with connected(busy, 1) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", json={"text": "eins"})
        assert begun.wait(300)
        refused = client.post("/predict", json={"text": "zwei"})
        assert (refused.status_code, "try again later" in refused.json()["detail"]) == (504, True)
        go_on.set()
        assert first.result().json()["outputs"][0]["text"] == "done"
        assert client.post("/predict", json={"text": "drei"}).status_code == 200


def lines_of(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_stream_joins_to_the_output(service: Service, model: LitSeq2Seq) -> None:
    with connected(service) as client:
        found = lines_of(client.post("/stream", json={"text": "eins zwei drei"}))
        refused = client.post("/stream", json={"text": "eins", "num_beams": 2})
    assert found[-1] == {"done": True}
    assert (
        "".join(piece["text"] for piece in found[:-1])
        == pipeline("translation", model)("eins zwei drei")[0]["translation_text"]
    )
    assert refused.status_code == 422
    assert "num_beams=2: must be 1 to stream, use /predict" in refused.json()["detail"]


def test_a_stream_ends_when_its_time_is_over(service: Service) -> None:
    short = Service(service.predictor, RequestLimits(timeout=0.0))
    found = list(short.pieces(short.work(TextRequest(text="eins zwei drei", min_new_tokens=6))))
    assert found[-1] == {"error": "the output took more than 0 seconds"}


def test_a_stream_that_is_left_makes_room_for_the_next(service: Service) -> None:
    async def leave_and_come() -> list[str]:
        streams = TokenStreams(service, ThreadPoolExecutor(1))
        left = streams.lines(service.work(TextRequest(text="eins zwei drei", min_new_tokens=6)))
        await anext(left)
        await left.aclose()
        return [line async for line in streams.lines(service.work(TextRequest(text="eins")))]

    assert json.loads(asyncio.run(leave_and_come())[-1]) == {"done": True}


def test_pages_of_others_cannot_ask_through_the_browser(service: Service) -> None:
    with connected(service) as client:
        for host, status in (("localhost:8000", 200), ("127.0.0.1", 200), ("evil.example", 400), ("", 400)):
            assert client.get("/info", headers={"Host": host}).status_code == status
    with connected(service, local=False) as client:
        assert client.get("/info", headers={"Host": "models.example"}).status_code == 200


def test_the_server_tells_no_path(folder: Path) -> None:
    with TestClient(make_app(str(folder), LIMITS), base_url="http://localhost") as client:
        told = client.get("/info")
        assert told.json()["model"] == {"model": folder.name, "task": "translation"}
        assert str(folder.parent) not in told.text + client.get("/docs").text + client.get("/openapi.json").text


def test_several_models_answer_as_an_ensemble(folder: Path, tmp_path: Path) -> None:
    other = LitSeq2Seq.from_pretrained(folder)
    disturb(other.net)
    other.save_pretrained(tmp_path)
    both = [str(folder), str(tmp_path)]
    [[expected]] = Predictor(load_model(both)).stream(["eins zwei"])
    with TestClient(make_app(both, LIMITS), base_url="http://localhost") as client:
        [found] = client.post("/predict", json={"text": "eins zwei"}).json()["outputs"]
        assert client.get("/info").json()["model"]["model"] == f"{folder.name}, {tmp_path.name}"
    assert (found["text"], found["score"]) == (expected.text, pytest.approx(expected.score))


@pytest.mark.parametrize("source", ["text", "speech"])
def test_the_page_shows_every_route_and_option_and_needs_no_other_server(source: str, service: Service) -> None:
    with connected(service if source == "text" else speech_service()) as client:
        page, schema = client.get("/"), client.get("/openapi.json").json()
    assert page.url.path == "/docs"
    assert all(
        f"<code>{method.upper()} {path}</code>" in page.text
        for path in schema["paths"]
        for method in schema["paths"][path]
    )
    request = "TextRequest" if source == "text" else "FileRequest"
    assert all(f"<code>{name}</code>" in page.text for name in schema["components"]["schemas"][request]["properties"])
    assert not re.search(r"https?://|src=|@import|rel=", page.text)


def test_a_package_that_is_trusted_is_served(tmp_path: Path) -> None:
    made = make_model(reranker=OwnReranker)
    made.attach(make_data().processor)
    made.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="trust"):
        make_app(str(tmp_path), LIMITS)
    assert make_app(str(tmp_path), LIMITS, trust=["tests"])


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_bfloat16), torch.int8])
def test_it_computes_in_what_is_asked_for(folder: Path, service: Service, dtype: torch.dtype) -> None:
    direct = pipeline("translation", str(folder), dtype=dtype)(["eins zwei", "drei"])
    score = service.generate([service.work(TextRequest(text="drei"))])[0][0].score
    with TestClient(make_app(str(folder), LIMITS, dtype=dtype), base_url="http://localhost") as client:
        found = [client.post("/predict", json={"text": text}).json() for text in ("eins zwei", "drei")]
    assert [one["outputs"][0]["text"] for one in found] == [one["translation_text"] for one in direct]
    assert found[1]["outputs"][0]["score"] != score


def test_every_option_of_generation_may_be_asked_for(service: Service) -> None:
    ours = {"constraints", "policy", "reranker", "scorers", "unknown_words"}
    assert set(GenerateRequest.model_fields) == {one.name for one in search_options()} - ours
    asked: dict[str, Any] = {
        "num_beams": 3,
        "early_stopping": "never",
        "length_normalization": "none",
        "coverage_penalty": 0.3,
    }
    config = service.work(TextRequest(text="drei zwei", **asked)).config
    with connected(service) as client:
        found = client.post("/predict", json={"text": "drei zwei", **asked}).json()["outputs"][0]
        refused = client.post("/predict", json={"text": "drei", "ctc_weight": 0.5})
    (expected,) = next(service.predictor.stream(["drei zwei"], config))
    assert (found["text"], found["score"]) == (expected.text, pytest.approx(expected.score, abs=1e-5))
    assert (refused.status_code, "needs a model with CTC" in refused.json()["detail"]) == (422, True)


def test_what_is_drawn_by_a_seed_does_not_depend_on_the_company(service: Service) -> None:
    works = [
        service.work(TextRequest(text=text, do_sample=True, temperature=3.0, seed=4))
        for text in ["drei zwei eins"] * 3 + ["vier"]
    ]
    alone = [service.generate([work])[0] for work in works]
    together = service.generate(works)
    assert [found[0].text for found in together] == [found[0].text for found in alone]
    assert alone[0][0].text == alone[1][0].text


@pytest.mark.parametrize("data", ["!!!", "UklG_mQf-AA=", "====", "UklGRg", "größe", "%55"])
def test_what_is_no_base64_is_refused_and_not_passed_over(data: str) -> None:
    with connected(speech_service()) as client:
        refused = client.post("/predict", json={"data": data})
        lines = base64.encodebytes(sound()).decode()
        assert client.post("/predict", json={"data": lines}).status_code == 200
    assert refused.status_code == 422
    assert "expected the file in base64" in str(refused.json()["detail"])


def test_every_feature_has_its_request() -> None:
    kinds = [Records(), Frames(3), LogMel(), Waveform(), Image(), Tokenizer("char"), pretrained_tokenizer()]
    assert [request_of(kind) for kind in kinds] == [
        *(RecordRequest, FramesRequest, FileRequest, FileRequest, FileRequest, TextRequest, TextRequest)
    ]
    with pytest.raises(UserError, match="a model that reads MultiSource cannot be served: use lit-seq2seq generate"):
        request_of(MultiSource({"text": Tokenizer("char")}))


def pretrained_tokenizer() -> PretrainedTokenizer:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "eins": 2}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    saved = {"config": {"name": "tiny"}, "tokenizer": json.loads(words.to_str()), "pad": 0}
    return PretrainedTokenizer.from_dict(saved)


@pytest.mark.parametrize("kind", ["pretrained", "waveform"])
def test_models_for_pretrained_encoders_are_served(kind: str) -> None:
    target = Tokenizer("word")
    target.train(["one two"])
    if kind == "pretrained":
        source, encoder, given = pretrained_tokenizer(), partial(TextEncoder, **SIZES), {"text": "eins zwei"}
    else:
        source, encoder = Waveform(sampling_rate=8000), partial(PyramidalEncoder, hidden_size=12, factors=[2])
        given = {"data": base64.b64encode(sound()).decode()}
    made = make_model(encoder=encoder, decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention))
    made.attach(Processor(source, target))
    predictor = Predictor(made)
    raw = request_of(source)(**given).raw()
    [[expected]] = predictor.stream([raw], replace(predictor.model.generation, num_return_sequences=1))
    with connected(Service(predictor, LIMITS)) as client:
        assert client.post("/predict", json=given).json()["outputs"] == [
            {"text": expected.text, "score": expected.score}
        ]


def test_the_command_explains_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--model", str(tmp_path), "--port", "80"]) == 1
    assert "port=80: must be from 1024 to 65535" in capsys.readouterr().err
    for option in ("threads", "max_batch_size", "max_length", "max_bytes", "max_new_tokens", "max_beams", "timeout"):
        assert main(["serve", "--model", str(tmp_path), f"--{option}", "0"]) == 1
        assert f"{option}: expected a number >0, got 0" in capsys.readouterr().err
    port = str(free_port())
    assert main(["serve", "--model", str(tmp_path), "--port", port, "--device", "cuda", "--dtype", "int8"]) == 1
    assert "device cuda cannot compute in torch.int8 here: leave dtype out" in capsys.readouterr().err
    assert main(["serve", "--model", str(tmp_path), "--port", port]) == 1
    assert "is not a model folder" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(tmp_path), "--port", port]) == 1
    assert f"cannot use port {port}: choose another --port" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_seq2seq.serve.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs fastapi, uvicorn, websockets: .* pip install -e \"\.\[serve\]\""):
        make_app("model", LIMITS)


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
    "an unknown option": {"text": "eins", "beams": 3},
    "a number for a text": {"text": 3},
    "`num_beams: 0`": {"text": "eins", "num_beams": 0},
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
            ("num_beams=0", file, 422, "Input should be greater than or equal to 1"),
            ("beams=2", file, 422, "Extra inputs are not permitted"),
            ("", file + b" ", 413, "the request must have at most"),
            ("", b"neither", 422, "expected an image" if kind == "image" else "not a recording"),
        ):
            status, answer = client.call(f"/predict/file?{query}", body)
            assert (status, message in str(answer["detail"])) == (refused, True), answer


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_answers_what_it_has_begun(folder: Path) -> None:
    client = Client(free_port())
    process = start(folder, int(client.url.rsplit(":", 1)[1]), "--batch_timeout", "8.0", "--stream", "false")
    wait(process, client)
    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(client.call("/predict", {"text": "eins zwei"})))
    thread.start()
    time.sleep(2)  # of the eight seconds that it waits for others
    process.send_signal(signal.SIGTERM)
    thread.join(300)
    output, _ = process.communicate(timeout=300)
    assert answers
    assert answers[0][0] == 200
    assert process.returncode == 0, output
    with pytest.raises(urllib.error.URLError):
        client.open("/health")


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_while_it_loads_ends_quietly(folder: Path) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        port = free_port()
        process = start(folder, port)
        while process.poll() is None:  # the port is taken, and the model about to be loaded
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) and not bindable(port):
                    break
            time.sleep(0.05)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=300)
        assert (process.returncode, output) == (0, "")


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.mark.slow
def test_connections_that_never_finish_a_request_are_closed(folder: Path) -> None:
    with serving(folder, "--timeout", "3") as client:
        port = int(client.url.rsplit(":", 1)[1])
        whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        beginnings = {
            "nothing": b"",
            "half a header": whole[:20],
            "half a second header": whole + whole[:20],
            "half a body": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{",
        }
        left = {name: socket.create_connection(("127.0.0.1", port)) for name in beginnings}
        for name, connection in left.items():
            connection.sendall(beginnings[name])
        for name, connection in left.items():
            connection.settimeout(300)
            answer = b""
            while piece := connection.recv(10_000):  # until it is closed
                answer += piece
            assert (b"408" in answer) == (name == "half a body")
            connection.close()
        assert client.call("/predict", {"text": "eins"})[0] == 200
