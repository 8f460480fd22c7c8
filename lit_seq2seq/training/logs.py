"""The folder of a run: who owns it, its log of scores, and which checkpoint to go on from."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Iterable, Mapping
from datetime import datetime
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from lit_seq2seq.files.paths import inside, is_file, is_remote, local_path, place, set_aside, written_whole
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunFolder:
    """The folder that a run has for itself, `version_N` below the folder of all runs.

    Making it is what claims it, so that runs that start together get a folder each, whatever their loggers.

    Args:
        root: folder of the runs.

    Attributes:
        path: the run's own folder; `None` before it begins.
        step: optimizer steps that a resumed run has behind it.
        fitting: whether the run trains now.
        log: its `metrics.csv`, once a row is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = local_path(root, "trainer.default_root_dir")
        self.path: Path | None = None
        self.step: int | None = None
        self.fitting = False
        self.log: Table | None = None

    def begin(self, checkpoint: str | Path | None) -> None:
        """Claim a folder; a run that goes on from one of its checkpoints goes on in its folder below `root`."""
        self.step = self.log = None
        if checkpoint is not None:
            found = load_checkpoint(checkpoint)
            step, mark = found.get("global_step"), found.get("run")
            self.step = step if isinstance(step, int) else None
            self.path = self.path or run_of(checkpoint, self.root)
            name = Path(str(mark.get("name"))).name if isinstance(mark, dict) else ""
            if self.path is None and name and mark == _mark(self.root / name):
                self.path = self.root / name
        self.path = self.path or claim(self.root)

    @property
    def mark(self) -> dict[str, str | int]:
        """What a checkpoint, which may lie elsewhere, knows the folder by."""
        return {} if self.path is None else _mark(self.path)


def _mark(folder: Path) -> dict[str, str | int]:
    """Return the name and the number on the disk of a folder; no other folder of this name has both."""
    return {"name": folder.name, "inode": folder.stat().st_ino} if folder.is_dir() else {}


class RunTrainer(Trainer):
    """Lightning's trainer, each of whose runs has a folder for itself: its `log_dir`, whatever the loggers.

    Attributes:
        run: the folder.
    """

    @cached_property
    def run(self) -> RunFolder:  # noqa: D102
        return RunFolder(self.default_root_dir)

    @property
    def log_dir(self) -> str | None:
        """The run's folder, or that of all runs where nothing is trained; to be asked for on every process."""
        if self.fast_dev_run:  # type: ignore[attr-defined]
            return None
        self.run.path = self.strategy.broadcast(self.run.path)
        return str(self.run.path or self.run.root)

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train in a folder of its own, which goes again where the run ends before it has written anything."""
        keep = [callback for callback in self.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        if ckpt_path == "last":
            ckpt_path = last_checkpoint(self.run.root, next((str(one.dirpath) for one in keep if one.dirpath), None))
        claimed = []
        if self.is_global_zero and not self.fast_dev_run:  # type: ignore[attr-defined]
            claimed = self._begin(ckpt_path, keep)
        self.run.fitting = True
        try:
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        except BaseException:
            for folder in claimed:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise
        finally:
            self.run.fitting = False

    def _begin(self, checkpoint: str | Path | None, keep: Iterable[ModelCheckpoint]) -> list[Path]:
        """Claim the run's folder, and a new one of each logger that numbers its own; return what is new."""
        before = self.run.path
        self.run.begin(checkpoint if checkpoint is not None and is_file(checkpoint) else None)
        path = self.run.path
        assert path is not None
        fresh = [] if before or checkpoint is not None else [path]
        for callback in keep:
            callback.dirpath = callback.dirpath or str(path / "checkpoints")
        keep_rows(self.loggers)
        for logger in self.loggers:
            if isinstance(logger, CSVLogger | TensorBoardLogger) and logger._version is None:
                root = Path(logger.root_dir)
                folder = path if fresh and root.resolve() == path.parent.resolve() else claim(root)
                logger._version = int(folder.name.removeprefix("version_"))
                fresh.append(folder)
        return fresh


class Table:
    """A CSV file that grows row by row; whatever happens to the process, the rows written before stay.

    Args:
        path: the file; one that is there is gone on with.
        step: where the rows have a `step`, rows of this one and later ones are dropped.
    """

    def __init__(self, path: Path, step: int | None = None) -> None:
        self.path = path
        try:
            rows = _read(path)
            kept = [row for row in rows if step is None or int(row["step"] or 0) < step]
        except (KeyError, ValueError, csv.Error) as error:
            raise UserError(f"{path} is not as it was written: give it another name, and a new one begins") from error
        self.columns = list(rows[0]) if rows else []
        self.latest = [_told(row) for row in kept if row.get("step") == kept[-1].get("step")]
        if len(kept) < len(rows) or _is_torn(path):
            self._write(kept)

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row, unless it is there: the last rows of its step are looked at. New columns are added to all."""
        cells = {name: str(value) for name, value in row.items()}
        if self.latest and self.latest[0].get("step") != cells.get("step"):
            self.latest = []
        if "step" in cells and cells in self.latest:
            return
        self.latest.append(cells)
        if cells.keys() <= {*self.columns}:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(cells)
        else:
            self.columns = sorted({*self.columns, *cells})
            self._write([*_read(self.path), cells])

    def _write(self, rows: Iterable[Mapping[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


def _told(row: Mapping[str, str]) -> dict[str, str]:
    """Leave out the columns that a row has nothing for."""
    return {name: value for name, value in row.items() if value}


def _is_torn(path: Path) -> bool:
    """Whether a table ends with part of a row, as a process that died may leave it."""
    return path.is_file() and not path.read_bytes().endswith(b"\n")


def _read(path: Path) -> list[dict[str, str]]:
    """Read the whole rows of a table."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if line.endswith("\n")))


class MetricsLog(Logger):
    """Writes `metrics.csv` row by row; a resumed run goes on in the file of the interrupted one.

    Only training is logged: a model that is scored afterwards adds no further epoch.

    Args:
        run: whose scores they are.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """Nothing: the run is known by its version."""
        return ""

    @property
    def version(self) -> str:
        """The name of the run's folder."""
        return "" if self.run.path is None else self.run.path.name

    @property
    def save_dir(self) -> str:
        """The folder of all runs."""
        return str(self.run.root)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Write a row, unless it is there."""
        if not self.run.fitting or self.run.path is None:
            return
        self.run.log = self.run.log or Table(self.run.path / "metrics.csv", self.run.step)
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.run.log.add({**values, "step": step})

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Leave that to the run's `config.yaml`."""


def write_row(trainer: Trainer, step: int) -> None:
    """Write the row that Lightning is about to log, so that it is there before a checkpoint; on all processes."""
    logs = [log for log in trainer.loggers if isinstance(log, MetricsLog)]
    if logs and (row := trainer._logger_connector.metrics["log"]):
        for log in logs:
            log.log_metrics({"epoch": trainer.current_epoch, **row}, step)


class EventsLog(TensorBoardLogger):
    """Writes training for TensorBoard into the run's folder.

    Args:
        run: whose scores they are.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__(str(run.root), name="", version="", default_hp_metric=False, flush_secs=10)
        self.run = run

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.run.path or self.run.root)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """What writes the file; nothing where nothing is trained."""
        if self.run.path is None:
            return cast("SummaryWriter", _DummyExperiment())
        self._kwargs["purge_step"] = self.run.step
        return cast("SummaryWriter", super().experiment)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the scores of a step of training."""
        if self.run.fitting:
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write what is waiting."""
        if self.run.path is not None:
            super().save()


def claim(root: Path) -> Path:
    """Make the next `version_N` in a folder; no other run can have made it."""
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(found) for path in root.glob("version_*") if (found := path.name[8:]).isdecimal()]
    for number in itertools.count(max(taken, default=-1) + 1):
        folder = root / f"version_{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def keep_rows(loggers: Iterable[Logger]) -> None:
    """Give the `metrics.csv` of earlier rows another name where Lightning's logger would delete it."""
    for logger in loggers:
        if isinstance(logger, CSVLogger) and logger._version is not None and logger._experiment is None:
            file = Path(logger.log_dir, "metrics.csv")
            if file.is_file():
                rank_zero_info(f"CSVLogger begins anew: earlier rows are now in {set_aside(file)}")


def record_scores(folder: Path, checkpoint: str | Path, scores: Mapping[str, float], data: str | None) -> None:
    """Add what a checkpoint reached on a split of some data to the `scores.csv` of its run."""
    Table(folder / "scores.csv").add({"checkpoint": Path(checkpoint).name, **scores, "data": data or ""})


def run_of(checkpoint: str | Path, root: Path) -> Path | None:
    """Return the folder of the run below `root` that holds a checkpoint; `None` if it is elsewhere."""
    folder = Path(checkpoint).resolve().parent.parent
    is_run = folder.parent == root.resolve() and folder.name.removeprefix("version_").isdecimal()
    return root / folder.name if is_run and not is_remote(checkpoint) else None


def last_checkpoint(root: str | Path, folder: str | None) -> str | None:
    """Find the newest whole `last*.ckpt` to resume from, below the folder of the runs or in that of checkpoints."""
    folders = [folder] if folder else [*Path(root).glob("version_*/checkpoints"), Path(root) / "checkpoints"]
    found = sorted((one for where in folders for one in _last_files(where)), reverse=True)
    for _, path in found:
        try:
            load_checkpoint(path)
        except UserError as error:
            rank_zero_warn(f"{error}: trying the one before")
        else:
            return path
    rank_zero_info("There is no last checkpoint yet: starting anew.")
    return None


def _last_files(folder: str | Path) -> list[tuple[datetime, str]]:
    """Return when each `last*.ckpt` of a folder was written, and its path."""
    system, there = place(folder)
    if not system.isdir(there):
        return []
    names = [Path(path).name for path in system.ls(there, detail=False)]
    return [
        (system.modified(inside(there, name)), inside(folder, name)) for name in names if fnmatch(name, "last*.ckpt")
    ]
