"""Load test of live streams: sessions that are held in real time on a core, lag of pieces, real-time factors.

    python benchmarks/live.py [--seconds 20] [--sessions 8 32 64]

The models are untrained, with the sizes of `recipes/speech/fsdd_transducer.yaml` and
`recipes/translation/multi30k_wait_k.yaml`. Sound comes in pieces of 100 ms, text a word every 200 ms. Streams in this
process are computed as `LiveStreams` does; sessions talk to a `lit-seq2seq serve` of one thread over the WebSocket. The
lag of a piece is the time from when it is due until it has been computed, that of a session from the latest piece until
its answer, and at the end until all has been read. They are held while its 95th percentile is less than a piece lasts.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_seq2seq.features import LogMel, Processor, Tokenizer
from lit_seq2seq.inference.live import LiveStreams
from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import InputFeedingDecoder, PyramidalEncoder, TextEncoder, TransducerDecoder, ZeroBridge
from lit_seq2seq.search import GenerationConfig, WaitK

RATE, BLANK = 8000, 3.0
WORDS = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiou" for third in "bdfgklmnprst"]


def speech() -> Seq2SeqModel:
    """Make a transducer of the sizes of the recipe, which writes a few words a second."""
    feature = LogMel(sampling_rate=RATE, n_mels=40, hop=0.0125, normalize="running", stack=2)
    feature.statistics = [-8.0] * 40, [3.0] * 40
    target = Tokenizer("word")
    target.train(WORDS[:10])
    encoder = partial(PyramidalEncoder, hidden_size=256, factors=[1, 2], bidirectional=False)
    decoder = partial(TransducerDecoder, embedding_dim=32, hidden_size=128)
    model = Seq2SeqModel(encoder, decoder, task="automatic-speech-recognition")
    model.attach(Processor(feature, target))
    model.net.get_parameter("decoder.symbols.bias").data[target.specials.eos] += BLANK
    return model


def translation(count: int) -> Seq2SeqModel:
    """Make a wait-k model of the sizes of the recipe, which writes so many words."""
    words = Tokenizer("word")
    words.train(WORDS)
    sizes: dict[str, Any] = {"embedding_dim": 256, "hidden_size": 512}
    decoder = partial(InputFeedingDecoder, **sizes, bridge=ZeroBridge, combine="deep")
    config = GenerationConfig(max_new_tokens=count, min_new_tokens=count, policy=WaitK(4))
    model = Seq2SeqModel(partial(TextEncoder, **sizes, bidirectional=False), decoder, generation=config)
    model.attach(Processor(words, words))
    model.net.get_parameter("decoder.embedding.weight").data.mul_(1.5)
    return model


def sound(seconds: float, number: int) -> Any:
    """Return the samples of a piece."""
    return np.random.default_rng(number).normal(scale=3000, size=round(seconds * RATE)).astype("<i2")


def text(seconds: float, number: int) -> Any:
    """Return the words of a piece."""
    return "".join(f"{WORDS[(7 * number + place) % len(WORDS)]} " for place in range(round(seconds * 5)))


Pieces = Callable[[float, int], Any]


def factor(streams: LiveStreams, pieces: Pieces, piece: float, seconds: float, *, count: int, together: bool) -> float:
    """Measure the processor time of a stream as a share of the time that its input lasts."""
    opened = [streams.open() for _ in range(count)]
    started = time.process_time()
    for number in range(round(seconds / piece)):
        for place, stream in enumerate(opened):
            stream.feed(pieces(piece, number + place))
        for some in [opened] if together else [[stream] for stream in opened]:
            streams.compute(some)
    return (time.process_time() - started) / seconds / count


def in_process(streams: LiveStreams, pieces: Pieces, piece: float, seconds: float, count: int) -> list[float]:
    """Feed streams in real time; return the lags of their pieces in milliseconds."""
    opened, lags, begun = [streams.open() for _ in range(count)], [], time.monotonic()
    due = [
        (begun + (number + place / count) * piece, place)
        for number in range(round(seconds / piece))
        for place in range(count)
    ]
    while due:
        now = time.monotonic()
        come = [one for one in due if one[0] <= now]
        if not come:
            time.sleep(due[0][0] - now)
            continue
        for _, place in come:
            opened[place].feed(pieces(piece, place))
        streams.compute([opened[place] for _, place in come])
        lags += [1e3 * (time.monotonic() - at) for at, _ in come]
        due = due[len(come) :]
    return lags


async def _session(url: str, pieces: Pieces, piece: float, seconds: float, begin: float) -> list[float]:
    from websockets.asyncio.client import connect

    due, lags = [begin + number * piece for number in range(round(seconds / piece))], list[float]()
    async with connect(url, open_timeout=60) as session:

        async def listen() -> None:
            async for message in session:
                told, now = json.loads(message), time.monotonic()
                if "error" in told:
                    raise SystemExit(told["error"])
                lags.append(1e3 * (now - max(at for at in [begin, *due] if at <= now)))

        listening = asyncio.create_task(listen())
        for number, at in enumerate(due):
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            raw = pieces(piece, number)
            await session.send(json.dumps({"text": raw}) if isinstance(raw, str) else raw.tobytes())
        await session.send(json.dumps({"end": True}))
        await listening
        lags.append(1e3 * (time.monotonic() - due[-1]))  # all that has queued up
    return lags


def over_sockets(port: int, pieces: Pieces, piece: float, seconds: float, count: int) -> list[float]:
    """Do what `in_process` does, with sessions of a server."""

    async def run() -> list[float]:
        begin, url = time.monotonic() + 1, f"ws://127.0.0.1:{port}/live"
        sessions = [_session(url, pieces, piece, seconds, begin + place / count * piece) for place in range(count)]
        return [lag for lags in await asyncio.gather(*sessions) for lag in lags]

    return asyncio.run(run())


def row(name: str, route: str, count: int, lags: list[float], piece: float) -> str:
    """Write the figures of a load."""
    p95 = statistics.quantiles(lags, n=20)[-1]
    held = "yes" if p95 < 1e3 * piece else "no"
    return f"| {name} | {route} | {count} | {statistics.median(lags):.1f} | {p95:.1f} | {held} |"


def main() -> None:
    """Run the load test and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each load")
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 8, 32, 64], help="numbers of sessions")
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kinds: list[tuple[str, Seq2SeqModel, Pieces, float]] = [
        ("speech", speech(), sound, 0.1),
        ("wait-k", translation(max(1, round(5 * options.seconds))), text, 0.2),
    ]
    print("| model | piece (ms) | streams | computed | processor time / time |\n|---|---|---|---|---|")
    for name, model, pieces, usual in kinds:
        streams = LiveStreams(Predictor(model))
        runs = [(piece, 1, True) for piece in ((0.02, 0.1, 0.5) if name == "speech" else (0.2, 1.0))]
        for piece, count, together in [*runs, (usual, 32, True), (usual, 32, False)]:
            found = factor(
                streams, pieces, piece, options.seconds / (1 if count == 1 else 2), count=count, together=together
            )
            way = "together" if together else "one by one"
            print(f"| {name} | {1e3 * piece:.0f} | {count} | {way} | {found:.4f} |", flush=True)
    print("\n| model | route | sessions | lag p50 (ms) | lag p95 (ms) | held |\n|---|---|---|---|---|---|")
    for name, model, pieces, usual in kinds:
        streams = LiveStreams(Predictor(model))
        for count in options.sessions:
            lags = in_process(streams, pieces, usual, options.seconds, count)
            print(row(name, "Python", count, lags, usual), flush=True)
        with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
            model.save_pretrained(Path(folder) / "model")
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            command = [sys.executable, "-m", "lit_seq2seq", "serve", "--model", f"{folder}/model", "--port", str(port)]
            command += ["--max_sessions", str(max(options.sessions)), "--max_new_tokens", "100000"]
            command += ["--max_length", "1000000"]
            server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            try:
                wait(server, port)
                for count in options.sessions:
                    lags = over_sockets(port, pieces, usual, options.seconds, count)
                    print(row(name, "WebSocket", count, lags, usual), flush=True)
            finally:
                server.terminate()
                server.wait(60)


def wait(server: "subprocess.Popen[bytes]", port: int, seconds: float = 240.0) -> None:
    """Wait until the server listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
