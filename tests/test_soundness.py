"""Long runs: memory and open files stay as they are."""

import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.cli import main
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.search import GenerationConfig
from tests.tiny import Trained, pairs

Record = Callable[[str, object], None]
READINGS = 20  # of a run; the first half is left out, in which caches fill


def read(path: Path) -> None:
    """Note the bytes of memory in use, the Python objects and the open files."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    found = resident, len(gc.get_objects()), len(list(Path("/proc/self/fd").iterdir()))
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps(found) + "\n")


class Watch(Callback):
    """Writes a reading every few steps."""

    def __init__(self, path: str, every: int) -> None:
        self.path, self.every = Path(path), every

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            read(self.path)


def flat(work: Callable[[Trained, Path, int], int], trained: Trained, folder: Path, steps: int) -> dict[str, float]:
    """Work in a process of its own; return what the second half of it adds for each 1,000 steps."""
    path = folder / "readings"
    process = multiprocessing.get_context("forkserver").Process(target=alone, args=(work, trained, path, steps))
    process.start()
    process.join()
    assert process.exitcode == 0
    readings = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert len(readings) == READINGS
    later = np.array(readings[READINGS // 2 :], float)
    places = np.linspace(0, steps / 2, len(later)) / 1000
    first, second = np.triu_indices(len(later), 1)
    slopes = (later[second] - later[first]) / (places[second] - places[first])[:, None]
    grown, objects, _ = np.median(slopes, axis=0).tolist()  # Theil-Sen: one page that the system maps late is no leak
    return {"bytes": round(grown), "objects": round(objects, 1), "files": float(np.ptp(later[:, 2]))}


def alone(work: Callable[[Trained, Path, int], int], trained: Trained, path: Path, steps: int) -> None:
    gc.freeze()  # what is there already need not be looked through
    sys.exit(work(trained, path, steps))


def train(trained: Trained, path: Path, steps: int) -> int:
    """Train with validation, samples, checkpoints and logs."""
    every = steps // READINGS
    watch = {"class_path": "tests.test_soundness.Watch", "init_args": {"path": str(path), "every": every}}
    options = [
        f"--trainer.default_root_dir={path.parent}",
        f"--trainer.max_steps={steps}",
        "--trainer.max_epochs=-1",
        f"--trainer.check_val_every_n_epoch={max(1, every // 5)}",
        f"--trainer.callbacks+={json.dumps(watch)}",
    ]
    return main(["fit", "--config", str(trained.recipe), *options])


def generate(trained: Trained, path: Path, steps: int) -> int:
    predictor = Predictor(LitSeq2Seq.from_pretrained(trained.model))
    config = GenerationConfig(num_beams=2, max_new_tokens=4)
    texts = pairs(200)["source"]
    for step in range(steps):
        text = texts[step % len(texts)]
        list(predictor.stream([text], config, return_attention=True))
        "".join(predictor.stream_text(text))
        if (step + 1) % (steps // READINGS) == 0:
            read(path)
    return 0


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="there is no /proc here")
@pytest.mark.parametrize(
    ("steps", "most"),
    [
        pytest.param(200, {"bytes": 4_000_000, "objects": 500}, id="200"),  # one object a step would be 1,000
        pytest.param(10_000, {"bytes": 100_000, "objects": 200}, id="10,000", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("work", [train, generate])
def test_it_holds_on_to_nothing(
    work: Callable[[Trained, Path, int], int],
    steps: int,
    most: dict[str, int],
    trained: Trained,
    tmp_path: Path,
    record_property: Record,
) -> None:
    found = flat(work, trained, tmp_path, steps)
    record_property("per 1,000 steps", found)
    assert found["bytes"] < most["bytes"]
    assert found["objects"] < most["objects"]
    assert found["files"] == 0
