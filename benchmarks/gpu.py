"""GNMT size on one GPU, in one command: `python -m benchmarks.gpu`.

Training rate by batch size, its share of the GPU's peak, the share of the recurrent kernels, and decoding. A step can
be replayed as a CUDA graph, since batches here have one shape. `--device cpu --tiny` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import profile

from benchmarks.arena import WORK
from benchmarks.corpus import SPECIALS
from benchmarks.models import SIZES, make_model
from lit_seq2seq.nn import EncoderDecoder
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import search
from lit_seq2seq.training import CrossEntropy
from lit_seq2seq.types import Padded

LENGTH = 25
"""Symbols of each side of a sentence pair."""
RECURRENT = ("rnn", "lstm", "persist", "gemv_lstm")
"""Parts of the names of recurrent kernels."""


def flops(network: EncoderDecoder) -> int:
    """Count the floating-point operations of a training step per pair of source and target symbol, attention aside."""
    looked_up = {id(module) for module in network.modules() if isinstance(module, nn.Embedding)}
    dense = [p for m in network.modules() if id(m) not in looked_up for p in m.parameters(recurse=False) if p.dim() > 1]
    return 6 * sum(parameter.numel() for parameter in dense)


def seconds(work: Callable[[], object], times: int) -> float:
    """Time `work` on the device, after a warm-up."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(min(3, times)):
        work()
    synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return (time.perf_counter() - begin) / times


def autocast(device: str) -> torch.autocast:
    """Compute in bf16, but for a CPU on trial that lacks it."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=computes_in(torch.bfloat16, device))


class Training:
    """Training steps of GNMT size, in bf16.

    Args:
        device: `cuda` or `cpu`.
        vocabulary: number of source and of target symbols.
    """

    def __init__(self, device: str, vocabulary: int) -> None:
        self.device, self.vocabulary = device, vocabulary
        self.network = make_model("gnmt").model.make_network(vocabulary, vocabulary).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), fused=True, capturable=device == "cuda")

    def pairs(self, batch: int) -> tuple[Padded, Padded]:
        """Draw sentence pairs without padding."""
        ids = torch.randint(len(SPECIALS), self.vocabulary, (2, batch, LENGTH), device=self.device)
        lengths = torch.full((batch,), LENGTH)
        return Padded(ids[0], lengths), Padded(ids[1], lengths.to(self.device))

    def step(self, source: Padded, target: Padded) -> None:
        """Take an optimizer step."""
        with autocast(self.device):
            loss = CrossEntropy().of(self.network, source, target).total
        self.optimizer.zero_grad()
        (loss / (target.values.numel())).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()

    def rate(self, batch: int, times: int) -> float:
        """Pairs of source and target symbols per second."""
        pairs = self.pairs(batch)
        return batch * LENGTH / seconds(lambda: self.step(*pairs), times)

    def captured_rate(self, batch: int, times: int) -> float:
        """Do the same with the step replayed as a CUDA graph (`torch.cuda.graph`)."""
        pairs = self.pairs(batch)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(*pairs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(*pairs)
        return batch * LENGTH / seconds(graph.replay, times)

    def recurrent_share(self, batch: int) -> float:
        """Share of the time of all kernels that the recurrent ones take; prints the longest."""
        pairs = self.pairs(batch)
        with profile() as found:
            self.step(*pairs)
        kind = "self_device_time_total" if self.device == "cuda" else "self_cpu_time_total"
        table = found.key_averages()
        print(table.table(sort_by=kind, row_limit=15, max_name_column_width=60))
        total = sum(getattr(row, kind) for row in table)
        mine = sum(getattr(row, kind) for row in table if any(part in row.key.lower() for part in RECURRENT))
        return float(mine / total)

    def decoding_rate(self, batch: int, beams: int, times: int) -> float:
        """Target symbols per second of decoding to `LENGTH`."""
        source, _ = self.pairs(batch)
        config = replace(
            make_model("gnmt").model.generation, max_new_tokens=LENGTH, min_new_tokens=LENGTH, num_beams=beams
        )
        options: dict[str, Any] = {"specials": self.network.specials, "config": config, "device": self.device}

        def decode() -> None:
            with torch.inference_mode(), autocast(self.device):
                state = self.network.start(self.network.encode(source))
                search(self.network.step, state, batch_size=batch, **options)

        self.network.eval()
        return batch * LENGTH / seconds(decode, times)


def main() -> None:
    """Measure, print, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--times", type=int, default=10, help="steps that are timed")
    parser.add_argument("--peak_tflops", type=float, default=989, help="dense bf16 peak of the GPU")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--output", type=Path, default=WORK / "gpu.json")
    arguments = parser.parse_args()
    if arguments.tiny:
        SIZES["gnmt"] |= {"embedding_dim": 16, "hidden_size": 16}
        arguments.batches, arguments.vocabulary, arguments.times = [2, 4], 50, 1
    device, times, largest = arguments.device, arguments.times, max(arguments.batches)
    training, rows = Training(device, arguments.vocabulary), []
    peak, per_pair = arguments.peak_tflops * 1e12, flops(training.network)
    ways = [("training", training.rate)] + ([("training, graph", training.captured_rate)] if device == "cuda" else [])
    for name, way in ways:
        for batch in arguments.batches:
            with suppress(torch.OutOfMemoryError):
                rate = way(batch, times)
                rows.append(
                    {"what": name, "batch": batch, "tokens_per_second": 2 * rate, "mfu": rate * per_pair / peak}
                )
    rows.append({"what": "share of recurrent kernels", "batch": largest, "share": training.recurrent_share(largest)})
    for beams in (1, 5):
        rate = training.decoding_rate(largest, beams, max(1, times // 3))
        rows.append({"what": f"decoding, beams {beams}", "batch": largest, "tokens_per_second": rate})
    name = torch.cuda.get_device_name() if device == "cuda" else device
    for row in rows:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps([{"device": name, **row} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
