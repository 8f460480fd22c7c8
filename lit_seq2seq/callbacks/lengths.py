"""How far a model gets beyond the lengths it was trained on."""

from __future__ import annotations

from typing import Any

import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from torch import Tensor

from lit_seq2seq.features.text import one_form
from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.types import Batch


class ExactMatchByLength(Callback):
    """Prints, after a test, the percentage of outputs that equal a reference, by the length of the source.

    Outputs and references are compared in one form, see `Tokenizer.form`.

    Lengths are numbers of source symbols, without EOS, and are joined in groups of `width`. The counts are summed over
    all processes. `rows` holds the table of the last test. With `trained`, the scores of the test get two more:
    `test_exact_match_trained` of sources up to that length, `test_exact_match_longer` of the others.

    Args:
        width: how many lengths are joined in one row, at least 1.
        trained: greatest source length in training, marked in the table; 0 for none.

    Attributes:
        rows: per group its shortest and longest length, the number of sources, and the percentage of right outputs.
    """

    def __init__(self, width: int = 1, trained: int = 0) -> None:
        self.width = width
        self.trained = trained
        self.rows: list[tuple[int, int, int, float]] = []
        self._counts = torch.zeros(0, 2, dtype=torch.int64)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._counts = torch.zeros(0, 2, dtype=torch.int64)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Count the sources of a batch and the right outputs among them."""
        model = getattr(pl_module, "model", None)
        form = model.processor.target.form if isinstance(model, Seq2SeqModel) else one_form
        pairs = zip(outputs["hypotheses"], outputs["references"], strict=True)
        right = [form(text) in map(form, group) for text, group in pairs]
        groups = (batch.source.lengths.cpu() - 1).clamp(min=0).div(self.width, rounding_mode="floor")  # (B,)
        found = torch.stack([torch.ones(len(right)), torch.tensor(right)], dim=1).long()  # (B, 2)
        self._counts = _widen(self._counts, int(groups.max()) + 1).index_add(0, groups, found)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the counts of all processes and print the table."""
        strategy, device = trainer.strategy, pl_module.device
        longest = strategy.reduce(torch.tensor(len(self._counts), device=device), reduce_op="max")
        counts = strategy.reduce(_widen(self._counts, int(longest)).to(device), reduce_op="sum")
        assert isinstance(counts, Tensor)
        self.rows = [
            (group * self.width, (group + 1) * self.width - 1, number, 100 * right / number)
            for group, (number, right) in enumerate(counts.tolist())
            if number
        ]
        for name, is_longer in (("trained", False), ("longer", True)) if self.trained else ():
            part = [(number, right) for first, _, number, right in self.rows if (first > self.trained) == is_longer]
            if total := sum(number for number, _ in part):
                score = sum(number * right for number, right in part) / total
                pl_module.log(f"test_exact_match_{name}", score, rank_zero_only=True)
        if trainer.is_global_zero:
            rich.get_console().print(self._table())

    def _table(self) -> Table:
        table = Table(title="Exact match by source length", title_justify="left")
        for column in ("symbols", "sources", "exact match"):
            table.add_column(column, justify="right")
        for first, last, number, percentage in self.rows:
            beyond = " *" if self.trained and first > self.trained else ""
            table.add_row(
                f"{first}" if first == last else f"{first}-{last}", str(number), f"{percentage:.1f} %{beyond}"
            )
        if self.trained:
            table.caption = f"* longer than in training ({self.trained})"
        return table


def _widen(counts: Tensor, groups: int) -> Tensor:
    """Return counts `(G, 2)` with zeros for groups up to `groups`."""
    missing = max(groups - len(counts), 0)
    return torch.cat([counts, counts.new_zeros(missing, 2)])
