"""Untrusted folders: what each gets is what docs/sharing.md says."""

import base64
import json
import os
import pickle
import re
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from lit_seq2seq import LitSeq2Seq, load_recipe, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.cli.fit import _without_secrets
from lit_seq2seq.features import PretrainedTokenizer, Processor, Tokenizer
from lit_seq2seq.files.untrusted import check_archive, check_tokenizer, is_tame
from lit_seq2seq.metrics import ExactMatch
from lit_seq2seq.reranking import Reranker
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, make_trainer, write_recipe

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


class OwnReranker(Reranker):
    """Another, which is built whenever the model is used."""

    def judge(self, text: str, source: object) -> float:
        return 0.0


def part(class_path: str, **arguments: object) -> dict[str, object]:
    return {"class_path": class_path, "init_args": arguments}


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


def runs(program: str, *arguments: str) -> dict[str, object]:
    """A class of torch that starts a program when it is made."""
    path = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"
    rest = {"env": {}, "stdout": None, "stderr": None, "local_rank_id": 0, "numa_options": None}
    return part(path, entrypoint=program, args=list(arguments), **rest)


def rules(name: str, *rules: object) -> Change:
    """Give the tokenizer of the outputs other rules."""
    inner = {"normalizer": "normalizers", "decoder": "decoders", "pre_tokenizer": "pretokenizers"}[name]
    return change(name, to={"type": "Sequence", inner: list(rules)}, file="target_tokenizer.json")


def replace(pattern: object, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def table(content: bytes) -> dict[str, object]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def other_id(folder: Path) -> None:
    path = folder / "target_tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["model"]["vocab"]["one"] = 10**6
    path.write_text(json.dumps(described), encoding="utf-8")


METRICS = ("model", "metrics")
SIZES = ("model", "decoder", "init_args")


def backbone(**config: object) -> dict[str, object]:
    return part("lit_seq2seq.nn.VisionBackbone", name="attacker/evil", config=config)


HOSTILE: dict[str, Change] = {
    "names code: a function": change(*METRICS, to=[part("os.system", command="id")]),
    "names code: a class of another package": change("model", "encoder", to=part("subprocess.Popen", args="id")),
    "names code: by a detour": change("model", "encoder", to=part("lit_seq2seq.features.tokenizer.Path")),
    "names code: the command line, which can name any class": change(
        *METRICS, to=[part("lit_seq2seq.cli.fit.Seq2SeqCLI", args=["fit", "--trainer.callbacks=subprocess.Popen"])]
    ),
    "names code: as its source feature": source("os.system"),
    "names code: a class of torch that starts programs": change(*METRICS, to=[runs("id")]),
    "names code: as text, which the command line reads as a class": change("model", "encoder", to="os.system"),
    "names code: in a list that is text": change(*METRICS, to="[os.system]"),
    "names code: where a number belongs": change(*SIZES, "hidden_size", to=part("torch.nn.Linear")),
    "names code: beside the arguments": change("model", "encoder", "dict_kwargs", to={"cell": runs("id")}),
    "names code: as a setting with a dot": change(*SIZES, "attention.class_path", to="os.system"),
    "a metric in the place of an optimizer": change("model", "optimizer", to=part("lit_seq2seq.metrics.BLEU")),
    "a tokenizer in the place of a metric": change(*METRICS, to=[part("lit_seq2seq.features.Tokenizer", file="x")]),
    "a network in the place of a feature": source("lit_seq2seq.nn.TextEncoder"),
    "a part that would ask the hub": change(
        "model", "encoder", to=part("lit_seq2seq.nn.TextBackbone", name="attacker/evil")
    ),
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
    "frames of a minute at a rate of megahertz": source(
        "lit_seq2seq.features.audio.LogMel", window=60, sampling_rate=10**6
    ),
    "more bands than samples": source("lit_seq2seq.features.audio.LogMel", n_mels=4096, window=1.0, hop=0.1),
    "frames that overlap a million times": source("lit_seq2seq.features.audio.LogMel", window=1.0, hop=0.0001),
    "half a band of sound": source("lit_seq2seq.features.audio.LogMel", n_mels=8.5),
    "a text of megabytes before every input": change("source_prefix", to="x" * 10**7, file="processor.json"),
    "a temperature that is no number": change("model", "generation", "temperature", to=float("nan")),
    "beams that are no number": change("model", "generation", "num_beams", to="many"),
    "an unknown option of generation": change("model", "generation", "bad_options", to=[1]),
    "a tokenizer that makes texts a billion times as long": rules("normalizer", *[replace({"String": "a"}, "aa")] * 30),
    "a tokenizer that makes outputs a billion times as long": rules("decoder", *[replace({"String": "o"}, "oo")] * 30),
    "a tokenizer that doubles bytes again and again": rules(
        "pre_tokenizer", *[{"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}] * 30
    ),
    "a tokenizer whose one rule is a megabyte long": rules("normalizer", replace({"String": "a" * 10**6}, "b" * 10**6)),
    "a pattern that takes forever": rules("pre_tokenizer", split("(a+)+$")),
    "another pattern that takes forever": rules("normalizer", replace({"Regex": r"(\w|\s)*!"}, "")),
    "a table of characters that is cut": rules("normalizer", table(struct.pack("<I", 400) + b"x")),
    "a table of characters that leads nowhere": rules("normalizer", table(struct.pack("<I", 1024) + b"\xff" * 1024)),
    "a table of characters that is no text": rules("normalizer", table(b"junk, junk, junk")),
    "ids with gaps": other_id,
    "a symbol of a megabyte": change("added_tokens", to=[{"content": "x" * 10**6}], file="target_tokenizer.json"),
    "an image model that is another one's": change(
        "model", "encoder", to=backbone(model_type="detr", backbone="attacker/evil", use_pretrained_backbone=True)
    ),
    "an image model by its address": change(
        "model", "encoder", to=backbone(model_type="timm_wrapper", architecture="hf-hub:attacker/evil")
    ),
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
    "weights of eight bits": weights(lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].to(torch.float8_e4m3fn)})),
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


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"asked the network: {arguments[-1]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


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
    change("model", "reranker", to=part("tests.test_untrusted.OwnReranker"))(folder)
    assert "tests.test_untrusted.OwnReranker, which is outside the trusted packages" in refusal(folder)
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


def test_what_is_of_another_kind_is_refused_though_its_package_is_trusted(folder: Path) -> None:
    change(*METRICS, to=[part("tests.test_untrusted.OwnFeature")])(folder)
    with pytest.raises(
        UserError, match=r"expected TextMetric, but the description names tests.test_untrusted.OwnFeature"
    ):
        LitSeq2Seq.from_pretrained(folder, trust="tests")


def fit_from(folder: Path, tmp_path: Path) -> None:
    model = make_model(init_from=str(folder), metrics=[OwnMetric])  # its own package is trusted
    make_trainer(tmp_path, fast_dev_run=1).fit(model, datamodule=make_data(processor=Processor.load(folder)))


def recipe_from(folder: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    recipe = {"model": {"init_from": str(folder)}, "data": {"dataset": {"train": str(tmp_path / "train.csv")}}}
    (tmp_path / "finetune.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    load_recipe(tmp_path / "finetune.yaml", [f"--trainer.default_root_dir={tmp_path}"])


def as_checkpoint(folder: Path, **changes: object) -> Path:
    """Write what a folder says as a checkpoint."""
    processor = Processor.load(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    state = {
        f"network.{name}": tensor for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()
    }
    described = {"hyper_parameters": {**config, **changes}, "state_dict": state, "processor": processor.to_dict()}
    torch.save({**described, "pytorch-lightning_version": "2.6.0", "global_step": 1}, folder.parent / "it.ckpt")
    return folder.parent / "it.ckpt"


def load_checkpoint_of(folder: Path, tmp_path: Path) -> None:
    LitSeq2Seq.load_from_checkpoint(as_checkpoint(folder))


def load_checkpoint_with_a_builder(folder: Path, tmp_path: Path) -> None:
    LitSeq2Seq.load_from_checkpoint(as_checkpoint(folder, _instantiator="lightning.pytorch.cli.instantiate_module"))


def average_checkpoint_of(folder: Path, tmp_path: Path) -> None:
    if main(["average", "--checkpoints", str(as_checkpoint(folder)), "--output", str(tmp_path / "out")]):
        raise UserError("the command ended with an error")


ROADS = (
    fit_from,
    recipe_from,
    load_checkpoint_of,
    load_checkpoint_with_a_builder,
    average_checkpoint_of,
)
PLACES = (METRICS, METRICS, ("model", "reranker"), ("model", "encoder"), (*SIZES, "attention"))


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_no_road_runs_a_program_that_a_folder_names(folder: Path, tmp_path: Path, road: Callable[..., None]) -> None:
    road(folder, tmp_path)  # the folder as it was is fine
    good = (folder / "config.json").read_bytes()
    hidden = [
        runs("touch", str(tmp_path / "ran")),
        part("tests.test_untrusted.Touches", path=str(tmp_path / "ran")),
        part("lit_seq2seq.cli.fit.Seq2SeqCLI", args=["fit"]),
        "os.system",
        "{class_path: subprocess.Popen, init_args: {args: id}}",
    ]
    for place, evil in zip(PLACES, hidden, strict=True):
        change(*place, to=[evil] if place == METRICS else evil)(folder)
        built = place != METRICS or road is not fit_from  # which takes the network alone
        with pytest.raises(UserError) if built else nullcontext():
            road(folder, tmp_path)
        (folder / "config.json").write_bytes(good)
    assert not (tmp_path / "ran").exists()


def test_no_checkpoint_of_a_fine_tuned_model_runs_a_program(folder: Path, tmp_path: Path, capsys) -> None:
    write_recipe(tmp_path)
    good = shutil.copytree(folder, tmp_path / "good")
    recipe = {"model": {"init_from": str(good)}, "data": {"dataset": {"train": str(tmp_path / "train.csv")}}}
    (tmp_path / "finetune.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    change(*METRICS, to=[runs("touch", str(tmp_path / "ran"))])(folder)
    command = ["validate", "--config", str(tmp_path / "finetune.yaml"), "--ckpt_path", str(as_checkpoint(folder))]
    assert main(command) == 1
    assert "SubprocessHandler, which is no part of a model" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


class Touches:
    """A class of a package that is trusted, but no part of a model."""

    def __init__(self, *arguments: object, path: str) -> None:
        Path(path).touch()


COMMANDS = {"generate": [], "export": ["--output", "onnx"], "serve": ["--port", "8000"], "demo": []}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_model_asks_for_trust(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change("model", "reranker", to=part("tests.test_untrusted.OwnReranker"))(folder)
    assert main([command, "--model", str(folder), *COMMANDS[command]]) == 1
    assert "if you trust its author, pass trust=('tests',), or --trust tests" in capsys.readouterr().err


def test_an_archive_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", frequent=np.zeros(10**6, np.int32))
    with pytest.raises(UserError, match=r"zeros\.npz holds 4,000,128 bytes, more than it has itself"):
        check_archive(tmp_path / "zeros.npz")
    np.savez(tmp_path / "numbers.npz", frequent=np.arange(10))
    check_archive(tmp_path / "numbers.npz")


def test_a_checkpoint_that_grows_when_it_is_read_is_refused(folder: Path, tmp_path: Path) -> None:
    path = as_checkpoint(folder)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry) if "data/" not in entry else bytes(10**6))
    with pytest.raises(UserError, match=r"packed\.ckpt holds .* bytes, more than it has itself"):
        LitSeq2Seq.load_from_checkpoint(tmp_path / "packed.ckpt")


def test_a_tokenizer_that_panics_is_a_mistake_of_its_file(folder: Path) -> None:
    change("pre_tokenizer", to={"type": "FixedLength", "length": 0}, file="target_tokenizer.json")(folder)
    target = LitSeq2Seq.from_pretrained(folder).processor.target
    with pytest.raises(UserError, match=r"the tokenizer failed .* its file is damaged"):
        target.encode_batch(["one three"])


A, SEP = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}


def around(*parts: object, **ids: list[int]) -> dict[str, object]:
    """What a tokenizer puts around a text."""
    special = {"<s>": {"id": "<s>", "ids": ids.get("ids", [1]), "tokens": ["<s>"] * len(ids.get("ids", [1]))}}
    return {"type": "TemplateProcessing", "single": parts, "pair": [A, A], "special_tokens": special}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("post_processor", around(*[A] * 1000)),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "BertNormalizer"}] * 700}),
    ],
)
def test_a_tokenizer_that_makes_texts_many_times_as_long_is_refused(name: str, rule: object) -> None:
    with pytest.raises(UserError, match=rf"the {name} of a tokenizer can make a text \S+ times as long"):
        check_tokenizer({"model": {"type": "WordLevel", "vocab": {"a": 0}}, name: rule})


@pytest.mark.parametrize(
    ("pad", "rule"),
    [(10**6, None), (0, around(SEP, A, ids=[9])), (0, around(*[SEP] * 100, A, ids=[1] * 9))],
)
def test_symbols_beside_a_text_are_of_its_vocabulary(pad: int, rule: object) -> None:
    words = {"type": "WordLevel", "vocab": {"<pad>": 0, "<s>": 1, "a": 2}, "unk_token": "<s>"}
    described = {"version": "1.0", "added_tokens": [], "model": words, "post_processor": rule}
    with pytest.raises(UserError, match=r"a tokenizer puts .* symbols beside a text"):
        PretrainedTokenizer.from_dict({"config": {"name": "it"}, "tokenizer": described, "pad": pad})


PATTERNS = {
    r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": True,
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+": True,
    r"[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\d{1,3}(?=(?:\d{3})*\b)": True,
    r" ?[^(\s|[.,!?…])]+": True,
    r"(?:\r?\n)+(?!\r?\n)": True,
    "(a+)+$": False,
    "(a|a)*$": False,
    r"([a-z]+\s?)*x": False,
    "((a*)b*)*": False,
    "(?:x{1,1000}){2,}": False,
    "a*a*a*a*a*c": False,
    r"(a+)\1": False,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_that_repeat_what_repeats_are_told_from_others(pattern: str) -> None:
    assert is_tame(pattern) == PATTERNS[pattern]


def test_scores_that_are_no_numbers_are_left_out(folder: Path) -> None:
    scores = {"test_bleu": 40.5, "test_ter": "much", "val_ppl": float("inf"), "one": True, "huge": 10**400, "list": [1]}
    change("scores", to=scores)(folder)
    assert LitSeq2Seq.from_pretrained(folder).model.provenance.scores == {"test_bleu": 40.5, "val_ppl": float("inf")}


def test_secrets_of_a_command_do_not_get_into_the_card() -> None:
    given = [
        "--config",
        "a.yaml",
        "--trainer.logger.init_args.api_key=abc",
        "--token",
        "hf_x",
        "--data.max_tokens",
        "9",
    ]
    told = ["--config", "a.yaml", "--trainer.logger.init_args.api_key=...", "--token", "...", "--data.max_tokens", "9"]
    assert list(_without_secrets(given)) == told
    assert list(_without_secrets(["--data.dataset=https://me:secret@host/a"])) == ["--data.dataset=https://...@host/a"]
