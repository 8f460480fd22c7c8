"""How exact, how large and how fast exported variants are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lit_seq2seq.features import Processor
from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.nn import EncoderDecoder
from lit_seq2seq.runtime.network import PARTS, Named, Network
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import CopySource, Padded, Sources

LENGTH, STEPS, BATCH = 12, 20, 32


@dataclass(frozen=True)
class Measured:
    """The figures of a variant.

    Attributes:
        name: of the variant; `eager` for the model that was exported.
        megabytes: size of its files, or of the model's weights.
        error: greatest difference of a log-probability from eager, over random sources and targets.
        same: share of random sources with the output of eager.
        latency: milliseconds for one source.
        throughput: sources per second in a batch.
    """

    name: str
    megabytes: float
    error: float
    same: float
    latency: float
    throughput: float


def random_source(processor: Processor, count: int, length: int, seed: int = 0) -> Padded | Sources:
    """Draw sources as `Feature.random` does, with what can be copied from them."""
    generator = np.random.default_rng(seed)
    source = processor.source_feature.random(count, length, generator).to("cpu")
    if not processor.copy:
        return source
    assert isinstance(source, Padded)
    own = ("one", "two")
    names = torch.from_numpy(generator.integers(processor.target.size + len(own), size=(count, length)))
    names[0, 0] = processor.target.size + len(own) - 1  # no source has symbols that do not occur
    return CopySource(source.values, source.lengths, names, (own,) * count)


Run = Callable[["Padded | Sources"], object]


def named(source: Padded | Sources) -> Named:
    """Return a source as the runtime takes it."""
    return {name: tensor.numpy() for name, tensor in source.named().items()}


@torch.no_grad()
def greatest_error(network: EncoderDecoder, exported: Network, source: Padded | Sources, steps: int = STEPS) -> float:
    """Compare log-probabilities over `steps` random target tokens, two hypotheses per source."""
    state = network.start(network.encode(source))
    state = state.select(torch.arange(len(source.lengths))[:, None].expand(-1, 2))
    twice = exported.start(named(source)).state.select(np.arange(len(source.lengths))[:, None].repeat(2, axis=1))
    generator, worst = torch.Generator().manual_seed(1), 0.0
    size = network.decoder.embedding.num_embeddings
    tokens = torch.full((len(source.lengths), 2), network.specials.bos)
    for _ in range(steps):
        output, step = network.step(tokens.flatten(), state), exported.step(tokens.flatten().numpy(), twice)
        state, twice = output.state, step.state
        expected = output.log_probs.numpy()
        real = np.isfinite(expected)
        worst = max(worst, float(np.abs(step.log_probs[real] - expected[real]).max()))
        tokens = torch.randint(size, tokens.shape, generator=generator)
    return worst


def _alone(config: GenerationConfig) -> GenerationConfig:
    """Leave out options that need texts or other models: sources here are random numbers."""
    config = replace(config, prefix="", bad_words=(), force_words=(), constraints=(), scorers=(), details=())
    return replace(config, replace_unknown=False, do_sample=False, num_return_sequences=1)


def same_outputs(model: Seq2SeqModel, exported: Network, source: Padded | Sources) -> float:
    """Compare the best outputs under the model's own options: the share that is the same."""
    config = replace(_alone(model.generation), max_new_tokens=STEPS, min_new_tokens=0)
    found = exported.generate(named(source), config)
    pairs = zip(model.generate(source, config), found, strict=True)
    return float(np.mean([one[0].tokens.tolist() == other[0].tokens.tolist() for one, other in pairs]))


def measure(model: Seq2SeqModel, folder: Path, variants: Sequence[str]) -> list[Measured]:
    """Measure the model and its exported variants on as many threads as torch now uses, greedily, 20 tokens each.

    Args:
        model: what was exported.
        folder: where the variants are.
        variants: their names.
    """
    processor = model.processor
    many, one = random_source(processor, BATCH, LENGTH), random_source(processor, 1, LENGTH)
    config = replace(_alone(model.generation).quick(1), ctc_weight=0.0, shortlist=False)
    config = replace(config, max_new_tokens=STEPS, min_new_tokens=STEPS)
    threads = torch.get_num_threads()
    rows: list[tuple[str, float, float, float]] = []
    runs: list[Run] = []
    weights = sum(p.numel() * p.element_size() for p in model.net.parameters())
    rows.append(("eager", weights / 1e6, 0.0, 1.0))
    runs.append(lambda source: model.generate(source, config))
    for name in variants:
        exported = Network(folder, name, threads, model.others())
        size = sum((folder / f"{part}.{name}.onnx").stat().st_size for part in PARTS)
        error, same = greatest_error(model.net, exported, many), same_outputs(model, exported, many)

        def run(source: Padded | Sources, exported: Network = exported) -> object:
            return exported.generate(named(source), config)

        rows.append((name, size / 1e6, error, same))
        runs.append(run)
    latencies, batches = (_seconds(runs, source) for source in (one, many))
    pairs = zip(rows, latencies, batches, strict=True)
    return [Measured(*row, 1e3 * latency, BATCH / batch) for row, latency, batch in pairs]


@torch.inference_mode()
def _seconds(runs: Sequence[Run], source: Padded | Sources) -> list[float]:
    """Time a call of each: the least of several, in turns, as other programs on the machine only add to it."""
    for run in runs:
        run(source)
    found: list[list[float]] = [[] for _ in runs]
    started = time.perf_counter()
    while len(found[0]) < 5 or (time.perf_counter() - started < 0.1 * len(runs) and len(found[0]) < 50):
        for run, taken in zip(runs, found, strict=True):
            start = time.perf_counter()
            run(source)
            taken.append(time.perf_counter() - start)
    return list(map(min, found))


def table(rows: Sequence[Measured]) -> str:
    """Write the figures as a Markdown table."""
    lines = [
        "| variant | MB | max error (log-prob.) | same outputs | one source (ms) | sources/s, batch of 32 |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        numbers = f"{one.megabytes:.1f} | {one.error:.1e} | {one.same:.0%} | {one.latency:.1f} | {one.throughput:.0f}"
        lines.append(f"| {one.name} | {numbers} |")
    return "\n".join(lines)
