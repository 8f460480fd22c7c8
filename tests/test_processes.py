"""Several processes: two local nodes run what docs/multi_node.md says."""

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from lit_seq2seq.cli import guarded, main
from lit_seq2seq.cli.failures import FailureReport
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, make_trainer, pairs, write_csv, write_recipe

PAGE = Path(__file__).parent.parent / "docs" / "multi_node.md"
ROWS = 41  # odd, so that two processes cannot have equally many


class Rows(Callback):
    """Writes which rows this process trains on, by epoch."""

    def __init__(self, folder: str, strike: str = "", at: int = 3) -> None:
        self.folder, self.what, self.at = Path(folder), strike, at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with (self.folder / f"{trainer.world_size}-{trainer.global_rank}.rows").open("a") as file:
            file.write(json.dumps([trainer.train_dataloader.position().epoch, batch.rows.tolist()]) + "\n")
        if trainer.global_step == self.at and trainer.global_rank == trainer.world_size - 1:
            if self.what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.what == "hang":
                time.sleep(90)  # beyond the time-out of the others
            elif self.what == "error":
                raise UserError("this process has had enough")
            elif self.what == "bug":
                raise RuntimeError("nobody thought of this")


def command(name: str) -> str:
    """The command of docs/multi_node.md that follows this comment."""
    found = re.search(rf"# {name}\n((?:.*\\\n)*.*\n)", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found[1].replace("\\\n", " ")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def two_nodes(recipe: Path, *more: str, name: str = "fit", line: str = "", missing: int = 0) -> list[tuple[int, str]]:
    """Run the command of the page, or another one, on two nodes of one process; return status and output of each."""
    line = (line or command("on each node")).replace("recipes/translation/multi30k_en_de.yaml", str(recipe))
    line = line.replace(" fit ", f" {name} ")
    line = line.replace("torchrun", f"{sys.executable} -m torch.distributed.run").replace("node0.example", "127.0.0.1")
    line = line.replace("29500", str(free_port())).replace("--nproc-per-node=8", "--nproc-per-node=1")
    arguments = [part.replace("devices=8", "devices=1") for part in line.split()]
    root = PAGE.parent.parent
    started = [
        subprocess.Popen(
            [part.replace("$NODE", str(node)) for part in [*arguments, *more, "--trainer.accelerator=cpu"]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
            cwd=root,
        )
        for node in range(2 - missing)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def watch(folder: Path, strike: str = "", at: int = 3) -> str:
    arguments = {"folder": str(folder), "strike": strike, "at": at}
    return f"--trainer.callbacks+={json.dumps({'class_path': 'tests.test_processes.Rows', 'init_args': arguments})}"


def rows_of(folder: Path) -> tuple[dict[int, Counter[int]], list[int]]:
    """How often each row was seen by epoch, and the number of batches of each process."""
    seen: dict[int, Counter[int]] = {}
    counts = []
    for path in sorted(folder.glob("*.rows")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        counts.append(len(lines))
        for epoch, rows in lines:
            seen.setdefault(epoch, Counter()).update(rows)
    return seen, counts


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = write_recipe(tmp_path)
    rows = pairs(ROWS)
    lines = [json.dumps({"source": s, "target": t}) for s, t in zip(rows["source"], rows["target"], strict=True)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_two_nodes_are_interrupted_and_one_goes_on(tmp_path, recipe):
    data = f"--data.dataset.train={tmp_path / 'train.jsonl'}"
    options = [data, "--data.batch_size=4", "--trainer.max_epochs=3", "--checkpoint.save_top_k=0"]
    ended = two_nodes(recipe, *options, watch(tmp_path, "signal"))
    assert all(status for status, _ in ended), ended
    assert any("Interrupted: the same command with --ckpt_path last goes on" in output for _, output in ended), ended
    _, counts = rows_of(tmp_path)
    assert counts == [8, 8]
    alone = ["fit", "--config", str(recipe), *options, "--ckpt_path=last"]
    assert main([*alone, watch(tmp_path, "signal", at=10)]) != 0  # within the epoch that the two began
    assert main([*alone, watch(tmp_path)]) == 0
    seen, _ = rows_of(tmp_path)
    last = {epoch: rows for epoch, rows in seen.items() if rows}
    total: Counter[int] = sum(last.values(), Counter())
    assert total == Counter(dict.fromkeys(range(ROWS), 3))


@pytest.mark.slow
def test_two_nodes_read_a_stream_once(tmp_path, recipe):
    stream = [f"--data.dataset.train={tmp_path / 'train.jsonl'}", "--data.streaming=true", "--data.batch_size=4"]
    schedule = "--model.lr_scheduler=null"
    ended = two_nodes(recipe, *stream, schedule, "--trainer.max_epochs=2", watch(tmp_path))
    assert [status for status, _ in ended] == [0, 0], ended
    seen, counts = rows_of(tmp_path)
    assert counts[0] == counts[1]
    assert sum(seen.values(), Counter()) == Counter(dict.fromkeys(range(ROWS), 2))


@pytest.mark.slow
def test_nodes_with_other_data_are_told(recipe, tmp_path):
    """A row less on one node: its epochs would have fewer steps, and the other would wait."""
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    for node in (0, 1):
        (tmp_path / f"train{node}.jsonl").write_text("\n".join(lines[node:]))
    ended = two_nodes(recipe, f"--data.dataset.train={tmp_path}/train$NODE.jsonl")
    assert [status for status, _ in ended] == [1, 1]
    message = "error: process 1 of 2: expected the same data everywhere, but the vocabulary and the train rows of this"
    assert message in ended[1][1]


METRICS = ["BLEU", "ChrF", "ExactMatch", "WER", "CER", "ROUGE1", "ROUGE2", "ROUGEL", "CIDErD", "Distinct1", "Distinct2"]


@pytest.mark.slow
def test_scores_and_predictions_of_two_nodes_and_of_three_processes_are_those_of_one(trained, tmp_path):
    """Thirteen rows in batches of four: no number of processes can share them evenly."""
    rows = write_csv(tmp_path / "test.csv", pairs(13, seed=7))
    options = [f"--data.dataset.test={rows}", "--data.batch_size=4", "--model.generation.num_beams=3"]
    options += ["--predictions.format=jsonl", f"--ckpt_path={trained.last}"]
    options += [f"--model.metrics={json.dumps([f'lit_seq2seq.metrics.{name}' for name in METRICS])}"]
    found = {}
    for case in ("one", "nodes", "spawned"):
        for name in ("test", "predict"):
            where = f"--trainer.default_root_dir={tmp_path / case / name}"
            if case == "nodes":
                ended = two_nodes(trained.recipe, *options, where, name=name)
                assert [status for status, _ in ended] == [0, 0], ended
            else:
                more = ["--trainer.devices=3", "--trainer.strategy=ddp_spawn"] if case == "spawned" else []
                assert main([name, "--config", str(trained.recipe), *options, where, *more]) == 0
        with (tmp_path / case / "test" / "scores.csv").open(encoding="utf-8") as file:
            ((_, _, *found_scores),) = [row.items() for row in csv.DictReader(file)]  # after checkpoint and data
            scores = {name: float(score) for name, score in found_scores}
        lines = (tmp_path / case / "predict" / "predictions.jsonl").read_text(encoding="utf-8")
        found[case] = scores, [json.loads(line) for line in lines.splitlines()]
    scores, predictions = found["one"]
    assert [row["row"] for row in predictions] == list(range(13))
    assert {f"test_{name}" for name in ("bleu", "chrf", "cider", "distinct1")} < set(scores)
    assert 0 < scores["test_bleu"] < 100
    for case in ("nodes", "spawned"):
        others, theirs = found[case]
        assert others == pytest.approx(scores, rel=1e-6)  # Lightning logs the mean of three equal numbers
        assert [row["row"] for row in theirs] == list(range(13))
        for mine, row in zip(predictions, theirs, strict=True):
            assert [one["text"] for one in row["hypotheses"]] == [one["text"] for one in mine["hypotheses"]]
            assert [one["score"] for one in row["hypotheses"]] == pytest.approx(
                [one["score"] for one in mine["hypotheses"]], abs=1e-5
            )


@pytest.mark.slow
def test_a_node_that_fails_ends_all(recipe, tmp_path):
    (other, waits), (status, fails) = two_nodes(recipe, watch(tmp_path, "error"))
    assert status == other == 1
    assert "error: process 1 of 2: this process has had enough\n" in fails
    assert re.search(
        r"Root Cause(?s:.*)rank +: 1 (?s:.*)traceback : process 1 of 2: this process has had enough", fails
    )
    assert "error: process 0 of 2: another process has ended: the reason is in its own output\n" in waits
    assert "[rank0]: " not in waits  # how torch begins the lines of a traceback
    assert "[rank1]: " not in fails


@pytest.mark.slow
def test_torchrun_ends_in_time(recipe):
    line = command("on each node, with limits").replace("timeout=120", "timeout=5")
    [(status, output)] = two_nodes(recipe, line=line, missing=1)
    assert status == 1
    assert output.strip().endswith("1/2 clients joined.")


@pytest.mark.slow
def test_others_do_not_wait_for_a_node_that_hangs(recipe, tmp_path):
    line = command("on each node, with limits").replace("timeout=0:10:00", "timeout=0:00:20")
    (waits, said), (hangs, _) = two_nodes(recipe, watch(tmp_path, "hang"), line=line)
    assert waits == hangs == 1
    assert "error: process 0 of 2: another process did not answer within 20 s: see the output of the others" in said


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
@pytest.mark.parametrize("what", ["error", "bug"])
def test_a_process_of_one_machine_that_fails_says_so(recipe, tmp_path, strategy, what):
    command = [sys.executable, "-m", "lit_seq2seq", "fit", "--config", recipe, "--trainer.devices=2"]
    done = subprocess.run(
        [*command, f"--trainer.strategy={strategy}", watch(tmp_path, what)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        check=False,
        cwd=PAGE.parent.parent,
    )
    assert done.returncode
    reason = {"error": "this process has had enough", "bug": "RuntimeError: nobody thought of this"}[what]
    assert done.stderr.count(f"error: process 1 of 2: {reason}\n") == 1, done.stderr
    assert ("Traceback" in done.stderr) == (what == "bug"), done.stderr
    assert done.stderr.count("learning the source side") == 1  # one process fills the cache for both


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("too\nmuch"), "process 0 of 2: too much"),
        (KeyError("a"), "process 0 of 2: KeyError: 'a'"),
        (RuntimeError("[pair.cc:553] Connection closed by peer"), "process 0 of 2: another process has ended: "),
        (ProcessRaisedException("\nTraceback:\na.b.UserError: too much\n", 1, 77), "process 1 of 2: too much"),
        (ProcessRaisedException("\nTraceback:\nKeyError: 'a'\n", 1, 77), "process 1 of 2: KeyError: 'a'"),
        (
            ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 77, -9, "SIGKILL"),
            "process 1 of 2: process 1 terminated with signal SIGKILL",
        ),
    ],
)
def test_the_process_that_failed_is_named_to_the_user_and_to_torchrun(tmp_path, monkeypatch, capsys, error, line):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, default_root_dir=tmp_path)
    FailureReport().on_exception(trainer, make_model(), error)
    assert capsys.readouterr().err.startswith(f"error: {line}")
    is_cause = "another" not in line
    assert (tmp_path / "error.json").is_file() == is_cause
    if is_cause:
        told = json.loads((tmp_path / "error.json").read_text())["message"]
        assert told["message"] == told["extraInfo"]["py_callstack"] == line
    with contextlib.suppress(KeyError, ProcessRaisedException):
        assert guarded(lambda: exec("raise error", {"error": error})) == 1
    assert capsys.readouterr().err == ""  # it is not told twice


def test_one_process_alone_is_not_numbered(tmp_path, capsys):
    FailureReport().on_exception(make_trainer(tmp_path), make_model(), UserError("too much"))
    assert capsys.readouterr().err == ""


def test_strategies_that_cut_up_models_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, strategy=ModelParallelStrategy(), devices=1)
    before = mock.patch.dict(os.environ)  # which Lightning fills for its processes
    with (
        before,
        pytest.raises(UserError, match=r"^ModelParallelStrategy cuts up models .*: use trainer\.strategy: ddp$"),
    ):
        trainer.fit(make_model(), datamodule=make_data())


def test_lightnings_own_sampler_is_refused(tmp_path):
    data = make_data()
    data.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, default_root_dir=tmp_path)
    data.setup("fit")
    with pytest.raises(UserError, match=r"use_distributed_sampler=False"):
        data.train_dataloader()


LANGUAGE_MODEL = """\
seed_everything: 1
data:
  dataset: {{train: {folder}/train.csv, validation: {folder}/validation.csv, test: {folder}/test.csv}}
  columns: {{source: null, target: target}}
  target_tokenizer: {{model: word}}
  batches: {{size: 2, bptt: 5, eval_size: 2}}
model:
  encoder: lit_seq2seq.nn.NoSource
  decoder:
    class_path: lit_seq2seq.nn.ParallelDecoder
    init_args: {{embedding_dim: 8, hidden_size: 12, bridge: lit_seq2seq.nn.LearnedBridge, dropout: 0.2}}
  optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 0.01}}}}
checkpoint: {{monitor: val_loss, mode: min}}
trainer:
  default_root_dir: {folder}/runs
  max_epochs: 2
  accelerator: cpu
  num_sanity_val_steps: 0
  enable_model_summary: false
"""


@pytest.mark.slow
def test_running_text_is_read_by_two_nodes_each_its_own_streams(tmp_path, recipe):
    """Interrupted, they go on with the states of both; scored by one process, the model has the same perplexity."""
    recipe.write_text(LANGUAGE_MODEL.format(folder=tmp_path), encoding="utf-8")
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    runs = {name: f"--trainer.default_root_dir={tmp_path / name}/runs" for name in ("whole", "cut")}
    ended = two_nodes(recipe, runs["whole"], watch(tmp_path / "whole"))
    assert [status for status, _ in ended] == [0, 0], ended
    ended = two_nodes(recipe, runs["cut"], watch(tmp_path / "cut", "signal"))
    assert all(status for status, _ in ended), ended
    ended = two_nodes(recipe, runs["cut"], watch(tmp_path / "cut"), "--ckpt_path=last")
    assert [status for status, _ in ended] == [0, 0], ended
    for rank in (0, 1):
        rows = [(tmp_path / name / f"2-{rank}.rows").read_text() for name in ("whole", "cut")]
        assert rows[0] == rows[1]
    (whole,), (cut,) = (list((tmp_path / name).rglob("last.ckpt")) for name in ("whole", "cut"))
    first, second = load_checkpoint(whole), load_checkpoint(cut)
    torch.testing.assert_close(first["state_dict"], second["state_dict"], rtol=0, atol=0)
    assert len(first["carried"]) == 2
    scores = []
    for name in ("one", "two"):
        options = [f"--ckpt_path={whole}", f"--trainer.default_root_dir={tmp_path / name}"]
        if name == "one":
            assert main(["test", "--config", str(recipe), *options]) == 0
        else:
            ended = two_nodes(recipe, *options, name="test")
            assert [status for status, _ in ended] == [0, 0], ended
        with (tmp_path / name / "scores.csv").open(encoding="utf-8") as file:
            scores.append({key: float(value) for key, value in next(csv.DictReader(file)).items() if "test_" in key})
    assert scores[0].keys() == {"test_loss", "test_ppl", "test_bpc"}
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
