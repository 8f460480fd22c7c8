"""An interrupted run that is resumed ends as one that was never interrupted."""

import csv
import os
import random
import re
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR, PolynomialLR

from lit_seq2seq import LitSeq2Seq, load_recipe
from lit_seq2seq.callbacks import EMA, Checkpoint
from lit_seq2seq.cli import main
from lit_seq2seq.cli.failures import explain
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.metrics import BLEU, ExactMatch
from lit_seq2seq.nn import DotAttention, GeneralAttention, ParallelDecoder, TextEncoder
from lit_seq2seq.schedules import InverseSquareRoot, OneCycle
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.settings import spec
from lit_seq2seq.training.resuming import tell_other_network
from lit_seq2seq.types import UserError
from tests.tiny import SIZES, make_data, make_model, make_trainer, rows, write_recipe

STEPS = 6  # of an epoch


class KilledError(Exception):
    """What stands for a process that dies: nothing is saved after it."""


class Kill(Callback):
    def __init__(self, step: int, hook: str = "on_train_batch_start") -> None:
        self.step = step
        setattr(self, hook, self.strike)

    def strike(self, trainer, *_, **__) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise KilledError


class Seen(Callback):
    """What every training batch saw and did, by its number, and the scores of every validation."""

    def __init__(self) -> None:
        self.batches: dict[int, object] = {}
        self.step_of: dict[int, int] = {}
        self.scores: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        drawn = (random.random(), float(torch.rand(())), float(np.random.rand()))  # noqa: NPY002
        self.batches[number] = (batch.rows.tolist(), float(outputs["loss"]), rate, drawn, trainer.current_epoch)
        self.step_of[number] = trainer.global_step

    def on_validation_end(self, trainer, pl_module):
        scores = {name: float(score) for name, score in trainer.callback_metrics.items() if name.startswith("val")}
        self.scores[trainer.global_step] = scores


def build(averaged: bool = True, kind: type[LitSeq2Seq] = LitSeq2Seq) -> tuple[LitSeq2Seq, list[Callback]]:
    torch.manual_seed(1)
    model = kind(
        encoder=partial(TextEncoder, **SIZES, dropout=0.3),
        decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention, dropout=0.3),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        lr_scheduler=OneCycle,
        generation=GenerationConfig(max_new_tokens=6),
        metrics=[BLEU, ExactMatch],
    )
    return model, [EMA(0.9)] if averaged else []


def run(folder: Path, *callbacks: Callback, resume: Path | str | None = None, every: int = 1, **options) -> LitSeq2Seq:
    model, own = build(options.pop("averaged", True))
    data = make_data(num_workers=options.pop("num_workers", 0))
    keep = Checkpoint("val_loss", dirpath=str(folder), save_top_k=0, every_n_steps=every)
    options = {"max_epochs": 3, "enable_checkpointing": True, **options}
    seed_everything(7, verbose=False)
    trainer = make_trainer(folder, *own, *callbacks, keep, **options)
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return model


def equal(first: LitSeq2Seq, second: LitSeq2Seq) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def killed(folder: Path, step: int, hook: str = "on_train_batch_start", **options) -> None:
    with pytest.raises(KilledError):
        run(folder, Seen(), Kill(step, hook), **options)


CASES = {
    "plain": {"averaged": False},
    "averaged": {},
    "workers": {"num_workers": 1},
    "accumulated": {"accumulate_grad_batches": 2},
    "validated often": {"val_check_interval": 2},
    "validated seldom": {"check_val_every_n_epoch": 2},
    "steps": {"max_epochs": -1, "max_steps": 14},
}


def after(seen: dict[int, object], start: int) -> dict[int, object]:
    return {number: value for number, value in seen.items() if number >= start}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_step(tmp_path, case):
    options = CASES[case]
    seen = Seen()
    whole = run(tmp_path / "whole", seen, **options)
    for step in range(1, max(seen.step_of.values())):
        folder = tmp_path / str(step)
        killed(folder, step, **options)
        again = Seen()
        resumed = run(folder, again, resume=folder / "last.ckpt", **options)
        start = min(again.batches)
        assert seen.step_of[start - 1] == step
        assert again.batches == after(seen.batches, start)
        assert again.scores == after(seen.scores, step + 1)
        equal(resumed, whole)


def test_killed_and_resumed(tmp_path):
    """The short form of the test above: twice killed within epochs, once after one; with all that has a state."""
    options = {"num_workers": 1, "accumulate_grad_batches": 2, "every": 2}
    seen = Seen()
    whole = run(tmp_path / "whole", seen, **options)
    folder = tmp_path / "killed"
    killed(folder, 3, **options)
    for step in (4, 8):
        with pytest.raises(KilledError):
            run(folder, Seen(), Kill(step), resume=folder / "last.ckpt", **options)
    again = Seen()
    equal(run(folder, again, resume=folder / "last.ckpt", **options), whole)
    assert again.batches == after(seen.batches, min(again.batches))


def test_a_checkpoint_of_0_1_whose_network_was_the_modules_own_is_resumed(tmp_path):
    whole, folder = run(tmp_path / "whole", Seen(), every=2), tmp_path / "killed"
    killed(folder, 3, every=2)
    checkpoint = load_checkpoint(folder / "last.ckpt")
    states = [name for name in ("state_dict", "current_model_state") if name in checkpoint]
    for name in states:
        old = {key.removeprefix("model."): value for key, value in checkpoint[name].items()}
        assert old.keys() != checkpoint[name].keys()
        checkpoint[name] = old
    assert len(states) == 2
    torch.save(checkpoint, folder / "last.ckpt")
    equal(run(folder, Seen(), resume=folder / "last.ckpt", every=2), whole)


# signals


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[LitSeq2Seq, Seen]:
    seen = Seen()
    return run(tmp_path_factory.mktemp("whole"), seen, every=1000), seen


class Signal(Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, number: int, step: int, hook: str) -> None:
        self.number, self.step = number, step
        setattr(self, hook, self.strike)

    def strike(self, trainer, *_, **__) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking and self.number:
            os.kill(os.getpid(), self.number)
            self.number = 0


@pytest.mark.parametrize(
    ("number", "step", "hook"),
    [
        (signal.SIGTERM, 2, "on_after_backward"),
        (signal.SIGINT, 3, "on_train_batch_start"),
        (signal.SIGTERM, 5, "on_before_optimizer_step"),
        (signal.SIGTERM, 6, "on_validation_batch_start"),
        (signal.SIGTERM, 6, "on_validation_epoch_end"),
        (signal.SIGINT, 17, "on_train_batch_start"),
    ],
)
def test_a_signal_lets_the_step_end_and_loses_nothing(tmp_path, uninterrupted, number, step, hook):
    whole, seen = uninterrupted
    folder, cut = tmp_path / "cut", Seen()
    before = signal.getsignal(number)
    with pytest.raises(SIGTERMException) as stopped:
        run(folder, cut, Signal(number, step, hook), every=1000)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    again = Seen()
    resumed = run(folder, again, resume=folder / "last.ckpt", every=1000)
    assert cut.batches | again.batches == seen.batches
    assert not cut.batches.keys() & again.batches.keys()
    assert {step: seen.scores[step] for step in sorted(cut.scores | again.scores)} == seen.scores
    assert all(seen.scores[step] == found for step, found in (cut.scores | again.scores).items())
    equal(resumed, whole)


def test_a_second_interrupt_stops_at_once(tmp_path):
    class Twice(Callback):
        def on_train_batch_start(self, trainer, *_):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, Twice())
    assert stopped.value.code == 1
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("late", [0, signal.SIGTERM], ids=["", "SIGTERM follows"])
@pytest.mark.parametrize("asked", [True, False], ids=["", "not asked to"])
def test_slurm_preemption_saves_and_queues_again(tmp_path, monkeypatch, asked, late):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    signals = [Signal(number, 2, "on_after_backward") for number in (signal.SIGUSR1, late)]
    with pytest.raises(SIGTERMException):
        run(tmp_path / "run", *signals, plugins=None if asked else [Alone(auto_requeue=False)])
    assert not asked or (tmp_path / "asked").read_text() == "requeue 42\n"
    assert (tmp_path / "asked").exists() == asked
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3


class Alone(SLURMEnvironment):
    """A job of one process."""

    def world_size(self) -> int:
        return 1

    def global_rank(self) -> int:
        return 0

    local_rank = node_rank = global_rank


# other states


def test_early_stopping_counts_on(tmp_path):
    def stopper() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=2, min_delta=100.0)

    seen, again = Seen(), Seen()
    whole = run(tmp_path / "whole", stopper(), seen, max_epochs=9)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", stopper(), Seen(), Kill(STEPS + 2), max_epochs=9)
    resumed = run(tmp_path / "cut", stopper(), again, resume=tmp_path / "cut" / "last.ckpt", max_epochs=9)
    assert max(again.batches) == max(seen.batches) == 3 * STEPS
    equal(resumed, whole)


def test_the_steps_may_be_counted_by_what_is_made_before_the_state_is_restored(tmp_path):
    """Lightning #20550: reading this property while optimizers are made lost the state of the loader."""

    class Counts(LitSeq2Seq):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 3 * STEPS
            return super().configure_optimizers()

    def fit(*callbacks: Callback, resume: Path | None = None) -> None:
        model, _ = build(kind=Counts)
        keep = Checkpoint(dirpath=str(tmp_path), every_n_steps=1)
        trainer = make_trainer(tmp_path, *callbacks, keep, max_epochs=3, enable_checkpointing=True)
        trainer.fit(model, datamodule=make_data(), ckpt_path=resume)

    seen, again = Seen(), Seen()
    with pytest.raises(KilledError):
        fit(seen, Kill(9))
    fit(again, resume=tmp_path / "last.ckpt")
    second = [what.batches[number][0] for what in (seen, again) for number in what.batches if 6 < number <= 12]
    assert sorted(row for rows in second for row in rows) == list(range(40))


def backwards() -> datasets.DatasetDict:
    splits = rows()
    splits["train"] = splits["train"].select(range(39, -1, -1))
    return splits


def swapped() -> datasets.DatasetDict:
    """Two rows of equal lengths have changed places."""
    splits = rows()
    pairs = splits["train"].to_dict()
    short = [place for place, text in enumerate(pairs["source"]) if len(text.split()) == 2]
    first, second = short[0], next(place for place in short if pairs["source"][place] != pairs["source"][short[0]])
    order = list(range(40))
    order[first], order[second] = second, first
    splits["train"] = splits["train"].select(order)
    return splits


def fewer() -> datasets.DatasetDict:
    splits = rows()
    splits["train"] = splits["train"].select(range(2, 40))
    return splits


OTHER: dict[str, dict[str, Any]] = {
    "batch_size 8, but it is 5": {"batch_size": 5},
    "max_tokens None, but it is 30": {"max_tokens": 30},
    "longest_first False, but it is True": {"longest_first": True},
    "max_source_length None, but it is 3": {"max_source_length": 3},
    "max_target_length None, but it is 2": {"max_target_length": 2},
    "other rows than those of now": {"dataset": backwards},
    "other rows than those of now ": {"dataset": swapped},
    "examples 40, but it is 38": {"dataset": fewer},
}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints within an epoch, and at its end."""
    folder = tmp_path_factory.mktemp("halves")
    killed(folder / "2", 2)
    run(folder / "6", max_epochs=1)
    return {2: folder / "2" / "last.ckpt", 6: folder / "6" / "last.ckpt"}


def go_on(path: Path, epochs: int = 1, model: LitSeq2Seq | None = None, **options: object) -> None:
    model = model or build()[0]
    if "dataset" in options:
        options = {**options, "dataset": options["dataset"]()}
    trainer = make_trainer(path.parent, EMA(0.9), max_epochs=epochs, limit_val_batches=0)
    trainer.fit(model, datamodule=make_data(**options), ckpt_path=path)


@pytest.mark.parametrize("what", OTHER)
def test_other_data_or_batches_are_refused_within_an_epoch_and_told_at_its_end(halves, what):
    with pytest.raises(UserError, match=f"was interrupted within an epoch with .*{what.strip()}.*: give the same"):
        go_on(halves[2], **OTHER[what])
    with pytest.warns(UserWarning, match=f"was interrupted with .*{what.strip()}.*: the next epoch begins with what"):
        go_on(halves[6], epochs=2, **OTHER[what])


NETWORKS = {
    "encoder.residual True (not False)": {"encoder": partial(TextEncoder, residual=True, dropout=0.2)},
    "decoder.attention DotAttention (not GeneralAttention)": {
        "decoder": partial(ParallelDecoder, attention=DotAttention)
    },
}


@pytest.mark.parametrize("told", NETWORKS)
def test_another_network_of_the_same_weights_is_told(told):
    mine = {"encoder": TextEncoder, "decoder": partial(ParallelDecoder, attention=GeneralAttention)}
    with pytest.warns(UserWarning, match=rf"trained with other settings: {re.escape(told)}$"):
        tell_other_network(spec.describe(mine), spec.describe(mine | NETWORKS[told]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_other_network(spec.describe(mine), spec.describe(mine | {"encoder": partial(TextEncoder, dropout=0.5)}))


def test_a_checkpoint_of_weights_alone_is_told_in_a_line(halves, tmp_path):
    checkpoint = torch.load(halves[6], weights_only=True)
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    with pytest.raises(KeyError) as caught:
        go_on(tmp_path / "weights.ckpt", epochs=2)
    assert (explain(caught.value) or "").startswith("Trying to restore optimizer state but checkpoint contains only")


@pytest.mark.parametrize("step", [2, 6])
def test_settings_that_change_no_batch_are_not_mentioned(halves, step):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*interrupted")
        go_on(halves[step], epochs=3, max_source_length=50, num_workers=1, eval_batch_size=3)


@pytest.mark.parametrize("change", [backwards, rows])
def test_another_stream_is_refused_within_an_epoch(tmp_path, change):
    def fit(dataset: datasets.DatasetDict, *callbacks: Callback, resume: Path | None = None) -> None:
        stream = datasets.IterableDatasetDict({name: rows.to_iterable_dataset() for name, rows in dataset.items()})
        model, _ = build()
        model.make_scheduler = None
        model.hparams["lr_scheduler"] = None
        keep = Checkpoint(dirpath=str(tmp_path), every_n_steps=1)
        trainer = make_trainer(tmp_path, *callbacks, keep, max_epochs=1, enable_checkpointing=True)
        trainer.fit(model, datamodule=make_data(stream, streaming=True), ckpt_path=resume)

    with pytest.raises(KilledError):
        fit(rows(), Kill(2))
    if change is rows:
        fit(rows(), resume=tmp_path / "last.ckpt")
    else:
        with pytest.raises(UserError, match="interrupted within an epoch with other rows than those of now"):
            fit(change(), resume=tmp_path / "last.ckpt")


# the learning rate of a run that is resumed with other settings


def test_another_learning_rate_is_told(halves):
    model, _ = build()
    model.learning_rate = 0.5
    with pytest.warns(UserWarning, match=r"resumed with the optimizer .* of the checkpoint: lr 0.01 \(not 0.5\); to"):
        go_on(halves[2], epochs=3, model=model)
    assert model.trainer.optimizers[0].param_groups[0]["lr"] <= 0.01


def other(**options: object) -> LitSeq2Seq:
    torch.manual_seed(1)
    model, _ = build()
    return LitSeq2Seq(**{**spec.build(dict(model.hparams)), **options})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"optimizer": partial(torch.optim.Adam, lr=0.01, betas=(0.5, 0.9))},
            r"betas \[0.9, 0.999\] \(not \[0.5, 0.9\]\)",
        ),
        ({"lr_scheduler": partial(OneCycle, warmup=0.5)}, r"warmup 0.25 \(not 0.5\)"),
        ({"optimizer": torch.optim.Adam}, r"lr 0.01 \(not 0.001\)"),
    ],
)
def test_other_settings_of_the_optimizer_are_told(halves, options, told):
    with pytest.warns(UserWarning, match=told):
        go_on(halves[2], epochs=3, model=other(**options))


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"optimizer": partial(torch.optim.SGD, lr=0.01)}, "the state of optimizer Adam, not of SGD: to change them"),
        ({"lr_scheduler": InverseSquareRoot}, "the state of lr_scheduler OneCycle, not of InverseSquareRoot"),
        ({"lr_scheduler": None}, "the state of lr_scheduler OneCycle, not of None"),
        ({"lr_factors": {"encoder": 0.1}}, "other lr_factors"),
    ],
)
def test_another_optimizer_is_refused(halves, options, refused):
    with pytest.raises(UserError, match=refused):
        go_on(halves[2], epochs=3, model=other(**options))


def rates_of(folder: Path, epochs: int, scheduler: object, resume: Path | None = None) -> dict[int, float]:
    """Train, and return the learning rate of each step."""

    class Rates(Callback):
        def on_train_batch_start(self, trainer, *_):
            found[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]

    found: dict[int, float] = {}
    keep = Checkpoint(dirpath=str(folder), save_top_k=0)
    trainer = make_trainer(folder, Rates(), keep, max_epochs=epochs, enable_checkpointing=True, limit_val_batches=0)
    trainer.fit(other(lr_scheduler=scheduler), datamodule=make_data(), ckpt_path=resume)
    return found


@pytest.mark.parametrize("longer", [2, 5])
def test_one_cycle_of_a_run_that_becomes_longer_or_shorter_goes_on_as_one_of_the_new_length(tmp_path, longer):
    whole = rates_of(tmp_path / "whole", longer, OneCycle)
    first, last = rates_of(tmp_path / "cut", 1, OneCycle), tmp_path / "cut" / "last.ckpt"
    assert first[STEPS - 1] < 0.0001
    with pytest.warns(UserWarning, match=rf"has {longer * STEPS} steps now, not 6: OneCycle goes on as in a run of"):
        found = rates_of(tmp_path / "cut", longer, OneCycle, last)
    assert found == {step: rate for step, rate in whole.items() if step >= STEPS}


def test_the_length_that_a_run_of_version_0_1_had_is_known(tmp_path):
    rates_of(tmp_path, 1, OneCycle)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["steps"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match="has 12 steps now, not 6"):
        rates_of(tmp_path, 2, OneCycle, tmp_path / "old.ckpt")


@pytest.mark.parametrize(
    "schedule",
    [
        partial(OneCycle, total_steps=STEPS),
        partial(CosineAnnealingLR, T_max=STEPS),
        partial(PolynomialLR, total_iters=STEPS),
    ],
)
def test_a_schedule_that_has_come_to_its_end_is_refused(tmp_path, schedule):
    rates_of(tmp_path, 1, schedule)
    with pytest.raises(
        UserError, match=r"came to its end after 6 steps, at \S+ of the learning rate, which would stay"
    ):
        rates_of(tmp_path, 2, schedule, tmp_path / "last.ckpt")


@pytest.mark.parametrize("schedule", [partial(OneCycle, total_steps=9), partial(CosineAnnealingLR, T_max=9)])
def test_a_schedule_that_is_too_short_is_told(tmp_path, schedule):
    with pytest.warns(UserWarning, match="covers 9 of 12 steps: set it to 12"):
        rates_of(tmp_path, 2, schedule)


def test_a_schedule_that_fails_after_its_end_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="OneCycleLR fails after its 9 steps, and the run has 12: set total_steps to 12"
    ):
        rates_of(tmp_path, 2, partial(OneCycleLR, max_lr=0.01, total_steps=9))


def test_a_rate_that_has_fallen_to_almost_nothing_is_told(tmp_path):
    schedule = partial(ExponentialLR, gamma=0.3)
    rates_of(tmp_path, 1, schedule)
    with pytest.warns(UserWarning, match="ExponentialLR lets the run go on at 0.000729 of the learning rate"):
        rates_of(tmp_path, 2, schedule, tmp_path / "last.ckpt")


@pytest.mark.parametrize("schedule", [None, InverseSquareRoot, partial(LinearLR, total_iters=3)])
def test_schedules_without_an_end_go_on(tmp_path, schedule):
    whole = rates_of(tmp_path / "whole", 2, schedule)
    rates_of(tmp_path, 1, schedule)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(steps|resumed with)")
        found = rates_of(tmp_path, 2, schedule, tmp_path / "last.ckpt")
    assert found == {step: rate for step, rate in whole.items() if step >= STEPS}


def test_the_last_checkpoints_are_kept(tmp_path):
    keep = Checkpoint(dirpath=str(tmp_path), save_top_k=0, every_n_steps=1, keep_last=3)
    make_trainer(tmp_path, keep, max_steps=5, enable_checkpointing=True).fit(make_model(), datamodule=make_data())
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 5, "last-1.ckpt": 4, "last-2.ckpt": 3}


@pytest.mark.parametrize("option", [{"keep_last": 0}, {"every_n_steps": 0}, {"every_n_minutes": 0}])
def test_settings_of_checkpoints(option):
    with pytest.raises(UserError, match=r"expected \w+ (of at least 1|above 0), but got 0"):
        Checkpoint(**option)


# the command line


def test_the_command_goes_on_in_the_folder_and_the_log_of_the_run(tmp_path, capsys, caplog):
    recipe = write_recipe(tmp_path)
    fit = ["fit", "--config", str(recipe), "--ckpt_path=last", "--trainer.log_every_n_steps=1"]

    def log(number: int) -> list[dict[str, str]]:
        with (tmp_path / "runs" / f"version_{number}" / "metrics.csv").open(encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v and "time" not in k} for row in csv.DictReader(file)]

    with caplog.at_level("INFO"):
        assert main(fit) == 0
    assert "There is no last checkpoint yet: starting anew." in caplog.messages
    kill = "--trainer.callbacks+={class_path: tests.test_resume.Kill, init_args: {step: 8}}"
    with pytest.raises(KilledError):
        main([*fit[:3], "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=7", kill])
    run = tmp_path / "runs" / "version_1"
    (run / "checkpoints" / "last-1.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    (run / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    assert main([*fit, "--checkpoint.every_n_steps=7"]) == 0
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["version_0", "version_1"]
    assert log(1) == log(0)
    weights = [
        load_file(tmp_path / "runs" / name / "model" / "model.safetensors") for name in ("version_0", "version_1")
    ]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_run_whose_folder_was_moved_knows_its_best_checkpoints(tmp_path):
    recipe = write_recipe(tmp_path)

    def train(*options: str, last: str | None = None) -> None:
        built = load_recipe(recipe, ["--checkpoint.save_top_k=2", *options])
        built.trainer.fit(built.model, datamodule=built.datamodule, ckpt_path=last)

    train()
    (tmp_path / "runs").rename(tmp_path / "moved")
    before = set(tmp_path.rglob("epoch=*.ckpt"))
    train(f"--trainer.default_root_dir={tmp_path / 'moved'}", "--trainer.max_epochs=3", last="last")
    after = set(tmp_path.rglob("epoch=*.ckpt"))
    assert len(before) == len(after) == 2


def test_last_of_nothing_is_refused_where_a_model_is_needed(tmp_path, capsys):
    assert main(["test", "--config", str(write_recipe(tmp_path)), "--ckpt_path=last"]) == 1
    assert "test needs a trained model" in capsys.readouterr().err
