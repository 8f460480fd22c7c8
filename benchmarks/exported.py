"""Exported variants beside the model itself, on real sentences: BLEU, sentences per second of processor time, latency.

    lit-seq2seq export --model DIR --output exported
    export OPENBLAS_NUM_THREADS=1  # for the scores of a shortlist, which are NumPy's
    python benchmarks/exported.py --model DIR --exported exported --source val.en --reference val.de

One thread each. Processor time, as other programs on the machine do not count in it. With a shortlist, each is measured
without and with it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import sacrebleu
import torch

from lit_seq2seq import pipeline
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.runtime.network import SHORTLIST

Translate = Callable[[list[str], int], list[str]]


def eager(folder: str, shortlist: bool) -> Translate:
    """Translate with torch."""
    loaded = pipeline("translation", folder)
    return lambda texts, beams: [row["translation_text"] for row in loaded(texts, num_beams=beams, shortlist=shortlist)]


def exported(folder: str, variant: str, shortlist: bool) -> Translate:
    """Translate with onnxruntime."""
    loaded = Model(folder, variant=variant, threads=1)
    return lambda texts, beams: [row[0].text for row in loaded(texts, num_beams=beams, shortlist=shortlist)]


def measure(
    translate: Translate, texts: list[str], references: list[str], beams: int, singles: int, windows: int
) -> str:
    """Return BLEU, sentences per second in batches, and the milliseconds of a single one, both medians, as cells."""
    translate(texts[:20], beams)
    rates, found = [], list[str]()
    for _ in range(windows):
        started = time.process_time()
        found = translate(texts, beams)
        rates.append(len(texts) / (time.process_time() - started))
    rate, taken = statistics.median(rates), []
    for text in texts[:singles]:
        started = time.process_time()
        translate([text], beams)
        taken.append(time.process_time() - started)
    score = sacrebleu.corpus_bleu(found, [references], lowercase=True).score
    return f"{score:.2f} | {rate:.0f} | {1e3 * statistics.median(taken):.1f}"


def main() -> None:
    """Measure eager and every variant, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--exported", required=True, help="folder that lit-seq2seq export wrote")
    parser.add_argument("--source", required=True, help="file with a sentence a line")
    parser.add_argument("--reference", required=True, help="file with its translation")
    parser.add_argument("--sentences", type=int, default=512, help="how many of them")
    parser.add_argument("--singles", type=int, default=60, help="how many one by one")
    parser.add_argument("--windows", type=int, default=3, help="how often all of them in batches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts, references = (
        Path(name).read_text(encoding="utf-8").splitlines()[: options.sentences]
        for name in (options.source, options.reference)
    )
    names = sorted(path.name.split(".")[1] for path in Path(options.exported).glob("decoder.*.onnx"))
    print("| variant | beams | BLEU | sentences/s, batches | one sentence (ms) |\n|---|---|---|---|---|")
    kinds = (False, True) if (Path(options.exported) / SHORTLIST).exists() else (False,)
    for name, shortlist in product(("eager", *names), kinds):
        translate = eager(options.model, shortlist) if name == "eager" else exported(options.exported, name, shortlist)
        for beams in (1, 5):
            cells = measure(translate, texts, references, beams, options.singles, options.windows)
            print(f"| {name}{', shortlist' * shortlist} | {beams} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
