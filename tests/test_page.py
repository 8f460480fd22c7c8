"""The page of `lit-seq2seq demo`: what its button does, the real server, and a real browser."""

import json
import math
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.builtin.telephone import tones
from lit_seq2seq.cli import main
from lit_seq2seq.features import Image, LogMel, Processor, Tokenizer
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import ConvEncoder, MeanBridge, ParallelDecoder, PyramidalEncoder
from lit_seq2seq.serve.page import Page, launch
from lit_seq2seq.types import UserError
from tests.test_untrusted import OwnMetric
from tests.tiny import Trained, make_data, make_model

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio")


@pytest.fixture
def page(trained: Trained) -> Page:
    return Page(Predictor(LitSeq2Seq.from_pretrained(trained.model)))


def test_the_answer_is_that_of_the_pipeline(page: Page, trained: Trained) -> None:
    symbols, rows, picture = page.answer("eins zwei", 3, 2, 5, sample=False, temperature=1.0)
    expected = pipeline("translation", trained.model)(
        "eins zwei", num_beams=3, num_return_sequences=2, max_new_tokens=5
    )
    assert [text for _, text in rows] == [found["translation_text"] for found in expected]
    assert all(0 <= doubt < 1 for _, doubt in symbols)
    assert float(rows[0][0]) == pytest.approx(sum(math.log1p(-doubt) for _, doubt in symbols) / len(symbols), abs=1e-3)
    assert picture is not None
    labels = [label.get_text() for label in picture.axes[0].get_xticklabels()]
    assert labels[:2] == ["eins", "zwei"]


def test_more_outputs_than_beams_widen_the_beam(page: Page) -> None:
    assert len(page.answer("eins", 1, 3, 5, sample=False, temperature=1.0)[1]) == 3


def test_a_table_wider_than_any_screen_is_left_out(page: Page) -> None:
    symbols, table, picture = page.answer("eins " * 400, 1, 1, 5, sample=False, temperature=1.0)
    assert symbols
    assert len(table) == 1
    assert picture is None


def test_outputs_may_be_drawn(page: Page) -> None:
    drawn = {text for _, text in page.answer("eins zwei drei", 1, 10, 5, sample=True, temperature=2.0)[1]}
    assert len(drawn) > 1


@pytest.mark.parametrize(
    "own",
    [
        {"num_beams": 6, "num_beam_groups": 3},
        {"num_beams": 20, "max_new_tokens": 600, "temperature": 3.0},
        {"max_new_tokens": 600, "min_new_tokens": 7},
    ],
)
def test_all_controls_work_whatever_the_options_of_the_model(page: Page, own: dict[str, Any]) -> None:
    model = page.predictor.model
    model.generation = model.generation.changed({"do_sample": "temperature" in own and "num_beams" not in own, **own})
    for beams, sample in ((own.get("num_beams", 1), False), (5, False), (1, True)):
        assert len(page.answer("eins zwei", beams, 2, 5, sample=sample, temperature=1.0)[1]) == 2
    built = page.build("title")
    sliders = [block for block in built.blocks.values() if block.get_block_name() == "slider"]
    assert all(slider.minimum <= slider.value <= slider.maximum for slider in sliders)
    assert len(sliders) == 4


@pytest.mark.parametrize("raw", [None, "", "  "])
def test_no_input_is_said(page: Page, raw: str | None) -> None:
    with pytest.raises(UserError, match="there is no input: give a text"):
        page.answer(raw, 1, 1, 5, sample=False, temperature=1.0)


@pytest.mark.parametrize(
    ("feature", "encoder", "component"),
    [
        (Image(16), partial(ConvEncoder, hidden_size=6, widths=[16], blocks=1), "image"),
        (LogMel(8000), partial(PyramidalEncoder, hidden_size=6), "audio"),
    ],
)
def test_the_input_is_that_of_the_source(feature: Image | LogMel, encoder: object, component: str) -> None:
    tokenizer = Tokenizer("char")
    tokenizer.train(["ab"])
    model = LitSeq2Seq(encoder, partial(ParallelDecoder, embedding_dim=4, hidden_size=6, bridge=MeanBridge))
    model.attach(Processor(feature, tokenizer))
    built = Page(Predictor(model)).build("title")
    assert component in {block.get_block_name() for block in built.blocks.values()}
    if component == "image":
        rows = Page(Predictor(model)).answer(PIL.Image.new("RGB", (9, 9)), 1, 1, 3, sample=False, temperature=1.0)[1]
        assert len(rows) == 1


@contextmanager
def shown(page: Page) -> Iterator[str]:
    built = page.build("lit_seq2seq: translation")
    yield launch(built, block=False, sessions=page.sessions)
    built.close()


@pytest.fixture
def url(page: Page) -> Iterator[str]:
    page.predictor.model.generation = page.predictor.model.generation.changed({"min_new_tokens": 3})
    with shown(page) as place:
        yield place


def test_the_server_answers(url: str) -> None:
    from gradio_client import Client

    client = Client(url, verbose=False)
    _, table, _ = client.predict("eins zwei", 2, 2, 5, False, 1.0, api_name="/generate")
    assert len(table["data"]) == 2
    with pytest.raises(Exception, match="there is no input"):
        client.predict("", 2, 2, 5, False, 1.0, api_name="/generate")


def test_pieces_are_answered_as_they_come(url: str, trained: Trained) -> None:
    live, written = pipeline("translation", trained.model).live(min_new_tokens=3), []
    with connect(f"{url.replace('http', 'ws')}live", origin=url.rstrip("/")) as session:
        for piece in ("eins zw", "ei ", "drei"):
            live.feed(piece)
            session.send(json.dumps({"text": piece}))
        session.send(json.dumps({"end": True}))
        written = [json.loads(one)["text"] for one in session]
    live.finish()
    assert "".join(written) == live.text != ""
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"{url.replace('http', 'ws')}live", origin="http://evil.example")


def test_there_is_a_live_part_only_where_a_model_has_pieces(page: Page) -> None:
    tokenizer = Tokenizer("char")
    tokenizer.train(["ab"])
    encoder = partial(ConvEncoder, hidden_size=6, widths=[16], blocks=1)
    model = LitSeq2Seq(encoder, partial(ParallelDecoder, embedding_dim=4, hidden_size=6, bridge=MeanBridge))
    model.attach(Processor(Image(16), tokenizer))
    assert Page(Predictor(model)).sessions is None
    for one, labels in ((page, ["Whole input", "Live"]), (Page(Predictor(model)), [])):
        blocks = one.build("title").blocks.values()
        assert [block.label for block in blocks if block.get_block_name() == "tabitem"] == labels


def test_pages_of_others_cannot_use_it_through_the_browser(url: str) -> None:
    statuses = []
    for host in ("localhost:7860", "127.0.0.1", "evil.example", "evil.example:7860"):
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}config", headers={"Host": host})) as answer:
                statuses.append(answer.status)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)
    assert statuses == [200, 200, 400, 400]


@pytest.mark.parametrize("kind", ["EPS", "PNG", "junk"])
def test_files_are_decoded_by_the_model_alone(kind: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    path = tmp_path / "picture.png"
    path.write_bytes(b"junk")
    if kind != "junk":
        PIL.Image.new("RGB", (20, 20)).save(path, kind)
    tokenizer = Tokenizer("char")
    tokenizer.train(["ab"])
    encoder = partial(ConvEncoder, hidden_size=6, widths=[16], blocks=1)
    model = LitSeq2Seq(encoder, partial(ParallelDecoder, embedding_dim=4, hidden_size=6, bridge=MeanBridge))
    model.attach(Processor(Image(16), tokenizer))
    page = Page(Predictor(model)).build("title")
    try:
        client = Client(launch(page, block=False), verbose=False)
        arguments = (handle_file(str(path)), 1, 1, 3, False, 1.0)
        if kind == "PNG":
            assert len(client.predict(*arguments, api_name="/generate")[1]["data"]) == 1
        else:
            with pytest.raises(Exception) as error:  # noqa: PT011
                client.predict(*arguments, api_name="/generate")
            assert str(tmp_path) not in str(error.value)
            if kind == "EPS":
                assert "convert it to PNG or JPEG" in str(error.value)
    finally:
        page.close()


@pytest.mark.slow
def test_the_commands_of_its_document_run(trained: Trained, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "page.md").read_text(encoding="utf-8")
    (command,), (program,) = (re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S) for kind in ("bash", "python"))
    shutil.copytree(trained.model, tmp_path / "runs" / "demo" / "version_0" / "model")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    names: dict[str, Any] = {}
    call = [sys.executable, "-m", "lit_seq2seq", *shlex.split(command)[1:], "--port", port]
    with subprocess.Popen(call, cwd=tmp_path) as process:
        try:
            wait(f"http://127.0.0.1:{port}")
            exec(program.replace("7860", port), names)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    assert len(names["outputs"]["data"]) == 3
    assert names["symbols"]


def wait(url: str, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the page did not come up")


@contextmanager
def browsed(url: str, *options: str) -> Iterator[Any]:
    """Open a page in a real browser."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    with api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox", *options])
        view = browser.new_page(viewport={"width": 1200, "height": 900})
        view.goto(url)
        yield view
        browser.close()


@pytest.mark.slow
def test_the_page_in_a_browser(url: str, tmp_path: Path) -> None:
    with browsed(url) as view:
        view.get_by_role("button", name="Generate").click()
        view.get_by_text("there is no input: give a text").wait_for(timeout=30_000)
        assert view.locator("span.error:not(.toast-title):visible").count() <= 1
        view.get_by_label("text", exact=True).fill("eins zwei")
        view.get_by_role("button", name="Generate").click()
        view.wait_for_selector("img[alt*='plot' i], .matplotlib img, [data-testid='matplotlib'] img", timeout=30_000)
        view.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_output_grows_while_you_type(url: str, trained: Trained) -> None:
    live = pipeline("translation", trained.model).live(min_new_tokens=3)
    with browsed(url) as view:
        view.get_by_role("tab", name="Live").click()
        field = view.get_by_label("live text")
        field.press_sequentially("zwei zwei")
        field.fill("")  # what is taken back begins anew
        for letter in "eins zwei drei":
            field.press_sequentially(letter)
            live.feed(letter)
        field.press("Enter")
        live.finish()
        view.wait_for_function("text => document.querySelector('.words').textContent == text", arg=live.text)
        assert live.text
        field.press_sequentially("vier ")
        view.wait_for_function("text => document.querySelector('.words').textContent != text", arg=live.text)
        assert field.input_value() == "vier "


@pytest.mark.slow
def test_the_text_grows_while_you_speak(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    recipe = Path(__file__).parent.parent / "recipes" / "speech" / "telephone_live.yaml"
    data = {"train_size": 4000, "validation_size": 100, "noise": 0.01}
    changed = {f"data.dataset.init_args.{name}": value for name, value in data.items()}
    changed |= {"trainer.max_epochs": 5, "trainer.default_root_dir": tmp_path, "seed_everything": 1}
    assert main(["fit", "--config", str(recipe), *(f"--{name}={value}" for name, value in changed.items())]) == 0
    model, rng = tmp_path / "version_0" / "model", np.random.default_rng(7)
    hiss = rng.normal(0, 200, 20_000).astype(np.int16)
    said, _ = tones("407193652", rng, 0.01)
    samples = np.concatenate([hiss[:400], said, hiss])
    live = pipeline("automatic-speech-recognition", model).live()
    live.feed(samples)
    live.finish()
    assert len(live.text) > 5
    soundfile.write(tmp_path / "said.wav", samples, 8000)
    page, seen = Page(Predictor(LitSeq2Seq.from_pretrained(model))), set()
    played = f"--use-file-for-fake-audio-capture={tmp_path / 'said.wav'}"
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", played)
    with shown(page) as url, browsed(url, *fake) as view:
        view.get_by_role("tab", name="Live").click()
        view.get_by_role("button", name="Speak").click()
        for _ in range(15):  # the recording is played again and again
            view.wait_for_timeout(200)
            seen.add(view.locator(".words").text_content())
        view.get_by_role("button", name="Stop").click()
        view.get_by_role("button", name="Speak").wait_for()
        written = view.locator(".words").text_content()
        assert written.startswith(live.text)
        assert view.locator(".note").text_content() == ""
    assert len(seen) > 3
    assert all(written.startswith(text) for text in seen)


def test_wrong_settings_are_said(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", str(trained.model), "--port", "80"]) == 1
    assert "must be from 1024 to 65535" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--model", str(trained.model), "--port", str(port)]) == 1
    assert f"cannot use port {port}" in capsys.readouterr().err


def test_it_computes_in_what_is_asked_for(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []

    def note(model: LitSeq2Seq, device: str, dtype: torch.dtype) -> Predictor:
        made.append(dtype)
        return Predictor(model, device, dtype)

    monkeypatch.setattr("lit_seq2seq.serve.page.Predictor", note)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "--model", str(trained.model), "--port", port, "--dtype", "int8"]) == 1
    assert made == [torch.int8]


def test_a_package_that_is_trusted_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(metrics=[OwnMetric])
    model.attach(make_data().processor)
    model.save_pretrained(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "--model", str(tmp_path), "--port", port, "--trust", "tests"]) == 1
    assert f"cannot use port {port}" in capsys.readouterr().err  # so the model was loaded
