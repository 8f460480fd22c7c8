"""Stops a training run whose loss is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from lit_seq2seq.files.paths import is_file
from lit_seq2seq.types import UserError


class NonFiniteLoss(Callback):
    """Stops training when a loss or the weights are NaN or infinite, before a checkpoint of it can be written.

    On a CPU every loss is looked at before its gradient is taken. On a GPU, where looking means waiting, the first bad
    step is noted on the device and read every `every_n_steps` batches, before each validation and before each save.

    With `max_skipped`, an optimizer step whose gradient is not finite is left out instead, and training stops when so
    many were left out one after another and the next is bad too. The gradient is then looked at in every step.

    Args:
        every_n_steps: batches between two looks on a GPU, at least 1.
        max_skipped: greatest number of bad steps in a row to leave out.
    """

    def __init__(self, every_n_steps: int = 50, max_skipped: int = 0) -> None:
        if every_n_steps < 1:
            raise UserError(f"NonFiniteLoss expects every_n_steps of at least 1, but got {every_n_steps}")
        if max_skipped < 0:
            raise UserError(f"NonFiniteLoss expects max_skipped of at least 0, but got {max_skipped}")
        self.every_n_steps, self.max_skipped = every_n_steps, max_skipped
        self._skipped = 0
        self._first_bad_step: Tensor | None = None
        self._batches = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._first_bad_step = torch.tensor(-1, device=pl_module.device)
        self._batches = 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note a bad loss, and stop where looking is due."""
        if self.max_skipped:
            return
        self._note(trainer, loss)
        self._batches += 1
        if loss.device.type == "cpu" or self._batches % self.every_n_steps == 0:
            self._stop_if_bad(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Leave a bad step out, if so configured: all processes have the same gradient, and decide alike."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if not self.max_skipped or not gradients:
            return
        if bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
            self._skipped = 0
            return
        self._skipped += 1
        if self._skipped > self.max_skipped:
            raise UserError(
                f"the gradient was NaN or infinite in {self._skipped} steps up to step {trainer.global_step}: "
                f"{_advice(trainer)}"
            )
        optimizer.zero_grad(set_to_none=True)  # an optimizer passes over parameters without a gradient
        rank_zero_warn(f"step {trainer.global_step} is left out: its gradient is NaN or infinite")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Spend no validation on a lost model."""
        self._stop_if_bad(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *args: Any, **kwargs: Any
    ) -> None:
        """Note a bad loss of the weights after the last step."""
        if isinstance(outputs, Mapping) and "loss" in outputs and self._first_bad_step is not None:
            self._note(trainer, outputs["loss"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more before the end of the epoch is recorded."""
        self._stop_if_bad(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save no lost model, not even one whose last step was taken with a bad gradient of a good loss."""
        self._stop_if_bad(trainer)
        weights = [tensor for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point()]
        if trainer.state.fn == "fit" and weights and not torch.stack([t.isfinite().all() for t in weights]).all():
            raise UserError(f"the weights became NaN or infinite by step {trainer.global_step}: {_advice(trainer)}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the run."""
        self._first_bad_step = None

    def _note(self, trainer: Trainer, loss: Tensor) -> None:
        assert self._first_bad_step is not None
        is_new = ~torch.isfinite(loss.detach()).all() & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_new, trainer.global_step, self._first_bad_step)

    def _stop_if_bad(self, trainer: Trainer) -> None:
        step = -1 if self._first_bad_step is None else int(self._first_bad_step)
        if step >= 0:
            raise UserError(f"the loss became NaN or infinite at step {step}: {_advice(trainer)}")


def _advice(trainer: Trainer) -> str:
    return (
        f"{_last_checkpoint(trainer)}; try a lower learning rate, trainer.gradient_clip_val: 1.0, "
        "or trainer.precision: bf16-mixed instead of 16-mixed"
    )


def _last_checkpoint(trainer: Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            for path in (callback.last_model_path, callback.best_model_path):
                if path and is_file(path):
                    return f"the last good checkpoint is kept in {path}"
    return "no checkpoint had been saved yet"
