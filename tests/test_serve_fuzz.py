"""Whatever is sent to a server, it answers in JSON with 200 or a status of 4xx, and goes on."""

import base64
import http.client
import json
import urllib.parse
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_seq2seq.features import Image, Processor, Tokenizer
from lit_seq2seq.nn import ConvEncoder, GeneralAttention, MeanBridge, ParallelDecoder
from tests.test_fuzz import damaged, picture
from tests.test_serve import Client, serving
from tests.tiny import SIZES, make_model

pytestmark = pytest.mark.slow
GOOD = picture("PNG")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder, target = tmp_path_factory.mktemp("images"), Tokenizer("word")
    target.train(["all red"])
    made = make_model(
        encoder=partial(ConvEncoder, hidden_size=12, widths=[16, 16], blocks=1),
        decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention, bridge=MeanBridge),
    )
    made.attach(Processor(Image(16), target))
    made.save_pretrained(folder)
    with serving(folder, "--max_bytes", "100000", "--batch_timeout", "0") as client:
        yield client


def send(client: Client, path: str, body: Any = None, method: str = "POST", **headers: str) -> tuple[int, Any]:
    """Send a request as it is, and read a JSON answer; an iterator is sent in chunks, without its length."""
    connection = http.client.HTTPConnection(client.url.removeprefix("http://"), timeout=300)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + GOOD[:40]
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "an empty file": ({"path": "/predict/file", "body": b""}, "at least 1"),
    "a truncated form": (
        {"path": "/predict/file", "body": FORM, "Content_Type": "multipart/form-data; boundary=x"},
        "image",
    ),
    "a form without a boundary": (
        {"path": "/predict", "body": FORM, "Content_Type": "multipart/form-data"},
        "",
    ),
    "a text file": ({"path": "/predict/file", "body": b"no image", "Content_Type": "text/plain"}, "image"),
    "a body too large": ({"path": "/predict/file", "body": b"a" * 200_000}, "at most|too large"),
    "a body too large, in chunks": (
        {"path": "/predict/file", "body": (b"a" * 1000 for _ in range(300))},
        "at most|too large",
    ),
    "JSON as text": ({"path": "/predict", "body": b'{"data": "a"}', "Content_Type": "text/plain"}, ""),
    "no JSON": ({"path": "/predict", "body": b"\xff\x00", "Content_Type": "application/json"}, ""),
    "an option of the wrong kind": ({"path": "/predict/file?num_beams=many", "body": GOOD}, "valid integer"),
    "an option too large": ({"path": "/predict/file?num_beams=1000000000", "body": GOOD}, "less than or equal to"),
    "an option that is no number": ({"path": "/predict/file?temperature=nan&do_sample=1", "body": GOOD}, "temperature"),
    "an option that is unknown": ({"path": "/predict/file?beams=3", "body": GOOD}, "Extra inputs"),
    "another method": ({"path": "/predict/file", "method": "PUT", "body": GOOD}, "Method Not Allowed"),
    "another path": ({"path": "/nothing", "body": GOOD}, "Not Found"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_wrong_uploads_get_a_clear_answer(client: Client, case: str) -> None:
    options, message = REQUESTS[case]
    status, answer = send(client, **options)
    assert 400 <= status < 500, answer
    assert any(part in json.dumps(answer) for part in message.split("|")), answer
    assert send(client, "/predict/file", GOOD)[0] == 200


OPTIONS = ("num_beams", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "length_penalty", "do_sample", "x")
VALUES = st.one_of(st.integers(-(10**30), 10**30), st.integers(0, 4), st.floats(), st.text(max_size=8), st.booleans())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.one_of(damaged([GOOD]), st.binary(max_size=50)),
    options=st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=3),
    kind=st.sampled_from(["image/png", "application/json", "text/html", "multipart/form-data; boundary=", "", "ü"]),
)
def test_any_upload_is_answered(client: Client, data: bytes, options: dict[str, object], kind: str) -> None:
    query = urllib.parse.urlencode({name: str(value).encode("utf-8", "replace") for name, value in options.items()})
    status, answer = send(client, f"/predict/file?{query}", data, Content_Type=kind)
    assert status == 200 or 400 <= status < 500, (status, answer)
    body = json.dumps({"data": base64.b64encode(data).decode(), **options}).encode()
    status, answer = send(client, "/predict", body, Content_Type="application/json")
    assert status == 200 or 400 <= status < 500, (status, answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("data"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=JSON, path=st.sampled_from(["/predict", "/stream", "/predict/file"]))
def test_any_json_is_answered(client: Client, value: object, path: str) -> None:
    status, answer = send(client, path, json.dumps(value).encode(), Content_Type="application/json")
    assert 400 <= status < 500, (status, answer)
