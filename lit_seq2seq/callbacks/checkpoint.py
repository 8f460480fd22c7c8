"""Which weights a run keeps, and how it is interrupted."""

from __future__ import annotations

import io
import itertools
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lit_seq2seq.callbacks.signals import StopSignals, requeue
from lit_seq2seq.files.paths import (
    check_writable,
    folder_of,
    inside,
    is_file,
    is_remote,
    local_path,
    place,
    written_whole,
)
from lit_seq2seq.training.logs import write_row
from lit_seq2seq.types import UserError

_SHARED_EVERY = 8  # optimizer steps between two looks at what other processes want


class Checkpoint(ModelCheckpoint):
    """Keeps the best checkpoints by a score and the last ones, within epochs too, and lets a run be interrupted.

    Of checkpoints with equal scores the one with the lower `val_loss` is better, then the later one.

    A run that is resumed from any of them goes on at the next batch and ends as if it had never stopped. SIGTERM,
    Ctrl-C and, in a SLURM job, SIGUSR1 let the step finish, save and stop; after SIGUSR1 the job is queued again. A
    second Ctrl-C stops at once.

    Args:
        monitor: the logged score to rank by, such as `val_bleu`.
        mode: whether more (`max`) or less (`min`) is better.
        save_top_k: how many of the best to keep.
        save_last: also keep `last.ckpt`, to resume from.
        keep_last: how many of the last to keep: before `last.ckpt` come `last-1.ckpt`, `last-2.ckpt` and so on.
        every_n_epochs: epochs between two saves.
        every_n_steps: optimizer steps after which the last one is saved within an epoch; `None` for never.
        every_n_minutes: minutes after which it is; `None` for never.
        dirpath: folder, here or wherever `fsspec` reaches, such as `s3://bucket/run`; `checkpoints` inside the run's
            folder if `None`.

    Raises:
        UserError: a number is below what makes sense.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: str = "min",
        *,
        save_top_k: int = 1,
        save_last: bool = True,
        keep_last: int = 1,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 10,
        dirpath: str | None = None,
    ) -> None:
        if dirpath is not None:
            place(dirpath)
        super().__init__(
            dirpath,
            filename="{epoch}-{" + monitor + ":.3f}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last,
            every_n_epochs=every_n_epochs,
        )
        for name, number in (("keep_last", keep_last), ("every_n_steps", every_n_steps)):
            if number is not None and number < 1:
                raise UserError(f"expected {name} of at least 1, but got {number}")
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise UserError(f"expected every_n_minutes above 0, but got {every_n_minutes}")
        self.keep_last, self.every_n_steps, self.every_n_minutes = keep_last, every_n_steps, every_n_minutes
        self._signals = StopSignals()
        self._stop, self._due, self._ended = 0, False, False
        self._step = 0
        self._saved_step, self._saved_at = 0, 0.0
        self._fits = False
        self._is_ours = False  # whether the checkpoint that the run goes on from lies in the folder
        self._left: set[str] = set()  # names of checkpoints that this run left when it was interrupted
        self._ties: dict[str, tuple[float, int]] = {}  # of each of the best: minus its loss, and its step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and write whole files unless a plugin writes them."""
        if stage == "fit" and trainer.is_global_zero and is_remote(str(self.dirpath)):
            check_writable(str(self.dirpath))
        super().setup(trainer, pl_module, stage)
        self._fits, self._is_ours = stage == "fit", False
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()

    # ---------------------------------------------------------------------------------------------- within epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals, and count steps and minutes from here."""
        super().on_train_start(trainer, pl_module)
        self._look_around(trainer)
        self._signals.install(trainer._signal_connector._original_handlers)
        self._stop, self._due, self._ended = 0, False, False
        self._step = self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, and note that all processes are to stop; only after whole optimizer steps."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._due = self._agree(trainer)
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        # Lightning resumes from before a validation by leaving it out; the save after it serves as well.
        if self._due and not loop.batch_progress.is_last_batch and not loop._should_check_val_fx(fetcher):
            if trainer._logger_connector.should_update_logs:
                write_row(trainer, loop._batches_that_stepped)
            self._save_last(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Let a signal stop a validation too."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.world_size == 1:
            self._agree(trainer)

    def _agree(self, trainer: Trainer) -> bool:
        """Find what any process wants: to stop, which is noted, or to save, which is returned."""
        minutes = (time.monotonic() - self._saved_at) / 60
        wants = [self._signals.received, int(self.every_n_minutes is not None and minutes >= self.every_n_minutes)]
        if trainer.world_size > 1:
            if self._step % _SHARED_EVERY == 0:
                shared = torch.tensor(wants, device=trainer.strategy.root_device)
                wants = trainer.strategy.reduce(shared, reduce_op="max").tolist()
            else:
                wants = [0, 0]
        self._stop, late = max(self._stop, wants[0]), wants[1]
        if self._stop:
            trainer._signal_connector.received_sigterm = True  # Lightning stops after this batch, or this epoch
        return bool(late) or (self.every_n_steps is not None and self._step - self._saved_step >= self.every_n_steps)

    # ---------------------------------------------------------------------------------------------- after epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best, and the last in any case: Lightning 2.6 does so only where the last is among the best."""
        write_row(trainer, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_epoch(trainer)
        if (self._due or self._stop) and self._saved_step != trainer.global_step:
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same where validation does not come once an epoch."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer) and not self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_epoch(trainer)

    def _save_last_of_epoch(self, trainer: Trainer) -> None:
        due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last(trainer)

    # ---------------------------------------------------------------------------------------------- the best

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether these weights are among the best: Lightning lets only better scores replace older ones."""
        if current is None or self.save_top_k == -1 or len(self.best_k_models) < self.save_top_k:
            return current is not None
        kth = self._ranked()[-self.save_top_k]
        better = (self._signed(current), *_tie(trainer)) >= self._rank(kth)
        return trainer.strategy.reduce_boolean_decision(better)

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        ranked = self._ranked()
        dropped = ranked[: max(0, len(ranked) + 1 - self.save_top_k)] if self.save_top_k > 0 else []
        for path in dropped:
            del self.best_k_models[path]
            self._ties.pop(path, None)
        filepath = self._get_metric_interpolated_filepath_name(
            monitor_candidates, trainer, dropped[0] if dropped else None
        )
        worst = torch.full_like(current, math.inf if self.mode == "min" else -math.inf)
        self.current_score = self.best_k_models[filepath] = torch.where(current.isnan(), worst, current)
        self._ties[filepath] = _tie(trainer)
        self._note_best()
        self._save_checkpoint(trainer, filepath)
        for path in dropped:
            if self._should_remove_checkpoint(trainer, path, filepath):
                self._remove_checkpoint(trainer, path)

    def _note_best(self) -> None:
        ranked = self._ranked()
        self.kth_best_model_path, self.best_model_path = ranked[0], ranked[-1]
        self.kth_value = self.best_k_models[self.kth_best_model_path]
        self.best_model_score = self.best_k_models[self.best_model_path]

    def _ranked(self) -> list[str]:
        """Return those that are kept, the worst first."""
        return sorted(self.best_k_models, key=self._rank)

    def _rank(self, path: str) -> tuple[float, float, int]:
        return self._signed(self.best_k_models[path]), *self._ties.get(path, (-math.inf, 0))

    def _signed(self, score: Tensor) -> float:
        return _worst_if_nan(float(score) if self.mode == "max" else -float(score))

    # ---------------------------------------------------------------------------------------------- interrupted

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when a signal has stopped the run, but not after an error, whose weights may be spoilt."""
        self._signals.remove()
        if isinstance(exception, KeyboardInterrupt):
            self._signals.listen_to_interrupts()
        if not isinstance(exception, SIGTERMException):
            return
        exception.code = exception.code or 128 + (self._stop or signal.SIGTERM)
        if trainer.state.fn != "fit" or self._ended:
            return
        if self.save_last and trainer.global_step and not trainer.fast_dev_run and not trainer.sanity_checking:  # type: ignore[attr-defined]
            if self._saved_step != trainer.global_step:
                self._begin_validation_anew(trainer)
                self._save_last(trainer)
            rank_zero_info("Interrupted: the same command with --ckpt_path last goes on")
            queue = trainer._accelerator_connector.cluster_environment
            if self._stop == signal.SIGUSR1 and trainer.is_global_zero and getattr(queue, "auto_requeue", True):
                requeue()

    def _begin_validation_anew(self, trainer: Trainer) -> None:
        """Tell Lightning of a validation that has begun and validated nothing, so that it runs it when resumed."""
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        if trainer.validating:
            progress.reset()
            progress.increment_ready()
            progress.increment_started()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last where nothing was saved yet, but not in a trial run: Lightning 2.6 does so even then."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().on_train_end(trainer, pl_module)
        self._ended = True  # there is nothing left to interrupt

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Let SIGTERM end a prediction: Lightning looks for it only elsewhere."""
        if trainer.received_sigterm:
            raise SIGTERMException

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more; a signal that came too late to stop the run ends the program that called it."""
        self._signals.remove()
        received = self._signals.received if stage == "fit" else trainer.received_sigterm * signal.SIGTERM
        if received:
            stopped = SIGTERMException()
            stopped.code = 128 + received
            raise stopped

    def state_dict(self) -> dict[str, Any]:
        """Add what decides between equal scores."""
        return {**super().state_dict(), "ties": self._ties}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether the run goes on in the folder of the checkpoint; Lightning does not tell it earlier."""
        self._is_ours = trainer.ckpt_path is not None and folder_of(trainer.ckpt_path) == self._folder

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the checkpoints of the interrupted run that are still there, also where its folder was moved since."""
        now, saved, last = str(self.dirpath), state_dict["best_k_models"], state_dict["last_model_path"]
        ours = self._is_ours or folder_of(inside(state_dict["dirpath"], "any")) == self._folder
        names = {path: inside(now, Path(path).name) for path in saved}
        there = {path: name for path, name in names.items() if ours and is_file(name)}
        known = {"dirpath": now, "best_k_models": {name: saved[path] for path, name in there.items()}}
        known["last_model_path"] = inside(now, Path(last).name) if ours and last else ""
        super().load_state_dict({**state_dict, **known})
        self._ties = {there[path]: tuple(tie) for path, tie in state_dict.get("ties", {}).items() if path in there}
        if there:
            self._note_best()
        gone = ", ".join(sorted(Path(path).name for path in saved.keys() - there.keys()))
        if gone and self._fits:
            rank_zero_warn(
                f"{now} no longer has {gone}, which the run had kept as its best: the best of the others becomes the "
                "model"
            )

    # ---------------------------------------------------------------------------------------------- writing

    def _save_last(self, trainer: Trainer) -> None:
        if self.save_last:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._saved_step, self._saved_at, self._due = trainer.global_step, time.monotonic(), False

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Keep the last ones before, if so configured; `last.ckpt` is there all the time."""
        stem, held = filepath.removesuffix(self.FILE_EXTENSION), f"{filepath}.before"
        before = [f"{stem}-{number}{self.FILE_EXTENSION}" for number in range(1, self.keep_last)]
        moves = before and self._is_last(filepath) and trainer.is_global_zero and self._fs.exists(filepath)
        if moves:
            self._fs.cp_file(filepath, held)
        super()._save_checkpoint(trainer, filepath)
        for newer, older in reversed(list(itertools.pairwise([held, *before]))) if moves else ():
            if self._fs.exists(newer):
                self._fs.mv(newer, older)

    @property
    def _folder(self) -> str:
        return folder_of(inside(str(self.dirpath), "any"))

    def _is_last(self, path: str) -> bool:
        return Path(path).name.startswith(self.CHECKPOINT_NAME_LAST)

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Whether a name is taken; those that this run left when it was interrupted are not."""
        return Path(filepath).name not in self._left and super().file_exists(filepath, trainer)

    def _look_around(self, trainer: Trainer) -> None:
        """Find what this run left in the folder when it was interrupted; other runs' files are not written over."""
        folder, found = str(self.dirpath), set()
        if trainer.is_global_zero and self._fs.isdir(folder):
            found = {Path(path).name for path in self._fs.ls(folder, detail=False)}
        if Path(self.last_model_path).name in found:
            found = {name for name in found if not self._is_last(name)}
        elif not self._is_ours and any(name.endswith(self.FILE_EXTENSION) for name in found):
            rank_zero_warn(f"{folder} holds checkpoints of another run: those of this run get names of their own")
        known = {Path(path).name for path in self.best_k_models}
        self._left = trainer.strategy.broadcast(found - known if self._is_ours else set())


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints so that a file under its name is whole, whatever happens meanwhile.

    Elsewhere than on this machine's disks that is left to `fsspec`, as in Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the file under another name first."""
        if is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = local_path(path, "checkpoint.dirpath")
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # written to a file itself, torch does not say that the disk is full
        torch.save(checkpoint, buffer)
        with written_whole(file) as part:
            part.write_bytes(buffer.getbuffer())


def _tie(trainer: Trainer) -> tuple[float, int]:
    """What decides between equal scores: the greater is better."""
    return _worst_if_nan(-float(trainer.callback_metrics.get("val_loss", 0.0))), trainer.global_step


def _worst_if_nan(score: float) -> float:
    return -math.inf if math.isnan(score) else score
