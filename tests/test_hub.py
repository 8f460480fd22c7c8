import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.hub.folder import add_shortlist, load_checkpoint, load_folder, tensors_of
from lit_seq2seq.shortlist import Shortlist
from lit_seq2seq.types import SpecialIds, UserError
from tests.tiny import Trained


class Payload:
    """A pickle that would write a file if it were loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.model, tmp_path / "model"))


def test_a_run_leaves_a_folder_that_loads(trained: Trained) -> None:
    found = load_folder(trained.model)
    assert found.config["task"] == "translation"
    assert found.config["format"] == 1
    assert list(found.config["scores"]) == ["val_bleu"]
    assert found.processor.target.size == 9
    model = LitSeq2Seq.from_pretrained(str(trained.model))
    best = next(trained.last.parent.glob("epoch*.ckpt"))
    torch.testing.assert_close(dict(model.state_dict()), tensors_of(load_checkpoint(best)), rtol=0, atol=0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def change_model(path: Path, **values: object) -> None:
    change(path, model={**json.loads(path.read_text(encoding="utf-8"))["model"], **values})


UNTRUSTED = {"class_path": "os.system", "init_args": {}}
DAMAGES = {
    "no config": ("config.json", Path.unlink, "is not a model folder, it has no config.json"),
    "half a config": ("config.json", cut, r"config\.json is damaged .*save the model again"),
    "binary config": ("config.json", lambda path: path.write_bytes(b"\xff\x00"), r"config\.json is damaged"),
    "other config": ("config.json", lambda path: path.write_text("{}"), "does not describe a lit_seq2seq model"),
    "newer format": ("config.json", lambda path: change(path, format=99), "has format 99, this version reads 1"),
    "unknown setting": ("config.json", lambda path: change_model(path, colour=1), "this version cannot build"),
    "untrusted": (
        "config.json",
        lambda path: change_model(path, encoder=UNTRUSTED),
        "names os.system, which is outside",
    ),
    "no weights": ("model.safetensors", Path.unlink, r"has no model\.safetensors: save the model again"),
    "half the weights": ("model.safetensors", cut, r"model\.safetensors is damaged .*copy or save the model again"),
    "no weights at all": ("model.safetensors", lambda path: path.write_bytes(b""), r"model\.safetensors is damaged"),
    "no tokenizer": ("target_tokenizer.json", Path.unlink, r"expected the file .*target_tokenizer\.json"),
    "half a tokenizer": ("source_tokenizer.json", cut, "is damaged"),
    "other tokenizer": ("source_tokenizer.json", lambda path: path.write_text("{}"), "is damaged"),
    "no processor": ("processor.json", Path.unlink, r"expected the file .*processor\.json"),
    "other processor": ("processor.json", lambda path: path.write_text("[]"), "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_explained(folder: Path, damage: str) -> None:
    name, do, match = DAMAGES[damage]
    do(folder / name)
    with pytest.raises(UserError, match=match) as caught:
        LitSeq2Seq.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_explained(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"]["init_args"]["embedding_dim"] = 6
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"does not fit the model that config\.json describes") as caught:
        LitSeq2Seq.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_in_disguise_is_not_run(folder: Path, tmp_path: Path, protocol: int) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "owned"), protocol))
    with pytest.raises(UserError, match="is damaged"):
        LitSeq2Seq.from_pretrained(folder)
    torch.save(
        {"state_dict": {}, "x": Payload(tmp_path / "owned")}, tmp_path / "x.ckpt", pickle_protocol=max(protocol, 2)
    )
    with pytest.raises(UserError, match="is damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "owned").exists()


def test_what_is_not_there_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*check the path, or give a hub id such as user/model"):
        LitSeq2Seq.from_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="there is no folder nothing"):
        LitSeq2Seq.from_pretrained("nothing")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="there is no folder some/model, and the model some/model is not"):
        LitSeq2Seq.from_pretrained("some/model")


def test_a_failed_save_is_explained_and_leaves_the_old_model(folder: Path, tmp_path: Path) -> None:
    model = LitSeq2Seq.from_pretrained(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot save the model to .*file.model: .*choose another folder"):
        model.save_pretrained(tmp_path / "file" / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.processor.save = fail_at_the_end(model.processor.save)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="No space left on device"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def fail_at_the_end(save: Callable[[Path], None]) -> Callable[[Path], None]:
    def failing(path: Path) -> None:
        save(path)
        raise OSError(28, "No space left on device")

    return failing


def test_checkpoints_that_cannot_be_read_are_explained(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint .*none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")
    shutil.copy(trained.last, tmp_path / "half.ckpt")
    cut(tmp_path / "half.ckpt")
    with pytest.raises(UserError, match=r"half\.ckpt is damaged or not a checkpoint .*use another one"):
        load_checkpoint(tmp_path / "half.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="is not a checkpoint of lit_seq2seq"):
        load_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_all_files_of_a_model_have_the_permissions_that_new_files_get(
    trained: Trained, tmp_path: Path, mask: int
) -> None:
    model = LitSeq2Seq.from_pretrained(trained.model)
    size = model.processor.target.size
    found = Shortlist(np.array([4]), np.full((model.processor.source_feature.size, 1), -1), size, SpecialIds())
    before = os.umask(mask)
    try:
        model.model.shortlist = found
        model.save_pretrained(tmp_path / "model")
        model.save_pretrained(tmp_path / "model")  # in place of what is there
        add_shortlist(tmp_path / "model", found, model.processor)
    finally:
        os.umask(before)
    files = list((tmp_path / "model").iterdir())
    assert {"model.safetensors", "shortlist.safetensors", "config.json"} <= {file.name for file in files}
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == {
        file.name: oct(0o666 & ~mask) for file in files
    }
