"""Train every recipe that has a figure to show, and write its scores where the pages show them: `make results`.

    python recipes/results.py [--only sanity translation/builtin] [--seeds 1 2 3 4 5] [--data FOLDER]
        [--output runs/results] [--record | --tables] [--fast]

Each run is the command that a user would type. It leaves its model, pictures and output (`log.txt`, with ten outputs)
in `OUTPUT/RECIPE/SEED`. A second start skips what is finished and resumes a run that was cut. FOLDER holds the real
data sets, each in a folder of the name in `PLAN`; where one is missing, its hub id is used, or the recipe is left out
if it has none. `--record` puts the runs into `docs/results.json`, in place of older ones of the same recipe, and
rewrites the tables of `README.md` and `docs/` that stand between `<!-- results: RECIPE ... -->` and
`<!-- results: end -->`; `--tables` rewrites them without training. `--fast` gives each recipe two batches, in
`OUTPUT/fast`: its scores mean nothing, but everything has run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lit_seq2seq.cli import guarded
from lit_seq2seq.types import UserError

RECIPES = Path(__file__).parent
Result = dict[str, Any]
TABLE = re.compile(r"(<!-- results: (?!end)([^>]+) -->\n)(.*?)(<!-- results: end -->)", re.DOTALL)
FAST = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
FAST |= {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 1}


@dataclass(frozen=True)
class Job:
    """A recipe with a figure to show.

    Attributes:
        recipe: its YAML below this folder, without the ending.
        scores: metrics to show, without the split.
        folder: of its data in the folder of all; `None` for built-in data.
        on_hub: whether the YAML names a hub id that does in place of the folder.
        option: which setting takes the folder.
        script: what trains it in place of the task's script, and leaves `average.json`.
    """

    recipe: str
    scores: tuple[str, ...] = ("exact_match",)
    folder: str | None = None
    on_hub: bool = False
    option: str = "--data.dataset"
    script: str | None = None


NAMES = {"bleu": "BLEU", "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "chrf": "chrF", "cider": "CIDEr-D"}
NAMES |= {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "wer": "WER", "cer": "CER", "per": "PER"}
NAMES |= {
    "exact_match_trained": "trained",
    "exact_match_longer": "longer",
    "ppl": "perplexity",
    "bpc": "bits per character",
}
SANITY = ("exact_match", "exact_match_trained", "exact_match_longer")
ROUGE = ("rouge1", "rouge2", "rougeL")
PLAN = [
    Job("translation/builtin", ("exact_match", "bleu")),
    Job("translation/multi30k_de_en", ("bleu", "chrf"), "multi30k", on_hub=True),
    Job("translation/multi30k_en_de", ("bleu", "chrf"), "multi30k", on_hub=True),
    Job("translation/multi30k_quick", ("bleu",), "multi30k", on_hub=True),
    Job("translation/multi30k_wait_k", ("bleu", "chrf"), "multi30k", on_hub=True),
    Job("translation/multi30k_no_attention", ("bleu", "chrf"), "multi30k", on_hub=True),
    Job("summarization/builtin", ROUGE),
    Job("summarization/dialogsum", ROUGE, "dialogsum", on_hub=True),
    Job("captioning/builtin", ("exact_match", "bleu")),
    Job("captioning/flickr8k", ("bleu1", "bleu2", "bleu3", "bleu", "cider"), "flickr8k", on_hub=True),
    Job("multimodal/builtin", ("exact_match", "bleu")),
    Job("multimodal/text_only", ("exact_match", "bleu")),
    Job("speech/builtin", ("exact_match", "cer")),
    Job("speech/telephone_live", ("exact_match", "cer")),
    Job("speech/fsdd", ("wer", "cer"), "fsdd", option="--data.dataset.init_args.dataset"),
    Job("speech/fsdd_transducer", ("wer", "cer"), "fsdd", option="--data.dataset.init_args.dataset"),
    Job("speech/an4", ("wer", "cer"), "an4_mfcc"),
    Job("speech/an4_transducer", ("wer", "cer"), "an4_mfcc"),
    Job("speech/an4_live", ("wer", "cer"), "an4_mfcc"),
    Job("data_to_text/builtin", ("exact_match", "bleu")),
    Job("data_to_text/e2e", ("bleu", "slot_error_rate"), "e2e_nlg"),
    Job("text_generation/builtin", ("ppl", "distinct1", "distinct2")),
    Job("language_model/builtin", ("ppl", "bpc")),
    Job("transduction/builtin", ("exact_match", "cer")),
    Job(
        "transduction/g2p",
        ("sequence_error_rate", "per"),
        "sigmorphon2020_g2p",
        option="--data",
        script="transduction/all_languages",
    ),
    Job("transduction/g2p_transducer", ("sequence_error_rate", "per"), "sigmorphon2020_g2p"),
    Job("sanity/copy", SANITY),
    Job("sanity/reverse", SANITY),
    Job("sanity/sort", SANITY),
    Job("sanity/addition", SANITY),
]


def main(argv: list[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TASK_OR_RECIPE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/results"))
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--fast", action="store_true")
    return guarded(partial(run, parser.parse_args(argv)))


def run(options: argparse.Namespace, root: Path = RECIPES.parent) -> None:
    """Train what is not finished, and write the tables after each recipe."""
    if options.tables:
        write_tables(root, recorded(root))
        return
    jobs = [job for job in PLAN if not options.only or any(job.recipe.startswith(name) for name in options.only)]
    if not jobs:
        raise UserError(f"no recipe begins with {' or '.join(options.only)}: check --only")
    if options.data is not None and not options.data.is_dir():
        raise UserError(f"there is no folder {options.data}: check --data")
    if options.record and options.fast:
        raise UserError("the scores of --fast mean nothing: leave out --record")
    output = options.output / "fast" if options.fast else options.output
    results: list[Result] = []
    failed = []
    for job in jobs:
        settings = data_of(job, options.data)
        if settings is None:
            print(f"{job.recipe}: left out, as there is no {job.folder} in --data")
            continue
        found = [train(job, seed, settings, output / job.recipe / str(seed), options.fast) for seed in options.seeds]
        new = [result for result in found if result is not None]
        failed += [] if len(new) == len(found) else [job.recipe]
        results += new
        if options.record:
            record(root, new)
    print(table(results))
    if failed:
        raise UserError(f"these did not finish: {', '.join(failed)}: see their log.txt in {output}")


def data_of(job: Job, root: Path | None) -> list[str] | None:
    """Return the settings that name the data, `None` where there is none."""
    if job.folder is None:
        return []
    if root is not None and (root / job.folder).is_dir():
        return [f"{job.option}={root / job.folder}"]
    return [] if job.on_hub else None


def train(job: Job, seed: int, settings: list[str], folder: Path, fast: bool) -> Result | None:
    """Run a recipe as a user would, unless its scores are there; return its result, `None` if it failed."""
    kept = folder / "result.json"
    if kept.is_file():
        result: Result = json.loads(kept.read_text(encoding="utf-8"))
        return result
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(RECIPES / f"{job.script or job.recipe.split('/')[0]}.py")]
    if job.script is None:
        command += ["--config", str(RECIPES / f"{job.recipe}.yaml"), f"--seed_everything={seed}"]
        command += [f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    else:
        command += [f"--output={folder}", f"--seeds={seed}"]
    command += settings  # after the file, whose own data they replace
    command += [f"--trainer.{name}={value}" for name, value in FAST.items()] if fast else []
    print(f"{datetime.now(UTC):%H:%M} UTC  {' '.join(command[1:])}", flush=True)
    before = os.times()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        print(f"failed with status {status}: see {folder / 'log.txt'}")
        return None
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    if job.script is None:
        config = max(folder.glob("*/model/config.json"), key=lambda path: path.stat().st_mtime)
        scores = json.loads(config.read_text(encoding="utf-8"))["scores"]
    else:
        scores = json.loads((folder / "average.json").read_text(encoding="utf-8"))
    result = {
        "recipe": job.recipe,
        "seeds": [seed],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu_minutes": round(seconds / 60, 1),
        "hardware": hardware(),
        "scores": {name: round(value, 4) for name, value in scores.items()},
    }
    kept.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def hardware() -> str:
    """Name what torch computes on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    return f"{threads} CPU thread{'s' * (threads > 1)} ({platform.machine()}), torch {torch.__version__}"


# ---------------------------------------------------------------------------------------------- what pages show


def recorded(root: Path) -> list[Result]:
    """Return all recorded results."""
    path = root / "docs" / "results.json"
    results: list[Result] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return results


def record(root: Path, new: Sequence[Result]) -> None:
    """Put results in the place of the recorded ones of the same recipes, and rewrite the tables."""
    names = {result["recipe"] for result in new}
    results = [result for result in recorded(root) if result["recipe"] not in names] + list(new)
    order = [job.recipe for job in PLAN]
    results.sort(key=lambda result: (order.index(result["recipe"]), result["seeds"]))
    lines = ",\n".join(f"  {json.dumps(result)}" for result in results)
    (root / "docs" / "results.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    write_tables(root, results)


def write_tables(root: Path, results: Sequence[Result]) -> None:
    """Rewrite the tables of README and docs."""
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        new = TABLE.sub(lambda found: f"{found[1]}{table(results, found[2].split())}\n{found[4]}", text)
        if new != text:
            page.write_text(new, encoding="utf-8")


def table(results: Iterable[Result], names: Sequence[str] = ()) -> str:
    """Return a Markdown table, a row a recipe: the mean over its seeds, and the least and the greatest score.

    Args:
        results: of any recipes.
        names: what the recipes of the table begin with; all if empty.
    """
    lines = ["| recipe | data | scores | seeds | CPU minutes | measured |", "|---|---|---|---|---|---|"]
    results = list(results)
    for job in PLAN:
        runs = [result for result in results if result["recipe"] == job.recipe]
        if runs and (not names or job.recipe.startswith(tuple(names))):
            seeds = sum(len(run["seeds"]) for run in runs)
            minutes = f"{fmean(run['cpu_minutes'] for run in runs):.1f}"
            latest = max(runs, key=lambda run: str(run["date"]))
            cells = [f"`{job.recipe}.yaml`", job.folder or "built-in", shown(job, [run["scores"] for run in runs])]
            machine = latest["hardware"].partition(" (")[0]
            lines.append(f"| {' | '.join([*cells, str(seeds), minutes, latest['date']])}, {machine} |")
    return "\n".join(lines)


def shown(job: Job, runs: list[dict[str, float]]) -> str:
    """Return the scores of a recipe's runs in words, by split."""
    found = []
    for prefix, split in (("test_", "test"), ("val_", "validation")):
        own = [name for name in job.scores if all(prefix + name in scores for scores in runs)]
        values = ", ".join(spread(name, [scores[prefix + name] for scores in runs]) for name in own)
        found += [f"{split}: {values}"] if own else []
    return "; ".join(found)


def spread(name: str, values: list[float]) -> str:
    """Return the mean of a score, and its range where there are several."""
    between = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{NAMES.get(name, name.replace('_', ' '))} {fmean(values):.2f}{between}"


if __name__ == "__main__":
    sys.exit(main())
