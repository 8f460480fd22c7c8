"""Requests that wait together go through the network together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lit_seq2seq.types import UserError

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class BusyError(UserError):
    """A request has waited too long for its turn."""


@dataclass
class _Waiting(Generic[Asked, Answer]):
    asked: Asked
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher(Generic[Asked, Answer]):
    """A queue whose head is computed in batches, in a thread.

    Args:
        compute: answers a batch, each with a result or an error.
        thread: where it runs.
        most: greatest number of requests in a batch.
        wait: seconds that the first request of a batch waits for others.
        timeout: seconds that a request waits for its turn.
    """

    def __init__(
        self,
        compute: Callable[[list[Asked]], list[Answer | Exception]],
        thread: Executor,
        *,
        most: int,
        wait: float,
        timeout: float,
    ) -> None:
        self.compute, self.thread = compute, thread
        self.most, self.wait, self.timeout = most, wait, timeout
        self.queue: asyncio.Queue[_Waiting[Asked, Answer]] = asyncio.Queue()

    async def ask(self, asked: Asked) -> Answer:
        """Wait for the answer to a request.

        Raises:
            BusyError: its turn does not come in time.
            Exception: whatever `compute` returned for it.
        """
        waiting: _Waiting[Asked, Answer] = _Waiting(asked)
        self.queue.put_nowait(waiting)
        try:
            await asyncio.wait_for(waiting.turn, self.timeout)
        except TimeoutError as error:
            raise BusyError(f"the request waited {self.timeout:g} seconds for its turn: try again later") from error
        return await waiting.answer

    async def run(self) -> None:
        """Compute batch after batch until cancelled."""
        while True:
            batch = await self._gather()
            for one in batch:
                one.turn.set_result(None)
            asked, loop = [one.asked for one in batch], asyncio.get_running_loop()
            try:
                answers = await loop.run_in_executor(self.thread, self.compute, asked)
            except Exception as error:  # the queue goes on
                answers = [error] * len(batch)
            for one, found in zip(batch, answers, strict=True):
                if isinstance(found, Exception):
                    one.answer.set_exception(found)
                else:
                    one.answer.set_result(found)

    @asynccontextmanager
    async def running(self, *_: object) -> AsyncIterator[None]:
        """Compute in the background."""
        task = asyncio.create_task(self.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def _gather(self) -> list[_Waiting[Asked, Answer]]:
        batch = [await self.queue.get()]
        until = asyncio.get_running_loop().time() + self.wait
        while len(batch) < self.most:
            try:
                left = max(until - asyncio.get_running_loop().time(), 0)
                more = asyncio.wait_for(self.queue.get(), left) if self.queue.empty() else self.queue.get()
                batch.append(await more)
            except TimeoutError:
                break
        return [one for one in batch if not one.turn.done()]  # others have given up
