"""The data of the workloads as plain line-aligned text, generated or from a folder of real data."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SPECIALS = ("<unk>", "<blank>", "<s>", "</s>")
_WORD = re.compile(r"\w+(?:[-'.]\w+)*|[^\w\s]")
Pair = tuple[list[str], list[str]]


def prepare(folder: Path, task: str, data: Path | None, rows: int | None = None) -> Path:
    """Write `train`, `valid` and `test` as `.src` and `.tgt`, symbols between spaces, and vocabularies; once.

    Args:
        folder: where.
        task: `translation` (as Multi30k) or `g2p` (as French of SIGMORPHON 2020).
        data: folder with `multi30k` and `sigmorphon2020_g2p`; `None` generates data of their sizes and lengths.
        rows: number of generated training rows.

    Returns:
        The folder of the files.
    """
    place = folder / f"{task}_{'generated' if data is None else 'real'}{'' if rows is None else f'_{rows}'}"
    if (place / "done").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Counter[str]] = {"src": Counter(), "tgt": Counter()}
    for split, size in {
        "train": rows or (29_000 if task == "translation" else 3600),
        "valid": 450,
        "test": 1000,
    }.items():
        pairs = _generate(task, split, size) if data is None else _read(task, split, data)
        with (place / f"{split}.src").open("w") as source, (place / f"{split}.tgt").open("w") as target:
            for pair in pairs:
                for file, symbols, side in zip((source, target), pair, ("src", "tgt"), strict=True):
                    file.write(" ".join(symbols) + "\n")
                    if split == "train":
                        counts[side].update(symbols)
    for side, counter in counts.items():
        least = 2 if task == "translation" else 1
        kept = [symbol for symbol, count in counter.most_common() if count >= least]
        (place / f"vocab.{side}").write_text("\n".join([*SPECIALS, *kept]) + "\n")
    (place / "done").touch()
    return place


def _read(task: str, split: str, data: Path) -> Iterator[Pair]:
    name = {"valid": "validation"}.get(split, split)
    path = data / ("multi30k" if task == "translation" else "sigmorphon2020_g2p/fre") / f"{name}.jsonl.gz"
    if not path.is_file():
        raise SystemExit(f"there is no {path}: --data takes the folder that holds multi30k and sigmorphon2020_g2p")
    with gzip.open(path, "rt") as lines:
        for row in map(json.loads, lines):
            if task == "translation":
                yield _WORD.findall(row["en"].lower()), _WORD.findall(row["de"].lower())
            else:
                yield list(row["orthography"]), row["phones"].split()


def _generate(task: str, split: str, size: int) -> Iterator[Pair]:
    """Sentences of Zipf-distributed words with a word-for-word translation, neighbours swapped, and doubled words."""
    rng = np.random.default_rng([1, ("train", "valid", "test").index(split)])
    words, spread, mean = (6000, 1.05, 12) if task == "translation" else (36, 0.5, 8)
    weights = 1 / np.arange(1, words + 1) ** spread
    shares = (weights / weights.sum()).cumsum()
    for length in np.clip(rng.gamma(9, mean / 9, size).astype(int), 2, 40).tolist():
        source = np.minimum(np.searchsorted(shares, rng.random(length)), words - 1).tolist()
        target = [f"{'d' if word % 4 else 'z'}{word}" for word in source]
        for place in range(0, length - 1, 3):
            target[place], target[place + 1] = target[place + 1], target[place]
        extra = [f"x{word % 97}" for word in source if word % 16 == 0]
        yield [f"e{word}" for word in source], target + extra
