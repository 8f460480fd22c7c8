"""A trained model as a web service on LitServe: `lit-seq2seq serve`."""

from __future__ import annotations

import os
import signal
from functools import partial
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from jsonargparse import ArgumentParser

from lit_seq2seq.hub import Loading, add_loading, loading_of
from lit_seq2seq.pipelines import load_model
from lit_seq2seq.predictor import Dtype, check_dtype
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    import litserve

    from lit_seq2seq.serve.schema import Limits


def make_server(
    model: str,
    limits: Limits,
    max_batch_size: int = 32,
    batch_timeout: float = 0.01,
    stream: bool = True,
    device: str = "cpu",
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
    **loading: Unpack[Loading],
) -> litserve.LitServer:
    """Make the server: `POST /predict`, `/predict/file` and `/stream`, `GET /health`, `/info`, `/docs`.

    Args:
        model: folder or hub id.
        limits: what requests may ask for.
        max_batch_size: greatest number of requests that go through the network together.
        batch_timeout: seconds that the first request of a batch waits for others.
        stream: whether there is `/stream`, which has a process and a copy of the model of its own.
        device: `cpu`, `cuda` or `mps`.
        threads: number of torch's threads in each process.
        dtype: what to compute in; see `Predictor`.
        **loading: see `LitSeq2Seq.from_pretrained`.

    Raises:
        UserError: packages are missing, there is no such model, or the device cannot compute in `dtype`.
    """
    if find_spec("litserve") is None:
        raise UserError("serving needs litserve: pip install 'lit_seq2seq[serve]'")
    import litserve
    from fastapi.exceptions import RequestValidationError

    from lit_seq2seq.serve.api import GenerateApi, StreamApi, explain
    from lit_seq2seq.serve.schema import request_of
    from lit_seq2seq.serve.upload import add_upload

    check_dtype(dtype, device)
    loaded = load_model(model, **loading)
    request = request_of(loaded.processor.source_feature)
    shared = (model, loading, loaded.generation, request, limits, threads, dtype)
    batched = GenerateApi(*shared, api_path="/predict", max_batch_size=max_batch_size, batch_timeout=batch_timeout)
    apis = [batched, StreamApi(*shared, api_path="/stream", stream=True)] if stream else [batched]
    server = litserve.LitServer(
        apis,
        accelerator=device,
        timeout=limits.timeout,
        max_payload_size=limits.max_bytes,
        model_metadata={"model": model, "task": loaded.task},
    )
    server.app.title = f"lit_seq2seq: {loaded.task}"
    server.app.add_exception_handler(RequestValidationError, explain)
    add_upload(server, batched)
    return server


def _stop(main: int, signum: int, frame: FrameType | None) -> None:
    """Shut down as on an interrupt, so that what has been begun is answered; processes forked from `main` just end."""
    raise KeyboardInterrupt if os.getpid() == main else SystemExit(0)


def command(parser: ArgumentParser, arguments: list[str]) -> None:
    """Answer requests over HTTP until interrupted: `lit-seq2seq serve`."""
    parser.add_argument("--model", type=str, required=True, help="model folder or hub id")
    parser.add_argument("--port", type=int, default=8000, help="from 1024 on")
    parser.add_argument(
        "--host", type=Literal["127.0.0.1", "0.0.0.0"], default="127.0.0.1", help="0.0.0.0: reachable from elsewhere"
    )
    add_loading(parser)
    parser.add_argument("--device", type=Literal["cpu", "cuda", "mps"], default="cpu", help="where to run")
    parser.add_argument("--dtype", type=Dtype, default="float32", help="what to compute in; int8: on CPUs")
    parser.add_argument("--threads", type=int, default=1, help="number of torch's threads in each process")
    parser.add_argument("--max_batch_size", type=int, default=32, help="most requests computed together")
    parser.add_argument("--batch_timeout", type=float, default=0.01, help="seconds that a request waits for others")
    parser.add_argument("--stream", type=bool, default=True, help="offer /stream, in a process of its own")
    parser.add_argument("--max_length", type=int, default=2000, help="most characters (or frames) of an input")
    parser.add_argument("--max_bytes", type=int, default=10_000_000, help="largest request")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="longest output, in symbols")
    parser.add_argument("--max_beams", type=int, default=10, help="most beams or outputs")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that a request waits, or a stream lasts")
    options = parser.parse_args(arguments)
    if find_spec("litserve") is None:
        raise UserError("serving needs litserve: pip install 'lit_seq2seq[serve]'")
    if not 1024 <= options.port <= 65535:
        raise UserError(f"port={options.port}: must be from 1024 to 65535")
    from lit_seq2seq.serve.schema import Limits

    limits = Limits(options.max_length, options.max_bytes, options.max_new_tokens, options.max_beams, options.timeout)
    names = ("max_batch_size", "batch_timeout", "stream", "device", "threads")
    own = {name: options[name] for name in names}
    server = make_server(options.model, limits, dtype=getattr(torch, options.dtype), **own, **loading_of(options))
    signal.signal(signal.SIGTERM, partial(_stop, os.getpid()))
    print(f"serving {options.model} on http://{options.host}:{options.port} (see /docs)", flush=True)
    server.run(
        host=options.host,
        port=options.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        pretty_logs=False,
    )
