"""Train one configuration on every language of SIGMORPHON 2020 task 1, one after the other, and table the scores.

    python recipes/transduction/all_languages.py --data FOLDER [--output runs/g2p_all] [--languages fre kor]
        [--seeds 1 2 3] [any setting of g2p.yaml, such as --trainer.max_epochs 10]

FOLDER is the folder or the hub id of the data; a language is one of its configurations or, in a plain folder, one of
the folders in it. A finished run leaves `OUTPUT/LANGUAGE/SEED/scores.json`, and a second start with the same settings
goes on after it. The table is
`OUTPUT/scores.md`, its averages over single models are `OUTPUT/average.json`; with several seeds it has their mean and
the scores of their ensemble. WER is the share of words that are not exactly right.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import fmean

import datasets
from lightning import Trainer

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe
from lit_seq2seq.cli import guarded
from lit_seq2seq.cli.commands import save_best
from lit_seq2seq.cli.fit import Seq2SeqCLI
from lit_seq2seq.types import UserError

RECIPE = Path(__file__).with_name("g2p.yaml")
COLUMNS = {"val_sequence_error_rate": "dev WER", "val_per": "dev PER"}
COLUMNS |= {"test_sequence_error_rate": "test WER", "test_per": "test PER", "minutes": "minutes"}
Scores = dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/g2p_all"))
    parser.add_argument("--languages", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    options, settings = parser.parse_known_args(argv)
    return guarded(partial(run, options.data, options.output, options.languages, options.seeds, settings))


def run(data: str, output: Path, languages: list[str] | None, seeds: list[int], settings: list[str]) -> None:
    """Train what is not finished, and write the table after each language."""
    known = languages_of(data)
    for language in languages or known:
        if language not in known:
            raise UserError(f"expected languages of {', '.join(known)}, but got {language!r}: check --languages")
    check_settings(output / "settings.json", settings)
    for language in languages or known:
        for seed in seeds:
            folder = output / language / str(seed)
            recipe = [*known[language], f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}", *settings]
            finish(folder / "scores.json", partial(train, recipe))
            (output / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        if len(seeds) > 1:
            models = [output / language / str(seed) / "model" for seed in seeds]
            joined = "+".join(map(str, seeds))
            finish(output / language / f"ensemble_{joined}.json", partial(join, recipe, models))
        text, averages = table(output)
        (output / "scores.md").write_text(text, encoding="utf-8")
        (output / "average.json").write_text(json.dumps(averages, indent=2) + "\n", encoding="utf-8")
    print((output / "scores.md").read_text(encoding="utf-8"))


def languages_of(data: str) -> dict[str, list[str]]:
    """Return the settings that name the data of each language: configurations, or folders; else all is one language."""
    folder = Path(data)
    try:
        names = [name for name in datasets.get_dataset_config_names(data) if name not in ("all", "default")]
    except OSError as error:
        if not folder.is_dir():
            raise UserError(f"expected a folder or a hub id, but cannot open {data!r}: check --data") from error
        names = []
    if names:
        return {name: [f"--data.dataset={data}", f"--data.name={name}"] for name in names}
    inside = sorted(path for path in folder.glob("*") if path.is_dir() and any(path.glob("train*")))
    return {path.name: [f"--data.dataset={path}"] for path in inside} or {folder.name: [f"--data.dataset={data}"]}


def check_settings(path: Path, settings: list[str]) -> None:
    """Refuse to go on with other settings than those of the runs that are there."""
    if path.is_file() and (before := json.loads(path.read_text(encoding="utf-8"))) != settings:
        shown = " ".join(before) or "those of g2p.yaml"
        raise UserError(f"the runs in {path.parent} have other settings ({shown}): choose another --output")


def finish(path: Path, work: partial[Scores]) -> None:
    """Do a piece of work unless its scores are there."""
    if not path.is_file():
        scores = work()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def train(arguments: list[str]) -> Scores:
    """Train a model, keep its best checkpoint as a folder, and score it."""
    started = time.monotonic()
    recipe = load_recipe(RECIPE, arguments)
    recipe.trainer.fit(recipe.model, datamodule=recipe.datamodule)
    minutes = (time.monotonic() - started) / 60
    save_best(recipe.trainer, recipe.model)
    scores = evaluate(recipe.trainer, recipe.model, recipe.datamodule)
    recipe.model.save_pretrained(Path(recipe.config.trainer.default_root_dir) / "model", scores)
    return {**scores, "minutes": minutes}


def join(arguments: list[str], models: list[Path]) -> Scores:
    """Score an ensemble."""
    recipe: Seq2SeqCLI = load_recipe(RECIPE, arguments)
    ensemble = LitSeq2Seq.ensemble([LitSeq2Seq.from_pretrained(folder) for folder in models])
    return evaluate(recipe.trainer, ensemble, recipe.datamodule)


def evaluate(trainer: Trainer, model: LitSeq2Seq, data: Seq2SeqDataModule) -> Scores:
    """Score the validation split, and the test split where there is one."""
    found = dict(trainer.validate(model, datamodule=data, verbose=False)[0])
    if "test" in data.splits:
        found |= trainer.test(model, datamodule=data, verbose=False)[0]
    return {name: value for name, value in found.items() if name in COLUMNS}


def table(output: Path) -> tuple[str, Scores]:
    """Return all scores as a Markdown table, with the averages over the languages that have them, and these alone."""
    lines = [f"| language | runs | {' | '.join(COLUMNS.values())} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    kinds: dict[str, list[Scores]] = {}
    for folder in sorted(path for path in output.iterdir() if path.is_dir()):
        single = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/scores.json"))]
        rows = {f"mean of {len(single)}": mean(single)} if single else {}
        for path in sorted(folder.glob("ensemble_*.json")):
            rows[f"ensemble of {path.stem.count('+') + 1}"] = json.loads(path.read_text(encoding="utf-8"))
        for name, scores in rows.items():
            lines.append(line(folder.name, name, scores))
            kinds.setdefault(name, []).append(scores)
    averages = {name: mean(rows) for name, rows in kinds.items()}
    lines += [line(f"average of {len(kinds[name])}", name, scores) for name, scores in averages.items()]
    return "\n".join(lines) + "\n", next(iter(averages.values()))


def mean(rows: Iterable[Scores]) -> Scores:
    """Average each score over the rows that have it."""
    rows = list(rows)
    return {name: fmean(row[name] for row in rows if name in row) for row in rows for name in row}


def line(language: str, name: str, scores: Scores) -> str:
    """Return one row of the table."""
    cells = [f"{scores[column]:.2f}" if column in scores else "" for column in COLUMNS]
    return f"| {language} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
