"""Load test of `lit-seq2seq serve` over loopback: requests a second and latencies, against one call after the other.

    python benchmarks/serve.py --model runs/demo/version_0/model

Starts a server, sends it texts from 1, 8 and 64 clients at once, each for `--seconds` or `--requests` at most, and
stops it. The last row calls the model itself, one text after the other, in this process. The last column is the
processor time of the server for a request, in which other programs on the machine do not count (Linux).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lit_seq2seq import LitSeq2Seq, pipeline

TEXTS = ["We need a red car .", "The small dog sleeps .", "She won ninety-nine euros yesterday .", "He reads ."]
CLIENTS = (1, 8, 64)


def load(
    call: Callable[[str], object], clients: int, seconds: float, requests: int, texts: Sequence[str]
) -> list[float]:
    """Call from so many threads; return the seconds of each call, then those of the whole as the last number."""
    taken: list[float] = []
    started, lock, sent = time.perf_counter(), threading.Lock(), iter(range(requests))

    def work() -> None:
        while time.perf_counter() - started < seconds:
            with lock:
                number = next(sent, None)
            if number is None:
                return
            before = time.perf_counter()
            call(texts[number % len(texts)])
            with lock:
                taken.append(time.perf_counter() - before)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [*taken, time.perf_counter() - started]


def processor_time(root: int) -> float:
    """Sum the seconds that a process and all below it have computed."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        number = int(path.parent.name)
        parents[number] = int(fields[1])
        seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def below(number: int) -> bool:
        return number == root or (number in parents and below(parents[number]))

    return sum(value for number, value in seconds.items() if below(number))


def row(name: str, found: list[float], computed: float) -> str:
    """Write the figures of a run."""
    *taken, total = found
    p99 = sorted(taken)[min(len(taken) - 1, int(0.99 * len(taken)))]
    numbers = f"{len(taken)} | {len(taken) / total:.1f} | {1e3 * statistics.median(taken):.0f} | {1e3 * p99:.0f}"
    return f"| {name} | {numbers} | {1e3 * computed / len(taken):.0f} |"


def main() -> None:
    """Run the load test and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--seconds", type=float, default=15.0, help="longest time of each load")
    parser.add_argument("--requests", type=int, default=1000, help="most requests of each load")
    parser.add_argument("--input", help="file with a text a line; a few English sentences if left out")
    parser.add_argument("--serve", nargs="*", default=[], help="further options of lit-seq2seq serve")
    options = parser.parse_args()
    texts = Path(options.input).read_text(encoding="utf-8").splitlines() if options.input else TEXTS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "lit_seq2seq", "serve", "--model", options.model, "--port", str(port)]
    command += ["--stream", "false", *options.serve]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def ask(text: str) -> object:
        body = json.dumps({"text": text}).encode()
        request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    try:
        wait(server, url)
        ask(texts[0])
        print("| clients | requests | requests/s | p50 (ms) | p99 (ms) | processor (ms) |\n|---|---|---|---|---|---|")
        for clients in CLIENTS:
            before = processor_time(server.pid)
            found = load(ask, clients, options.seconds, options.requests, texts)
            print(row(str(clients), found, processor_time(server.pid) - before), flush=True)
    finally:
        server.terminate()
        server.wait(60)
    torch.set_num_threads(1)
    model = pipeline("translation", LitSeq2Seq.from_pretrained(options.model))
    model(texts[0])
    before = time.process_time()
    found = load(model, 1, options.seconds, options.requests, texts)
    print(row("one by one, in process", found, time.process_time() - before))


def wait(server: "subprocess.Popen[bytes]", url: str, seconds: float = 240.0) -> None:
    """Wait until the server is ready."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
