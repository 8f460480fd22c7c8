"""The routes of the server: whole outputs in batches, one output in pieces, and what says what there is."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse

from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.search.config import search_options
from lit_seq2seq.serve.batches import Batcher, BusyError
from lit_seq2seq.serve.http import Bounds
from lit_seq2seq.serve.overview import overview
from lit_seq2seq.serve.schema import FileRequest, GenerateRequest, GenerateResponse, RequestLimits, request_of
from lit_seq2seq.types import Generated, Returning, UserError

_log = logging.getLogger(__name__)
_PART = "this option names files or classes, which a request may not: save the model with it"
LOCAL = ["127.0.0.1", "localhost"]
"""Names by which a server that listens to this machine alone is called; others are web pages that pretend to be it."""


class Work(NamedTuple):
    """What a request asks for."""

    raw: Any
    config: GenerationConfig


class Service:
    """What a model answers, and what may be asked of it."""

    def __init__(self, predictor: Predictor, limits: RequestLimits) -> None:
        self.predictor, self.limits = predictor, limits
        self.request = request_of(predictor.model.processor.source_feature)

    def work(self, asked: GenerateRequest, alone: bool = False) -> Work:
        """Join the options of a request with those of the model, whose own lengths are cut to what is allowed here.

        Raises:
            UserError: the options do not fit together, or go beyond the limits.
            HTTPException: the input is too long.
        """
        limits, own = self.limits, self.predictor.model.generation
        if asked.size() > limits.max_length:
            raise HTTPException(413, f"the input has a length of {asked.size()}: must be at most {limits.max_length}")
        lengths = {name: getattr(own, name) for name in ("max_new_tokens", "min_new_tokens")}
        own = replace(own, **{name: min(length, limits.max_new_tokens) for name, length in lengths.items()})
        config = (own.quick(1) if alone else own).changed(asked.options())
        texts = len(config.prefix) + sum(map(len, (*config.bad_words, *config.force_words)))
        if texts > limits.max_length:
            raise HTTPException(
                413, f"prefix, bad_words and force_words have {texts} characters: at most {limits.max_length}"
            )
        most = {"num_beams": limits.max_beams, "num_return_sequences": limits.max_beams}
        for name, value in {**most, "max_new_tokens": limits.max_new_tokens}.items():
            if name in asked.options() and getattr(config, name) > value:
                raise UserError(f"{name}={getattr(config, name)}: must be at most {value} here")
        return Work(asked.raw(), config)

    def generate(self, batch: list[Work]) -> list[list[Generated] | Exception]:
        """Answer a batch, together what has the same options; what cannot be read fails alone.

        What is drawn by a seed is drawn alone, as the random numbers of an output depend on its place in the batch.
        """
        results: list[list[Generated] | Exception] = [[]] * len(batch)
        groups: list[tuple[GenerationConfig, list[int]]] = []
        for place, (_, config) in enumerate(batch):
            seeded = config.do_sample and config.seed is not None
            known = next((places for one, places in groups if one == config and not seeded), None)
            if known is None:
                groups.append((config, [place]))
            else:
                known.append(place)
        for config, places in groups:
            for place, found in zip(places, self._together([batch[p].raw for p in places], config), strict=True):
                results[place] = found
        return results

    def _together(self, raw: list[Any], config: GenerationConfig) -> list[list[Generated] | Exception]:
        try:
            return list(self.predictor.stream(raw, config))
        except Exception as error:
            if len(raw) == 1:
                return [error]
            return [found for one in raw for found in self._together([one], config)]

    def stream_work(self, asked: GenerateRequest) -> Work:
        """Search greedily unless the request says otherwise.

        Raises:
            UserError: the request asks for several beams or outputs.
        """
        work = self.work(asked, alone=True)
        for name in ("num_beams", "num_return_sequences"):
            if getattr(work.config, name) > 1:
                raise UserError(f"{name}={getattr(work.config, name)}: must be 1 to stream, use /predict")
        return work

    def pieces(self, work: Work) -> Iterator[dict[str, Any]]:
        """Generate piece by piece, within the time allowed: `{"text": ...}`, at last `{"done": True}` or an error."""
        started, pieces = time.monotonic(), Returning(self.predictor.stream_text(work.raw, work.config))
        try:
            for piece in pieces:
                yield {"text": piece}
                if time.monotonic() - started > self.limits.timeout:
                    raise UserError(f"the output took more than {self.limits.timeout:g} seconds")
            yield {"done": True} if pieces.value else {"done": True, "met": False}
        except UserError as error:
            yield {"error": str(error)}
        except Exception:
            _log.exception("a stream failed")
            yield {"error": "the server failed: its log says why"}


class Streams:
    """Streams one after the other, each of them computed in one thread."""

    def __init__(self, service: Service, thread: ThreadPoolExecutor) -> None:
        self.service, self.thread = service, thread
        self.turn = asyncio.Lock()

    async def lines(self, work: Work) -> AsyncIterator[str]:
        """Yield lines of JSON."""
        try:
            await asyncio.wait_for(self.turn.acquire(), self.service.limits.timeout)
        except TimeoutError:
            yield _line({"error": "the server is busy: try again later"})
            return
        pieces = self.service.pieces(work)
        try:
            following = partial(asyncio.get_running_loop().run_in_executor, self.thread, next, pieces, None)
            while (piece := await following()) is not None:
                yield _line(piece)
        finally:
            self.thread.submit(pieces.close)  # type: ignore[attr-defined]
            self.turn.release()


def _line(piece: dict[str, Any]) -> str:
    return json.dumps(piece, ensure_ascii=False) + "\n"


def _told(error: RequestValidationError | ValidationError) -> list[dict[str, Any]]:
    """Say what is wrong with a request, without repeating it: it may be no text, or no numbers that JSON can tell."""
    parts = {one.name for one in search_options() if one.part}
    told = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
    return [one | {"msg": _PART} if parts.intersection(one["loc"]) else one for one in told]


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """Answer what does not get through: by the request, the model's limits, or a mistake of ours."""
    if isinstance(error, RequestValidationError):
        return JSONResponse({"detail": _told(error)}, 422)
    if isinstance(error, UserError):
        return JSONResponse({"detail": str(error)}, 504 if isinstance(error, BusyError) else 422)
    return JSONResponse({"detail": "the server failed: its log says why"}, 500)


def make_app(
    service: Service, name: str, most: int, wait: float, *, stream: bool = True, threads: int = 1, local: bool = True
) -> FastAPI:
    """Make the web application; see `lit_seq2seq.serve.make_app`."""
    limits, begin = service.limits, partial(torch.set_num_threads, threads)
    first, second = (ThreadPoolExecutor(1, initializer=begin) for _ in range(2))
    batches = Batcher(service.generate, first, most=most, wait=wait, timeout=limits.timeout)
    bounds = Middleware(Bounds, max_bytes=limits.max_bytes, seconds=limits.timeout)
    app = FastAPI(
        title=f"lit_seq2seq: {service.predictor.model.task}",
        lifespan=batches.running,
        middleware=[*([Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)] if local else []), bounds],
        exception_handlers=dict.fromkeys((RequestValidationError, UserError, Exception), _explain),
        docs_url=None,
        redoc_url=None,
    )
    _add_predictions(app, service, batches)
    if stream:
        _add_stream(app, service, Streams(service, second))
    asked = {"max_length": limits.max_length, "max_bytes": limits.max_bytes, "timeout": limits.timeout}
    asked |= {"max_new_tokens": limits.max_new_tokens, "max_beams": limits.max_beams}
    about = {"device": str(service.predictor.model.device), "stream": stream, "max_batch_size": most, **asked}
    _add_pages(app, service, {"model": {"model": name, "task": service.predictor.model.task}, "server": about})
    return app


def _add_predictions(app: FastAPI, service: Service, batches: Batcher[Work, list[Generated]]) -> None:
    kind = service.request

    async def answer(asked: GenerateRequest) -> GenerateResponse:
        work = service.work(asked)
        found = await batches.ask(work)
        told = [output.told(("score", *work.config.details)) for output in found]
        return GenerateResponse.model_validate({"outputs": told})

    @app.post("/predict", response_model_exclude_none=True)
    async def predict(asked: kind) -> GenerateResponse:  # type: ignore[valid-type]
        """The outputs of one input, best first."""
        return await answer(asked)

    if kind is FileRequest:

        @app.post("/predict/file", response_model=GenerateResponse, response_model_exclude_none=True)
        async def upload(request: Request) -> Any:
            """The same for a file that is the body of the request; options in the address."""
            options: dict[str, Any] = dict(request.query_params)
            try:
                asked = FileRequest.model_validate({**options, "data": await request.body()})
            except ValidationError as error:
                raise HTTPException(422, _told(error)) from error
            return await answer(asked)


def _add_stream(app: FastAPI, service: Service, streams: Streams) -> None:
    kind = service.request

    @app.post("/stream")
    async def pieces(asked: kind) -> StreamingResponse:  # type: ignore[valid-type]
        """One output in pieces, as lines of JSON."""
        return StreamingResponse(streams.lines(service.stream_work(asked)), media_type="application/x-ndjson")


def _add_pages(app: FastAPI, service: Service, about: dict[str, Any]) -> None:
    @app.get("/health")
    async def health() -> PlainTextResponse:
        """Whether the model is loaded."""
        return PlainTextResponse("ok")

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """The model, and what may be asked of it."""
        return about

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(overview(app.openapi(), service.request.__name__))

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("/docs")
