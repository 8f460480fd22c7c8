"""Train every recipe that has a figure to show, and write the table of all their scores: `make results`.

    python recipes/results.py [--data FOLDER] [--output runs/results] [--page docs/results.md] [--seeds 1 2 3]
        [--only translation speech/fsdd] [--fast]

FOLDER holds the real data sets, each in a folder of the name in `PLAN`; where one is missing, its hub id is used, or
the recipe is left out if it has none. Each run is the command that a user would type, and leaves its model, pictures
and output (`log.txt`, with ten outputs) in `OUTPUT/RECIPE/SEED`. A second start goes on after what is finished, and in
mid-epoch where a run was cut. `--page` puts the table between the two marks of that file. `--fast` gives each recipe
two batches, in `OUTPUT/fast`: its scores mean nothing, but everything has run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from lit_seq2seq.cli import guarded
from lit_seq2seq.types import UserError

RECIPES = Path(__file__).parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
FAST = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
FAST |= {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 1}


@dataclass(frozen=True)
class Job:
    """A recipe with a figure to show.

    Attributes:
        recipe: its YAML below this folder, without the ending.
        folder: of its data in the folder of all; `None` for built-in data.
        on_hub: whether the YAML names a hub id that does in place of the folder.
        option: which setting takes the folder.
        script: what trains it in place of the task's script, and leaves `average.json`.
    """

    recipe: str
    folder: str | None = None
    on_hub: bool = False
    option: str = "--data.dataset"
    script: str | None = None


PLAN = [
    Job("translation/builtin"),
    Job("translation/multi30k_de_en", "multi30k", on_hub=True),
    Job("translation/multi30k_en_de", "multi30k", on_hub=True),
    Job("translation/multi30k_quick", "multi30k", on_hub=True),
    Job("translation/multi30k_no_attention", "multi30k", on_hub=True),
    Job("summarization/builtin"),
    Job("summarization/dialogsum", "dialogsum", on_hub=True),
    Job("captioning/builtin"),
    Job("captioning/flickr8k", "flickr8k", on_hub=True),
    Job("multimodal/text_only"),
    Job("multimodal/builtin"),
    Job("speech/builtin"),
    Job("speech/fsdd", "fsdd", option="--data.dataset.init_args.dataset"),
    Job("speech/an4", "an4_mfcc"),
    Job("data_to_text/builtin"),
    Job("data_to_text/e2e", "e2e_nlg"),
    Job("text_generation/builtin"),
    Job("transduction/builtin"),
    Job("transduction/g2p", "sigmorphon2020_g2p", option="--data", script="transduction/all_languages"),
    Job("sanity/copy"),
    Job("sanity/reverse"),
    Job("sanity/sort"),
    Job("sanity/addition"),
]


def main(argv: list[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/results"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="TASK_OR_RECIPE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--fast", action="store_true")
    return guarded(partial(run, parser.parse_args(argv)))


def run(options: argparse.Namespace) -> None:
    """Train what is not finished, and write the table after each recipe."""
    jobs = [job for job in PLAN if not options.only or any(job.recipe.startswith(name) for name in options.only)]
    if not jobs:
        raise UserError(f"no recipe begins with {' or '.join(options.only)}: check --only")
    if options.data is not None and not options.data.is_dir():
        raise UserError(f"there is no folder {options.data}: check --data")
    if options.page is not None:
        if options.fast:
            raise UserError("the scores of --fast mean nothing: give no --page with it")
        parts(options.page)
    output = options.output / "fast" if options.fast else options.output
    failed = []
    for job in jobs:
        settings = data_of(job, options.data)
        if settings is None:
            print(f"{job.recipe}: left out, as there is no {job.folder} in --data")
            continue
        done = [train(job, seed, settings, output / job.recipe / str(seed), options.fast) for seed in options.seeds]
        failed += [] if all(done) else [job.recipe]
        write(table(output), output, options.page)
    print(table(output))
    if failed:
        raise UserError(f"these did not finish: {', '.join(failed)}: see their log.txt in {output}")


def write(text: str, output: Path, page: Path | None) -> None:
    """Write the table to its file, and between the marks of a page."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.md").write_text(text + "\n", encoding="utf-8")
    if page is not None:
        before, after = parts(page)
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def parts(page: Path) -> tuple[str, str]:
    """Return what stands before and after the table of a page."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise UserError(f"expected the marks {BEGIN} and {END} in {page}: check --page")
    return before, after


def data_of(job: Job, root: Path | None) -> list[str] | None:
    """Return the settings that name the data, `None` where there is none."""
    if job.folder is None:
        return []
    if root is not None and (root / job.folder).is_dir():
        return [f"{job.option}={root / job.folder}"]
    return [] if job.on_hub else None


def train(job: Job, seed: int, settings: list[str], folder: Path, fast: bool) -> bool:
    """Run a recipe as a user would, unless its scores are there; return whether they are."""
    kept = folder / "scores.json"
    if kept.is_file():
        return True
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
    started = time.monotonic()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        print(f"failed with status {status}: see {folder / 'log.txt'}")
        return False
    minutes = (time.monotonic() - started) / 60
    if job.script is None:
        config = max(folder.glob("*/model/config.json"), key=lambda path: path.stat().st_mtime)
        scores = json.loads(config.read_text(encoding="utf-8"))["scores"]
    else:
        scores = json.loads((folder / "average.json").read_text(encoding="utf-8"))
    result = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "minutes": minutes, "hardware": hardware(), "scores": scores}
    kept.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return True


def table(output: Path) -> str:
    """Return all scores that are there as a Markdown table: means over the runs of a recipe."""
    lines = ["| date | recipe | data | scores | runs | minutes | hardware |", "|---|---|---|---|---|---|---|"]
    for job in PLAN:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in (output / job.recipe).glob("*/scores.json")]
        if runs:
            name, data, last = f"`{job.recipe}.yaml`", job.folder or "built-in", max(runs, key=lambda run: run["date"])
            minutes = f"{fmean(run['minutes'] for run in runs):.1f}"
            cells = [last["date"], name, data, shown([run["scores"] for run in runs]), str(len(runs)), minutes]
            lines.append(f"| {' | '.join([*cells, last['hardware']])} |")
    return "\n".join(lines)


def shown(runs: list[dict[str, float]]) -> str:
    """Return the means over runs in words, by split."""
    shared = [name for name in runs[0] if all(name in run for run in runs)]  # raw scores are not always there
    means = {name: fmean(scores[name] for scores in runs) for name in shared if not name.endswith("loss")}
    found = []
    for prefix, split in (("test_", "test"), ("val_", "validation")):
        own = {name.removeprefix(prefix): value for name, value in means.items() if name.startswith(prefix)}
        values = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in own.items())
        found += [f"{split}: {values}"] if own else []
    return "; ".join(found)


def hardware() -> str:
    """Name what torch computes on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    return f"{threads} CPU thread{'s' * (threads > 1)} ({platform.machine()}), torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
