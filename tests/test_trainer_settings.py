"""What Lightning's trainer can do is done with these models too, or refused in a line before the first epoch."""

import shlex
import subprocess
import sys
import textwrap
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.cli import ReduceLROnPlateau as PlateauOf
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe
from lit_seq2seq.cli import main
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.nn import (
    CTC,
    ConvEncoder,
    CopyOutput,
    CoverageLoss,
    InputFeedingDecoder,
    MultiSourceEncoder,
    ParallelDecoder,
    PyramidalEncoder,
    TextEncoder,
)
from lit_seq2seq.schedules import OneCycle
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.settings.parsing import Parser
from lit_seq2seq.types import Batch, UserError
from tests.test_bad_input import error_line
from tests.tiny import SIZES, Trained, loss_of, make_data, make_model, rows, write_recipe


def make_trainer(**options: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(
        **{
            **quiet,
            "max_epochs": 2,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            **options,
        }
    )


def fit(model: LitSeq2Seq, data: LightningDataModule, **options: Any) -> Trainer:
    trainer = make_trainer(**options)
    trainer.fit(model, datamodule=data)
    return trainer


class Watch(Callback):
    """Notes the rows of each training batch, and the learning rate after each epoch."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        batch = args[2]
        assert isinstance(batch, Batch)
        self.rows.append(batch.rows.tolist())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


# overfit_batches


@pytest.mark.parametrize(("share", "count"), [(2, 2), (0.5, 2)])
def test_overfitting_takes_the_same_batches_in_each_epoch(share: float, count: int) -> None:
    watch = Watch()
    fit(make_model(), make_data(), overfit_batches=share, max_epochs=3, callbacks=[watch])
    assert len(watch.rows) == 3 * count
    assert watch.rows[:count] * 3 == watch.rows
    assert len({tuple(one) for one in watch.rows}) == count


def test_one_batch_is_learnt_by_heart() -> None:
    model = make_model(optimizer=partial(torch.optim.Adam, lr=0.05))
    trainer = fit(model, make_data(batch_size=4), overfit_batches=1, max_epochs=60)
    assert trainer.callback_metrics["train_loss"] < 0.1


# precision


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder": partial(InputFeedingDecoder, **SIZES), "attention_losses": [CoverageLoss]},
        {"output": CopyOutput},
        {"auxiliary": CTC},
    ],
)
def test_64_bits_are_trained_and_searched_in(options: dict[str, Any]) -> None:
    generation = GenerationConfig(num_beams=2, max_new_tokens=4, coverage_penalty=0.1)
    model = make_model(generation=generation, **options)
    data = make_data(copy="output" in options)
    trainer = fit(model, data, precision="64-true", max_epochs=1)
    assert model.net.decoder.embedding.weight.dtype == torch.float64
    (scores,) = trainer.test(model, data, verbose=False)
    assert scores["test_loss"] == pytest.approx(loss_of(model, data.test_dataloader()), rel=1e-6)


# schedules


def test_a_plateau_is_looked_for_where_there_are_validations() -> None:
    watch = Watch()
    plateau = partial(ReduceLROnPlateau, patience=0, threshold=1e6, threshold_mode="abs")  # nothing is better
    model = make_model(optimizer=partial(torch.optim.SGD, lr=1.0), lr_scheduler=plateau)
    fit(model, make_data(), max_epochs=6, check_val_every_n_epoch=2, callbacks=[watch])
    assert watch.rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize("without", [{"limit_val_batches": 0}, {}])
def test_a_plateau_needs_validations(without: dict[str, Any]) -> None:
    dataset = rows()
    del dataset["validation"]
    watch = Watch()
    data = make_data() if without else make_data(dataset, validation_size=0)
    with pytest.raises(UserError, match="ReduceLROnPlateau watches val_loss, but this run does not validate"):
        fit(make_model(lr_scheduler=ReduceLROnPlateau), data, callbacks=[watch], **without)
    assert not watch.rows


def test_a_stream_is_told_what_one_cycle_needs() -> None:
    with pytest.raises(UserError, match=r"epoch of a stream .* total_steps, trainer.max_steps or trainer.limit_train"):
        fit(make_model(lr_scheduler=OneCycle), make_data(streaming=True))


def test_one_cycle_counts_the_steps_of_a_loader() -> None:
    data = make_data()
    data.setup("fit")
    model = make_model(lr_scheduler=OneCycle)
    model.attach(data.processor)
    trainer = make_trainer(accumulate_grad_batches=2)
    trainer.fit(model, DataLoader(list(data.train_dataloader()), batch_size=None))
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == trainer.global_step == 6


# names of scores


WATCHERS = {
    "EarlyStopping": lambda: EarlyStopping("val_blue"),
    "ModelCheckpoint": lambda: ModelCheckpoint(monitor="val_blue"),
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_score_that_does_not_exist_is_found_before_the_first_epoch(watcher: str, tmp_path: Path) -> None:
    callback, model = WATCHERS[watcher](), make_model()
    with pytest.raises(UserError, match=rf"{watcher} watches val_blue, which is not logged.*did you mean val_bleu\?"):
        fit(model, make_data(), callbacks=[callback], enable_checkpointing=True, default_root_dir=tmp_path)
    assert model.trainer.global_step == 0


@pytest.mark.parametrize(("monitor", "right"), [("val_bleu", "max"), ("val_loss", "min"), ("val_exact_match", "max")])
def test_what_keeps_the_worst_score_is_told(monitor: str, right: str, tmp_path: Path) -> None:
    wrong = "min" if right == "max" else "max"
    for mode in (wrong, right):
        callbacks = [EarlyStopping(monitor, mode=mode), ModelCheckpoint(monitor=monitor, mode=mode)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(make_model(), make_data(), callbacks=callbacks, enable_checkpointing=True, default_root_dir=tmp_path)
        told = [str(one.message) for one in caught if "is the worst" in str(one.message)]
        assert len(told) == (2 if mode == wrong else 0)
        assert all(f"{monitor} for the best, though it is the worst: set its mode to {right}" in line for line in told)


@pytest.mark.parametrize("without", [{"limit_val_batches": 0}, {}])
def test_early_stopping_on_a_validation_needs_validations(without: dict[str, Any]) -> None:
    dataset, model = rows(), make_model()
    del dataset["validation"]
    data = make_data() if without else make_data(dataset, validation_size=0)
    with pytest.raises(UserError, match="EarlyStopping watches val_loss, but this run does not validate"):
        fit(model, data, callbacks=[EarlyStopping("val_loss")], **without)
    assert model.trainer.global_step == 0


def test_a_schedule_that_watches_what_does_not_exist_is_found_too() -> None:
    with pytest.raises(UserError, match="ReduceLROnPlateau watches val_chrf"):
        fit(make_model(lr_scheduler=partial(PlateauOf, monitor="val_chrf")), make_data())


class LogsMore(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log("val_own", 1.0)


def test_a_callback_of_the_user_may_log_what_another_watches() -> None:
    trainer = fit(make_model(), make_data(), callbacks=[LogsMore(), EarlyStopping("val_own")], max_epochs=1)
    assert trainer.callback_metrics["val_own"] == 1


def test_the_command_line_finds_a_score_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(write_recipe(tmp_path)), "--checkpoint.monitor=val_chrf"]) == 1
    assert "Checkpoint watches val_chrf, which is not logged" in error_line(capsys.readouterr().err)


# data of the user's own


class OwnData(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner = make_data()
        self.inner.setup("fit")

    def train_dataloader(self) -> Any:
        return self.inner.train_dataloader()

    def val_dataloader(self) -> Any:
        return self.inner.val_dataloader()


def test_an_attached_model_trains_on_an_own_data_module() -> None:
    data, model = OwnData(), make_model()
    model.attach(data.inner.processor)
    found = fit(model, data).callback_metrics["val_loss"]
    assert float(found) == pytest.approx(loss_of(model, data.val_dataloader()), rel=1e-5)


def test_a_model_that_is_not_attached_says_so() -> None:
    data = OwnData()
    loaders = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    for given in ({"datamodule": data}, loaders, {}):
        with pytest.raises(
            UserError, match="no vocabulary yet: fit it with a Seq2SeqDataModule, or load a trained one"
        ):
            make_trainer().fit(make_model(), **given)
    for use in ("validate", "predict"):
        with pytest.raises(UserError, match="no vocabulary yet"):
            getattr(make_trainer(), use)(make_model(), data.val_dataloader())


@pytest.mark.parametrize("use", ["fit", "validate", "test", "predict"])
def test_batches_of_something_else_are_named(use: str, trained: Trained) -> None:
    model = LitSeq2Seq.from_pretrained(trained.run / "model")
    with pytest.raises(UserError, match="expected batches of a Seq2SeqDataModule, got a list: give the trainer data"):
        getattr(make_trainer(), use)(model, DataLoader([["eins", "zwei"]], batch_size=1))


WRONG_KIND = {
    "images": (
        ConvEncoder,
        "ConvEncoder reads images, but the source is text: choose another encoder, or another data",
    ),
    "several": (partial(MultiSourceEncoder, encoders={"a": TextEncoder}), "each source, but there is only one"),
    "frames": (PyramidalEncoder, "PyramidalEncoder reads frames, as of recordings, but the source is text"),
}


@pytest.mark.parametrize("kind", WRONG_KIND)
def test_an_encoder_of_another_kind_of_source_is_named(kind: str) -> None:
    encoder, match = WRONG_KIND[kind]
    with pytest.raises(UserError, match=match):
        fit(make_model(encoder=encoder, decoder=partial(ParallelDecoder, bridge="dense")), make_data())


@pytest.mark.parametrize(("setting", "share"), [("dropout", 1.0), ("dropout", 2), ("state_dropout", -0.1)])
@pytest.mark.parametrize("part", [TextEncoder, ParallelDecoder])
def test_dropout_is_a_share(part: type, setting: str, share: float) -> None:
    side = "encoder" if part is TextEncoder else "decoder"
    with pytest.raises(UserError, match=f"{setting} of .* must be from 0 to below 1, got {share}"):
        fit(make_model(**{side: partial(part, **SIZES, **{setting: share})}), make_data())


def test_what_lightning_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(write_recipe(tmp_path)), "--trainer.val_check_interval=1000"]) == 1
    assert "`val_check_interval` (1000) must be less than or equal" in error_line(capsys.readouterr().err)


# an own command line


def test_an_own_command_line_trains_and_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(write_recipe(tmp_path).read_text())
    del recipe["checkpoint"]
    recipe["trainer"] |= {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "default_root_dir": "runs"}
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    LightningCLI(LitSeq2Seq, Seq2SeqDataModule, args=["fit", "--config=own.yaml"])
    [checkpoint] = tmp_path.rglob("*.ckpt")
    given = ["test", "--config=own.yaml", f"--ckpt_path={checkpoint}"]
    tested = LightningCLI(LitSeq2Seq, Seq2SeqDataModule, args=given, save_config_kwargs={"overwrite": True})
    loss = loss_of(tested.model, tested.datamodule.test_dataloader())
    assert float(tested.trainer.callback_metrics["test_loss"]) == pytest.approx(loss, rel=1e-5)


def test_an_own_command_line_with_our_parser_gives_each_class_its_own_defaults(trained: Trained) -> None:
    recipe = {key: value for key, value in yaml.safe_load(trained.recipe.read_text()).items() if key != "checkpoint"}
    given = {**recipe, "model": {**recipe["model"], "optimizer": "torch.optim.AdamW"}}
    built = LightningCLI(LitSeq2Seq, Seq2SeqDataModule, args=given, run=False, parser_class=Parser)
    assert built.config.model.optimizer.init_args.weight_decay == 0.01


def test_a_run_is_repeated_from_its_own_settings(trained: Trained, tmp_path: Path) -> None:
    recipe = load_recipe(trained.run / "config.yaml", ["--trainer.default_root_dir", str(tmp_path)])
    recipe.trainer.fit(recipe.model, recipe.datamodule)
    first, again = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (trained.run, tmp_path / "version_0"))
    assert first["global_step"] == again["global_step"] == 12
    torch.testing.assert_close(first["state_dict"], again["state_dict"], rtol=0, atol=0)


SWITCHES = {
    "no checkpoints": ["--trainer.enable_checkpointing=false"],
    "barebones": ["--trainer.barebones=true"],
    "tqdm, overfit": ["--trainer.callbacks=TQDMProgressBar", "--trainer.overfit_batches=1"],
    "rich, 64 bits": ["--trainer.callbacks=[RichProgressBar]", "--trainer.precision=64-true"],
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_run_with_another_switch_ends_well(switch: str, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path))
    assert main(["fit", "--config", recipe, "--trainer.max_epochs=1", *SWITCHES[switch]]) == 0
    assert (switch in ("no checkpoints", "barebones")) != bool(list(tmp_path.rglob("*.ckpt")))


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_another_progress_bar_takes_the_place_of_ours(bar: type, trained: Trained) -> None:
    recipe = load_recipe(trained.recipe, [f"--trainer.callbacks={bar.__name__}"])
    assert isinstance(recipe.trainer.progress_bar_callback, bar)


# classes in files of one's own

OWN = """
    from lit_seq2seq.nn import AdditiveAttention

    class CosineAttention(AdditiveAttention):
        pass
    """
BROKEN = {
    "import": (
        "import not_installed_anywhere",
        "ModuleNotFoundError: No module named 'not_installed_anywhere'.*line 1",
    ),
    "name": ("import torch\nx = not_defined", "NameError: name 'not_defined' is not defined.*line 2"),
    "syntax": ("def f(:", "SyntaxError: .*line 1"),
    "attribute": ("import torch\ntorch.no_such", "AttributeError: .*no_such.*line 2"),
}
SLOTS = ["--model.decoder.init_args.attention", "--model.encoder", "--model.metrics+", "--data.source_feature"]


@pytest.mark.parametrize("folder", [".", "recipes"])
def test_a_class_in_a_file_beside_the_recipe_is_found(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"own_parts_{'here' if folder == '.' else 'beside'}"
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(exist_ok=True)
    Path(folder, f"{own}.py").write_text(textwrap.dedent(OWN))
    recipe = write_recipe(Path(folder).resolve())
    monkeypatch.setattr("sys.path", [*sys.path])
    given = [f"--model.decoder.init_args.attention={own}.CosineAttention", "--trainer.max_epochs=1"]
    assert main(["fit", "--config", str(recipe.relative_to(tmp_path)), *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    find = f"import sys, importlib.util; sys.exit(importlib.util.find_spec('{own}') is None)"
    for name in (" generate --model ", " test --config "):
        command = next(line.rpartition("| ")[2] for line in lines if name in line)
        path = command.partition(name)[0].rpartition(" ")[0]  # in a new process
        subprocess.run(f'{path} {shlex.quote(sys.executable)} -c "{find}"', shell=True, check=True)
    printed = next(line for line in lines if " generate --model " in line)
    assert printed.endswith(f" --trust {own}")
    Path("input.txt").write_text("eins\n")
    words = shlex.split(printed.partition("generate ")[2])
    assert main(["generate", *words, "--input", "input.txt"]) == 0
    [card] = tmp_path.rglob("model/README.md")
    assert f"trust=['{own}'])" in card.read_text()


@pytest.mark.parametrize(
    ("kind", "slot"), [*((kind, SLOTS[0]) for kind in BROKEN), *(("name", slot) for slot in SLOTS[1:])]
)
def test_an_error_in_an_own_file_is_shown(
    kind: str, slot: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, match = BROKEN[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    Path(f"broken_{kind}.py").write_text(text)
    with pytest.raises(UserError, match=match):
        load_recipe(trained.recipe, [slot, f"broken_{kind}.Part"])


def test_a_class_that_lacks_an_argument_is_named(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"lightning.*CSVLogger needs save_dir: give it in init_args"):
        load_recipe(trained.recipe, ["--trainer.logger=lightning.pytorch.loggers.CSVLogger"])


@pytest.mark.parametrize(
    ("option", "match"),
    [
        (
            "--model.lr_scheduler=ReduceLROnPlateau",
            r"^model.lr_scheduler: several classes are called .*: give .* torch",
        ),
        ("--model.optimizer=adam", r"^model.optimizer: expected the path of a class, such as .*, got adam$"),
        (
            "--model.encoder=lit_seq2seq.metrics.BLEU",
            r"^model.encoder: expected a class of kind Encoder, .* got .*BLEU$",
        ),
        (
            "--model.lr_scheduler=json.dumps",
            r"^model.lr_scheduler: expected a class of kind LRScheduler, or a function",
        ),
        ("--model.decoder.init_args.attention=dot", r"attention: expected the path of a class, .*, got dot$"),
    ],
)
def test_a_class_that_is_not_named_by_its_path(option: str, match: str, trained: Trained) -> None:
    with pytest.raises(UserError, match=match):
        load_recipe(trained.recipe, [option])


@pytest.mark.parametrize("slot", SLOTS)
def test_a_module_that_is_not_there_is_named(slot: str, trained: Trained) -> None:
    with pytest.raises(
        UserError, match="there is no module no_such_parts: install it, or start in the folder that has"
    ):
        load_recipe(trained.recipe, [slot, "no_such_parts.Part"])
