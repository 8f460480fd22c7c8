"""Averages of weights: over the steps of one run, and over saved checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lit_seq2seq.files.weights import check_finite
from lit_seq2seq.hub.folder import read_archive
from lit_seq2seq.training.precision import mixed
from lit_seq2seq.types import UserError

_PARTS = {
    "processor": {"source": "source vocabulary", "target": "target vocabulary", "source_prefix": "source_prefix"},
    "hyper_parameters": {name: name for name in ("encoder", "decoder", "tie_embeddings", "output")},
}
"""What checkpoints to be averaged must share, beside the shapes of their weights."""


class EMA(WeightAveraging):
    """Exponential moving average of the weights, used for validation, checkpoints and the final model.

    After optimizer step t the average moves by `average += (1 - d_t) * (weights - average)` with the decay warmed up,
    `d_t = min(decay, (1 + t) / (10 + t))`, so that the random start is soon forgotten (Polyak and Juditsky, 1992; the
    warm-up is that of TensorFlow's `ExponentialMovingAverage`). Buffers are copied. Checkpoints hold the average as
    `state_dict` and all that a resumed run needs to go on as if never interrupted.

    Args:
        decay: from 0 (the average is the weights) to below 1.

    Raises:
        UserError: if the decay is out of range, or the weights are kept in 16 bits, which cannot take its small steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"EMA expects a decay from 0 to below 1, but got {decay}: set decay to 0.999 or so")
        super().__init__(use_buffers=False, multi_avg_fn=self._move)
        self.decay = decay
        self._swapped = False

    def decay_at(self, updates: int) -> float:
        """Return the decay of the next update after `updates` of them."""
        return min(self.decay, (1 + updates) / (10 + updates))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run, whose average the model holds: validating another checkpoint must not see it."""
        if stage == "fit" and isinstance(trainer.precision_plugin, HalfPrecision):
            raise UserError(
                f"EMA takes steps too small for the weights of {trainer.precision}: set trainer.precision to "
                f"{mixed(trainer)}, or leave EMA out"
            )
        self._average_model = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the weights and their average; outside of training the loaded weights are the average already."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._start(pl_module)
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the average from the initial weights, or move the restored one to the model's device."""
        if self._average_model is None:
            self._start(pl_module)
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as `state_dict` and the weights beside it."""
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back where an interrupted validation had swapped them, before anything is saved."""
        if self._swapped:
            self._swap_models(pl_module)

    def _start(self, pl_module: LightningModule) -> None:
        average = AveragedModel(pl_module, multi_avg_fn=self._move, use_buffers=False)
        average.n_averaged = average.n_averaged.cpu()  # reading the count must not wait for the GPU
        self._average_model = average

    def _move(self, averages: Sequence[Tensor], weights: Sequence[Tensor], _: Tensor | int) -> None:
        assert self._average_model is not None
        decay = self.decay_at(int(self._average_model.n_averaged))
        torch._foreach_lerp_(list(averages), list(weights), 1 - decay)

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """Return the equal-weight average of the weights in several checkpoints, as in Vaswani et al. (2017, section 6.1).

    Args:
        paths: Lightning checkpoints, or files with a bare state dictionary; floating-point tensors are averaged in
            double precision, others are taken from the last.

    Returns:
        A state dictionary on the CPU, in the types of the first checkpoint.

    Raises:
        UserError: if a file is missing or damaged, or the checkpoints are not of one model and one vocabulary.
    """
    if not paths:
        raise UserError("average_checkpoints expects one or more checkpoint files, but got none")
    checkpoint = _load(paths[0])
    first: dict[str, Tensor] = checkpoint["state_dict"]
    total = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in first.items()}
    for path in paths[1:]:
        other = _load(path)
        _check_same_model(checkpoint, other, (paths[0], path))
        weights = other["state_dict"]
        total = {
            name: tensor + weights[name] if tensor.is_floating_point() else weights[name]
            for name, tensor in total.items()
        }
    average = {
        name: (tensor / len(paths)).to(first[name].dtype) if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }
    check_finite(average, "the average")
    return average


def _load(path: str | Path) -> dict[str, Any]:
    checkpoint = read_archive(path)
    if isinstance(checkpoint, dict) and "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint}
    known: dict[str, Any] = checkpoint if isinstance(checkpoint, dict) else {}
    weights = known.get("state_dict")
    if not weights or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(f"{path} holds no weights: give a Lightning checkpoint or a state dictionary of tensors")
    check_finite(weights, path)
    return known


def _check_same_model(first: dict[str, Any], other: dict[str, Any], paths: tuple[str | Path, str | Path]) -> None:
    first_path, path = paths
    advice = "average checkpoints of one and the same model"
    mine, theirs = first["state_dict"], other["state_dict"]
    for name in mine.keys() ^ theirs.keys():
        side = "lacks" if name in mine else "has the extra"
        raise UserError(f"checkpoint {path} {side} tensor {name}: {advice}")
    for name, tensor in mine.items():
        if tensor.shape != theirs[name].shape:
            shapes = f"{tuple(theirs[name].shape)}, not {tuple(tensor.shape)} as in the first"
            raise UserError(f"tensor {name} of checkpoint {path} is {shapes}: {advice}")
    for part in _PARTS.keys() & first.keys() & other.keys():
        for name, label in _PARTS[part].items():
            if _lasting(first[part].get(name)) != _lasting(other[part].get(name)):
                raise UserError(f"checkpoint {path} has another {label} than {first_path}: {advice}")


def _lasting(description: object) -> object:
    """Leave out of a description what a run may change on its way."""
    if isinstance(description, dict):
        return {key: _lasting(value) for key, value in description.items() if not key.endswith("dropout")}
    return [_lasting(value) for value in description] if isinstance(description, list) else description
