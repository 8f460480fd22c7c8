"""Which weights a run keeps."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info


class Checkpoint(ModelCheckpoint):
    """Keeps the best checkpoints by a score and the last one, and saves once more when Ctrl-C interrupts training.

    Args:
        monitor: the logged score to rank by, such as `val_bleu`.
        mode: whether more (`max`) or less (`min`) is better.
        save_top_k: how many of the best to keep.
        save_last: also keep `last.ckpt`, to resume from.
        every_n_epochs: epochs between two saves.
        dirpath: folder; `checkpoints` inside the run's folder if `None`.

    Example:
        >>> Checkpoint("val_bleu", "max").monitor
        'val_bleu'
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: str = "min",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_epochs: int | None = None,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath,
            filename="{epoch}-{" + monitor + ":.3f}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last,
            every_n_epochs=every_n_epochs,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best, and the last in any case: Lightning 2.6 does so only where the last is among the best."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_epoch(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same where validation does not come once an epoch."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer) and not self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_epoch(trainer)

    def _save_last_of_epoch(self, trainer: Trainer) -> None:
        due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when the user interrupts, but not after an error, whose weights may be spoilt."""
        if not isinstance(exception, KeyboardInterrupt) or trainer.fast_dev_run or trainer.sanity_checking:  # type: ignore[attr-defined]
            return
        if trainer.state.fn == "fit" and trainer.global_step and self.save_last:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            rank_zero_info(f"Interrupted: resume with --ckpt_path {self.last_model_path}")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write under another name first, so that a full disk leaves an older checkpoint of this name whole."""
        part = Path(f"{filepath}.part")
        try:
            super()._save_checkpoint(trainer, str(part))
            if trainer.is_global_zero:
                part.replace(filepath)
        except BaseException:
            if trainer.is_global_zero:
                part.unlink(missing_ok=True)
            raise
        trainer.strategy.barrier("checkpoint in place")
        self._last_checkpoint_saved = filepath
