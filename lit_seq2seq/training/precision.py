"""What the trainer's `precision` asks of the device and of batches."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.utilities import rank_zero_warn

from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.types import Value


def precision_fits(trainer: Trainer) -> bool:
    """Whether the trainer's device has kernels for its precision."""
    numbers = {"bf16": torch.bfloat16, "16": torch.float16}
    dtype = numbers.get(str(trainer.precision).split("-")[0], torch.float32)
    return computes_in(dtype, trainer.strategy.root_device.type)


def accept_records(trainer: Trainer) -> None:
    """Let the trainer convert the numbers of a `Value`: Lightning itself fails at frozen dataclasses.

    That concerns the precisions that change the type of the inputs, such as `bf16-true`.
    """
    plugin: Any = trainer.precision_plugin
    convert = plugin.convert_input
    if "convert_input" not in vars(plugin):
        plugin.convert_input = lambda data: data.map(convert) if isinstance(data, Value) else convert(data)


def warn_of_16_bits(trainer: Trainer) -> None:
    """Say what it costs to keep the weights in 16 bits."""
    if isinstance(trainer.precision_plugin, HalfPrecision):
        rank_zero_warn(
            f"{trainer.precision} keeps weights and optimizer in 16 bits, where changes below 1/256 of a weight are "
            f"lost: compare with trainer.precision: {mixed(trainer)}"
        )


def mixed(trainer: Trainer) -> str:
    """Name the precision that computes alike, but keeps the weights in 32 bits; CPUs have only one."""
    kind = "bf16" if trainer.strategy.root_device.type == "cpu" else str(trainer.precision).split("-")[0]
    return f"{kind}-mixed"
