"""The routes of the server: whole outputs in batches, one output in pieces, and what says what there is."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse

from lit_seq2seq.serve.batches import Batcher, BusyError
from lit_seq2seq.serve.http import Bounds
from lit_seq2seq.serve.live import LOCAL, PIECES, Sessions, live_route
from lit_seq2seq.serve.overview import overview
from lit_seq2seq.serve.schema import FileRequest, GenerateRequest, GenerateResponse, mistakes
from lit_seq2seq.serve.service import Service, Work
from lit_seq2seq.types import Generated, UserError


class TokenStreams:
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


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """Answer what does not get through: by the request, the model's limits, or a mistake of ours."""
    if isinstance(error, RequestValidationError):
        return JSONResponse({"detail": mistakes(error)}, 422)
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
    sessions = Sessions(service, second, limits.max_sessions, wait)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with batches.running(), sessions.batches.running():
            yield

    bounds = Middleware(Bounds, max_bytes=limits.max_bytes, seconds=limits.timeout)
    app = FastAPI(
        title=f"lit_seq2seq: {service.predictor.model.task}",
        lifespan=running,
        middleware=[*([Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)] if local else []), bounds],
        exception_handlers=dict.fromkeys((RequestValidationError, UserError, Exception), _explain),
        docs_url=None,
        redoc_url=None,
    )
    _add_predictions(app, service, batches)
    if stream:
        _add_stream(app, service, TokenStreams(service, second))
        if service.predictor.model.processor.source_feature.medium in PIECES:
            app.router.routes.append(live_route(sessions, LOCAL if local else []))
    asked = {"max_length": limits.max_length, "max_bytes": limits.max_bytes, "timeout": limits.timeout}
    asked |= {name: getattr(limits, name) for name in ("max_new_tokens", "max_beams", "max_sessions")}
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
                raise HTTPException(422, mistakes(error)) from error
            return await answer(asked)


def _add_stream(app: FastAPI, service: Service, streams: TokenStreams) -> None:
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
