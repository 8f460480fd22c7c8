"""Progress of training and prediction: a live bar on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from lit_seq2seq.types import Batch

_LINES = 10  # of an epoch where there is no terminal, at most; but one at least in so many seconds:
_SILENCE = 600.0


class Seq2SeqProgressBar(ProgressBar):
    """Shows epoch, batches, the metrics logged with `prog_bar=True`, and target tokens per second.

    On a terminal a bar redraws in place; elsewhere (a pipe, a log file) a few plain lines are printed in each epoch.
    Both leave one line per epoch. Values on a GPU are read only when something is shown.

    Args:
        line_seconds: least number of seconds between two lines where there is no terminal; of a long epoch there is one
            for each tenth, and one every ten minutes.
        refresh_seconds: seconds between two updates of the bar on a terminal.
    """

    def __init__(self, line_seconds: float = 30.0, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self.line_seconds = line_seconds
        self.refresh_seconds = refresh_seconds
        self._enabled = True
        self._live: Progress | None = None
        self._bars: list[tuple[str, float, TaskID]] = []
        self._due, self._told = 0.0, 0
        self._rate = TokenRate()
        self._epoch_start: float | None = None

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of an epoch."""
        self._epoch_start = time.monotonic()
        self._rate.restart()
        self._open(_epoch(trainer), self.total_train_batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Open the bar of an epoch that a resumed run goes on with, whose start Lightning does not tell."""
        if self._epoch_start is None:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int
    ) -> None:
        """Count the tokens of the batch, and show the state when that is due."""
        assert batch.target is not None
        self._rate.add(batch.target.total * trainer.world_size)
        if self._is_due(batch_idx + 1):
            self._show(batch_idx + 1, self._status(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line for the epoch."""
        self._close()
        if self._enabled:
            start = self._epoch_start
            took = "" if start is None else f"{time.monotonic() - start:.1f} s"  # a resumed run may only end an epoch
            self._print(f"{_epoch(trainer)}: " + "  ".join(filter(None, [took, self._status(trainer, pl_module)])))
        self._epoch_start = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of a validation; its time does not count as training."""
        self._rate.pause()
        if not trainer.sanity_checking:
            self._open("Validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        """Show the state when that is due."""
        if self._is_due(batch_idx + 1):
            self._show(batch_idx + 1, "")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar of the validation."""
        self._close()
        self._rate.restart()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of a test."""
        self._open("Test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar of a prediction."""
        self._open("Prediction", sum(trainer.num_predict_batches))

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        while self._bars:
            self._close()

    def _status(self, trainer: Trainer, pl_module: LightningModule) -> str:
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        shown = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
        rate = self._rate.read()
        return "  ".join([*shown, f"{rate:,.0f} tokens/s"] if rate else shown)

    def _is_due(self, done: int) -> bool:
        if not self._bars or time.monotonic() < self._due:
            return False
        total = self._bars[-1][1]
        late = time.monotonic() >= self._due + _SILENCE - self.line_seconds
        return self._live is not None or math.isinf(total) or late or done - self._told >= total / _LINES

    def _wait(self) -> None:
        self._due = time.monotonic() + (self.line_seconds if self._live is None else self.refresh_seconds)

    def _open(self, description: str, total: float) -> None:
        if not self._enabled:
            return
        if not self._bars and rich.get_console().is_interactive:
            self._live = _new_live()
            self._live.start()
        task = TaskID(0)
        if self._live is not None:
            task = self._live.add_task(description, total=None if math.isinf(total) else total, status="")
        self._bars.append((description, total, task))
        self._told = 0
        self._wait()

    def _show(self, done: int, status: str) -> None:
        description, total, task = self._bars[-1]
        self._told = done
        if self._live is None:
            self._print(f"{description}: {done}/{total} batches  {status}".rstrip())
        else:
            self._live.update(task, completed=done, status=status)
        self._wait()

    def _close(self) -> None:
        if self._bars:
            *_, task = self._bars.pop()
            if self._live is not None:
                self._live.remove_task(task)
                if not self._bars:
                    self._live.stop()
                    self._live = None

    def _print(self, line: str) -> None:
        console = rich.get_console()
        console.print(line, soft_wrap=True, markup=False, highlight=console.is_terminal)
        console.file.flush()


class TokenRate:
    """Tokens per second over the last readings; time in a pause does not count.

    Args:
        window: number of readings that are averaged over.
    """

    def __init__(self, window: int = 20) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=window)
        self._tokens: Tensor | int = 0
        self._last = 0.0

    def add(self, tokens: Tensor | int) -> None:
        """Count `tokens`, a scalar; one on a GPU is not waited for."""
        self._tokens = self._tokens + tokens

    def read(self) -> float:
        """Return the present rate, or the last one known where nothing was counted since."""
        now, tokens = time.monotonic(), float(self._tokens)
        if self._readings and tokens > self._readings[-1][1]:
            self._readings.append((now, tokens))
            (start, before) = self._readings[0]
            self._last = (tokens - before) / max(now - start, 1e-9)
        return self._last

    def pause(self) -> None:
        """Stop the clock, after a last reading; `restart` starts it again."""
        self.read()
        self._readings.clear()

    def restart(self) -> None:
        """Start the clock, with an empty window."""
        self._readings.clear()
        self._readings.append((time.monotonic(), float(self._tokens)))


def _epoch(trainer: Trainer) -> str:
    last = trainer.max_epochs
    return f"Epoch {trainer.current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")


def _new_live() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[status]}", style="dim"),
    )
    return Progress(*columns, console=rich.get_console(), transient=True)
