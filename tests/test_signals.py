"""A process listens to signals after, between and during runs, whatever became of them; with real processes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_seq2seq.callbacks import Checkpoint
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, make_trainer

pytestmark = pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork")


class At(Callback):
    """Calls a function once at a hook."""

    def __init__(self, hook: str, function: Callable[[], object]) -> None:
        self.function = function
        setattr(self, hook, self.strike)

    def strike(self, *_, **__) -> None:
        function, self.function = self.function, lambda: None
        function()


def fit(folder: Path, *callbacks: Callback, **options: object) -> tuple:
    model, data = make_model(metrics=[]), make_data(**options)
    keep = Checkpoint(dirpath=str(folder / str(time.monotonic_ns())), save_top_k=0)
    trainer = make_trainer(folder, *callbacks, keep, enable_checkpointing=True)
    trainer.fit(model, datamodule=data)
    return trainer, model, data


def send(number: int) -> Callable[[], None]:
    return partial(os.kill, os.getpid(), number)


def fail() -> None:
    raise ValueError("of a callback")


def twice(folder: Path) -> None:
    fit(folder)
    fit(folder)


def failed(folder: Path) -> None:
    with pytest.raises(ValueError, match="of a callback"):
        fit(folder, At("on_train_batch_end", fail))


def refused(folder: Path) -> None:
    with pytest.raises(UserError):
        fit(folder, source_column="nothing")


def terminated(folder: Path) -> None:
    with pytest.raises(SIGTERMException) as stopped:
        fit(folder, At("on_train_batch_end", send(signal.SIGTERM)))
    assert stopped.value.code == 143


def interrupted(folder: Path) -> None:
    with pytest.raises(SIGTERMException) as stopped:
        fit(folder, At("on_validation_batch_end", send(signal.SIGINT)))
    assert stopped.value.code == 130


def interrupted_early(folder: Path) -> None:
    with pytest.raises(SystemExit):
        fit(folder, At("setup", send(signal.SIGINT)))


def scored(folder: Path) -> None:
    trainer, model, data = fit(folder)
    trainer.test(model, datamodule=data, verbose=False)


AFTER = [fit, twice, failed, refused, terminated, interrupted, interrupted_early, scored]


def child(work: Callable[[Path], object], folder: Path, ready: Connection) -> None:
    """Work, say so, and then do what a script does between two runs."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work(folder)
    try:
        ready.send("done")
        time.sleep(600)
    except KeyboardInterrupt:
        os._exit(130)


@pytest.mark.parametrize("work", AFTER)
def test_signals_end_a_process_after_a_run(tmp_path, work):
    context = multiprocessing.get_context("forkserver")  # what other tests left in this process may hang a fork of it
    for number, status in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)):
        mine, its = context.Pipe()
        process = context.Process(target=child, args=(work, tmp_path / str(number), its))
        process.start()
        assert mine.poll(300), "the run did not come to its end"
        assert mine.recv() == "done"
        os.kill(process.pid, number)
        process.join(300)
        alive = process.is_alive()
        process.kill()
        assert not alive
        assert process.exitcode == status


def use(work: str, folder: Path, hook: str, number: int) -> None:
    """Evaluate with a signal on the way."""
    model, data = make_model(metrics=[]), make_data()
    make_trainer(folder).fit(model, datamodule=data)
    strike = At(hook, send(number))
    getattr(make_trainer(folder, strike, Checkpoint(), enable_checkpointing=True), work)(model, datamodule=data)


@pytest.mark.parametrize(
    ("work", "hook"),
    [
        ("predict", "on_predict_batch_start"),
        ("predict", "on_predict_end"),
        ("test", "on_test_batch_start"),
        ("test", "on_test_end"),
        ("validate", "on_validation_end"),
    ],
)
def test_sigterm_ends_what_is_no_training(tmp_path, work, hook):
    with pytest.raises(SIGTERMException) as stopped:
        use(work, tmp_path, hook, signal.SIGTERM)
    assert stopped.value.code == 143


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_a_signal_that_comes_when_all_is_trained_is_not_forgotten(tmp_path, hook, number, status, caplog):
    if (hook, number) == ("on_fit_end", signal.SIGTERM):
        pytest.skip("then the process listens by itself again")
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as stopped:
        fit(tmp_path, At(hook, send(number)))
    assert stopped.value.code in (status, 1)  # 1: of Lightning, where Python's own handler is back
    assert "Interrupted" not in caplog.text


def test_handlers_of_others_come_back(tmp_path):
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        fit(tmp_path)
        assert signal.getsignal(signal.SIGTERM) is own
        with pytest.raises(ValueError, match="of a callback"):
            fit(tmp_path, At("on_train_batch_end", fail))
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_in_another_thread_touches_no_handler(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=fit, args=(tmp_path,))
    thread.start()
    thread.join()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_handler_of_the_user_is_called_in_training_too(tmp_path, number, status):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with pytest.raises(SIGTERMException) as stopped:
            fit(tmp_path, At("on_train_batch_end", send(number)))
    finally:
        signal.signal(number, before)
    assert heard == [number]
    assert stopped.value.code == status


def test_who_handles_sigusr1_in_a_slurm_job_keeps_it(tmp_path, monkeypatch):
    """As submitit does, which queues the job again by itself."""
    heard = []
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append("USR1"))
    try:
        fit(tmp_path, At("on_train_batch_end", send(signal.SIGUSR1)))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == ["USR1"]
