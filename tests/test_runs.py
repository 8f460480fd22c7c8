"""A run owns its folder, and what it writes there survives whatever happens to the process."""

import contextlib
import csv
import io
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lit_seq2seq import LitSeq2Seq, load_recipe
from lit_seq2seq.callbacks import Checkpoint, PredictionWriter
from lit_seq2seq.cli import main
from lit_seq2seq.cli.commands import save_best
from lit_seq2seq.cli.recipe import evaluate
from lit_seq2seq.cli.summary import typed
from lit_seq2seq.export import export_model
from lit_seq2seq.files.paths import is_file, local_path, place
from lit_seq2seq.hub.folder import load_checkpoint, tensors_of
from lit_seq2seq.training.logs import RunFolder, Table, claim
from lit_seq2seq.types import UserError
from tests.tiny import Trained, make_data, make_model, make_trainer, write_recipe

SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--samples.count=1"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe called `config.yaml` in the working folder."""
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path).rename(tmp_path / "config.yaml")


def fit(recipe: Path, *options: str) -> None:
    assert main(["fit", "--config", str(recipe), *SHORT, *options]) == 0


def train(recipe: Path, *options: str, last: Path | None = None) -> None:
    """Do what the command does, but for its last words and pictures."""
    built = load_recipe(recipe, [*SHORT, *options])
    built.trainer.fit(built.model, datamodule=built.datamodule, ckpt_path=last)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


# who owns a folder


def test_runs_that_begin_together_claim_a_folder_each(tmp_path: Path) -> None:
    (tmp_path / "version_2").mkdir()
    (tmp_path / "version_5").touch()  # a file takes a name, too
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: claim(tmp_path).name, range(40)))
    assert sorted(found) == sorted(f"version_{number}" for number in range(6, 46))


LOGGERS = {
    "csv": ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"],
    "csv in the folder of runs": [
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=.",
        "--trainer.logger.name=",
    ],
    "tensorboard": ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=logs"],
    "none": ["--trainer.logger=false"],
    "own": ["--trainer.logger=tests.test_runs.Heard"],
}


class Heard(Logger):
    """A logger of one's own, which notes what lies on the disk when a checkpoint has been saved."""

    name, version = "heard", "1"

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def log_metrics(self, metrics, step=None) -> None: ...

    def log_hyperparams(self, params, *_, **__) -> None: ...

    def after_save_checkpoint(self, callback) -> None:
        path = callback._last_checkpoint_saved
        assert path.endswith(".ckpt")
        assert load_checkpoint(path)["state_dict"]
        if callback.best_model_path:
            assert load_checkpoint(callback.best_model_path)
        self.sizes.append(Path(path).stat().st_size)


def test_runs_share_nothing_leave_files_of_others_alone_and_are_found_again(recipe: Path) -> None:
    """Whatever logger a run has: all of them one after the other, in the working folder."""
    text, root = recipe.read_bytes(), recipe.parent
    here = f"--trainer.default_root_dir={root}"
    for options in LOGGERS.values():
        fit(recipe, here, *options)
    assert recipe.read_bytes() == text
    runs = [root / f"version_{number}" for number in range(len(LOGGERS))]
    assert sorted(root.glob("version_*")) == runs
    for run in runs:
        assert {"config.yaml", "checkpoints", "model"} <= {path.name for path in run.iterdir()}
        assert len(list((run / "checkpoints").glob("epoch=*.ckpt"))) == 1
    assert not (root / "model").exists()
    assert len(list((root / "logs").rglob("version_*"))) == 2
    for epochs, kind in enumerate(["csv in the folder of runs", "none"], start=2):
        fit(recipe, here, *LOGGERS[kind], f"--trainer.max_epochs={epochs}", "--ckpt_path=last")
    steps = {path: load_checkpoint(path)["global_step"] for path in root.rglob("last*.ckpt")}
    assert steps == {run / "checkpoints" / "last.ckpt": 18 if run == runs[-1] else 6 for run in runs}


def test_trials_side_by_side_have_a_folder_each(recipe: Path) -> None:
    """As Optuna runs them, with `n_jobs=2`."""

    def trial(_: int) -> str:
        built = load_recipe(recipe, [*SHORT, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"])
        with lock:  # torch's and Lightning's own states are not made for threads; the folders are
            built.trainer.fit(built.model, datamodule=built.datamodule)
        return str(save_best(built.trainer, built.model))

    lock = threading.Lock()
    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(trial, range(4)))) == 4
    assert len(list(recipe.parent.glob("runs/version_*/model/model.safetensors"))) == 4


def test_what_does_not_train_leaves_no_folder(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_recipe(recipe)
    assert main(["fit", "--config", str(recipe), "--data.dataset=nothing.csv"]) == 1
    fit(recipe, "--trainer.fast_dev_run=true")
    assert not list(recipe.parent.glob("runs/*"))


def test_scoring_and_predicting_use_the_folder_of_the_run(trained: Trained, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "runs" / "version_0"))
    settings, rows = (run / "config.yaml").read_bytes(), rows_of(run)
    events = sorted(run.glob("events*"))
    given = ["--config", str(trained.recipe), f"--trainer.default_root_dir={run.parent}", "--ckpt_path=last"]
    for command in ("validate", "test", "predict"):
        assert main([command, *given]) == 0
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert (run / "config.yaml").read_bytes() == settings
    assert rows_of(run) == rows
    assert sorted(run.glob("events*")) == events
    assert len((run / "predictions.txt").read_text().splitlines()) == 10
    with (run / "scores.csv").open() as file:
        validated, tested = csv.DictReader(file)
    assert validated["checkpoint"] == tested["checkpoint"] == "last.ckpt"
    assert validated["data"] == tested["data"] == "own files train.csv, validation.csv, test.csv"
    logged = next(float(row["val_loss"]) for row in reversed(rows) if "val_loss" in row)
    assert float(validated["val_loss"]) == pytest.approx(logged, rel=1e-5)
    assert float(tested["test_loss"]) != float(validated["val_loss"])
    assert not tested["val_loss"]


def test_a_trained_model_that_is_scored_adds_no_epoch_to_the_log(recipe: Path) -> None:
    built = load_recipe(recipe, [*SHORT, "--trainer.max_epochs=2"])
    built.trainer.fit(built.model, datamodule=built.datamodule)
    for score in (built.trainer.validate, built.trainer.test):
        score(built.model, datamodule=built.datamodule, verbose=False)
    rows = rows_of(recipe.parent / "runs" / "version_0")
    assert [row["epoch"] for row in rows if "val_loss" in row] == ["0", "1"]
    assert not any(name.startswith("test") for row in rows for name in row)


def test_the_settings_of_the_model_and_its_rate_are_logged(trained: Trained) -> None:
    assert "TextEncoder" in (trained.run / "hparams.yaml").read_text()
    rates = [float(row["lr"]) for row in rows_of(trained.run) if "lr" in row]
    assert len(rates) == 2 and rates[0] != rates[1]  # noqa: PT018
    assert b"\x02lr" in next(trained.run.glob("events*")).read_bytes()


# what survives


def grow(path: Path, step: int | None = None) -> None:
    """Write rows for ever; now and then there is a new column, for which the file is written anew."""
    table = Table(path, step)
    for number in range(step or 0, 100_000):
        table.add({"step": number, f"column {number // 50}": number})


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_process_loses_no_row(tmp_path: Path, seed: int) -> None:
    """Killed while it writes and while it takes the file up again: all rows up to the last are there."""
    path, least = tmp_path / "metrics.csv", 0
    for start in range(4):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                grow(path, least)
            os._exit(1)
        while not path.is_file() or path.stat().st_size < 2_000:
            time.sleep(0.001)
        time.sleep(0.004 * seed + 0.003 * start)  # any moment will do
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == list(range(len(rows)))
        assert all(row[f"column {number // 50}"] == str(number) for number, row in enumerate(rows))
        assert len(rows) >= least
        least = len(rows)
    assert least > 50  # it was written anew, with another column


def test_predictions_that_are_made_at_once_do_not_mix(tmp_path: Path) -> None:
    first, second = (PredictionWriter(str(tmp_path / "out.txt")) for _ in range(2))
    trainers = [make_trainer(tmp_path, writer) for writer in (first, second)]
    for writer, trainer in zip((first, second), trainers, strict=True):
        writer.setup(trainer, make_model(), "predict")
    for number, (writer, trainer) in enumerate(zip((first, second), trainers, strict=True)):
        rows = [{"row": row, "hypotheses": [{"text": f"{number} {row}", "score": 0.0}]} for row in range(3)]
        writer.on_predict_batch_end(trainer, make_model(), rows, None, 0)
    for number, (writer, trainer) in enumerate(zip((first, second), trainers, strict=True)):
        writer.on_predict_end(trainer, make_model())
        assert (tmp_path / "out.txt").read_text().split("\n")[:3] == [f"{number} {row}" for row in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_a_torn_row_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"loss,step\r\n1.5,0\r\n1.25,1\r\n1.125,1")
    Table(path, step=10).add({"step": 2, "loss": 1.0})
    assert path.read_text().split() == ["loss,step", "1.5,0", "1.25,1", "1.0,2"]


class KilledError(Exception):
    """The end of a process, for what lies on the disk."""


class DiesAfterSaving(Checkpoint):
    """Dies as soon as the checkpoint of a step is there."""

    def __init__(self, step: int, **options) -> None:
        super().__init__(**options)
        self.last_step = step

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        if trainer.global_step == self.last_step:
            raise KilledError


def test_the_row_is_there_before_the_checkpoint(recipe: Path) -> None:
    options = ["--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=1"]
    train(recipe, *options)
    whole = rows_of(recipe.parent / "runs" / "version_0")
    for number, step in enumerate((3, 5), start=1):
        built = load_recipe(recipe, [*SHORT, *options])
        built.trainer.callbacks[-1].__class__ = DiesAfterSaving
        built.trainer.callbacks[-1].last_step = step
        with pytest.raises(KilledError):
            built.trainer.fit(built.model, datamodule=built.datamodule)
        run = recipe.parent / "runs" / f"version_{number}"
        cut = rows_of(run)
        assert cut == whole[: len(cut)]
        assert [row["step"] for row in cut].count(str(step - 1)) == [row["step"] for row in whole].count(str(step - 1))
        train(recipe, *options, last=run / "checkpoints" / "last.ckpt")
        assert rows_of(run) == whole


@pytest.mark.parametrize("change", [lambda text: text.replace(",", ";"), lambda text: text.replace("5,", "5.0,")])
def test_a_log_that_was_changed_by_others_is_named(tmp_path: Path, change) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(change("epoch,step,val_loss\n0,5,1.25\n"))
    with pytest.raises(UserError, match=r"metrics\.csv is not as it was written: give it another name"):
        Table(path, step=6)


def test_a_logger_of_the_user_loses_no_rows_and_gets_no_other_epoch(recipe: Path, recwarn) -> None:
    """Scored at the end of a recipe script that has no test split, resumed, and scored again."""
    log = recipe.parent / "logs" / "x" / "mine"
    name = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: logs, name: x, version: mine}}"
    recipe.write_text(re.sub(r", test: .*", "}", recipe.read_text()))
    given = [*SHORT, name, "--data.test_size=0"]
    first = load_recipe(recipe, given)
    first.trainer.fit(first.model, datamodule=first.datamodule)
    scores = evaluate(first.trainer, first.model, first.datamodule)
    trained = (log / "metrics.csv").read_text()
    [row] = [row for row in rows_of(log) if "val_loss" in row]
    assert row["epoch"] == "0"
    assert scores["val_loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
    again = load_recipe(recipe, [*given, "--trainer.max_epochs=2"])
    again.trainer.fit(again.model, datamodule=again.datamodule, ckpt_path="last")
    resumed = (log / "metrics.csv").read_text()
    assert main(["validate", "--config", str(recipe), *given, "--ckpt_path=last"]) == 0
    assert (log / "metrics-1.csv").read_text() == trained
    assert (log / "metrics-2.csv").read_text() == resumed
    assert not [one for one in recwarn if "no longer has" in str(one.message)]


def test_what_the_recipe_watches_decides_which_weights_become_the_model(recipe: Path) -> None:
    """Other checkpoints may be written beside it."""
    more = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {save_top_k: -1}}"
    own = "--trainer.callbacks+={class_path: lit_seq2seq.callbacks.Checkpoint, init_args: {monitor: val_ppl}}"
    trainer = load_recipe(recipe, [more, own]).trainer
    assert len(trainer.checkpoint_callbacks) == 3
    assert trainer.checkpoint_callback.monitor == "val_bleu"


# the last and the best


@pytest.mark.parametrize("how", ["moved", "absolute", "from the best", "other monitor"])
def test_the_last_checkpoint_keeps_its_name(recipe: Path, how: str) -> None:
    root = recipe.parent
    options = [*SHORT, "--trainer.max_epochs=2", "--trainer.default_root_dir=runs", "--checkpoint.every_n_steps=1"]
    stop = "--trainer.callbacks+={class_path: tests.test_resume.Kill, init_args: {step: 8}}"
    if how in ("moved", "absolute"):
        stop = stop.replace("8", "3")  # before there is a best one
    with pytest.raises(Exception, match=r"^$"):
        train(recipe, *options, stop)
    where = root / "runs"
    if how == "moved":
        where = where.rename(root / "moved")
    folder = where / "version_0" / "checkpoints"
    start = next(folder.glob("epoch*")) if how == "from the best" else folder / "last.ckpt"
    changes = ["--checkpoint.monitor=val_loss", "--checkpoint.mode=min"] if how == "other monitor" else []
    train(recipe, *options, f"--trainer.default_root_dir={where}", *changes, last=start)
    names = sorted(path.name for path in folder.iterdir())
    assert [name for name in names if name.startswith("last")] == ["last.ckpt"]
    assert load_checkpoint(folder / "last.ckpt")["global_step"] == 12
    assert not [name for name in names if "-v1" in name]


def test_a_full_disk_leaves_no_second_copy_of_the_best(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best one is written, then there is no room for the last one; resumed, the epoch is trained again."""
    options = [*SHORT, "--trainer.max_epochs=3", "--checkpoint.monitor=val_loss", "--checkpoint.mode=min"]
    save, full = Checkpoint._save_checkpoint, []

    def cramped(self, trainer, filepath):
        if trainer.current_epoch == 1 and "last" in filepath and not full:
            full.append(filepath)
            raise OSError(28, "No space left on device")
        save(self, trainer, filepath)

    monkeypatch.setattr(Checkpoint, "_save_checkpoint", cramped)
    assert main(["fit", "--config", str(recipe), *options]) == 1
    train(recipe, *options, last=recipe.parent / "runs" / "version_0" / "checkpoints" / "last.ckpt")
    names = sorted(path.name for path in recipe.parent.glob("runs/version_0/checkpoints/*"))
    assert len(names) == 2 and full  # noqa: PT018
    assert not any("-v1" in name or "part" in name for name in names)


def test_a_folder_with_checkpoints_of_another_run_is_left_as_it_is(tmp_path: Path) -> None:
    def train(epochs: int) -> Checkpoint:
        keep = Checkpoint(dirpath=str(tmp_path / "both"))
        trainer = make_trainer(tmp_path, keep, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(make_model(), datamodule=make_data())
        return keep

    train(1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "both").iterdir()}
    with pytest.warns(UserWarning, match="both holds checkpoints of another run: those of this run get names of"):
        keep = train(2)
    assert all((tmp_path / "both" / name).read_bytes() == content for name, content in before.items())
    assert Path(keep.last_model_path).name == "last-v1.ckpt"


# elsewhere


@pytest.fixture
def store():
    """An object store in this process."""
    yield fsspec.filesystem("memory")
    fsspec.filesystem("memory").store.clear()


def test_checkpoints_may_lie_elsewhere(recipe: Path, store, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SHORT, "--checkpoint.dirpath=memory://bucket/run", "--checkpoint.keep_last=2"]
    fit(recipe, *options, "--checkpoint.every_n_steps=2")
    names = sorted(Path(path).name for path in store.ls("/bucket/run", detail=False))
    assert [name.partition("=")[0] for name in names] == ["epoch", "last-1.ckpt", "last.ckpt"]
    assert load_checkpoint("memory://bucket/run/last.ckpt")["global_step"] == 6
    best = tensors_of(load_checkpoint(f"memory://bucket/run/{names[0]}"))
    model = LitSeq2Seq.from_pretrained("runs/version_0/model")
    assert all(torch.equal(best[name], tensor) for name, tensor in model.state_dict().items())
    fit(recipe, *options, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert load_checkpoint("memory://bucket/run/last.ckpt")["global_step"] == 12
    assert [path.name for path in Path("runs").iterdir()] == ["version_0"]  # which the checkpoint knows
    assert [row["epoch"] for row in rows_of(Path("runs/version_0")) if "val_loss" in row] == ["0", "1"]
    assert main(["test", "--config", str(recipe), "--ckpt_path=memory://bucket/run/last.ckpt"]) == 0
    assert main(["average", "--checkpoints", "memory://bucket/run/last.ckpt", "--output", "mean"]) == 0
    assert not list(recipe.parent.glob("*:*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--trainer.default_root_dir=memory://runs"], "trainer.default_root_dir: memory://runs is not on this"),
        (["fit", "--trainer.default_root_dir=s3://b/runs", "--ckpt_path=last"], "default_root_dir: s3://b/runs is not"),
        (["fit", "--checkpoint.dirpath=nowhere://b"], "cannot reach nowhere://b: "),
        (["fit", "--checkpoint.dirpath=s3://b/c"], "cannot reach s3://b/c: Install s3fs"),
        (["test", "--ckpt_path=gs://b/last.ckpt"], "cannot reach gs://b/last.ckpt: "),
        (["fit", "--predictions.path=memory://p.txt"], "predictions.path: memory://p.txt is not on this machine"),
    ],
)
def test_what_cannot_lie_elsewhere_is_refused(recipe: Path, capsys, arguments: list[str], message: str) -> None:
    before = set(recipe.parent.iterdir())
    assert main([arguments[0], "--config", str(recipe), *arguments[1:]]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert set(recipe.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (str(Path("s3://b/c")), "s3:/b/c is no address: write s3:// as text"),
        ("file:/b/c", "file:/b/c is no address: write file:// as text"),
        ("ftp://127.0.0.1:9/c", "cannot reach ftp://127.0.0.1:9/c: "),
        ("reference://c", "cannot reach reference://c: "),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(path: str, message: str) -> None:
    for use in (place, lambda path: Checkpoint(dirpath=path), is_file):
        with pytest.raises(UserError, match=re.escape(message)):
            use(path)


def test_what_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    keep = Checkpoint(dirpath="http://127.0.0.1:9/runs")
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1:9/runs: "):
        make_trainer(tmp_path, keep, enable_checkpointing=True).fit(make_model(), datamodule=make_data())


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_a_folder_of_something_else_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"name": "my project"}')
    model = make_model()
    model.attach(make_data().processor)
    with pytest.raises(UserError, match=f"has a {name} of another project: choose another folder"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_model_folder_is_written_again_but_no_export_goes_over_it(trained: Trained, tmp_path: Path) -> None:
    model = LitSeq2Seq.from_pretrained(trained.model)
    for _ in range(2):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"has a README\.md of another project"):
        export_model(model, tmp_path / "model")


def test_model_folders_are_local(trained: Trained, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    model = LitSeq2Seq.from_pretrained(trained.model)
    with pytest.raises(UserError, match=r"^the model folder: memory://model is not on this machine: give a"):
        model.save_pretrained("memory://model")
    with pytest.raises(UserError, match=r"s3://b/out\.txt is not on this machine"):
        PredictionWriter("s3://b/out.txt")
    given = ["--model", str(trained.model), "--output", "memory://x"]
    for command in ("generate", "export"):
        assert main([command, *given]) == 1
        assert "memory://x is not on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    model.save_pretrained(f"file://{tmp_path}/here")
    assert (tmp_path / "here" / "config.json").is_file()
    assert local_path("~/runs", "x") == Path.home() / "runs"
    assert RunFolder(f"file://{tmp_path}").root == tmp_path


@pytest.mark.parametrize("plugins", [None, [AsyncCheckpointIO()]], ids=["plain", "asynchronous"])
def test_loggers_and_plugins_see_finished_files(tmp_path: Path, plugins) -> None:
    heard = Heard()
    if plugins:
        heard.after_save_checkpoint = lambda callback: heard.sizes.append(0)  # it is written in the background
    keep = Checkpoint(dirpath=str(tmp_path / "kept"), every_n_steps=2)
    trainer = make_trainer(tmp_path, keep, logger=heard, plugins=plugins, enable_checkpointing=True)
    trainer.fit(make_model(), datamodule=make_data())
    assert len(heard.sizes) >= 3
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert [name.partition("=")[0] for name in names] == ["epoch", "last.ckpt"]
    assert all(load_checkpoint(tmp_path / "kept" / name)["global_step"] == 6 for name in names)


# the last words


def test_fit_ends_with_the_model_pictures_and_commands_that_can_be_typed(recipe: Path, capfd, monkeypatch) -> None:
    fit(recipe)
    out = capfd.readouterr().out
    assert "model     " in out
    words = out.split()
    for name in ("model", "attention.png", "curves.png"):
        assert (recipe.parent / "runs" / "version_0" / name).exists()
        assert any(word.endswith(f"runs/version_0/{name}") for word in words)
    generate, tensorboard, test = [line.strip() for line in out.splitlines()[-3:]]
    assert " generate --model " in generate
    assert "tensorboard --logdir " in tensorboard
    source, _, command = generate.partition(" | ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(shlex.split(source)[1].encode())))
    for line in (command, test):
        assert main(shlex.split(line)[1:]) == 0
    assert len((recipe.parent / "runs" / "version_0" / "scores.csv").read_text().splitlines()) == 2


def test_a_command_is_typed_as_it_can_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = tmp_path / "en v" / "bin", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir(parents=True)
        (folder / "lit-seq2seq").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    monkeypatch.setenv("PATH", str(own))
    assert typed("lit-seq2seq") == "lit-seq2seq"
    monkeypatch.setenv("PATH", str(other))  # another environment's
    assert typed("lit-seq2seq") == f"'{own}/lit-seq2seq'"
    monkeypatch.chdir(tmp_path)
    assert typed("lit-seq2seq") == "'en v/bin/lit-seq2seq'"
    monkeypatch.setenv("PATH", "")
    assert typed("lit-seq2seq") == "'en v/bin/lit-seq2seq'"


def test_a_version_that_is_given_is_kept(tmp_path: Path) -> None:
    """What a user names stays as it is named."""
    logger = CSVLogger(str(tmp_path), version="mine")
    make_trainer(tmp_path, logger=logger).fit(make_model(), datamodule=make_data())
    assert (tmp_path / "lightning_logs" / "mine" / "metrics.csv").is_file()
