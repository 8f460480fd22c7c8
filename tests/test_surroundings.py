"""Where, in which language, at which time and behind which wall a run takes place changes nothing."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_seq2seq.cli import main
from tests.loopback_hub import LoopbackHub
from tests.tiny import Trained

ROOT = Path(__file__).parent.parent
WALL = """
import os, socket

def refuse(*call, **options):
    with open(os.environ["ATTEMPTS"], "a") as file:
        print(call, file=file)
    raise OSError("the network is blocked")

class Walled(socket.socket):
    def connect(self, address):
        return super().connect(address) if self.family == socket.AF_UNIX else refuse(address)

    def connect_ex(self, address):
        return super().connect_ex(address) if self.family == socket.AF_UNIX else refuse(address)

socket.socket, socket.getaddrinfo, socket.gethostbyname = Walled, refuse, refuse
"""
RUN = """
from pathlib import Path
from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.cli import main
from lit_seq2seq.data.sources import open_dataset
from lit_seq2seq.builtin import SequenceTask

assert main(["fit", "--config", "rezept für zahlen.yaml"]) == 0
assert main(["generate", "--model", "läufe/version_0/model", "--input", "eingabe.txt", "--output", "ausgabe.txt"]) == 0
LitSeq2Seq.from_pretrained("läufe/version_0/model").save_pretrained("kopie des modells")
assert len(open_dataset(SequenceTask(train_size=5, validation_size=2, test_size=2))["train"]) == 5
"""


@pytest.mark.slow
def test_another_place_and_no_network_give_the_same_model(trained: Trained, tmp_path: Path) -> None:
    """In a folder of an odd name, without a home, in the locale C, in Kathmandu, behind a wall: bit for bit."""
    folder, wall = tmp_path / "ein Ordner für (alles)", tmp_path / "wall"
    folder.mkdir()
    wall.mkdir()
    (wall / "sitecustomize.py").write_text(WALL)
    for split in ("train", "validation", "test"):
        shutil.copy(trained.recipe.with_name(f"{split}.csv"), folder / f"{split} ü.csv")
    recipe = trained.recipe.read_text(encoding="utf-8")
    for split in ("train", "validation", "test"):
        recipe = recipe.replace(f"{trained.recipe.parent}/{split}.csv", f"{split} ü.csv")
    recipe = recipe.replace(f"{trained.recipe.parent}/runs", "läufe")
    (folder / "rezept für zahlen.yaml").write_text(recipe, encoding="utf-8")
    (folder / "eingabe.txt").write_text("eins zwei\nfünf\n", encoding="utf-8")
    environment = {
        "HOME": "/proc/nobody",  # not even root can write there
        "LC_ALL": "C",
        "TZ": "Asia/Kathmandu",
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": os.pathsep.join([str(wall), str(ROOT)]),
        "ATTEMPTS": str(tmp_path / "attempts"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PATH": os.environ["PATH"],
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written: what is made goes to" in done.stderr
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()
    weights = (trained.model / "model.safetensors").read_bytes()
    for name in ("läufe/version_0/model", "kopie des modells"):
        assert (folder / name / "model.safetensors").read_bytes() == weights
    given = ["--input", folder / "eingabe.txt", "--output", tmp_path / "here.txt"]
    assert main([str(argument) for argument in ["generate", "--model", trained.model, *given]]) == 0
    assert (folder / "ausgabe.txt").read_bytes() == (tmp_path / "here.txt").read_bytes()


FROM_CACHE = """
from lit_seq2seq import Seq2SeqDataModule, pipeline
from lit_seq2seq.features import Tokenizer

data = Seq2SeqDataModule("alice/rows", source_tokenizer=Tokenizer("word"), batch_size=8)
data.setup("fit")
print(sum(len(batch) for batch in data.train_dataloader()))
print(pipeline("translation", "alice/digits")("eins zwei")[0]["translation_text"])
"""


@pytest.mark.slow
def test_what_lies_in_the_cache_of_the_hub_needs_no_network(hub: LoopbackHub, trained: Trained, tmp_path: Path) -> None:
    """A data set and a model, downloaded by the real clients, and then loaded behind the wall."""
    splits = {f"{name}.csv": trained.recipe.with_name(f"{name}.csv").read_bytes() for name in ("train", "validation")}
    hub.add("datasets", "alice/rows", splits)
    hub.add("models", "alice/digits", trained.model)
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(FROM_CACHE, {})
    assert here.getvalue().startswith("36\n")  # a tenth of 40 is the test split
    (tmp_path / "wall").mkdir()
    (tmp_path / "wall" / "sitecustomize.py").write_text(WALL)
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "wall"), str(ROOT)]),
        "ATTEMPTS": str(tmp_path / "attempts"),
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        [sys.executable, "-c", FROM_CACHE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()
    assert done.stdout == here.getvalue()


def test_the_wall_is_one(tmp_path: Path) -> None:
    """What the test above relies on: an attempt is noted, also where the error is caught."""
    (tmp_path / "sitecustomize.py").write_text(WALL)
    attempt = (
        "import contextlib, urllib.request as u\nwith contextlib.suppress(OSError): u.urlopen('http://localhost:9')"
    )
    environment = {"PYTHONPATH": str(tmp_path), "ATTEMPTS": str(tmp_path / "attempts")}
    subprocess.run([sys.executable, "-c", attempt], env=environment, check=True)
    assert "localhost" in (tmp_path / "attempts").read_text()
