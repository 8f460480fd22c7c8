"""Long runs: memory and open files stay as they are."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.search import GenerationConfig
from tests.tiny import Trained, pairs

Record = Callable[[str, object], None]
READINGS = 10  # of a run; the first half is left out, in which caches fill


def reading() -> tuple[int, int, int]:
    """Bytes of memory in use, Python objects, open files."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(gc.get_objects()), len(list(Path("/proc/self/fd").iterdir()))


class Watch(Callback):
    """Writes a reading every few steps."""

    def __init__(self, path: str, every: int) -> None:
        self.path, self.every = Path(path), every

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            with self.path.open("a", encoding="ascii") as file:
                file.write(json.dumps(reading()) + "\n")


def flat(readings: list[list[int]], steps: int, most_bytes: int, record: Record) -> None:
    """Check what the second half of a run adds for each 1,000 steps."""
    later = np.array(readings[len(readings) // 2 :], float)
    places = np.linspace(0, steps / 2, len(later)) / 1000
    grown, objects, _ = (float(np.polyfit(places, column, 1)[0]) for column in later.T)
    record("bytes, objects per 1,000 steps", (round(grown), round(objects, 1)))
    assert grown < most_bytes
    assert objects < 200
    assert np.ptp(later[:, 2]) == 0  # open files


SIZES = [
    pytest.param(300, 4_000_000, id="300"),
    pytest.param(10_000, 100_000, id="10,000", marks=pytest.mark.slow),
]


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="there is no /proc here")
@pytest.mark.parametrize(("steps", "most_bytes"), SIZES)
def test_training_holds_on_to_nothing(
    trained: Trained, tmp_path: Path, steps: int, most_bytes: int, record_property: Record
) -> None:
    """With validation, samples, checkpoints and logs."""
    watch = {
        "class_path": "tests.test_soundness.Watch",
        "init_args": {"path": str(tmp_path / "r"), "every": steps // READINGS},
    }
    options = [
        f"--trainer.default_root_dir={tmp_path}",
        f"--trainer.max_steps={steps}",
        "--trainer.max_epochs=-1",
        f"--trainer.check_val_every_n_epoch={max(1, steps // READINGS // 5)}",
        f"--trainer.callbacks+={json.dumps(watch)}",
    ]
    command = [sys.executable, "-m", "lit_seq2seq", "fit", "--config", str(trained.recipe), *options]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent, check=False).returncode == 0
    readings = [json.loads(line) for line in (tmp_path / "r").read_text(encoding="ascii").splitlines()]
    assert len(readings) == READINGS
    flat(readings, steps, most_bytes, record_property)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="there is no /proc here")
@pytest.mark.parametrize(("steps", "most_bytes"), SIZES)
def test_generation_holds_on_to_nothing(trained: Trained, steps: int, most_bytes: int, record_property: Record) -> None:
    predictor = Predictor(LitSeq2Seq.from_pretrained(trained.model))
    config = GenerationConfig(num_beams=2, max_new_tokens=4)
    texts, readings = pairs(200)["source"], []
    for step in range(steps):
        text = texts[step % len(texts)]
        list(predictor.stream([text], config, return_attention=True))
        "".join(predictor.stream_text(text))
        if (step + 1) % (steps // READINGS) == 0:
            readings.append(list(reading()))
    flat(readings, steps, most_bytes, record_property)
