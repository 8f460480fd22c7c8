"""Shows what the model says while it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import rich
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.table import Table
from rich.text import Text

from lit_seq2seq.types import Batch


class _Sample(NamedTuple):
    source: str
    output: str
    reference: str


class SampleOutputs(Callback):
    """Prints a few sources, outputs and references after each validation, the same rows each time.

    The rows are those with the lowest index among the ones that the first process validates. A `TensorBoardLogger`
    gets them as text too.

    Args:
        count: how many rows, at least 1.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count
        self._samples: dict[int, _Sample] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the samples of the validation before."""
        self._samples = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows with the lowest index so far."""
        if not isinstance(outputs, Mapping) or not trainer.is_global_zero or dataloader_idx > 0:
            return
        sources = outputs["sources"] or ("",) * len(outputs["hypotheses"])
        columns = (outputs["rows"].tolist(), sources, outputs["hypotheses"], outputs["references"])
        for row, source, output, references in zip(*columns, strict=True):
            self._samples[row] = _Sample(source, output, references[0])
        self._samples = dict(sorted(self._samples.items())[: self.count])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the samples."""
        if trainer.sanity_checking or not self._samples:
            return
        samples = list(self._samples.values())
        rich.get_console().print(_table(samples, f"Validation samples, step {trainer.global_step}"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", _markdown(samples), trainer.global_step)


def _table(samples: list[_Sample], title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, min_width=len(title))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for sample in samples:
        for name, text in sample._asdict().items():
            if text or name != "source":
                table.add_row(name, Text(text, style="bold" if name == "output" else ""))
        table.add_section()
    return table


def _markdown(samples: list[_Sample]) -> str:
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in sample] for sample in samples]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (["source", "output", "reference"], ["---", "---", "---"], *rows)
    )
