"""The folder of a run: its log of scores, and which checkpoint to go on from."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_seq2seq.hub import load_checkpoint
from lit_seq2seq.types import UserError


class MetricsLog(CSVLogger):
    """Writes `metrics.csv` row by row; a resumed run goes on in the file of the interrupted one.

    Args:
        root: folder of the runs.
        version: number of the run; the next free one if `None`.
        step: optimizer steps that a resumed run has behind it: rows of later ones are dropped, as they come again.
    """

    def __init__(self, root: str, version: int | None = None, step: int | None = None) -> None:
        super().__init__(root, name=None, version=version, flush_logs_every_n_steps=1)
        self.step = step

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """What writes the file."""
        if self._experiment is None and self.step is not None:
            before = _rows_before(Path(self.log_dir) / "metrics.csv", self.step)
            writer: _ExperimentWriter = super().experiment
            assert isinstance(writer, ExperimentWriter)
            for row in before:
                writer.log_metrics(row, int(float(row["step"])))
            writer.save()
        return cast(_ExperimentWriter, super().experiment)


def _rows_before(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) < step]


def last_checkpoint(root: str, folder: str | None) -> Path | None:
    """Find the newest whole checkpoint to resume from.

    Args:
        root: folder of the runs.
        folder: folder of the checkpoints, if they are not with their runs.

    Returns:
        A `last*.ckpt`; `None` if there is none.
    """
    found = Path(folder).glob("last*.ckpt") if folder else Path(root).glob("version_*/checkpoints/last*.ckpt")
    for path in sorted(found, key=os.path.getmtime, reverse=True):
        try:
            load_checkpoint(path)
        except UserError as error:
            rank_zero_warn(f"{error}: trying the one before")
        else:
            return path
    rank_zero_info("There is no last checkpoint yet: starting anew.")
    return None


def run_of(checkpoint: str | Path, root: str) -> int | None:
    """Return the number of the run below `root` whose folder holds a checkpoint; `None` if it is elsewhere."""
    folder = Path(checkpoint).resolve().parent.parent
    number = folder.name.removeprefix("version_")
    return int(number) if folder.parent == Path(root).resolve() and number.isdecimal() else None
