"""A page to play with a trained model in the browser: `lit-seq2seq demo`."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure

from lit_seq2seq.features import Feature
from lit_seq2seq.inference.live import LiveStreams
from lit_seq2seq.inference.pictures import attention_figure
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.settings.options import add_running, loading_of
from lit_seq2seq.types import Generated, UserError, install

if TYPE_CHECKING:
    import gradio

    from lit_seq2seq.serve.live import Sessions

MAX_BYTES = 10_000_000
"""Largest file that can be put on the page."""
LIVE = {
    "audio": ("<button class='lg primary'>Speak</button>", "Speak: the text comes while you do."),
    "text": ("<textarea rows='3' aria-label='live text'></textarea>", "Type: the output grows with it. Enter ends it."),
}
"""By the kind of source that comes in pieces what takes it on the page, and what is said of it."""
_STYLE = """
textarea { width: 100%; background: var(--input-background-fill); border: var(--input-border-width) solid
  var(--input-border-color); border-radius: var(--input-radius); padding: var(--input-padding); }
button { background: var(--button-primary-background-fill); color: var(--button-primary-text-color);
  border-radius: var(--button-large-radius); padding: var(--button-large-padding); }
.words { font-size: 1.5em; min-height: 4em; white-space: pre-wrap; }
.note { color: var(--error-text-color, red); }
"""

Answer = tuple[list[tuple[str, float]], list[list[str]], Figure | None]


class Page:
    """What the page does when its button is pressed.

    Args:
        predictor: the model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def feature(self) -> Feature:
        """The model's source feature."""
        return self.predictor.model.processor.source_feature

    @cached_property
    def sessions(self) -> Sessions | None:
        """What writes while you speak or type, if the model can."""
        if self.feature.medium not in LIVE:
            return None
        try:
            LiveStreams(self.predictor).open()
        except UserError:
            return None
        from lit_seq2seq.serve.live import Sessions
        from lit_seq2seq.serve.schema import RequestLimits
        from lit_seq2seq.serve.service import Service

        limits = replace(RequestLimits(timeout=600), max_new_tokens=self.predictor.model.generation.max_new_tokens)
        return Sessions(Service(self.predictor, limits), ThreadPoolExecutor(1), limits.max_sessions, 0)

    def answer(
        self, raw: Any, num_beams: int, num_outputs: int, max_new_tokens: int, *, sample: bool, temperature: float
    ) -> Answer:
        """Generate from one input, as the component of the page gives it.

        Returns the symbols of the best output, each with one minus its probability; a row of score and text for
        each output; and the picture of the best one's attention, if there is one.

        Raises:
            UserError: there is no input, it cannot be read, or the options do not fit.
        """
        if raw is None or self.feature.is_missing(raw):
            raise UserError(f"there is no input: give {self.feature.input_kind}")
        own, beams = self.predictor.model.generation, 1 if sample else max(num_beams, num_outputs)
        options: dict[str, Any] = {"num_return_sequences": num_outputs, "max_new_tokens": max_new_tokens}
        options |= {"do_sample": sample, "num_beams": beams, "min_new_tokens": min(own.min_new_tokens, max_new_tokens)}
        if sample:
            options["temperature"] = temperature
        if beams % own.num_beam_groups:
            options["num_beam_groups"] = 1
        config = own.changed(options)
        outputs = next(self.predictor.stream([raw], config, return_attention=True))
        rows = [[f"{output.score:.3f}", output.text] for output in outputs]
        return _doubts(outputs[0]), rows, attention_figure([raw], outputs[:1], self.predictor.model)

    def build(self, title: str) -> gradio.Blocks:
        """Lay the page out: an input by the kind of source, the options of search, and three views of the outcome."""
        import gradio

        generation = self.predictor.model.generation
        is_file = self.feature.medium in ("image", "audio")

        def answer(given: Any, beams: int, outputs: int, length: int, draw: bool, temperature: float) -> Answer:
            raw = Path(given).read_bytes() if is_file and given is not None else given
            try:
                return self.answer(raw, beams, outputs, length, sample=draw, temperature=temperature)
            except UserError as error:
                raise gradio.Error(str(error), print_exception=False) from error

        page = gradio.Blocks(title=title, analytics_enabled=False)
        with page:
            gradio.Markdown(f"# {title}")
            with gradio.Tab("Whole input") if self.sessions is not None else nullcontext(), gradio.Row():
                with gradio.Column():
                    raw = self._component()
                    button = gradio.Button("Generate", variant="primary")
                    most = max(10, generation.num_beams)
                    beams = gradio.Slider(1, most, value=generation.num_beams, step=1, label="beams")
                    outputs = gradio.Slider(1, 10, value=1, step=1, label="outputs")
                    most = max(512, generation.max_new_tokens)
                    length = gradio.Slider(1, most, value=generation.max_new_tokens, step=1, label="most symbols")
                    sample = gradio.Checkbox(generation.do_sample, label="draw at random")
                    warmth = generation.temperature
                    temperature = gradio.Slider(min(0.1, warmth), max(2, warmth), value=warmth, label="temperature")
                with gradio.Column():
                    table = gradio.Dataframe(
                        headers=["score", "output"], interactive=False, wrap=True, column_widths=["80px", "380px"]
                    )
                    symbols = gradio.HighlightedText(label="symbols of the best output: the redder, the less sure")
                    picture = gradio.Plot(show_label=False)
            options = [raw, beams, outputs, length, sample, temperature]
            gradio.on(
                [button.click, *([] if is_file else [raw.submit])],
                answer,
                options,
                [symbols, table, picture],
                api_name="generate",
                show_progress_on=table,
            )
            if self.sessions is not None:
                with gradio.Tab("Live"):
                    self._live()
        return page

    def _live(self) -> None:
        import gradio

        assert self.feature.medium is not None
        taken, about = LIVE[self.feature.medium]
        gradio.HTML(
            html_template=f"<p>{about}</p>{taken}<p class='words' aria-live='polite'></p><p class='note'></p>",
            css_template=_STYLE,
            js_on_load=files("lit_seq2seq.serve").joinpath("live.js").read_text(encoding="utf-8"),
        )

    def _component(self) -> Any:
        import gradio

        if self.feature.medium == "image":
            return gradio.Image(type="filepath", image_mode=None, label="image")  # the feature itself decodes it
        if self.feature.medium == "audio":
            return gradio.Audio(sources=["upload", "microphone"], type="filepath", label="recording")
        return gradio.Textbox(lines=3, label="text", submit_btn=False)


def launch(page: gradio.Blocks, port: int | None = None, block: bool = True, sessions: Sessions | None = None) -> str:
    """Show a page to this machine alone, and not to web pages whose name leads here; return its address.

    Any free port is taken if none is given. Unless `block`, it returns at once. `sessions` are those of its live part.

    Raises:
        OSError: the port is taken.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from lit_seq2seq.serve.live import LOCAL, live_route

    app: dict[str, Any] = {"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)]}
    if sessions is not None:
        app |= {"routes": [live_route(sessions, LOCAL)], "lifespan": lambda _: sessions.batches.running()}
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        prevent_thread_lock=not block,
        quiet=True,
        footer_links=[],
        max_file_size=MAX_BYTES,
        app_kwargs=app,
    )
    return str(address)


def _doubts(output: Generated) -> list[tuple[str, float]]:
    """Pair each symbol with one minus its probability, which a scorer that subtracts may have put above 1."""
    return [
        (f"{token} ", -math.expm1(min(score, 0.0)))
        for token, score in zip(output.tokens, output.token_scores, strict=True)
    ]


def command(parser: ArgumentParser, arguments: list[str]) -> None:
    """Open a page to play with a model until interrupted: `lit-seq2seq demo`."""
    add_running(parser)
    parser.add_argument("--port", type=int, default=7860, help="of the page; from 1024 on")
    options = parser.parse_args(arguments)
    if find_spec("gradio") is None:
        raise UserError(f"the page needs gradio: {install('demo')}")
    if not 1024 <= options.port <= 65535:
        raise UserError(f"port={options.port}: must be from 1024 to 65535")
    model = load_model(options.model, **loading_of(options))
    page = Page(Predictor(model, options.device, getattr(torch, options.dtype)))
    built = page.build(f"lit_seq2seq: {model.task}")
    print(f"open http://127.0.0.1:{options.port} in a browser; Ctrl-C ends", flush=True)
    try:
        launch(built, options.port, sessions=page.sessions)
    except OSError as error:
        raise UserError(f"the page cannot use port {options.port}: choose another --port ({error})") from error
