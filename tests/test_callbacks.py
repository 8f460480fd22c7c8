import contextlib
import io
import itertools
import json
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_seq2seq.callbacks import (
    EMA,
    ExactMatchByLength,
    NonFiniteLoss,
    PredictionWriter,
    SampleOutputs,
    Seq2SeqProgressBar,
    average_checkpoints,
)
from lit_seq2seq.callbacks.progress import TokenRate
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.types import Batch, Padded, UserError

pytestmark = pytest.mark.filterwarnings("ignore:You are using the plain ModelCheckpoint", "ignore:.*GPU available")


def collate(rows: list[int]) -> Batch:
    index = torch.tensor(rows)
    ids = Padded(index[:, None].expand(-1, 3), torch.full((len(rows),), 3))
    return Batch(ids, ids, index, tuple((f"ref {row}",) for row in rows), tuple(f"src {row}" for row in rows))


class Tiny(LightningModule):
    """Linear regression that speaks the language of the package's steps."""

    def __init__(self, poison_at: int = -1, size: int = 12) -> None:
        super().__init__()
        self.poison_at = poison_at
        self.size = size
        self.configured = 0

    def configure_model(self) -> None:
        self.configured += 1
        if self.configured == 1:
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def loss(self, batch: Batch) -> Tensor:
        return (self.net(batch.source.values.float() / 10) - batch.rows[:, None] ** 2 / 50).square().mean()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.global_step == self.poison_at:
            loss = loss * float("nan")
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, object]:
        loss = self.loss(batch)
        self.log("val_loss", loss, prog_bar=True, batch_size=len(batch))
        hypotheses = [f"hyp {row} at {self.global_step}" for row in batch.rows.tolist()]
        texts = {"hypotheses": hypotheses, "references": batch.references, "sources": batch.texts}
        return {"loss": loss, "rows": batch.rows, **texts}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), batch_size=len(batch))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, object]]:
        texts = {2: "two\nlines", 3: ""}
        return [
            {
                "row": row,
                "hypotheses": [{"text": texts.get(row, f"ü {row}"), "score": -0.5}, {"text": "b", "score": -1}],
            }
            for row in batch.rows.tolist()
        ]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def rows(self, order: list[int] | None = None) -> DataLoader[int]:
        return DataLoader(order or list(range(self.size)), batch_size=4, collate_fn=collate)

    train_dataloader = val_dataloader = test_dataloader = rows


def trainer(folder: Path, *callbacks: Callback, **options: object) -> Trainer:
    defaults = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults |= {"enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks)}
    return Trainer(callbacks=list(callbacks), default_root_dir=folder, **{**defaults, "max_epochs": 2, **options})


# EMA


class Weights(Callback):
    """The weights after every step, the average by hand, and what validation sees."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Tensor | None = None
        self.steps = 0
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        weights = pl_module.net[0].weight.detach().double().clone()
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.average = weights if self.average is None else decay * self.average + (1 - decay) * weights
        self.steps += 1

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.validated.append(pl_module.net[0].weight.detach().clone())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_ema_follows_the_formula(tmp_path, decay):
    model, expected = Tiny(), Weights(decay)
    trainer(tmp_path, EMA(decay), expected, max_epochs=10).fit(model)
    torch.testing.assert_close(model.net[0].weight.double(), expected.average, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(expected.validated[-1], model.net[0].weight.detach())


def test_ema_does_not_disturb_training(tmp_path):
    class Last(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    plain, averaged = Last(), Last()
    trainer(tmp_path, plain).fit(Tiny())
    trainer(tmp_path, EMA(0.9), averaged).fit(Tiny())
    torch.testing.assert_close(averaged.weights, plain.weights, rtol=0, atol=0)


@pytest.mark.parametrize("stop", [{"max_epochs": 2}, {"max_steps": 7}])
def test_ema_resumed_equals_uninterrupted(tmp_path, stop):
    whole, first, resumed = Tiny(), Tiny(), Tiny()
    trainer(tmp_path, EMA(0.9), max_epochs=4).fit(whole)
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1 if "max_steps" in stop else None)
    trainer(tmp_path, EMA(0.9), keep, **stop).fit(first)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WeightAveraging")
        trainer(tmp_path, EMA(0.9), max_epochs=4).fit(resumed, ckpt_path=keep.last_model_path, weights_only=True)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_ema_later_stages_see_the_checkpoint_that_was_asked_for(tmp_path):
    model, seen = Tiny(), Weights(0.9)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, monitor="val_loss")
    runner = trainer(tmp_path, EMA(0.9), keep, seen)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WeightAveraging")
        runner.fit(model)
        path = tmp_path / "epoch=0.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        runner.validate(model, ckpt_path=path, verbose=False, weights_only=True)
        torch.testing.assert_close(seen.validated[-1], checkpoint["state_dict"]["net.0.weight"])
        assert not torch.equal(seen.validated[-1], checkpoint["current_model_state"]["net.0.weight"])
        runner.test(model, ckpt_path=path, verbose=False, weights_only=True)
        torch.testing.assert_close(model.state_dict(), checkpoint["state_dict"])


def test_ema_puts_weights_back_when_validation_breaks(tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.weights = pl_module.net[0].weight.detach().clone()

        def on_validation_batch_end(self, trainer, *_):
            if not trainer.sanity_checking:
                raise RuntimeError("stop here")

    model, breaker = Tiny(), Break()
    with pytest.raises(RuntimeError, match="stop here"):
        trainer(tmp_path, EMA(0.9), breaker).fit(model)
    torch.testing.assert_close(model.net[0].weight.detach(), breaker.weights)


def test_ema_refuses_decay_of_one():
    with pytest.raises(UserError, match=r"decay from 0 to below 1, but got 1\.0"):
        EMA(1.0)


# average_checkpoints


def test_average_checkpoints(tmp_path):
    paths = [tmp_path / f"{number}.ckpt" for number in range(3)]
    for number, path in enumerate(paths):
        weights = {
            "a": torch.full((2,), 0.1 * number),
            "half": torch.tensor(number).bfloat16(),
            "n": torch.tensor(number),
        }
        torch.save({"state_dict": weights} if number else weights, path)
    average = average_checkpoints(paths)
    torch.testing.assert_close(average["a"], torch.full((2,), 0.1))
    assert average["half"].dtype == torch.bfloat16
    assert average["half"] == 1
    assert average["n"] == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "holds no weights"),
        ([1], "holds no weights"),
        ({"b": torch.zeros(2)}, "(lacks|has the extra) tensor [ab]: average checkpoints of one"),
        ({"a": torch.zeros(3)}, r"tensor a of checkpoint .*other\.ckpt is \(3,\), not \(2,\)"),
        (None, "there is no checkpoint .*other.ckpt"),
        (b"no checkpoint", "other.ckpt is damaged or not a checkpoint"),
    ],
)
def test_average_checkpoints_refuses(tmp_path, other, message):
    torch.save({"a": torch.zeros(2)}, tmp_path / "first.ckpt")
    if isinstance(other, bytes):
        (tmp_path / "other.ckpt").write_bytes(other)
    elif other is not None:
        torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=message):
        average_checkpoints([tmp_path / "first.ckpt", tmp_path / "other.ckpt"])


def test_average_checkpoints_of_other_vocabularies_is_refused(tmp_path):
    """The vocabularies have equal sizes, so that no shape tells of it."""
    described = {"encoder": {"class_path": "a.A", "init_args": {"dropout": 0.1, "cell": "lstm"}}}
    first = {"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": described, "processor": _processor("abc")}
    others = {
        "another source vocabulary": {**first, "processor": _processor("abd", "abc")},
        "another target vocabulary": {**first, "processor": _processor("abc", "abd")},
        "another encoder": {**first, "hyper_parameters": {"encoder": {"class_path": "a.B", "init_args": {}}}},
    }
    torch.save(first, tmp_path / "first.ckpt")
    for what, other in others.items():
        torch.save(other, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=rf"other.ckpt has {what} than .*first.ckpt: average checkpoints of one"):
            average_checkpoints([tmp_path / "first.ckpt", tmp_path / "other.ckpt"])
    less = {"encoder": {"class_path": "a.A", "init_args": {"dropout": 0.3, "cell": "lstm"}}, "optimizer": {}}
    torch.save({**first, "hyper_parameters": less}, tmp_path / "later.ckpt")
    assert average_checkpoints([tmp_path / "first.ckpt", tmp_path / "later.ckpt"])["a"].tolist() == [0, 0]


def _processor(source: str, target: str | None = None) -> dict[str, object]:
    sides = []
    for text in (source, target or source):
        sides.append(Tokenizer("char"))
        sides[-1].train([text])
    return Processor(*sides).to_dict()


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), float("-inf")])
def test_average_checkpoints_refuses_spoilt_weights(tmp_path, spoilt):
    for name, value in (("first", 0.0), ("other", spoilt)):
        torch.save({"state_dict": {"a": torch.tensor([1.0, value])}}, tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match=r"other.ckpt has values that are not finite in a: use"):
        average_checkpoints([tmp_path / "first.ckpt", tmp_path / "other.ckpt"])
    for name, value in (("half", torch.ones(1, dtype=torch.float16)), ("large", torch.tensor([1e6]))):
        torch.save({"state_dict": {"a": value}}, tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match="the average has values that are not finite in a, as float16"):
        average_checkpoints([tmp_path / "half.ckpt", tmp_path / "large.ckpt"])


def test_average_of_no_checkpoints():
    with pytest.raises(UserError, match="expects one or more checkpoint files"):
        average_checkpoints([])


# NonFiniteLoss


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    model = Tiny(poison_at=4)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    with pytest.raises(
        UserError, match=r"at step 4: the last good checkpoint is kept in .*last\.ckpt; try a lower"
    ) as e:
        trainer(tmp_path, NonFiniteLoss(), keep).fit(model)
    assert "\n" not in str(e.value)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    for name, weight in model.named_parameters():
        assert torch.equal(weight, checkpoint["state_dict"][name])
    trainer(tmp_path, NonFiniteLoss(), max_epochs=3).fit(Tiny(), ckpt_path=tmp_path / "last.ckpt")


class Late(NonFiniteLoss):
    """Looks as seldom as on a GPU."""

    def on_before_backward(self, trainer, pl_module, loss):
        check, self._stop_if_bad = self._stop_if_bad, lambda _: None
        super().on_before_backward(trainer, pl_module, loss)
        self._stop_if_bad = check


def test_non_finite_loss_found_late_names_the_first_step_and_saves_nothing_bad(tmp_path):
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    with pytest.raises(UserError, match=r"at step 3: .* kept in .*epoch=0-step=3\.ckpt"):
        trainer(tmp_path, Late(), keep).fit(Tiny(poison_at=3))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=0-step=3.ckpt"]


@pytest.mark.parametrize("options", [{"num_sanity_val_steps": 0}, {"limit_val_batches": 0, "max_epochs": 1}])
def test_non_finite_loss_found_late_is_not_validated_nor_left_unnoticed(tmp_path, options):
    watch = Weights(0.9)
    with pytest.raises(UserError, match="at step 2: no checkpoint"):
        trainer(tmp_path, watch, Late(), **options).fit(Tiny(poison_at=2))
    assert watch.validated == []


def test_non_finite_loss_without_checkpoint(tmp_path):
    with pytest.raises(UserError, match="at step 0: no checkpoint had been saved yet"):
        trainer(tmp_path, NonFiniteLoss()).fit(Tiny(poison_at=0))
    with pytest.raises(UserError, match="every_n_steps of at least 1, but got 0"):
        NonFiniteLoss(0)


class Poisoned(Tiny):
    """Has a gradient that is not finite in some steps."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.steps = steps

    def on_after_backward(self):
        if self.trainer.fit_loop.total_batch_idx in self.steps:
            self.net[0].weight.grad[0] = float("nan")


def test_steps_with_a_bad_gradient_are_left_out(tmp_path):
    class Changes(Callback):
        def __init__(self):
            self.weights = []

        def on_train_batch_start(self, trainer, pl_module, *_):
            self.weights.append(pl_module.net[2].weight.detach().clone())

    changes = Changes()
    with pytest.warns(UserWarning, match="step 1 is left out: its gradient is NaN or infinite"):
        trainer(tmp_path, NonFiniteLoss(max_skipped=1), changes, max_epochs=2).fit(Poisoned({1, 3}))
    same = [torch.equal(one, other) for one, other in itertools.pairwise(changes.weights)]
    assert same == [False, True, False, True, False]
    with pytest.raises(UserError, match=r"NaN or infinite in 2 steps up to step 3: .* lower learning rate"):
        trainer(tmp_path, NonFiniteLoss(max_skipped=1)).fit(Poisoned({2, 3}))
    with pytest.raises(UserError, match="max_skipped of at least 0, but got -1"):
        NonFiniteLoss(max_skipped=-1)


# PredictionWriter

ORDER = [5, 0, 7, 3, 1, 2, 6]


def predict(writer: PredictionWriter, folder: Path, **options: object) -> None:
    model = Tiny()
    loader = model.rows(ORDER)
    trainer(folder, writer, **options).predict(model, loader, return_predictions=False)


EXPECTED = ["ü 0", "ü 1", "two lines", "", "", "ü 5", "ü 6", "ü 7"]


def test_predictions_as_text_in_order(tmp_path):
    path = tmp_path / "new" / "out.txt"
    predict(PredictionWriter(path), tmp_path)
    assert path.read_text(encoding="utf-8").split("\n") == [*EXPECTED, ""]
    assert list(path.parent.iterdir()) == [path]


def test_predictions_as_jsonl(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    predict(PredictionWriter(path, format="jsonl"), tmp_path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["row"] for row in rows] == sorted(ORDER)
    assert rows[2]["hypotheses"] == [{"text": "two\nlines", "score": -0.5}, {"text": "b", "score": -1}]


@pytest.mark.parametrize("name", ["out.jsonl", "out.JSON", "out.ndjson"])
def test_the_ending_chooses_the_format_of_predictions(tmp_path, name):
    predict(PredictionWriter(tmp_path / name), tmp_path)
    assert [json.loads(line)["row"] for line in (tmp_path / name).read_text().splitlines()] == sorted(ORDER)
    assert PredictionWriter(tmp_path / name, format="text").format == PredictionWriter().format == "text"


def test_earlier_predictions_are_kept_where_no_file_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "predictions.txt").write_text("first")
    (tmp_path / "predictions-1.txt").write_text("before that")
    predict(PredictionWriter(), tmp_path)
    found = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    expected = {"predictions-1.txt": "before that", "predictions-2.txt": "first"}
    assert found == {**expected, "predictions.txt": "\n".join([*EXPECTED, ""])}
    assert f"earlier predictions are now in {tmp_path / 'predictions-2.txt'}" in caplog.text


def test_predictions_of_two_processes(tmp_path):
    path = tmp_path / "out.txt"
    predict(PredictionWriter(path), tmp_path, strategy=DDPStrategy(start_method="forkserver"), devices=2)
    assert path.read_text(encoding="utf-8").split("\n") == [*EXPECTED, ""]
    assert list(tmp_path.glob("*.part")) == []


def test_predictions_leave_the_old_file_when_interrupted(tmp_path):
    class Break(Callback):
        def on_predict_batch_end(self, *_):
            raise RuntimeError("stop here")

    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="stop here"):
        trainer(tmp_path, PredictionWriter(path), Break()).predict(model := Tiny(), model.rows(ORDER))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_predictions_to_a_bad_path(tmp_path):
    with pytest.raises(UserError, match=r"cannot write predictions to .* \(it is a folder\): choose another path"):
        predict(PredictionWriter(tmp_path), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write predictions to .*out\.txt"):
        predict(PredictionWriter(tmp_path / "file" / "out.txt"), tmp_path)


# SampleOutputs


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    """The console of rich, written to memory."""
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(rich, "_console", console)
    return console


def test_samples_are_the_same_rows_each_time(tmp_path, console):
    model = Tiny()
    model.val_dataloader = lambda: model.rows([9, 4, 8, 3, 7, 1, 6, 11, 2])
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, SampleOutputs(2), logger=logger).fit(model)
    text = console.file.getvalue()
    assert re.findall(r"hyp (\d+) at (\d+)", text) == [("1", "3"), ("2", "3"), ("1", "6"), ("2", "6")]
    assert text.count("src 1") == text.count("ref 1") == 2
    assert "step 6" in text
    events = next(Path(logger.log_dir).glob("events*")).read_bytes()
    assert b"| src 1 | hyp 1 at 6 | ref 1 |" in events


def test_samples_without_text_sources_and_with_markup(tmp_path, console):
    class Speech(Tiny):
        def validation_step(self, batch, batch_idx):
            return {**super().validation_step(batch, batch_idx), "sources": (), "hypotheses": ["[b]x[/b]"] * len(batch)}

    trainer(tmp_path, SampleOutputs(1), max_epochs=1).fit(Speech())
    assert "[b]x[/b]" in console.file.getvalue()
    assert "source" not in console.file.getvalue()


# Seq2SeqProgressBar


def test_progress_without_terminal_is_a_line_per_epoch(tmp_path, console):
    trainer(tmp_path, Seq2SeqProgressBar(), enable_progress_bar=True).fit(Tiny())
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    pattern = r"Epoch 2/2: [\d.]+ s  train_loss [\d.e+-]+  val_loss [\d.e+-]+  ([\d,]+) tokens/s"
    rate = re.fullmatch(pattern, lines[1])
    assert rate
    assert int(rate[1].replace(",", "")) > 0


@pytest.mark.parametrize("step", [4, 5, 6])
def test_the_line_of_an_epoch_tells_what_was_trained_of_it_after_resuming(tmp_path, console, step):
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, keep).fit(Tiny())
    bar, start = Seq2SeqProgressBar(), time.monotonic()
    resumed = trainer(tmp_path, bar, enable_progress_bar=True, max_epochs=3)
    resumed.fit(Tiny(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    *ended, trained = console.file.getvalue().splitlines()
    assert trained.startswith("Epoch 3/3: ")
    assert [line[:9] for line in ended] == ["Epoch 2/3"] or step == 6  # of which only the end is left
    for line in (*ended, trained):
        found = re.match(r"Epoch ./3: ([\d.]+) s  .* ([\d,]+) tokens/s$", line)
        assert found or (step == 6 and line in ended and not re.search(r"\d s  |tokens/s", line))
        if found:
            assert float(found[1]) <= time.monotonic() - start + 0.1
            assert int(found[2].replace(",", "")) > 0


def test_progress_lines_are_printed_when_due(tmp_path, console):
    runner = trainer(tmp_path, Seq2SeqProgressBar(line_seconds=0), enable_progress_bar=True, max_epochs=1)
    model = Tiny()
    runner.fit(model)
    runner.test(model, verbose=False)
    runner.predict(model, model.rows())
    lines = [line.split(" batches")[0] for line in console.file.getvalue().splitlines()]
    stages = [f"{stage}: {n}/3" for stage in ("Epoch 1/1", "Validation", "Test", "Prediction") for n in (1, 2, 3)]
    assert [line for line in lines if not re.match(r"Epoch 1/1: [\d.]+ s", line)] == stages


def test_a_long_epoch_without_terminal_has_a_line_for_each_tenth(tmp_path, console):
    bar = Seq2SeqProgressBar(line_seconds=0)
    trainer(tmp_path, bar, enable_progress_bar=True, max_epochs=1, limit_val_batches=0).fit(Tiny(size=200))
    lines = [line.split(" batches")[0] for line in console.file.getvalue().splitlines()]
    assert lines[:-1] == [f"Epoch 1/1: {done}/50" for done in range(5, 51, 5)]


def test_progress_on_a_terminal_redraws_and_gives_the_terminal_back(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, force_interactive=True)
    monkeypatch.setattr(rich, "_console", console)
    bar = Seq2SeqProgressBar(refresh_seconds=0)
    trainer(tmp_path, bar, SampleOutputs(1), enable_progress_bar=True).fit(Tiny())
    text = console.file.getvalue()
    assert "Validation" in text
    assert len(re.findall(r"Epoch \d/2:", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text))) == 2
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    with pytest.raises(UserError, match="step 1"):
        trainer(tmp_path, bar, NonFiniteLoss(), enable_progress_bar=True).fit(Tiny(poison_at=1))
    text = console.file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_disabled_progress_is_silent(tmp_path, console):
    bar = Seq2SeqProgressBar(line_seconds=0)
    bar.disable()
    trainer(tmp_path, bar, enable_progress_bar=True).fit(Tiny())
    assert console.file.getvalue() == ""


def test_token_rate_leaves_pauses_out(monkeypatch):
    clock = itertools.count(step=1.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    rate = TokenRate()
    rate.restart()
    rate.add(torch.tensor(10))
    assert rate.read() == 10
    rate.add(30)
    rate.pause()  # 40 tokens in 2 seconds
    for _ in range(100):
        next(clock)
    rate.restart()
    assert rate.read() == 20
    rate.add(14)
    assert rate.read() == 7


# exact match by length


class Lengths(Tiny):
    """A model that is right about rows below 6 only; row r has a source of r // 2 symbols and EOS."""

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, object]:
        outputs = [f"ref {row}" if row < 6 else "wrong" for row in batch.rows.tolist()]
        return {"loss": self.loss(batch), "hypotheses": outputs, "references": batch.references}

    def rows(self, order: list[int] | None = None) -> DataLoader[int]:
        def varied(rows: list[int]) -> Batch:
            batch = collate(rows)
            return replace(batch, source=replace(batch.source, lengths=batch.rows // 2 + 1))

        return DataLoader(order or list(range(self.size)), batch_size=5, collate_fn=varied)

    test_dataloader = rows


def test_exact_match_by_length(tmp_path, console):
    report = ExactMatchByLength(trained=3)
    (scores,) = trainer(tmp_path, report).test(Lengths(), verbose=False)
    assert scores == {"test_exact_match_trained": 75.0, "test_exact_match_longer": 0.0}
    assert report.rows == [(n, n, 2, 100.0 if n < 3 else 0.0) for n in range(6)]
    text = console.file.getvalue()
    assert re.search(r"│ +2 │ +2 │ +100\.0 % │", text)
    assert re.search(r"│ +4 │ +2 │ +0\.0 % \* │", text)
    assert "longer than in training (3)" in text


def test_exact_match_by_length_in_groups(tmp_path, console):
    report = ExactMatchByLength(width=4)
    trainer(tmp_path, report).test(Lengths(), verbose=False)
    assert report.rows == [(0, 3, 8, 75.0), (4, 7, 4, 0.0)]


class WrittenByLength(ExactMatchByLength):
    """What it prints goes to a file, of whichever process."""

    def __init__(self, path: Path) -> None:
        super().__init__(width=4)
        self.path = path

    def on_test_epoch_end(self, *args):
        with self.path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            super().on_test_epoch_end(*args)


def test_exact_match_by_length_of_two_processes(tmp_path):
    report = WrittenByLength(tmp_path / "out")
    trainer(tmp_path, report, strategy=DDPStrategy(start_method="forkserver"), devices=2).test(Lengths(), verbose=False)
    text = (tmp_path / "out").read_text(encoding="utf-8")
    assert len(re.findall(r"0-3 │ +8 │ +75\.0 %", text)) == len(re.findall(r"4-7 │ +4 │ +0\.0 %", text)) == 1


def test_a_job_without_a_terminal_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10_000.0
    monkeypatch.setattr("lit_seq2seq.callbacks.progress.time.monotonic", lambda: now)
    bar = Seq2SeqProgressBar(line_seconds=30)
    bar._open("Epoch 1/1", 1000)
    bar._wait()
    now += 599
    assert not bar._is_due(5)
    now += 2
    assert bar._is_due(5)
    assert bar._is_due(100)
