"""Folders of strangers: what each gets is what docs/sharing.md says."""

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.metrics import ExactMatch
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model

PAGE = Path(__file__).parent.parent / "docs" / "sharing.md"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder; not to be changed."""
    model = make_model()
    model.attach(make_data().processor)
    model.save_pretrained(folder := tmp_path_factory.mktemp("saved") / "model")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    (tmp_path / "secret.json").write_text('{"model": {}}')
    return Path(shutil.copytree(saved, tmp_path / "model"))


class OwnMetric(ExactMatch):
    """A class outside the package."""


def part(name: str, **arguments: object) -> dict[str, object]:
    return {"class_path": name, "init_args": arguments}


def change(*path: str, to: object, file: str = "config.json") -> Change:
    """Set one value of a JSON file."""

    def do(folder: Path) -> None:
        whole = inner = json.loads((folder / file).read_text(encoding="utf-8"))
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to
        (folder / file).write_text(json.dumps(whole), encoding="utf-8")

    return do


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def weights(do: Callable[[dict[str, Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        do(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return change


def header(**tensors: object) -> Change:
    text = json.dumps(tensors).encode()
    return write("model.safetensors", struct.pack("<Q", len(text)) + text)


def link(name: str, target: str) -> Change:
    def do(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return do


def pipe(name: str) -> Change:
    def do(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return do


WEIGHT = "encoder.embedding.weight"


def source(path: str, **config: object) -> Change:
    """Let the processor name a class as its source feature."""

    def do(folder: Path) -> None:
        (folder / "target_tokenizer.json").rename(folder / "tokenizer.json")
        change("source", to={"class_path": path, "config": config}, file="processor.json")(folder)

    return do


METRICS = ("model", "metrics")
SIZES = ("model", "decoder", "init_args")
HOSTILE: dict[str, Change] = {
    "names code: a function": change(*METRICS, to=[part("os.system", command="id")]),
    "names code: a class of another package": change("model", "encoder", to=part("subprocess.Popen", args="id")),
    "names code: by a detour": change("model", "encoder", to=part("lit_seq2seq.features.tokenizer.Path")),
    "names code: the command line, which can name any class": change(
        *METRICS, to=[part("lit_seq2seq.cli.Seq2SeqCLI", args=["fit", "--trainer.callbacks=subprocess.Popen"])]
    ),
    "names code: as its source feature": source("os.system"),
    "a part in the place of another": change("model", "encoder", to=part("torch.nn.Linear", out_features=2)),
    "a setting of another type": change(*SIZES, "hidden_size", to="much"),
    "a billion layers": change(*SIZES, "num_layers", to=10**9),
    "layers of a million units": change("model", "encoder", "init_args", "hidden_size", to=10**6),
    "a thousand layers": change(*SIZES, "num_layers", to=1000),
    "a billion beams": change("model", "generation", "num_beams", to=10**9),
    "outputs of a trillion symbols": change("model", "generation", "max_new_tokens", to=10**12),
    "outputs without end": change("model", "generation", "max_new_tokens", to=float("inf")),
    "images of a million pixels square": source("lit_seq2seq.features.image.Image", size=10**6),
    "images of any size": source("lit_seq2seq.features.image.Image", max_pixels=10**12),
    "a million bands of sound": source("lit_seq2seq.features.audio.LogMel", n_mels=10**6),
    "recordings at no rate": source("lit_seq2seq.features.audio.LogMel", sampling_rate=0),
    "samples at no rate": source("lit_seq2seq.features.audio.Waveform", sampling_rate=0),
    "recordings at a rate of terahertz": source("lit_seq2seq.features.audio.Waveform", sampling_rate=10**12),
    "frames of an hour": source("lit_seq2seq.features.audio.LogMel", window=3600),
    "JSON, 100,000 levels deep": write("config.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "JSON, 500 levels deep": write("processor.json", b"[" * 500 + b"]" * 500),
    "JSON of a gigabyte": lambda folder: os.truncate(folder / "target_tokenizer.json", 2**30),
    "a link out of the folder": link("config.json", "../secret.json"),
    "a link out of the folder, to a device": link("config.json", "/dev/zero"),
    "a link to weights elsewhere": link("model.safetensors", "../secret.json"),
    "a pipe, which never ends": pipe("model.safetensors"),
    "a pickle as weights": write("model.safetensors", pickle.dumps({"a": 1})),
    "weights that claim terabytes": header(x={"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}),
    "weights with a header of exabytes": write("model.safetensors", struct.pack("<Q", 2**62)),
    "weights that overlap": header(
        a={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        b={"dtype": "F32", "shape": [1], "data_offsets": [9, 4]},
    ),
    "a tensor too few": weights(lambda tensors: tensors.pop(WEIGHT)),
    "a tensor too many": weights(lambda tensors: tensors.update(more=torch.zeros(1))),
    "a tensor of another shape": weights(lambda tensors: tensors.update({WEIGHT: torch.zeros(9, 7)})),
    "integers for weights": weights(lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].int()})),
    "weights that are not numbers": weights(lambda tensors: tensors[WEIGHT].fill_(float("nan"))),
}


def told(page: str) -> dict[str, str]:
    """Read the table of hostile folders."""
    table = page[page.index("| what the folder does | line |") :].split("\n\n")[0]
    return dict(re.findall(r"^\| (.*?) \| (.*) \|$", "\n".join(table.splitlines()[2:]), re.M))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        LitSeq2Seq.from_pretrained(folder)
    return str(caught.value).replace(f"{folder.parent}/", "")


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_gets_the_line_that_the_page_says(folder: Path, case: str) -> None:
    HOSTILE[case](folder)
    assert refusal(folder) == told(PAGE.read_text(encoding="utf-8"))[case]


def test_the_page_tells_no_other() -> None:
    assert list(told(PAGE.read_text(encoding="utf-8"))) == list(HOSTILE)


def test_files_that_a_folder_names_are_not_opened(folder: Path) -> None:
    before = LitSeq2Seq.from_pretrained(folder)
    change("target", "config", "file", to="../secret.json", file="processor.json")(folder)
    change("model", "source_vectors", to="../secret.json")(folder)
    assert LitSeq2Seq.from_pretrained(folder).processor.identity() == before.processor.identity()


def test_links_within_the_folder_and_the_folder_itself_as_a_link_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    (tmp_path / "link").symlink_to(folder)
    assert LitSeq2Seq.from_pretrained(tmp_path / "link").processor.target.size == 9


def test_half_precision_is_read(folder: Path) -> None:
    expected = LitSeq2Seq.from_pretrained(folder).state_dict()
    weights(lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))(folder)
    found = LitSeq2Seq.from_pretrained(folder).state_dict()
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-3, atol=1e-3)


def test_a_package_that_is_trusted_may_be_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(*METRICS, to=[part("tests.test_untrusted.OwnMetric")])(folder)
    assert "tests.test_untrusted.OwnMetric, which is outside the trusted packages" in refusal(folder)
    expected = pipeline("translation", str(folder), trust="tests")("eins zwei")[0]["translation_text"]
    (tmp_path / "in.txt").write_text("eins zwei\n")
    command = ["generate", "--model", str(folder), "--input", str(tmp_path / "in.txt")]
    assert main(command) == 1
    assert main([*command, "--trust", "tests"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"
    with pytest.raises(UserError, match="outside the trusted packages"):
        pipeline("translation", str(folder), trust="test")
    assert isinstance(Processor.load(folder), Processor)


class OwnFeature(Tokenizer):
    """A class outside the package."""


def test_the_processor_of_the_data_runs_no_code_of_others_unless_trusted(folder: Path) -> None:
    described = json.loads((folder / "processor.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((folder / "source_tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_bytes((folder / "target_tokenizer.json").read_bytes())
    source = {**described["source"], "tokenizer": vocabulary, "class_path": "tests.test_untrusted.OwnFeature"}
    (folder / "processor.json").write_text(json.dumps({**described, "source": source}), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"names tests.test_untrusted.OwnFeature, which is outside .* trust=\('tests',\)"
    ):
        _ = make_data(processor=str(folder)).processor
    for trust in ("tests", ["tests"]):
        assert isinstance(make_data(processor=str(folder), trust=trust).processor.source_feature, OwnFeature)


COMMANDS = {"generate": [], "export": ["--output", "onnx"], "serve": ["--port", "8000"], "demo": []}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_model_asks_for_trust(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(*METRICS, to=[part("tests.test_untrusted.OwnMetric")])(folder)
    assert main([command, "--model", str(folder), *COMMANDS[command]]) == 1
    assert "if you trust its author, pass trust=('tests',), or --trust tests" in capsys.readouterr().err
