"""Writes predictions to a file in the order of the input, whatever the batching and the number of processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.files.lines import json_line, one_line
from lit_seq2seq.files.paths import format_of, is_special, local_path, set_aside
from lit_seq2seq.types import Batch, Prediction, UserError


class PredictionWriter(Callback):
    """Writes what `Trainer.predict` yields to one file, ordered by row.

    Every process writes a part beside the file, on a file system that all share; at the end the first one merges the
    parts, drops the repeated rows that pad a distributed sampler, and puts the file in place in one step.

    Args:
        path: the file, its folder is made if missing and a file already there is replaced; if `None`, `predictions.txt`
            (or `.jsonl`) in the run's folder, where earlier predictions are kept as `predictions-1.txt` and so on.
        format: "text" writes the best output of row n on line n (from zero; line breaks in it become spaces, rows
            without a prediction become empty lines); "jsonl" writes one object per row: `row`, `source`, `references`
            where the dataset has some, and all `hypotheses` with their scores; if `None`, the ending of `path` tells,
            and without a path it is "text".
    """

    def __init__(self, path: str | None = None, format: Literal["text", "jsonl"] | None = None) -> None:
        self.path = local_path(path or "", "predictions.path")
        self.named = path is not None
        self.format = format or format_of(self.path)
        self._part: BinaryIO | None = None
        self._token = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open this process's part, so that a path that cannot be written fails before the work."""
        if stage == "predict":
            if not self.named:
                name = "predictions.txt" if self.format == "text" else "predictions.jsonl"
                self.path = Path(trainer.log_dir or trainer.default_root_dir) / name
            self._token = trainer.strategy.broadcast(uuid4().hex[:8])  # others may be writing the same file
            with self._explain():
                if self.path.is_dir():
                    raise IsADirectoryError("it is a folder")
                if is_special(self.path):
                    raise OSError("it is a device or a pipe")
                if self.path.is_symlink():
                    self.path = self.path.resolve()
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._part = self._part_path(trainer.global_rank).open("wb")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Append the predictions of a batch to this process's part."""
        assert self._part is not None
        with self._explain():
            for prediction in outputs:
                self._part.write(json_line(prediction).encode() + b"\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts of all processes."""
        assert self._part is not None
        with self._explain():
            self._part.close()
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            with self._explain():
                self._merge([self._part_path(rank) for rank in range(trainer.world_size)])
            rank_zero_info(f"predictions are in {self.path}")
        trainer.strategy.barrier("predictions merged")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no part behind."""
        if self._part is not None:
            self._part.close()
            self._part_path(trainer.global_rank).unlink(missing_ok=True)

    def _part_path(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{self._token}.{rank}.part")

    def _merge(self, parts: list[Path]) -> None:
        merged = self.path.with_name(f"{self.path.name}.{self._token}.part")
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("rb")) for part in parts]
            places = {row: (file, start) for file in files for row, start in _rows(file)}
            output = stack.enter_context(merged.open("wb"))
            wanted = range(max(places, default=-1) + 1) if self.format == "text" else sorted(places)
            for row in wanted:
                output.write(self._line(*places[row]) if row in places else b"\n")
        if not self.named and self.path.exists():
            rank_zero_info(f"earlier predictions are now in {set_aside(self.path)}")
        merged.replace(self.path)
        for part in parts:
            part.unlink()

    def _line(self, file: BinaryIO, start: int) -> bytes:
        file.seek(start)
        line = file.readline()
        if self.format == "jsonl":
            return line
        prediction: Prediction = json.loads(line)
        return one_line(prediction["hypotheses"][0]["text"]).encode() + b"\n"

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write predictions to {self.path} ({reason}): choose another path") from error


def _rows(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the row and the position of every line; only these stay in memory."""
    start = 0
    for line in file:
        prediction: Prediction = json.loads(line)
        yield prediction["row"], start
        start += len(line)
