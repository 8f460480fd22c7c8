"""Which weights a run keeps."""

from __future__ import annotations

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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save when the user interrupts, but not after an error, whose weights may be spoilt."""
        if not isinstance(exception, KeyboardInterrupt) or trainer.fast_dev_run or trainer.sanity_checking:  # type: ignore[attr-defined]
            return
        if trainer.state.fn == "fit" and trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            rank_zero_info(f"Interrupted: resume with --ckpt_path {self.last_model_path}")
