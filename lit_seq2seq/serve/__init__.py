"""A trained model as a web service: `lit-seq2seq serve`."""

from __future__ import annotations

import math
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from lit_seq2seq.files.paths import Loading
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.inference.predictor import Predictor, check_dtype
from lit_seq2seq.settings.options import add_running, loading_of
from lit_seq2seq.types import UserError, install

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lit_seq2seq.serve.schema import RequestLimits


def make_app(
    model: str | Sequence[str],
    limits: RequestLimits,
    *,
    max_batch_size: int = 32,
    batch_timeout: float = 0.01,
    stream: bool = True,
    device: str = "cpu",
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
    local: bool = True,
    **loading: Unpack[Loading],
) -> FastAPI:
    """Make the web application: `POST /predict`, `/predict/file` and `/stream`, `GET /health`, `/info`, `/docs`.

    The arguments are the options of `lit-seq2seq serve`, of which `limits` holds several. If `local`, only
    requests are answered that are addressed to this machine, not those of web pages that pretend to be it.

    Raises:
        UserError: packages are missing, there is no such model, or the device cannot compute in `dtype`.
    """
    _check_packages()
    from lit_seq2seq.serve import api
    from lit_seq2seq.serve.service import Service

    check_dtype(dtype, device.split(":")[0])
    torch.set_num_threads(threads)
    service = Service(Predictor(load_model(model, **loading), device, dtype), limits)
    models = [model] if isinstance(model, str) else model
    name = ", ".join(Path(one).resolve().name if Path(one).exists() else one for one in models)
    return api.make_app(service, name, max_batch_size, batch_timeout, stream=stream, threads=threads, local=local)


def _check_packages() -> None:
    if missing := [name for name in ("fastapi", "uvicorn", "websockets") if find_spec(name) is None]:
        raise UserError(f"serving needs {', '.join(missing)}: {install('serve')}")


def _stop(signum: int, frame: FrameType | None) -> None:
    """End quietly; while the server runs, it answers what has been begun and then comes here."""
    raise SystemExit(0)


@contextmanager
def _stopping() -> Iterator[None]:
    """End quietly on SIGTERM and Ctrl-C; afterwards the process listens as before."""
    before = {signum: signal.signal(signum, _stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def command(parser: ArgumentParser, arguments: list[str]) -> None:
    """Answer requests over HTTP until interrupted: `lit-seq2seq serve`."""
    add_running(parser)
    parser.add_argument("--port", type=int, default=8000, help="from 1024 on")
    parser.add_argument(
        "--host", type=Literal["127.0.0.1", "0.0.0.0"], default="127.0.0.1", help="0.0.0.0: reachable from elsewhere"
    )
    parser.add_argument("--threads", type=PositiveInt, default=1, help="number of torch's threads")
    parser.add_argument("--max_batch_size", type=PositiveInt, default=32, help="most requests computed together")
    parser.add_argument(
        "--batch_timeout", type=NonNegativeFloat, default=0.01, help="seconds that a request waits for others"
    )
    parser.add_argument("--stream", type=bool, default=True, help="offer /stream")
    parser.add_argument("--max_length", type=PositiveInt, default=2000, help="most characters (or frames) of an input")
    parser.add_argument("--max_bytes", type=PositiveInt, default=10_000_000, help="largest request")
    parser.add_argument("--max_new_tokens", type=PositiveInt, default=256, help="longest output, in symbols")
    parser.add_argument("--max_beams", type=PositiveInt, default=10, help="most beams or outputs")
    parser.add_argument("--max_sessions", type=PositiveInt, default=64, help="most live streams at a time")
    parser.add_argument(
        "--timeout", type=PositiveFloat, default=30.0, help="seconds that a request waits, or a stream lasts"
    )
    options = parser.parse_args(arguments)
    _check_packages()
    if not 1024 <= options.port <= 65535:
        raise UserError(f"port={options.port}: must be from 1024 to 65535")
    from lit_seq2seq.serve.schema import RequestLimits

    asked = ("max_length", "max_bytes", "max_new_tokens", "max_beams", "max_sessions", "timeout")
    limits = RequestLimits(**{name: options[name] for name in asked})
    names = ("max_batch_size", "batch_timeout", "stream", "device", "threads")
    own = {name: options[name] for name in names}
    with _stopping(), _listener(options.host, options.port) as listener:
        local = options.host == "127.0.0.1"
        dtype = getattr(torch, options.dtype)
        app = make_app(options.model, limits, dtype=dtype, local=local, **own, **loading_of(options))
        print(f"serving {', '.join(options.model)} on http://{options.host}:{options.port} (see /docs)", flush=True)
        _run(app, listener, options.timeout, options.max_bytes)


def _listener(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(f"the server cannot use port {port}: choose another --port ({error.strerror})") from error
    return listener


def _run(app: FastAPI, listener: socket.socket, timeout: float, max_bytes: int) -> None:
    import uvicorn

    from lit_seq2seq.serve.http import Http, WebSockets

    config = uvicorn.Config(
        app,
        http=Http,
        ws=WebSockets,
        ws_max_size=max_bytes,
        ws_max_queue=8,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(timeout),
    )
    uvicorn.Server(config).run([listener])
