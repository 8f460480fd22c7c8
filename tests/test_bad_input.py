"""Every mistake ends with one line that names the fix and a status other than 0, without a traceback."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import torch

from lit_seq2seq import LitSeq2Seq, load_recipe
from lit_seq2seq.cli import main
from lit_seq2seq.cli.failures import explain
from lit_seq2seq.hub.folder import load_checkpoint, tensors_of
from lit_seq2seq.types import UserError
from tests.tiny import Trained, pairs

Fail = Callable[..., str]


def error_line(err: str) -> str:
    """Return the error line of what was written to standard error, after checking that it is the only and last one."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert "Traceback" not in err
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    return lines[-1]


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> Fail:
    """Run the command, expect it to fail as it should, and return the line."""

    def run(*arguments: object, match: str) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        line = error_line(capsys.readouterr().err)
        record_property("error", f"{line} [{status}]")
        assert status == 1
        assert re.search(match, line), line
        return line

    return run


@pytest.fixture
def fit(trained: Trained, tmp_path: Path) -> list[object]:
    return ["fit", "--config", trained.recipe, "--trainer.default_root_dir", tmp_path / "runs"]


def splits(folder: Path, **columns: list[object]) -> str:
    """Write a training file of these columns, as JSON lines, and name the split."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return f"--data.dataset={json.dumps({'train': str(path)})}"


# data


def test_missing_file(fit, fail: Fail) -> None:
    fail(*fit, "--data.dataset=none.csv", match="expected a file or folder at 'none.csv', but there is none: check")


def test_missing_file_of_a_split(fit, fail: Fail, tmp_path: Path) -> None:
    dataset = json.dumps({"train": str(tmp_path / "none.csv")})
    fail(*fit, f"--data.dataset={dataset}", match=r"expected a file at '.*none\.csv' for split 'train'")


def test_missing_column(fit, fail: Fail) -> None:
    match = "expected a column 'german', but the columns are source, target: set columns.source"
    fail(*fit, "--data.source_column=german", match=match)


def test_missing_split(fit, fail: Fail) -> None:
    fail(*fit, "--data.train_split=training", match="expected a split 'training', but the splits are train.*: set")


def test_a_file_of_an_unknown_kind(fit, fail: Fail, tmp_path: Path, caplog) -> None:
    (tmp_path / "pairs.dat").write_text("source,target\neins,one\nzwei,two\n")
    with caplog.at_level("INFO"):
        fail(*fit, f"--data.dataset={tmp_path / 'pairs.dat'}", match="expected a column 'target', but the columns are")
    assert any(
        "pairs.dat is read as text, a row a line: its ending is none of .csv" in line for line in caplog.messages
    )


def test_empty_split(fit, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("source,target\n")
    fail(*fit, f"--data.dataset={tmp_path / 'none.csv'}", match=r"expected rows in .*none\.csv, but there are none")


def test_empty_file(fit, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("")
    fail(*fit, f"--data.dataset={tmp_path / 'none.csv'}", match="expected rows in '.*' .*, but the file is empty")


HOLES = {"source": ["eins", "", None, "zwei", "drei vier"] * 8, "target": ["one", "x", "x", None, "three four"] * 8}


def test_rows_without_text(fit, fail: Fail, tmp_path: Path) -> None:
    match = r"expected examples.*|expected .*empty"
    fail(*fit, splits(tmp_path, **HOLES), "--data.empty=error", match=match)


@pytest.mark.parametrize("empty", ["drop", "keep"])
def test_rows_without_text_are_counted(fit, tmp_path: Path, caplog, empty: str) -> None:
    options = [splits(tmp_path, **HOLES), f"--data.empty={empty}", "--trainer.fast_dev_run=true"]
    with caplog.at_level("INFO"):
        assert main([str(argument) for argument in [*fit, *options]]) == 0
    report = next(message for message in caplog.messages if message.startswith("train: "))
    kept, total = map(int, re.findall(r"\d+", report)[:2])
    assert (kept < total) == (empty == "drop")
    assert "without" in report or "empty" in report


def test_a_vocabulary_is_taken_from_a_folder_as_advised(fit, trained: Trained) -> None:
    options = ["--data.source_tokenizer=null", f"--data.processor={trained.model}", "--trainer.max_epochs=3"]
    built = load_recipe(trained.recipe, [*map(str, fit[3:]), *options])
    built.trainer.fit(built.model, datamodule=built.datamodule, ckpt_path=trained.last)
    assert built.trainer.global_step == 18
    assert built.model.processor.identity() == LitSeq2Seq.from_pretrained(trained.model).processor.identity()


def test_nothing_within_the_limits(fit, fail: Fail) -> None:
    options = ("--data.max_source_length=1", "--data.overlong=drop")
    fail(*fit, *options, match=r"expected examples to use, but there are 0 of 40 examples .*check the columns and the")


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_long_rows_are_counted(fit, caplog, overlong: str) -> None:
    options = ["--data.max_source_length=3", f"--data.overlong={overlong}", "--trainer.fast_dev_run=true"]
    with caplog.at_level("INFO"):
        assert main([str(argument) for argument in [*fit, *options]]) == 0
    long = sum(len(source.split()) + 1 > 3 for source in pairs(40)["source"])
    kept = 40 if overlong == "truncate" else 40 - long
    report = next(message for message in caplog.messages if message.startswith("train: "))
    assert report.startswith(f"train: {kept} of 40 examples ({long} ")


def test_folders_whose_names_are_not_utf8(fit, trained: Trained, fail: Fail, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(trained.model, folder / "model")
    (tmp_path / "in.txt").write_text("eins\n")
    options = ("--model", folder / "model", "--input", tmp_path / "in.txt")
    fail("generate", *options, match=r"the name of the folder '.*model' is not UTF-8: rename or copy it")
    fail(*fit, "--trainer.default_root_dir", folder, match=r"the name of a file or folder is not UTF-8 .*: rename it")


def test_not_utf8(fit, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("source,target\neins,one\nfünf,five\n".encode("latin-1"))
    fail(*fit, f"--data.dataset={tmp_path / 'latin.csv'}", match=r"expected UTF-8 text in .*line 3 .* iconv")


def test_files_of_different_length(fit, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "train.source").write_text("eins\nzwei\n")
    (tmp_path / "train.target").write_text("one\n")
    fail(*fit, f"--data.dataset={tmp_path}", match="expected as many lines in .* but they have 2 and 1")


def test_wrong_column_type(fit, fail: Fail, tmp_path: Path) -> None:
    dataset = splits(tmp_path, source=[1, 2, 3], target=["a", "b", "c"])
    fail(*fit, dataset, match="expected text in column 'source', but it holds int64: convert it or set columns.source")


def test_damaged_file(fit, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    fail(*fit, f"--data.dataset={tmp_path / 'x.parquet'}", match=r"x\.parquet.* cannot be read")


def test_script_dataset(fit, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise SystemExit('this must not run')")
    fail(*fit, f"--data.dataset={tmp_path / 'old'}", match="loading script, which cannot be run: set data.revision to")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_hub_out_of_reach(fit, fail: Fail) -> None:
    fail(*fit, "--data.dataset=some/dataset", match="'some/dataset' is neither a path here nor can the hub be reached")


@pytest.mark.usefixtures("offline")
def test_hub_out_of_reach_for_a_model(fail: Fail) -> None:
    fail("generate", "--model", "some/model", match="there is no folder some/model, and the model some/model is not")


# settings


def test_a_file_of_search_is_missed_before_data_are_read(fail: Fail) -> None:
    for name, kind in (("words.txt", "Lexicon"), ("terms.csv", "Terminology")):
        part = f"[{{class_path: {kind}, init_args: {{file: {name}}}}}]"
        options = [
            "--data.dataset=none.csv",
            "--model.generation.num_beams=2",
            f"--model.generation.constraints={part}",
        ]
        fail("fit", "--config=recipes/translation/your_files.yaml", *options, match=f"there is no file {name}, which")


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ("--trainer.max_epoch=3", r"did you mean trainer\.max_epochs\?"),
        ("--model.label_smoothin=0.1", r"did you mean model\.label_smoothing\?"),
        ("--model.encoder.init_args.hidden_siz=3", "hidden_siz"),
        (
            "--model.encoder=lit_seq2seq.nn.TextEncodr",
            r"no class .*\.TextEncodr - did you mean lit_seq2seq\.nn\.TextEncoder\?",
        ),
        ("--trainer.max_epochs=three", r"trainer\.max_epochs: expected int or null, got three$"),
        ("--model.label_smoothing=2", "label_smoothing must be from 0 to below 1, got 2"),
        ("--model.generation.num_beams=0", "num_beams=0: must be an integer of at least 1"),
        ("--data.max_tokens=0", "expected batches.max_tokens to be at least 1, but it is 0"),
        (
            "--data.source_tokenizer.model=wrd",
            r"source_tokenizer\.model: expected 'word', 'char', .* got wrd$",
        ),
        ("--checkpoint.monitor=val_blue", "val_blue"),
        ("--trainer.accelerator=tpuu", "tpuu"),
        ("--trainer.strategy=fsdp", "`fsdp` requires a GPU accelerator, but received `accelerator='cpu'`"),
        ("--model.encoder.init_args.num_layers=0", "num_layers"),
        ("--config=none.yaml", r"none\.yaml"),
    ],
)
def test_wrong_setting(fit, fail: Fail, option: str, match: str) -> None:
    fail(*fit, option, match=match)


def test_a_recipe_that_is_not_utf8(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("data: {dataset: fünf}".encode("latin-1"))
    fail("fit", "--config", tmp_path / "latin.yaml", match="UTF-8|utf-8")


def test_unknown_command(fail: Fail) -> None:
    fail("genrate", match=r"there is no command 'genrate': .* did you mean generate\?")


def test_no_checkpoint(trained: Trained, fail: Fail) -> None:
    for command in ("validate", "test", "predict"):
        fail(command, "--config", trained.recipe, match=f"{command} needs a trained model: give --ckpt_path FILE")


# checkpoints and folders


def test_missing_checkpoint(fit, fail: Fail) -> None:
    fail(*fit, "--ckpt_path=none.ckpt", match=r"there is no checkpoint none\.ckpt: give the path of a \.ckpt file")


def test_other_vocabulary_than_the_checkpoint(fit, trained: Trained, fail: Fail) -> None:
    options = ("--ckpt_path", trained.last, "--data.source_tokenizer.model=char")
    fail(*fit, *options, match="another vocabulary than the model's: give the settings it was")


def test_other_sizes_than_the_checkpoint(fit, trained: Trained, fail: Fail) -> None:
    options = ("--ckpt_path", trained.last, "--model.encoder.init_args.embedding_dim=6")
    match = r"the checkpoint is of another model: its model\.network\.encoder\..* is .*, this model's is .*: give the"
    fail(*fit, *options, match=match)
    options = ("--ckpt_path", trained.last, "--model.decoder.init_args.num_layers=2")
    fail(*fit, *options, match=r"the checkpoint is of another model|the model cannot be built")


def test_corrupt_checkpoint(fit, trained: Trained, fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "half.ckpt").write_bytes(trained.last.read_bytes()[:5000])
    fail(
        *fit, "--ckpt_path", tmp_path / "half.ckpt", match=r"half\.ckpt is damaged or not a checkpoint .*: use another"
    )
    paths = (tmp_path / "half.ckpt", trained.last)
    match = r"half\.ckpt is damaged or not a checkpoint"
    fail("average", "--checkpoints", *paths, "--output", tmp_path / "mean", match=match)
    assert not (tmp_path / "mean").exists()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_pickle_in_disguise(fit, trained: Trained, fail: Fail, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "x": Payload(tmp_path / "owned")}, tmp_path / "x.ckpt")
    fail(*fit, "--ckpt_path", tmp_path / "x.ckpt", match=r"x\.ckpt is damaged or not a checkpoint")
    folder = shutil.copytree(trained.model, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    fail("generate", "--model", folder, match=r"model\.safetensors is damaged .*copy or save the model again")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("model.safetensors", 600, r"model\.safetensors is damaged .*copy or save the model again"),
        ("config.json", 100, r"config\.json is damaged .*copy or save the model again"),
        ("config.json", None, r"is not a model folder, it has no config\.json: give the folder that training"),
        ("target_tokenizer.json", None, r"target_tokenizer\.json, but there is none: name a folder that"),
        ("processor.json", 20, r"processor\.json is damaged .*save the model again"),
    ],
)
def test_corrupt_folder(
    trained: Trained, fail: Fail, tmp_path: Path, name: str, content: int | None, match: str
) -> None:
    path = Path(shutil.copytree(trained.model, tmp_path / "model"), name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:content])
    fail("generate", "--model", tmp_path / "model", match=match)


# files and disks


@pytest.fixture
def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x")
    return tmp_path / "file" / "below"


def test_no_permission_to_train(fit, fail: Fail, below_a_file: Path) -> None:
    fail(*fit, "--trainer.default_root_dir", below_a_file, match="cannot write here .*default_root_dir")


def test_no_permission_to_write_outputs(trained: Trained, fail: Fail, below_a_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("eins\n")
    options = ("--model", trained.model, "--input", tmp_path / "in.txt")
    fail("generate", *options, "--output", below_a_file, match="cannot write .*below: .*: choose another --output")
    fail("generate", *options, "--output", tmp_path, match="cannot write .*: it is a folder: choose another --output")


def test_no_permission_to_write_predictions(trained: Trained, fail: Fail, below_a_file: Path, tmp_path: Path) -> None:
    options = ("--config", trained.recipe, "--ckpt_path", trained.last, "--trainer.default_root_dir", tmp_path)
    fail(
        "predict", *options, "--predictions.path", below_a_file, match="cannot write predictions to .*: choose another"
    )


def test_no_permission_to_save_a_model(trained: Trained, fail: Fail, below_a_file: Path) -> None:
    match = "cannot save the model to .*: free space or choose another folder"
    fail("average", "--checkpoints", trained.last, trained.last, "--output", below_a_file, match=match)


def test_bad_inputs_to_generate(trained: Trained, fail: Fail, tmp_path: Path) -> None:
    fail("generate", "--model", trained.model, "--input", "none.txt", match=r"there is no file none\.txt: check")
    (tmp_path / "latin.txt").write_bytes("eins\nfünf\n".encode("latin-1"))
    out = tmp_path / "out.txt"
    options = ("--model", trained.model, "--input", tmp_path / "latin.txt", "--output", out)
    fail("generate", *options, match=r"expected UTF-8 text in .*latin\.txt, but line 2 is not .*iconv")
    assert not out.exists()
    fail("generate", "--model", tmp_path / "none", match=r"there is no folder .*none: check the path, or give a hub id")
    match = "device tpuu cannot be used here: choose cpu, cuda"
    fail("generate", "--model", trained.model, "--device", "tpuu", match=match)


def test_the_folder_of_a_run_is_no_model_folder(trained: Trained, fail: Fail) -> None:
    for folder in (trained.run, trained.run.parent):
        fail("generate", "--model", folder, match=f"has no config.json: give the folder {trained.model}$")
    fail("generate", "--model", trained.last, match=r"last\.ckpt is a file: give a model folder")


def test_accelerators_that_are_not_there(fit, fail: Fail) -> None:
    if not torch.cuda.is_available():
        fail(*fit, "--trainer.accelerator=gpu", match="no GPU here .*: leave trainer.accelerator out, or set it to cpu")
    if importlib.util.find_spec("wandb") is None:
        wandb = "--trainer.logger=lightning.pytorch.loggers.WandbLogger"
        fail(*fit, wandb, match=r"Requirement 'wandb>=[\d.]+' not met")
    fail(*fit, "--trainer.accelerator=tpu", match="these settings do not fit: Requirement 'torch_xla")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_full_disk_keeps_the_checkpoint_before(fit, trained: Trained, fail: Fail, small_disk: Path) -> None:
    last = Path(shutil.copy(trained.last, small_disk))
    before = last.read_bytes()
    spare = shutil.disk_usage(small_disk).free - len(before) // 2
    (small_disk / "filler").write_bytes(bytes(spare))
    options = [f"--checkpoint.dirpath={small_disk}", "--checkpoint.save_top_k=0", "--trainer.max_epochs=3"]
    match = "the disk is full .*: free space and run again; a training run goes on with --ckpt_path"
    fail(*fit, *options, "--ckpt_path", last, match=match)
    assert last.read_bytes() == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "last.ckpt"]


def test_full_disk_keeps_the_model_before(trained: Trained, fail: Fail, small_disk: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.model, small_disk / "model"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    options = ("average", "--checkpoints", trained.last, trained.last, "--output", folder)
    fail(*options, match="cannot save the model to .*: free space or choose another folder")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "in.txt").write_text("eins zwei drei\n" * 4000)
    files = ("--input", tmp_path / "in.txt", "--output", small_disk / "out.txt", "--min_new_tokens=5")
    fail("generate", "--model", trained.model, *files, match="the disk is full .*: free space and run again")


# training


def test_loss_that_becomes_nan(fit, fail: Fail, tmp_path: Path) -> None:
    schedule = json.dumps({"class_path": "lit_seq2seq.schedules.OneCycle", "init_args": {"end": 1e40}})
    options = (f"--model.lr_scheduler={schedule}", "--trainer.max_epochs=5", "--checkpoint.save_top_k=0")
    match = r"the (loss|weights) became NaN or infinite .*: the last good checkpoint is kept in (.*\.ckpt); try a lower"
    line = fail(*fit, *options, match=match)
    kept = re.search(match, line)
    assert kept is not None
    weights = tensors_of(load_checkpoint(kept[2]))
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())


def test_a_lost_model_is_not_saved(fit, fail: Fail, tmp_path: Path) -> None:
    options = ("--model.lr_scheduler=null", "--model.optimizer.init_args.lr=1e37", "--trainer.limit_train_batches=1")
    fail(*fit, *options, match="became NaN or infinite .*: no checkpoint had been saved yet; try a lower learning rate")
    assert not list(tmp_path.rglob("*.ckpt*"))


def test_interrupt_saves_and_says_how_to_go_on(fit, tmp_path: Path, caplog, capsys, record_property) -> None:
    struck = {"number": signal.SIGINT.value, "step": 8, "hook": "on_train_batch_start"}
    strike = {"class_path": "tests.test_resume.Signal", "init_args": struck}
    with caplog.at_level("INFO"):
        assert main([str(argument) for argument in [*fit, f"--trainer.callbacks+={json.dumps(strike)}"]]) == 130
    assert "Traceback" not in capsys.readouterr().err
    said = "Interrupted: the same command with --ckpt_path last goes on"
    assert said in caplog.messages
    record_property("error", f"{said} [130]")
    last = next(tmp_path.rglob("last.ckpt"))
    step = load_checkpoint(last)["global_step"]
    assert main([str(argument) for argument in [*fit, "--ckpt_path", "last"]]) == 0
    assert step == 9 < load_checkpoint(last)["global_step"] == 12


class Unreadable(torch.utils.data.Dataset[int]):
    """Rows that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> int:
        raise UserError(f"row {row} cannot be read")


def test_an_error_of_a_process_that_loads_data_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        next(iter(torch.utils.data.DataLoader(Unreadable(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert explain(caught.value) == "row 0 cannot be read"
