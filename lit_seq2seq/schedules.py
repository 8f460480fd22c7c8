"""Learning-rate schedules beyond those of torch, stepped once per optimizer step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch.utilities.types import LRSchedulerConfigType


class InverseSquareRoot(LambdaLR):
    """Linear warm-up, then decay by the inverse square root of the step (Vaswani et al. 2017, section 5.3).

    `lr(t) = lr * min(t / warmup_steps, sqrt(warmup_steps / t))`, so the optimizer's `lr` is the peak.

    Args:
        optimizer: whose learning rates are scaled.
        warmup_steps: number of steps to the peak, at least 1.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = InverseSquareRoot(optimizer, warmup_steps=4)
        >>> [schedule.factor(step) for step in (0, 3, 15)]
        [0.25, 1.0, 0.5]
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 4000) -> None:
        if warmup_steps < 1:
            raise UserError(f"warmup_steps must be at least 1, got {warmup_steps}")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Multiplier of the learning rate at `step`, counted from 0."""
        t = step + 1
        return min(t / self.warmup_steps, math.sqrt(self.warmup_steps / t))


class OneCycle(LambdaLR):
    """Cosine rise to the optimizer's `lr`, then cosine fall to almost nothing (Smith & Topin 2019).

    Unlike `torch.optim.lr_scheduler.OneCycleLR` it takes the number of steps from the trainer when it is not given, and
    stays at the end value instead of failing when training goes on longer. A run that is resumed with another
    `max_epochs` or `max_steps` goes on at the rate that a run of that length has at this step.

    Args:
        optimizer: whose `lr` is the peak.
        total_steps: optimizer steps in the whole run; `None` lets `LitSeq2Seq` fill it in.
        warmup: share of the steps spent rising, from 0 to 1.
        start: learning rate at the beginning, as a share of the peak.
        end: learning rate at the end, as a share of the peak.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = OneCycle(optimizer, total_steps=101, warmup=0.5, start=0.0, end=0.0)
        >>> [round(schedule.factor(step), 3) for step in (0, 25, 50, 100, 1000)]
        [0.0, 0.5, 1.0, 0.0, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.25,
        start: float = 0.04,
        *,
        end: float = 0.001,
    ) -> None:
        if not 0 <= warmup <= 1:
            raise UserError(f"warmup is a share of all steps, between 0 and 1, got {warmup}")
        self.total_steps = total_steps
        self.warmup = warmup
        self.start = start
        self.end = end
        super().__init__(optimizer, self.factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of a state; as in a run of the length of now, if that is known."""
        total_steps = self.total_steps
        super().load_state_dict(state_dict)
        self.total_steps = total_steps or self.total_steps
        self._last_lr = [lr * self.factor(self.last_epoch) for lr in self.base_lrs]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def factor(self, step: int) -> float:
        """Multiplier of the learning rate at `step`, counted from 0."""
        last = max(1, (self.total_steps or 1) - 1)
        progress = min(1.0, step / last)
        if progress < self.warmup:
            return _cosine(self.start, 1.0, progress / self.warmup)
        return _cosine(1.0, self.end, 0.0 if self.warmup == 1 else (progress - self.warmup) / (1 - self.warmup))


def check_factors(optimizer: Optimizer) -> None:
    """Check that the schedule of an optimizer scales the rates of its groups, each with its `factor`.

    Raises:
        UserError: it sets one rate for all groups instead, as some schedules of torch do.
    """
    ratios = [
        group["initial_lr"] / group.get("factor", 1.0) for group in optimizer.param_groups if "initial_lr" in group
    ]
    if any(not math.isclose(ratio, ratios[0]) for ratio in ratios):
        raise UserError(
            "this lr_scheduler sets one rate for all parts, whatever lr_factors says: use one that scales the "
            "optimizer's, such as lit_seq2seq.schedules.OneCycle"
        )


def length_of(scheduler: LRScheduler) -> int | None:
    """Return the steps after which a schedule has come to its end; `None` if it has none, or does not tell."""
    lengths = (getattr(scheduler, name, None) for name in ("total_steps", "T_max", "total_iters"))
    return next((length for length in lengths if isinstance(length, int)), None)


def validates(trainer: Trainer) -> bool:
    """Tell whether a run has anything to validate on."""
    splits = getattr(getattr(trainer, "datamodule", None), "splits", None)
    return trainer.enable_validation and (splits is None or "validation" in splits)


def on_plateau(scheduler: ReduceLROnPlateau, trainer: Trainer) -> LRSchedulerConfigType:
    """Tell the trainer to step a schedule after each validation, by `val_loss` or its own `monitor`.

    Raises:
        UserError: the run does not validate.
    """
    monitor = getattr(scheduler, "monitor", "val_loss")
    if monitor.startswith("val_") and not validates(trainer):
        raise UserError(
            f"ReduceLROnPlateau watches {monitor}, but this run does not validate: give a validation split, or another "
            "lr_scheduler"
        )
    every = trainer.check_val_every_n_epoch  # `None`: batches are counted over epochs, so that the first may have none
    return {"scheduler": scheduler, "monitor": monitor, "frequency": every or 1, "strict": every is not None}


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def total_steps(trainer: Trainer) -> int:
    """Count the optimizer steps of a run without touching the trainer's loaders (lightning #20550).

    Raises:
        UserError: the trainer has no end that can be counted.
    """
    batches: Any = getattr(getattr(trainer, "datamodule", None), "batches_per_epoch", None)
    limit = trainer.limit_train_batches
    if batches is None and isinstance(limit, int):
        batches = limit
    if batches is None and not hasattr(getattr(trainer, "datamodule", None), "batches_per_epoch"):
        estimated = trainer.estimated_stepping_batches  # of loaders of the user's
        if math.isfinite(estimated) and estimated > 0:
            return int(estimated)
    bounds = [trainer.max_steps] if trainer.max_steps > 0 else []
    if batches is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
        used: int = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        bounds.append(trainer.max_epochs * math.ceil(used / trainer.accumulate_grad_batches))
    if not bounds and batches is None and (trainer.max_epochs or 0) > 0:
        raise UserError(
            "OneCycle needs the number of steps, and how many an epoch of a stream has is not known: set its "
            "total_steps, trainer.max_steps or trainer.limit_train_batches"
        )
    if not bounds:
        raise UserError("OneCycle needs the number of steps: set total_steps, trainer.max_epochs or trainer.max_steps")
    return min(bounds)
