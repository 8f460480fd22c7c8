import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from pkgutil import resolve_name
from threading import Thread

import datasets
import pytest
import torch
from safetensors.torch import load_file

from lit_seq2seq import LitSeq2Seq, Seq2SeqModel, load_recipe, pipeline
from lit_seq2seq.cli import COMMANDS, main
from lit_seq2seq.hub.folder import load_checkpoint, tensors_of
from lit_seq2seq.search import GenerationConfig, WaitK
from lit_seq2seq.types import UserError
from tests.tiny import Trained, make_data, make_model, make_trainer, pairs, rows, write_csv

Stdin = Callable[[str | bytes], None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Stdin:
    def give(text: str | bytes) -> None:
        raw = io.BytesIO(text.encode() if isinstance(text, str) else text)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="utf-8"))

    return give


def succeed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command and return what it wrote to standard output."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


# fit, validate, test, predict


def test_fit_leaves_checkpoints_logs_settings_and_a_folder(trained: Trained) -> None:
    names = {path.relative_to(trained.run).as_posix() for path in trained.run.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.csv", "checkpoints/last.ckpt", "model/model.safetensors"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert pipeline("translation", trained.model)("eins zwei")[0]["translation_text"] is not None
    assert "val_bleu" in (trained.model / "README.md").read_text(encoding="utf-8")


def test_the_settings_of_a_run_are_a_recipe(trained: Trained, tmp_path: Path, capsys) -> None:
    settings = trained.run / "config.yaml"
    succeed(capsys, "fit", "--config", settings, "--trainer.default_root_dir", tmp_path)
    first, again = (load_file(run / "model" / "model.safetensors") for run in (trained.run, tmp_path / "version_0"))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_a_run_without_a_progress_bar_shows_none(trained: Trained, capsys) -> None:
    once = ("fit", "--config", trained.recipe, "--trainer.fast_dev_run=true", "--trainer.enable_model_summary=false")
    assert "tokens/s" in succeed(capsys, *once)
    assert "tokens/s" not in succeed(capsys, *once, "--trainer.enable_progress_bar=false")


def test_where_there_is_no_terminal_no_bar_fills_the_log(trained: Trained, capsys) -> None:
    datasets.enable_progress_bars()
    load_recipe(trained.recipe)
    assert not datasets.are_progress_bars_disabled()  # those of a notebook are its own
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert datasets.are_progress_bars_disabled()


def test_files_are_data_and_not_settings(trained: Trained, tmp_path: Path, capsys) -> None:
    folder = trained.recipe.parent
    (tmp_path / "vectors.txt").write_text(f"zwei{' 0.5' * 8}\n", encoding="utf-8")
    options = ("--trainer.fast_dev_run=true", f"--model.source_vectors={tmp_path / 'vectors.txt'}")
    for dataset in (folder / "train.csv", f"[{folder / 'train.csv'}, {folder / 'test.csv'}]"):
        succeed(capsys, "fit", "--config", trained.recipe, f"--data.dataset={dataset}", *options)


@pytest.mark.parametrize(("command", "prefix"), [("validate", "val_"), ("test", "test_")])
def test_a_checkpoint_is_scored(trained: Trained, tmp_path: Path, capsys, command: str, prefix: str) -> None:
    root = ("--trainer.default_root_dir", tmp_path)
    out = succeed(capsys, command, "--config", trained.recipe, "--ckpt_path", trained.last, *root)
    for name in ("loss", "ppl", "bleu", "exact_match"):
        assert prefix + name in out


def test_predict_writes_a_line_for_each_row(trained: Trained, tmp_path: Path, capsys) -> None:
    options = ("--config", trained.recipe, "--ckpt_path", trained.last, "--trainer.default_root_dir", tmp_path)
    succeed(capsys, "predict", *options, "--predictions.path", tmp_path / "out.txt")
    model = LitSeq2Seq.load_from_checkpoint(trained.last, weights_only=True)
    expected = [row["translation_text"] for row in pipeline("translation", model)(pairs(10, seed=2)["source"])]
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines() == expected


def test_fit_goes_on_from_a_checkpoint(trained: Trained, tmp_path: Path, capsys) -> None:
    options = ("--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", 3)
    succeed(capsys, "fit", "--config", trained.recipe, "--ckpt_path", trained.last, *options)
    checkpoint = load_checkpoint(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    assert checkpoint["epoch"] == 2
    assert checkpoint["global_step"] == load_checkpoint(trained.last)["global_step"] // 2 * 3


# generate

INPUTS = ["eins zwei", "", "fünf", "drei vier fünf zwei", "unbekannt", "   ", "zwei"]


def test_generate_from_file_to_file(trained: Trained, tmp_path: Path, capsys) -> None:
    (tmp_path / "in.txt").write_text("\n".join(INPUTS) + "\n", encoding="utf-8")
    files = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert succeed(capsys, "generate", "--model", trained.model, *files) == ""
    expected = [row["translation_text"] for row in pipeline("translation", trained.model)(INPUTS)]
    assert expected[1] == expected[5] == ""
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "\n".join(expected) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_links_are_read_and_written_through(trained: Trained, tmp_path: Path, capsys) -> None:
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    link, file = tmp_path / "link.txt", tmp_path / "file.txt"
    file.write_text("old")
    link.symlink_to(file)
    expected = pipeline("translation", trained.model)("eins zwei")[0]["translation_text"] + "\n"
    writer = Thread(target=(tmp_path / "in").write_text, args=("eins zwei\n",), daemon=True)
    writer.start()
    command = ("generate", "--model", trained.model, "--input")
    succeed(capsys, *command, tmp_path / "in", "--output", link)
    assert link.is_symlink()
    assert file.read_text(encoding="utf-8") == expected
    got: list[str] = []
    reader = Thread(target=lambda: got.append((tmp_path / "out").read_text(encoding="utf-8")), daemon=True)
    reader.start()
    (tmp_path / "in.txt").write_text("eins zwei\n", encoding="utf-8")
    succeed(capsys, *command, tmp_path / "in.txt", "--output", tmp_path / "out")
    assert (tmp_path / "out").is_fifo()
    reader.join(10)
    assert got == [expected]
    options = ("--config", trained.recipe, "--ckpt_path", trained.last, "--trainer.default_root_dir", tmp_path)
    succeed(capsys, "predict", *options, "--predictions.path", link)
    assert link.is_symlink()
    assert len(file.read_text(encoding="utf-8").splitlines()) == 10
    assert main(["predict", *map(str, options), "--predictions.path", str(tmp_path / "out")]) == 1
    assert "(it is a device or a pipe): choose another path" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_folder_is_no_output(trained: Trained, name: str, capsys, stdin: Stdin) -> None:
    stdin("eins\n")
    assert main(["generate", "--model", str(trained.model), "--output", name]) == 1
    assert capsys.readouterr().err.endswith(f"error: cannot write {name}: it is a folder: choose another --output\n")


@pytest.mark.parametrize("text", ["eins\r\nzwei\r\n", "eins\nzwei"], ids=["windows", "no newline at the end"])
def test_generate_from_standard_input(trained: Trained, capsys, stdin: Stdin, text: str) -> None:
    stdin(text)
    out = succeed(capsys, "generate", "--model", trained.model)
    expected = [row["translation_text"] for row in pipeline("translation", trained.model)(["eins", "zwei"])]
    assert out.splitlines() == expected


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_model_is_evaluated_without_its_training_data(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    split = "validation" if command == "validate" else "test"
    (tmp_path / "rows.csv").write_bytes(trained.recipe.with_name("test.csv").read_bytes())
    dataset = json.dumps({"train": str(tmp_path / "gone.csv"), split: str(tmp_path / "rows.csv")})
    options = ["--config", trained.recipe, "--ckpt_path", trained.last, f"--data.dataset={dataset}"]
    succeed(capsys, command, *options, "--trainer.default_root_dir", tmp_path / "runs", "--predictions.format=jsonl")


def test_a_recipe_with_a_byte_order_mark_is_read(trained: Trained, tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + trained.recipe.read_bytes())
    options = ["--ckpt_path", trained.last, "--trainer.default_root_dir", tmp_path / "runs"]
    succeed(capsys, "test", "--config", tmp_path / "recipe.yaml", *options)


def test_generate_reads_files_of_other_systems_alike(trained: Trained, tmp_path: Path, capsys) -> None:
    (tmp_path / "in.txt").write_text("eins\nzwei\n", encoding="utf-8")
    expected = succeed(capsys, "generate", "--model", trained.model, "--input", tmp_path / "in.txt")
    for content in ("\ufeffeins\r\nzwei\r\n", "\ufeffeins\rzwei\r", "\ufeffeins\nzwei"):
        (tmp_path / "in.txt").write_bytes(content.encode())
        assert succeed(capsys, "generate", "--model", trained.model, "--input", tmp_path / "in.txt") == expected


def test_generate_streams_more_than_a_chunk(trained: Trained, capsys, stdin: Stdin) -> None:
    inputs = pairs(300, seed=7)["source"]
    stdin("\n".join(inputs) + "\n")
    options = ("--max_tokens", 100, "--min_new_tokens", 2, "--max_new_tokens", 4)
    out = succeed(capsys, "generate", "--model", trained.model, *options)
    expected = pipeline("translation", trained.model)(inputs, min_new_tokens=2, max_new_tokens=4)
    assert out.splitlines() == [row["translation_text"] for row in expected]
    assert len(set(out.splitlines())) > 1


def test_generate_gives_several_with_scores(trained: Trained, tmp_path: Path, capsys, stdin: Stdin) -> None:
    options = ("--num_beams", 4, "--num_return_sequences", 3, "--min_new_tokens", 1, "--length_normalization", "none")
    stdin("eins zwei\n\n")
    lines = succeed(capsys, "generate", "--model", trained.model, *options, "--scores", "true").splitlines()
    assert len(lines) == 8
    assert lines.pop(3) == lines.pop() == ""  # the outputs of each input end with an empty line
    scores = [float(line.split("\t")[0]) for line in lines]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert lines[3:] == ["0.0000\t"] * 3
    stdin("eins zwei\n\n")
    assert succeed(capsys, "generate", "--model", trained.model, *options, "--output", tmp_path / "out.jsonl") == ""
    rows = (tmp_path / "out.jsonl").read_text().splitlines()
    stdin("eins zwei\n\n")
    assert succeed(capsys, "generate", "--model", trained.model, *options, "--format", "jsonl").splitlines() == rows
    first, second = map(json.loads, rows)
    assert [output["text"] for output in first] == [line.split("\t")[1] for line in lines[:3]]
    assert [output["score"] for output in first] == pytest.approx(scores[:3], abs=1e-4)
    assert [output["text"] for output in second] == ["", "", ""]


def test_generate_samples_by_seed(trained: Trained, capsys, stdin: Stdin) -> None:
    found = []
    for seed in (1, 1, 2):
        stdin("eins zwei drei\n" * 20)
        options = ("--do_sample", "true", "--temperature", 2.0, "--seed", seed, "--max_new_tokens", 8)
        found.append(succeed(capsys, "generate", "--model", trained.model, *options))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("command", ["generate", "stream"])
def test_null_takes_a_saved_part_away(command: str, trained: Trained, tmp_path: Path, capsys) -> None:
    model = Seq2SeqModel.from_pretrained(trained.model)
    model.generation = replace(model.generation, policy=WaitK(2))  # whose encoder reads in both directions
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "in.txt").write_text("eins zwei\n", encoding="utf-8")
    given = [command, "--model", str(tmp_path / "model"), "--input", str(tmp_path / "in.txt")]
    assert main(given) == 1
    assert "writes before the source has ended" in capsys.readouterr().err
    assert main([*given, "--policy", "null"]) == 0


def test_generate_says_what_was_cut(trained: Trained, capsys, stdin: Stdin) -> None:
    stdin("eins zwei drei vier fünf\neins\n")
    assert main(["generate", "--model", str(trained.model), "--max_source_length", "3"]) == 0
    assert "1 input cut to 3 positions" in capsys.readouterr().err


# average


def test_average_writes_the_mean(trained: Trained, tmp_path: Path, capsys) -> None:
    other = load_checkpoint(trained.last)
    other["state_dict"] = {name: tensor + 1 for name, tensor in tensors_of(other).items()}
    torch.save(other, tmp_path / "other.ckpt")
    paths = [trained.last, tmp_path / "other.ckpt"]
    out = succeed(capsys, "average", "--checkpoints", *paths, "--output", tmp_path / "mean")
    assert out == f"averaged 2 checkpoints into {tmp_path / 'mean'}\n"
    first, second = (tensors_of(load_checkpoint(path)) for path in paths)
    expected = {name: (tensor + second[name]) / 2 for name, tensor in first.items()}
    torch.testing.assert_close(dict(LitSeq2Seq.from_pretrained(tmp_path / "mean").state_dict()), expected)


# the command itself


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(capsys, arguments: list[str]) -> None:
    out = succeed(capsys, *arguments)
    for name in ("fit", "validate", "test", "predict", *COMMANDS):
        assert f"lit-seq2seq {name} " in out


def test_options_of_search_are_explained(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["generate", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--num_beams NUM_BEAMS hypotheses kept per sentence, 1 to 10,000; 1 is greedy search. (type: " in out
    assert [field.name for field in fields(GenerationConfig) if f"--{field.name}" not in out] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert (resolve_name(COMMANDS[name]).__doc__ or "").splitlines()[0] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["genrate"], "there is no command 'genrate': choose among .* did you mean generate"),
        (["xyz"], "there is no command 'xyz': choose among fit, validate, test, predict, generate, .*, serve$"),
        (["fit", "--data.dataset=x", "--trainer.max_epoch", "3"], "did you mean trainer.max_epochs"),
        (["fit", "--data.dataset=x", "--max_epochs", "3"], "did you mean trainer.max_epochs"),
        (["fit", "--data.dataset=x", "--data.source_colum=x"], "did you mean data.columns.source"),
        (["fit", "--trainer.max_epochs=3"], "no data is named: give a recipe with --config FILE, or --data.dataset"),
        (["generate", "--model", "x", "--beams", "3"], "did you mean num_beams"),
        (["fit", "--data.dataset=x", "--optimizer.lr=1"], r"--optimizer.lr=1 - did you mean model.optimizer\?$"),
        (
            ["fit", "--model.encoder=lit_seq2seq.nn.Attention_"],
            r"no class lit_seq2seq.nn.Attention_ - .*\.nn\.Attention\?$",
        ),
        (["fit", "--config", "none.yaml"], "^error: config: File does not exist: .*none.yaml"),
        (["fit", "--config", "constraints.txt"], "names is no recipe in YAML: it begins with "),
        (["generate", "--num_beams", "3"], "model"),
        (["generate", "--model", "x", "--num_beams", "five"], "num_beams: expected int, got five$"),
        (["generate", "--model", "x", "--format", "json"], "format: expected 'text', 'jsonl' or null, got json$"),
        (["generate", "--model", "x", "--bad_words", "ə"], r"got ə: put it in brackets, '\[ə\]'$"),
        (["generate", "--model", "x", "--bad_words", "[50]"], r"""got 50: put texts in quotes, as in '\["15"\]'$"""),
        (["generate", "--model", "x", "--constraints", "{class_path: Pattern}"], r"put it in brackets, '\[{...}\]'$"),
        (
            ["stream", "--model", "x", "--policy={class_path: WaitK, init_args: {k: 0}}"],
            "^error: WaitK: k=0: must be an",
        ),
        (["stream", "--model", "x", "--sampling_rate", "fast"], "sampling_rate: expected number >0 or null, got fast$"),
        (["stream", "--model", "x", "--sampling_rate", "0"], "sampling_rate: expected number >0 or null, got 0$"),
        (["stream", "--model", "x", "--piece", "long"], "piece: expected a number >0, got long$"),
        (["stream", "--model", "x", "--pace"], "^error: --pace needs a value, as in --pace true$"),
        (["fit", "--config"], "^error: --config needs a value, as in --config VALUE$"),
        (["generate", "--model"], "^error: --model needs a value, as in --model VALUE$"),
        (["stream", "--model", "x", "--agreement", "-1"], "agreement: expected a number >0, got -1$"),
        (["generate", "--model", "x", "--reranker", "[a]"], r"reranker: expected Reranker or null, got \['a'\]$"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(capsys, arguments: list[str], hint: str) -> None:
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert re.search(hint, err.strip()), err


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lit_seq2seq", *map(str, arguments)]


def test_a_pipe_in_any_locale_that_is_closed_early(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("eins zwei\n" * 100_000, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    options = ("--input", tmp_path / "in.txt", "--min_new_tokens", 2)
    process = subprocess.Popen(
        command("generate", "--model", trained.model, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    first = process.stdout.readline().decode("utf-8")
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert first.strip()
    assert process.returncode == 1
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_the_command_is_installed() -> None:
    assert shutil.which("lit-seq2seq", path=str(Path(sys.executable).parent))
    out = subprocess.run([sys.executable, "-m", "lit_seq2seq", "--version"], check=True, capture_output=True, text=True)
    assert re.fullmatch(r"lit_seq2seq \d+\.\d+\.\d+\n", out.stdout)


@pytest.mark.parametrize("name", ["builtin.yaml", "your_files.yaml"], ids=["no callbacks", "callbacks"])
def test_a_cpu_without_bfloat16_computes_in_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("lit_seq2seq.training.precision.computes_in", lambda dtype, device: dtype == torch.float32)
    write_csv(tmp_path / "pairs.csv", pairs(10))
    options = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    if name == "your_files.yaml":
        options.append(f"--data.dataset={tmp_path / 'pairs.csv'}")
    recipe = load_recipe(f"recipes/translation/{name}", options)
    assert recipe.trainer.precision == "32-true"
    classes = [type(callback) for callback in recipe.trainer.callbacks]
    assert len(classes) == len(set(classes))
    trainer = make_trainer(tmp_path, precision="bf16-mixed", max_epochs=1)
    with pytest.raises(UserError, match="no kernels for precision bf16-mixed: use Trainer"):
        trainer.fit(make_model(), datamodule=make_data(rows(20)))
