"""What bounds a connection before a request is read: time for its headers and body, and the size of the body."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEADER_SECONDS = 10.0
CLOSE_SECONDS = 10.0


class Http(H11Protocol):
    """HTTP whose connections are closed unless the headers of a request come in `HEADER_SECONDS`."""

    _upgraded = False

    def connection_made(self, transport: Any) -> None:
        """Expect the headers of the first request."""
        super().connection_made(transport)
        self._expect_headers()

    def on_response_complete(self) -> None:
        """Expect those of the next one."""
        self._expect_headers()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Leave the connection to the session that has begun."""
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    def _expect_headers(self) -> None:
        answered = self.cycle

        def close() -> None:
            if self.cycle is answered and not self._upgraded:  # no new request has begun
                self.transport.close()

        self.loop.call_later(HEADER_SECONDS, close)


class WebSockets(WebSocketsSansIOProtocol):
    """WebSockets whose connections are gone `CLOSE_SECONDS` after their session, whether or not its end is read."""

    async def run_asgi(self) -> None:
        """Serve a session."""
        await super().run_asgi()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)


class Bounds:
    """Refuses a body that is too large, or that takes too long to arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        until, size, complete = asyncio.get_running_loop().time() + self.seconds, 0, False

        async def bounded() -> Message:
            nonlocal size, complete
            if complete:  # what comes now is that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - asyncio.get_running_loop().time())
            except TimeoutError as error:
                raise HTTPException(408, f"the request took more than {self.seconds:g} seconds to arrive") from error
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise HTTPException(413, f"the request must have at most {self.max_bytes} bytes")
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, bounded if scope["type"] == "http" else receive, send)
