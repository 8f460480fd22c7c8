"""Which parts of a model learn, and from when on."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lit_seq2seq.nn.parts import find_part
from lit_seq2seq.training.module import LitSeq2Seq
from lit_seq2seq.types import UserError


class GradualUnfreezing(BaseFinetuning):
    """Keeps parts of the model as they are, and lets each learn from an epoch on (Howard & Ruder 2018, section 3.3).

    The optimizer holds all parameters from the start, so that every optimizer and schedule will do; a frozen one just
    has no gradient. A frozen part keeps the statistics of its batch normalisation, too; its dropout stays on. A weight
    that parts share is frozen as long as one of them is.

    Args:
        unfreeze_at_epoch: for each part, the first epoch, counted from 0, in which it learns; `null` for never. Parts
            are named as in the model: `encoder`, `decoder.embedding`, `encoder.stack.layers.0`.

    Raises:
        UserError: there is no such part, or several processes train without looking for unused parameters.

    Example:
        >>> GradualUnfreezing({"encoder": 2, "decoder.embedding": None}).frozen(epoch=3)
        ['decoder.embedding']
    """

    def __init__(self, unfreeze_at_epoch: dict[str, int | None]) -> None:
        super().__init__()
        self.unfreeze_at_epoch = unfreeze_at_epoch

    def frozen(self, epoch: int) -> list[str]:
        """Name the parts that do not learn in `epoch`."""
        return [part for part, first in self.unfreeze_at_epoch.items() if first is None or epoch < first]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing: the network is built later."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what does not learn from the start."""
        kwargs = getattr(trainer.strategy, "_ddp_kwargs", {})
        if trainer.world_size > 1 and not kwargs.get("find_unused_parameters"):
            raise UserError(
                "frozen parts have no gradients to share: set trainer.strategy to ddp_find_unused_parameters_true"
            )
        super().on_fit_start(trainer, pl_module)
        self.freeze_before_training(pl_module)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what does not learn in the first epoch."""
        self._apply(pl_module, 0)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Free what learns from `epoch` on; also right after a run has been resumed there."""
        self._apply(pl_module, epoch)

    def _apply(self, pl_module: LightningModule, epoch: int) -> None:
        network = cast(LitSeq2Seq, pl_module).net
        parts = {name: find_part(network, name, "unfreeze_at_epoch") for name in self.unfreeze_at_epoch}
        frozen = self.frozen(epoch)
        for part in parts.values():
            self.make_trainable(part)
            _set_statistics(part, learn=True)
        for name in frozen:  # last, for a part may lie in one that learns
            self.freeze(parts[name], train_bn=False)
            _set_statistics(parts[name], learn=False)


def _set_statistics(part: nn.Module, learn: bool) -> None:
    for module in part.modules():
        if isinstance(module, _BatchNorm):
            module.train(learn)
