"""Streams over WebSockets: pieces of an input in, text out as it is written; many sessions are computed together."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from fastapi import HTTPException
from pydantic import Field, ValidationError
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from lit_seq2seq.inference.live import LiveStreams, Stream
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.serve.batches import Batcher
from lit_seq2seq.serve.schema import GenerateRequest, mistakes
from lit_seq2seq.serve.service import Service
from lit_seq2seq.types import UserError

_log = logging.getLogger(__name__)
LOCAL = ["127.0.0.1", "localhost"]
"""Names by which a server that listens to this machine alone is called; others are web pages that pretend to be it."""
PIECES = ("text", "audio", "frames")
"""Kinds of input that have pieces."""
_KEPT = 16  # sets of options that are kept ready
CLOSED = {"done": 1000, "refused": 1008, "failed": 1011, "full": 1013}
"""What a connection is closed with (RFC 6455, section 7.4.1)."""


class LiveRequest(GenerateRequest):
    """What a session asks for, in the address."""

    sampling_rate: int | None = Field(None, description="of samples, in hertz", ge=1, le=1_000_000)
    agreement: int = Field(2, description="how many outputs have to agree, of models that need the whole", ge=2, le=10)


class Piece(NamedTuple):
    """A piece of the input of a session; `None` ends it."""

    stream: Stream
    streams: LiveStreams
    raw: Any


class Sessions:
    """Inputs that come in pieces, side by side.

    Args:
        service: the model and its limits.
        thread: where it computes.
        most: greatest number of sessions.
        wait: seconds that a piece waits for others.
    """

    def __init__(self, service: Service, thread: Executor, most: int, wait: float) -> None:
        self.service, self.most, self.open = service, most, 0
        self.batches: Batcher[Piece, str] = Batcher(
            self.compute, thread, most=most, wait=wait, timeout=service.limits.timeout
        )
        self._known: list[tuple[tuple[GenerationConfig, int], LiveStreams]] = []

    def streams(self, asked: LiveRequest) -> LiveStreams:
        """Return what computes sessions with these options.

        Raises:
            UserError: the options do not fit together, go beyond the limits, or the model has no such streams.
        """
        wanted = self.service.config(asked), asked.agreement
        found = next((streams for key, streams in self._known if key == wanted), None)
        if found is None:
            found = LiveStreams(self.service.predictor, *wanted, longest=self.service.limits.max_length)
            self._known = [*self._known[1 - _KEPT :], (wanted, found)]
        return found

    def compute(self, pieces: list[Piece]) -> list[str | Exception]:
        """Read one piece of each session; return what is new of their texts. What cannot be read fails alone."""
        results: list[str | Exception] = [""] * len(pieces)
        for place, one in enumerate(pieces):
            try:
                one.stream.finish() if one.raw is None else one.stream.feed(one.raw)
            except UserError as error:
                results[place] = error
        for streams in {id(one.streams): one.streams for one in pieces}.values():
            streams.compute([one.stream for one in pieces if one.streams is streams])
        return [found or one.stream.error or one.stream.read() for one, found in zip(pieces, results, strict=True)]

    async def serve(self, socket: WebSocket) -> None:
        """Serve one session until its input ends, or the client goes."""
        await socket.accept()
        if self.open >= self.most:
            await self._close(socket, "full", f"there are {self.most} sessions, as many as allowed: try again later")
            return
        self.open += 1
        try:
            await self._answer(socket)
        except WebSocketDisconnect:
            pass
        except ValidationError as error:
            await self._close(socket, "refused", mistakes(error))
        except (UserError, HTTPException) as error:
            await self._close(socket, "refused", str(getattr(error, "detail", error)))
        except TimeoutError:
            seconds = self.service.limits.timeout
            await self._close(socket, "refused", f"nothing came, or nothing was taken, for {seconds:g} seconds")
        except Exception:
            _log.exception("a session failed")
            await self._close(socket, "failed", "the server failed: its log says why")
        finally:
            self.open -= 1

    async def _answer(self, socket: WebSocket) -> None:
        asked, seconds = LiveRequest.model_validate(dict(socket.query_params)), self.service.limits.timeout
        streams = self.streams(asked)
        stream = streams.open(asked.sampling_rate)
        while True:
            message = await asyncio.wait_for(socket.receive(), seconds)
            if message["type"] == "websocket.disconnect":
                return
            raw = self._raw(message)
            text = await self.batches.ask(Piece(stream, streams, raw))
            if raw is None:
                await asyncio.wait_for(socket.send_json({"text": text, "done": True}), seconds)
                await socket.close(CLOSED["done"])
                return
            if text:
                await asyncio.wait_for(socket.send_json({"text": text}), seconds)

    def _raw(self, message: Any) -> Any:
        """Read one message: samples as bytes, or JSON with text, frames or the end."""
        medium, some = self.service.predictor.model.processor.source_feature.medium, message.get("bytes")
        if some is not None:
            if medium != "audio" or len(some) % 2:
                kind = "samples of 16 bits" if medium == "audio" else f'JSON with "{medium}"'
                raise UserError(f"expected {kind}, but got {len(some)} bytes")
            return np.frombuffer(some, "<i2")
        try:
            told = json.loads(message["text"])
        except ValueError as error:
            raise UserError(f"expected JSON, but it cannot be read: {error}") from error
        if told == {"end": True}:
            return None
        kinds: dict[Any, type] = {"text": str, "frames": list}
        if (
            not isinstance(told, dict)
            or set(told) != {medium}
            or not isinstance(told[medium], kinds.get(medium, bytes))
        ):
            kind = "samples as bytes" if medium == "audio" else f'{{"{medium}": ...}}'
            raise UserError(f'expected {kind} or {{"end": true}}, but got {message["text"]:.60}')
        return told[medium]

    async def _close(self, socket: WebSocket, why: str, message: Any) -> None:
        with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            if socket.client_state == WebSocketState.CONNECTED:
                await asyncio.wait_for(socket.send_json({"error": message}), 1)
                await socket.close(CLOSED[why])


def live_route(sessions: Sessions, local: list[str]) -> WebSocketRoute:
    """Return the route of streams; of web pages only those of the names in `local` may use it, if there are any."""

    async def live(socket: WebSocket) -> None:
        origin = socket.headers.get("origin")
        if local and origin is not None and urlsplit(origin).hostname not in local:
            await socket.close(CLOSED["refused"])
            return
        await sessions.serve(socket)

    return WebSocketRoute("/live", live)
