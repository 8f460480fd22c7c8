"""What objectives, language models, constraints and minimum Bayes risk give.

`python -m benchmarks.steering train --data FOLDER` trains the models of each task, and a language model of its outputs,
by the recipes' own commands. `score` decodes in each way, with weights that are best on validation by the mean over
seeds, and puts the scores into `docs/steering.json`, from which `pages` makes the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml
from datasets import Dataset, DatasetDict, load_dataset

from benchmarks.arena import ROOT, WORK
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import BLEU, CER, PER, WER, ChrF, SequenceErrorRate, TextMetric
from lit_seq2seq.reranking import MinimumBayesRisk
from lit_seq2seq.search import GenerationConfig, LanguageModel, Lexicon, Terminology
from recipes.results import NAMES

FOUND = ROOT / "docs" / "steering.json"
PLACE = WORK / "steering"
OVERLAYS = ROOT / "recipes" / "objectives"
BEAMS = 10
KNOWN = "only words of the training outputs"
WEIGHTS = [(0.1, 0.0), (0.2, 0.0), (0.3, 0.0), (0.2, 0.1), (0.3, 0.2), (0.4, 0.3), (0.5, 0.4)]
Row = dict[str, Any]
Change = Callable[[GenerationConfig], GenerationConfig]

CONTINUED = (
    "--data.processor={base}",
    "--data.source_tokenizer=null",
    "--data.target_tokenizer=null",
    "--model.init_from={base}",
    "--trainer.max_epochs=20",
    "--trainer.check_val_every_n_epoch=2",
)
GUIDED = {"class_path": "lit_seq2seq.nn.GuidedAlignment", "init_args": {"weight": 1.0, "steps": 1500}}
OBJECTIVES = {
    "RDrop": (f"--config={OVERLAYS / 'rdrop.yaml'}", "--model.objective.init_args.alpha=1"),
    "ScheduledSampling": (
        f"--config={OVERLAYS / 'scheduled_sampling.yaml'}",
        "--model.objective.init_args.steps=1500",
    ),
    "GuidedAlignment": (f"--model.attention_losses={json.dumps([GUIDED])}",),
    "Distillation from the three models": (
        f"--config={OVERLAYS / 'distillation.yaml'}",
        "--data.processor={base}",
        "--model.objective.init_args.teachers={teachers}",
    ),
    "what the three models write for 3,600 words": ("--data.dataset={taught}", "--trainer.max_epochs=25"),
    "20 epochs more": (*CONTINUED, "--model.optimizer.init_args.lr=0.0003", "--model.lr_scheduler=null"),
    "20 epochs more of MinimumRisk, PER": (
        *CONTINUED,
        f"--config={OVERLAYS / 'minimum_risk.yaml'}",
        "--model.objective.init_args.metric=lit_seq2seq.metrics.PER",
    ),
    "20 epochs more of SelfCritical, PER": (
        *CONTINUED,
        f"--config={OVERLAYS / 'self_critical.yaml'}",
        "--model.objective.init_args.metric=lit_seq2seq.metrics.PER",
    ),
}


@dataclass(frozen=True)
class Case:
    """A task with little data.

    Attributes:
        title: what tables call it.
        folder: of the data.
        source: column of the inputs.
        target: column of the outputs.
        recipe: script, recipe and what is changed in it.
        splits: where weights are chosen, and where scores are from.
        metrics: the first one decides.
        utility: metric of minimum Bayes risk.
        pairs: number of training pairs that the model sees, drawn with seed 0; `None`: all. The language model sees the
            outputs of all.
        tokenizer: of the outputs, for a language model; `None`: there is none.
        lexicon: whether outputs may be kept to words of the training outputs.
        terms: whether the longest word of a reference that occurs twice in training may be forced.
        training: by what tables call it, what is changed in the recipe.
    """

    title: str
    folder: str
    source: str
    target: str
    recipe: Sequence[str]
    splits: tuple[str, str]
    metrics: tuple[Callable[[], TextMetric], ...]
    utility: Callable[[], TextMetric]
    pairs: int | None = None
    tokenizer: dict[str, Any] | None = None
    lexicon: bool = False
    terms: bool = False
    training: Mapping[str, Sequence[str]] = field(default_factory=dict)


CASES = {
    "g2p": Case(
        "Dutch G2P, 800 words; test",
        "sigmorphon2020_g2p/dut",
        "orthography",
        "phones",
        [
            "transduction.py",
            "transduction/g2p.yaml",
            "--data.name=null",
            "--trainer.max_epochs=100",
            "--trainer.check_val_every_n_epoch=10",
        ],
        ("validation", "test"),
        (SequenceErrorRate, PER),
        PER,
        pairs=800,
        tokenizer={"model": "word", "pretokenized": True, "normalization": "none"},
        training=OBJECTIVES,
    ),
    "an4": Case(
        "AN4; validation",
        "an4_mfcc",
        "features",
        "text",
        ["speech.py", "speech/an4.yaml"],
        ("validation", "validation"),
        (WER, CER),
        WER,
        tokenizer={"model": "char"},
        lexicon=True,
    ),
    "multi30k": Case(
        "Multi30k en-de, words; test",
        "multi30k",
        "en",
        "de",
        ["translation.py", "translation/multi30k_quick.yaml"],
        ("validation", "test"),
        (partial(BLEU, lowercase=True), ChrF),
        ChrF,
        terms=True,
    ),
}


def prepare(name: str, data: Path) -> Path:
    """Write the pairs of a task, its outputs alone, their words, and words of references, once."""
    case, place = CASES[name], PLACE / name
    if (place / "terms.csv").is_file():
        return place
    rows: DatasetDict = load_dataset(str(data / case.folder))
    texts = DatasetDict({split: rows[split].select_columns([case.target]) for split in ("train", "validation")})
    sources = DatasetDict({"train": rows["train"].select_columns([case.source])})
    if case.pairs is not None:
        rows["train"] = rows["train"].shuffle(seed=0).select(range(case.pairs))
    for folder, found in (("pairs", rows), ("texts", texts), ("sources", sources)):
        for split, part in found.items():
            part.to_parquet(str(place / folder / f"{split}.parquet"))
    counts = Counter(word for text in texts["train"][case.target] for word in text.split())
    (place / "words.txt").write_text("\n".join(sorted(counts)) + "\n", encoding="utf-8")
    with (place / "terms.csv").open("w", encoding="utf-8", newline="") as file:
        if case.terms:
            scored = rows[case.splits[1]]
            for source, text in zip(scored[case.source], scored[case.target], strict=True):
                known = [word for word in text.split() if word.isalpha() and counts[word] > 1]
                csv.writer(file).writerows([[source, max(known, key=len)]] if known else [])
    return place


def language_recipe(case: Case, place: Path) -> Path:
    """Write the recipe of a language model of the outputs."""
    decoder = {"embedding_dim": 128, "hidden_size": 128, "bridge": "lit_seq2seq.nn.ZeroBridge", "dropout": 0.5}
    settings = {
        "data": {
            "dataset": str(place / "texts"),
            "columns": {"source": None, "target": case.target},
            "target_tokenizer": case.tokenizer,
            "batches": {"size": 16, "eval_size": 256},
            "splits": {"test_size": 0},
        },
        "model": {
            "encoder": {"class_path": "lit_seq2seq.nn.NoSource"},
            "decoder": {"class_path": "lit_seq2seq.nn.ParallelDecoder", "init_args": decoder},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.003}},
            "lr_scheduler": "lit_seq2seq.schedules.OneCycle",
            "tie_embeddings": "target",
            "task": "text-generation",
        },
        "checkpoint": {"monitor": "val_loss", "mode": "min"},
        "trainer": {"max_epochs": 30, "gradient_clip_val": 1.0},
    }
    path = place / "language_model.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def train(arguments: argparse.Namespace) -> None:
    """Train what is not trained yet, one after the other, each on one thread."""
    for name in arguments.tasks:
        case, place = CASES[name], prepare(name, arguments.data)
        if case.tokenizer is not None:
            run(["language_model.py", str(language_recipe(case, place))], place / "language_model", 1)
        script, recipe, *changes = case.recipe
        given = [script, str(ROOT / "recipes" / recipe), f"--data.dataset={place / 'pairs'}", *changes]
        for seed in arguments.seeds:
            run(given, place / str(seed), seed)
        teachers = [str(model_in(place / str(seed))) for seed in arguments.seeds]
        for way in case.training:
            for seed in arguments.seeds:
                named = {"base": str(model_in(place / str(seed))), "teachers": json.dumps(teachers)}
                if any("{taught}" in change for change in case.training[way]):
                    named["taught"] = str(taught(case, place, teachers))
                own = [filled(change, named) for change in case.training[way]]
                run([*given, *own], place / short(way) / str(seed), seed)


def short(way: str) -> str:
    """Return the folder for a way of training."""
    return re.sub(r"\W+", "_", way)


def filled(change: str, named: Mapping[str, str]) -> str:
    """Put folders into a change of a recipe."""
    for name, value in named.items():
        change = change.replace(f"{{{name}}}", value)
    return change


def taught(case: Case, place: Path, teachers: Sequence[str]) -> Path:
    """Write the outputs of an ensemble for all training sources, once."""
    folder = place / "taught"
    if not folder.is_dir():
        rows = load_dataset(str(place / "pairs")).select_columns([case.source, case.target])
        sources = load_dataset(str(place / "sources"))["train"][case.source]
        outputs = [found[0].text for found in Predictor(load_model(teachers)).stream(sources)]
        rows["train"] = Dataset.from_dict({case.source: sources, case.target: outputs})
        for split, part in rows.items():
            part.to_parquet(str(folder / f"{split}.parquet"))
    return folder


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
        self.seeds = seeds
        self.rows: DatasetDict = load_dataset(str(self.place / "pairs"))

    def __call__(self, split: str, change: Change, trained: str = "") -> list[list[float]]:
        """Return for each seed the scores of a split."""
        folders = [self.place / short(trained) / str(seed) for seed in self.seeds]
        return [self._score(Predictor(load_model(model_in(one))), self.rows[split], change) for one in folders]

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

    def ways(self) -> Iterator[tuple[str, Change]]:
        """List the ways of search by what tables call them."""
        yield "the recipe", lambda config: config
        yield f"beam of {BEAMS}", wide
        risk = MinimumBayesRisk(self.case.utility, samples=32)
        yield f"beam of {BEAMS}, minimum Bayes risk", lambda config: replace(wide(config), reranker=risk)
        drawn = partial(replace, num_beams=1, do_sample=True, ctc_weight=0.0, seed=1, reranker=risk)
        yield "32 samples, minimum Bayes risk", drawn
        if self.case.terms:
            yield f"beam of {BEAMS}, a word of the reference must occur", self.forced
        if self.case.lexicon:
            yield f"beam of {BEAMS}, {KNOWN}", lambda config: self.within(wide(config))
        if self.case.tokenizer is not None:
            yield from self.fusions()

    def fusions(self) -> Iterator[tuple[str, Change]]:
        """List ways to add the language model, the best by validation."""
        found = {one: mean(row[0] for row in self(self.case.splits[0], self.fused(one))) for one in WEIGHTS}
        print(self.case.splits[0], {"/".join(map(str, one)): round(value, 2) for one, value in found.items()})
        shallow = min((one for one in WEIGHTS if not one[1]), key=found.__getitem__)
        best = min((one for one in WEIGHTS if one[1]), key=found.__getitem__)
        for weights in (shallow, best):
            yield named(weights), self.fused(weights)
        if self.case.lexicon:
            better = min(shallow, best, key=found.__getitem__)
            yield f"{named(better)}, {KNOWN}", lambda config: self.within(self.fused(better)(config))

    def fused(self, weights: tuple[float, float]) -> Change:
        """Return what adds the language model."""
        scorer = LanguageModel(str(model_in(self.place / "language_model")), *weights)
        return lambda config: replace(wide(config), scorers=(*config.scorers, scorer))

    def within(self, config: GenerationConfig) -> GenerationConfig:
        """Keep outputs to the words of the training outputs."""
        return replace(config, constraints=[Lexicon(str(self.place / "words.txt"), several=True)])

    def forced(self, config: GenerationConfig) -> GenerationConfig:
        """Make the longest word of each reference occur."""
        return replace(wide(config), constraints=[Terminology(str(self.place / "terms.csv"))])


def wide(config: GenerationConfig) -> GenerationConfig:
    """Search with a wider beam than the recipe's."""
    return replace(config, num_beams=BEAMS)


def score(arguments: argparse.Namespace) -> None:
    """Choose weights on validation, score, and keep the scores."""
    torch.set_num_threads(1)
    for name in arguments.tasks:
        scorer, case = Scorer(name, arguments.seeds), CASES[name]
        for way, change in scorer.ways():
            keep(name, way, arguments.seeds, scorer(case.splits[1], change))
        for way in case.training:
            keep(name, way, arguments.seeds, scorer(case.splits[1], lambda config: config, way))


def keep(task: str, way: str, seeds: Sequence[int], scores: list[list[float]]) -> None:
    """Put scores into `docs/steering.json`, in place of those of the same runs."""
    found = json.loads(FOUND.read_text()) if FOUND.is_file() else []
    for seed, values in zip(seeds, scores, strict=True):
        named = {make().name: round(value, 2) for make, value in zip(CASES[task].metrics, values, strict=True)}
        row = {"task": task, "way": way, "seed": seed, **named, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        found = [old for old in found if any(old[key] != row[key] for key in ("task", "way", "seed"))] + [row]
        print(row, flush=True)
    FOUND.write_text("[\n" + ",\n".join(f"  {json.dumps(one)}" for one in found) + "\n]\n")


def table(rows: list[Row]) -> str:
    """Return the table of all rows: mean and deviation over seeds."""
    lines = ["| task; split | what is changed | scores |", "|---|---|---|"]
    for task, way in dict.fromkeys((row["task"], row["way"]) for row in rows):
        own = [row for row in rows if (row["task"], row["way"]) == (task, way)]
        shown = []
        for make in CASES[task].metrics:
            values = [row[make().name] for row in own]
            shown.append(
                f"{NAMES.get(make().name, make().name.replace('_', ' '))} {mean(values):.2f} ± {stdev(values):.2f}"
            )
        lines.append(f"| {CASES[task].title} | {way} | {', '.join(shown)} |")
    return "\n".join(lines)


def pages(_: argparse.Namespace) -> None:
    """Rewrite the table of docs/results.md."""
    page = ROOT / "docs" / "results.md"
    found = table(json.loads(FOUND.read_text()))
    pattern = r"(<!-- steering -->\n).*?(<!-- steering: end -->)"
    page.write_text(re.sub(pattern, rf"\g<1>{found}\n\2", page.read_text(), flags=re.DOTALL))


def named(weights: tuple[float, float]) -> str:
    """Say how much of a language model is added, and of the decoder's own subtracted."""
    added, subtracted = weights
    less = f", less {subtracted} of the decoder's own" if subtracted else ""
    return f"beam of {BEAMS}, language model of weight {added}{less}"


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["train", "score", "pages"])
    parser.add_argument("--data", type=Path, help="folder with the folders of the data sets")
    parser.add_argument("--tasks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    {"train": train, "score": score, "pages": pages}[arguments.part](arguments)


if __name__ == "__main__":
    main()
