"""What language models and constraints give: `python -m benchmarks.steering train|score|pages --data FOLDER`.

`train` trains models of each task, and a language model of its outputs, by the recipes' own commands. `score` decodes
in each way, with weights that are best on validation by the mean over seeds, and puts what it finds into
`docs/steering.json`, from which `pages` makes the table of docs/decoding.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml
from datasets import Dataset, DatasetDict, load_dataset

from benchmarks.arena import ROOT, WORK
from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import CER, PER, WER, SequenceErrorRate, TextMetric
from lit_seq2seq.search import GenerationConfig, LanguageModel, Lexicon

FOUND = ROOT / "docs" / "steering.json"
PLACE = WORK / "steering"
WEIGHTS = [(0.1, 0.0), (0.2, 0.0), (0.3, 0.0), (0.2, 0.1), (0.3, 0.2), (0.4, 0.3), (0.5, 0.4)]
Row = dict[str, Any]
Change = Callable[[GenerationConfig], GenerationConfig]


@dataclass(frozen=True)
class Case:
    """A task with little data for the model.

    Attributes:
        folder: of the data.
        source: column of the inputs.
        target: column of the outputs.
        pairs: number of training pairs that the model sees, drawn with seed 0; `None`: all. The language model sees the
            outputs of all.
        recipe: script, recipe and what is changed in it.
        tokenizer: of the outputs.
        splits: where weights are chosen, and where scores are from.
        metrics: the first one decides.
        lexicon: whether outputs are words of the training outputs.
    """

    folder: str
    source: str
    target: str
    pairs: int | None
    recipe: Sequence[str]
    tokenizer: dict[str, Any]
    splits: tuple[str, str]
    metrics: tuple[Callable[[], TextMetric], ...]
    lexicon: bool


CASES = {
    "g2p": Case(
        "sigmorphon2020_g2p/dut",
        "orthography",
        "phones",
        800,
        [
            "transduction.py",
            "transduction/g2p.yaml",
            "--data.name=null",
            "--trainer.max_epochs=100",
            "--trainer.check_val_every_n_epoch=10",
        ],
        {"model": "word", "pretokenized": True, "normalization": "none"},
        ("validation", "test"),
        (SequenceErrorRate, PER),
        False,
    ),
    "an4": Case(
        "an4_mfcc",
        "features",
        "text",
        None,
        ["speech.py", "speech/an4.yaml"],
        {"model": "char"},
        ("validation", "validation"),
        (WER, CER),
        True,
    ),
}


def prepare(name: str, data: Path) -> Path:
    """Write the pairs of a task, its outputs alone, and the words of these, once."""
    case, place = CASES[name], PLACE / name
    if (place / "words.txt").is_file():
        return place
    rows: DatasetDict = load_dataset(str(data / case.folder))
    texts = DatasetDict({split: rows[split].select_columns([case.target]) for split in ("train", "validation")})
    if case.pairs is not None:
        rows["train"] = rows["train"].shuffle(seed=0).select(range(case.pairs))
    for folder, found in (("pairs", rows), ("texts", texts)):
        for split, part in found.items():
            part.to_parquet(str(place / folder / f"{split}.parquet"))
    words = sorted({word for text in texts["train"][case.target] for word in text.split()})
    (place / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return place


def language_recipe(case: Case, place: Path) -> Path:
    """Write the recipe of a language model of the outputs."""
    decoder = {"embedding_dim": 64, "hidden_size": 128, "bridge": "lit_seq2seq.nn.ZeroBridge", "dropout": 0.3}
    settings = {
        "data": {
            "dataset": str(place / "texts"),
            "columns": {"source": None, "target": case.target},
            "target_tokenizer": case.tokenizer,
            "batches": {"size": 64, "eval_size": 256},
            "splits": {"test_size": 0},
        },
        "model": {
            "encoder": {"class_path": "lit_seq2seq.nn.NoSource"},
            "decoder": {"class_path": "lit_seq2seq.nn.ParallelDecoder", "init_args": decoder},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.003}},
            "lr_scheduler": "lit_seq2seq.schedules.OneCycle",
            "task": "text-generation",
        },
        "checkpoint": {"monitor": "val_loss", "mode": "min"},
        "trainer": {"max_epochs": 20, "gradient_clip_val": 1.0},
    }
    path = place / "language_model.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def train(arguments: argparse.Namespace) -> None:
    """Train what is not trained yet, one after the other, each on one thread."""
    for name in arguments.tasks:
        case, place = CASES[name], prepare(name, arguments.data)
        run(["language_model.py", str(language_recipe(case, place))], place / "language_model", 1)
        script, recipe, *changes = case.recipe
        for seed in arguments.seeds:
            given = [script, str(ROOT / "recipes" / recipe), f"--data.dataset={place / 'pairs'}", *changes]
            run(given, place / str(seed), seed)


def run(given: list[str], folder: Path, seed: int) -> None:
    """Run a recipe, or what is left of it."""
    if any(folder.glob("*/model/model.safetensors")):
        return
    script, recipe, *changes = given
    command = [sys.executable, str(ROOT / "recipes" / script), "--config", recipe, *changes, "--ckpt_path=last"]
    command += [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=True, env=environment)


def model_in(folder: Path) -> Path:
    """Return the model of the last run in a folder."""
    return max(folder.glob("*/model"), key=os.path.getmtime)


class Scorer:
    """Scores ways of search on the models of a task.

    Args:
        name: of the task.
        seeds: of the models.
    """

    def __init__(self, name: str, seeds: Sequence[int]) -> None:
        self.case, self.place = CASES[name], PLACE / name
        self.language_model = str(model_in(self.place / "language_model"))
        self.predictors = [Predictor(LitSeq2Seq.from_pretrained(model_in(self.place / str(seed)))) for seed in seeds]
        self.rows: DatasetDict = load_dataset(str(self.place / "pairs"))

    def __call__(self, split: str, change: Change) -> list[list[float]]:
        """Return for each seed the scores of a split."""
        return [self._score(predictor, self.rows[split], change) for predictor in self.predictors]

    def _score(self, predictor: Predictor, rows: Dataset, change: Change) -> list[float]:
        config, form = change(predictor.model.generation), predictor.model.processor.target.form
        texts = [form(found[0].text) for found in predictor.stream(rows[self.case.source], config)]
        references = [[form(text)] for text in rows[self.case.target]]
        found = []
        for make in self.case.metrics:
            metric = make()
            metric.update(texts, references)
            found.append(float(metric.compute()))
        return found

    def ways(self) -> dict[str, Change]:
        """Return the ways of search by what tables call them."""
        found = {one: mean(row[0] for row in self(self.case.splits[0], self.fused(one))) for one in WEIGHTS}
        print(self.case.splits[0], {"/".join(map(str, one)): round(value, 2) for one, value in found.items()})
        shallow = min((one for one in WEIGHTS if not one[1]), key=found.__getitem__)
        best = min(WEIGHTS, key=found.__getitem__)
        ways: dict[str, Change] = {
            "the recipe": lambda config: config,
            f"language model, weight {shallow[0]}": self.fused(shallow),
            f"language model {best[0]}, its own less {best[1]}": self.fused(best),
        }
        if self.case.lexicon:
            ways["words of training only"] = self.within
            ways["both"] = lambda config: self.within(self.fused(best)(config))
        return ways

    def fused(self, weights: tuple[float, float]) -> Change:
        """Return what adds the language model."""
        scorer = LanguageModel(self.language_model, *weights)
        return lambda config: replace(config, scorers=(*config.scorers, scorer))

    def within(self, config: GenerationConfig) -> GenerationConfig:
        """Keep outputs to the words of the training outputs."""
        return replace(config, constraints=[Lexicon(str(self.place / "words.txt"), several=True)])


def score(arguments: argparse.Namespace) -> None:
    """Choose weights on validation, score, and keep the scores."""
    torch.set_num_threads(1)
    for name in arguments.tasks:
        scorer, case = Scorer(name, arguments.seeds), CASES[name]
        for way, change in scorer.ways().items():
            for seed, values in zip(arguments.seeds, scorer(case.splits[1], change), strict=True):
                named = {make().name: round(value, 2) for make, value in zip(case.metrics, values, strict=True)}
                keep({"task": name, "split": case.splits[1], "way": way, "seed": seed, **named})


def keep(row: Row) -> None:
    """Put a row into `docs/steering.json`, in place of the one of the same run."""
    found = json.loads(FOUND.read_text()) if FOUND.is_file() else []
    same = ("task", "way", "seed")
    rows = [old for old in found if any(old[key] != row[key] for key in same)]
    rows.append({**row, "date": f"{datetime.now(UTC):%Y-%m-%d}"})
    print(row, flush=True)
    FOUND.write_text("[\n" + ",\n".join(f"  {json.dumps(one)}" for one in rows) + "\n]\n")


def table(rows: list[Row]) -> str:
    """Return the table of all rows: mean and deviation over seeds."""
    lines = ["| task, split | search | scores | seeds |", "|---|---|---|---|"]
    for task, way in dict.fromkeys((row["task"], row["way"]) for row in rows):
        own = [row for row in rows if (row["task"], row["way"]) == (task, way)]
        names = [make().name for make in CASES[task].metrics]
        values = [[row[name] for row in own] for name in names]
        shown = ", ".join(
            f"{name} {mean(each):.2f} ± {stdev(each) if len(each) > 1 else 0:.2f}"
            for name, each in zip(names, values, strict=True)
        )
        lines.append(f"| {task}, {own[0]['split']} | {way} | {shown} | {len(own)} |")
    return "\n".join(lines)


def pages(_: argparse.Namespace) -> None:
    """Rewrite the table of docs/decoding.md."""
    page = ROOT / "docs" / "decoding.md"
    found = table(json.loads(FOUND.read_text()))
    pattern = r"(<!-- steering -->\n).*?(<!-- end -->)"
    page.write_text(re.sub(pattern, rf"\g<1>{found}\n\2", page.read_text(), flags=re.DOTALL))


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["train", "score", "pages"])
    parser.add_argument("--data", type=Path, help="folder with sigmorphon2020_g2p and an4_mfcc")
    parser.add_argument("--tasks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    {"train": train, "score": score, "pages": pages}[arguments.part](arguments)


if __name__ == "__main__":
    main()
