"""The hub over HTTP: the real client against a hub on this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from datasets.exceptions import DatasetNotFoundError

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.files.remote import reason_of
from lit_seq2seq.hub.folder import push_folder
from lit_seq2seq.search import GenerationConfig, JointModels, Terminology
from lit_seq2seq.types import UserError
from tests.loopback_hub import LoopbackHub
from tests.tiny import Trained, pairs

ALICE = "hf_alice"
SENTENCES = pairs(5, seed=9)["source"]


@pytest.fixture
def shared(hub: LoopbackHub, trained: Trained) -> LoopbackHub:
    """A hub with a public model `alice/digits`."""
    hub.add("models", "alice/digits", trained.model)
    return hub


def outputs(model: LitSeq2Seq | str) -> object:
    return pipeline("translation", model)(SENTENCES)


# ---------------------------------------------------------------------------------------------------- push and pull


def test_what_is_pushed_comes_back_the_same(hub: LoopbackHub, trained: Trained) -> None:
    model = LitSeq2Seq.from_pretrained(trained.model)
    address = model.push_to_hub(
        "alice/digits", private=True, token=ALICE, commit_message="first", scores={"test_bleu": 1}
    )
    repo = hub.repos["models", "alice/digits"]
    assert repo.private
    assert repo.messages == ["", "first"]
    assert address == f"{hub.url}/alice/digits/commit/{repo.branches['main']}"
    assert set(hub.large.values()) == {repo.commits[repo.branches["main"]]["model.safetensors"]}
    pulled = LitSeq2Seq.from_pretrained("alice/digits", token=ALICE)
    torch.testing.assert_close(dict(pulled.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert outputs(pulled) == outputs(model)


def test_a_model_takes_along_what_its_search_names(hub: LoopbackHub, trained: Trained, tmp_path: Path) -> None:
    terms = tmp_path / "terms.csv"
    terms.write_text("zwei,four\n", encoding="utf-8")
    parts = {"constraints": [Terminology(str(terms))], "scorers": [JointModels([str(trained.model)])]}
    config = GenerationConfig(num_beams=4, max_new_tokens=6, **parts)
    model = LitSeq2Seq.from_pretrained(trained.model, changes={"generation": config})
    expected = outputs(model)
    assert expected != outputs(str(trained.model))
    model.push_to_hub("alice/digits", token=ALICE)
    terms.unlink()
    pulled = LitSeq2Seq.from_pretrained("alice/digits", token=ALICE)
    assert outputs(pulled) == expected

    pulled.save_pretrained(tmp_path / "copy")
    for place in ("search/notes.txt", "search/1-model/train.log"):
        (tmp_path / "copy" / place).write_text("not for others", encoding="utf-8")
    push_folder(tmp_path / "copy", "alice/again", token=ALICE)
    assert outputs(LitSeq2Seq.from_pretrained("alice/again", token=ALICE)) == expected
    repos = [hub.repos["models", f"alice/{name}"] for name in ("digits", "again")]
    first, second = (repo.commits[repo.branches["main"]].keys() for repo in repos)
    assert first == second
    card = tmp_path / "copy" / "search" / "1-model" / "README.md"
    card.write_text("hf_" + "x" * 34, encoding="utf-8")
    with pytest.raises(UserError, match=r"README\.md holds what looks like an access token"):
        push_folder(tmp_path / "copy", "alice/third", token=ALICE)


def test_the_command_pushes_the_files_of_the_model_and_no_other(
    hub: LoopbackHub,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(trained.model, tmp_path / "model")
    (folder / "secrets.env").write_text("x")
    monkeypatch.setenv("HF_TOKEN", ALICE)
    command = ["push", "--model", str(folder), "--repo_id", "digits", "--private", "true", "--revision", "dev"]
    assert main([*command, "--commit_message", "second"]) == 0
    repo = hub.repos["models", "alice/digits"]
    assert capsys.readouterr().out == f"{hub.url}/alice/digits/commit/{repo.branches['dev']}\n"
    assert repo.commits[repo.branches["main"]] == {}
    pushed = repo.commits[repo.branches["dev"]]
    assert b'model="digits"' in pushed.pop("README.md")
    assert pushed == {path.name: path.read_bytes() for path in trained.model.iterdir() if path.suffix != ".md"}
    assert main([*command, "--commit_message", "again"]) == 0
    assert outputs(LitSeq2Seq.from_pretrained("alice/digits", revision="dev")) == outputs(str(trained.model))


def test_a_revision_is_a_branch_or_a_commit(shared: LoopbackHub, trained: Trained) -> None:
    repo = shared.repos["models", "alice/digits"]
    first = repo.branches["main"]
    repo.commit({"config.json": b"{}"})
    assert outputs(LitSeq2Seq.from_pretrained("alice/digits", revision=first)) == outputs(str(trained.model))
    with pytest.raises(UserError, match="does not describe a lit_seq2seq model"):
        LitSeq2Seq.from_pretrained("alice/digits")


def test_only_json_and_safetensors_are_fetched(hub: LoopbackHub, trained: Trained) -> None:
    files = {path.name: path.read_bytes() for path in trained.model.iterdir()}
    hub.add("models", "alice/digits", {**files, "pytorch_model.bin": b"x", "evil.py": b"x"})
    outputs("alice/digits")
    assert not [line for line in hub.log if "pytorch_model.bin" in line or "evil.py" in line]


# ---------------------------------------------------------------------------------------------------- cache and network


def test_a_second_load_takes_the_weights_from_the_cache(shared: LoopbackHub) -> None:
    first = outputs("alice/digits")
    shared.log.clear()
    assert outputs("alice/digits") == first
    assert not [line for line in shared.log if "resolve" in line]


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "hub down"])
def test_offline_the_cache_serves(
    shared: LoopbackHub, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"cache_dir": tmp_path / "own", "local_files_only": how == "local_files_only"}
    first = outputs(LitSeq2Seq.from_pretrained("alice/digits", cache_dir=tmp_path / "own"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    if how == "hub down":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    shared.log.clear()
    assert outputs(LitSeq2Seq.from_pretrained("alice/digits", **options)) == first
    assert shared.log == []
    match = (
        "is not (wholly) in the cache"
        if how != "hub down"
        else "the connection for the model alice/other was lost or not"
    )
    with pytest.raises(UserError, match=match.replace("(", r"\(").replace(")", r"\)")):
        LitSeq2Seq.from_pretrained("alice/other", **options)


def test_half_a_cache_is_explained(shared: LoopbackHub, tmp_path: Path) -> None:
    outputs("alice/digits")
    next((tmp_path / "cache").rglob("snapshots/*/model.safetensors")).unlink()
    with pytest.raises(UserError, match=r"alice/digits is not \(wholly\) in the cache .*load it once with network"):
        LitSeq2Seq.from_pretrained("alice/digits", local_files_only=True)


def test_a_connection_that_drops_is_taken_up_where_it_broke(shared: LoopbackHub, trained: Trained) -> None:
    shared.drops = 2
    assert outputs("alice/digits") == outputs(str(trained.model))
    first, second = (int(span.removeprefix("bytes=").removesuffix("-")) for span in shared.ranges)
    assert 0 < first < second < (trained.model / "model.safetensors").stat().st_size


def test_a_connection_that_keeps_dropping_is_explained_and_whole_files_are_kept(
    shared: LoopbackHub, trained: Trained
) -> None:
    shared.drops = 1_000_000
    with pytest.raises(
        UserError, match=r"connection for the model alice/digits was lost .* files that are whole are kept"
    ) as caught:
        LitSeq2Seq.from_pretrained("alice/digits")
    assert "\n" not in str(caught.value)
    shared.drops = 0
    shared.log.clear()
    assert outputs("alice/digits") == outputs(str(trained.model))
    fetched = [line.rpartition("/")[2] for line in shared.log if line.startswith("GET") and "resolve" in line]
    assert "model.safetensors" in fetched
    assert "config.json" not in fetched


# ---------------------------------------------------------------------------------------------------- refusals

READING = {
    "no such model": ("alice/none", None, "the hub has no such thing as the model alice/none, or it is private: check"),
    "private": ("alice/private", None, "the hub has no such thing as the model alice/private, or it is private"),
    "wrong token": ("alice/digits", "hf_wrong", "the hub does not know the token .*: log in with hf auth login"),
    "gated": ("alice/gated", None, "the model alice/gated is gated: ask for access on its page at http"),
    "gated, not yet let in": ("alice/gated", ALICE, "the model alice/gated is gated: ask for access"),
    "bad id": ("alice/di--gits", None, r"the model alice/di--gits has no valid id: expected user/name"),
}


@pytest.mark.parametrize("case", READING)
def test_what_the_hub_refuses_to_give_is_explained(shared: LoopbackHub, trained: Trained, case: str) -> None:
    shared.add("models", "alice/private", trained.model, private=True)
    shared.add("models", "alice/gated", trained.model, gated=True)
    name, token, match = READING[case]
    with pytest.raises(UserError, match=match) as caught:
        LitSeq2Seq.from_pretrained(name, token=token)
    assert "\n" not in str(caught.value)


def test_who_was_let_in_may_read(shared: LoopbackHub, trained: Trained) -> None:
    shared.add("models", "bob/gated", trained.model, gated=True, readers={"hf_carol"})
    assert outputs(LitSeq2Seq.from_pretrained("bob/gated", token="hf_carol")) == outputs(str(trained.model))


def test_a_missing_revision_is_explained(shared: LoopbackHub) -> None:
    with pytest.raises(UserError, match="alice/digits has no revision v2: name a branch, tag or commit"):
        LitSeq2Seq.from_pretrained("alice/digits", revision="v2")


WRITING = {
    "nobody": ("alice/digits", None, "you may not write the model alice/digits: log in with hf auth login"),
    "wrong token": ("alice/digits", "hf_wrong", "the hub does not know the token"),
    "of someone else": ("bob/digits", ALICE, "you may not write the model bob/digits"),
    "bad id": ("a/b/c", ALICE, "the model a/b/c has no valid id"),
}


@pytest.mark.parametrize("case", WRITING)
def test_what_the_hub_refuses_to_take_is_explained(hub: LoopbackHub, trained: Trained, case: str) -> None:
    name, token, match = WRITING[case]
    with pytest.raises(UserError, match=match) as caught:
        push_folder(trained.model, name, token=token)
    assert "\n" not in str(caught.value)
    assert hub.repos == {}


def test_nothing_is_pushed_offline(hub: LoopbackHub, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="alice/digits cannot be written while HF_HUB_OFFLINE is set: unset it"):
        push_folder(trained.model, "alice/digits", token=ALICE)
    assert hub.repos == {}


ELSEWHERE = {
    "config.json": ("../secret.json", r"config\.json is a link that leads out of its folder"),
    "README.md": ("../secret.json", r"README\.md is a link that leads out of its folder"),
    "target_tokenizer.json": ("../secret.json", r"target_tokenizer\.json is a link that leads out of its folder"),
    "model.safetensors": ("/etc/hostname", r"model\.safetensors is a link that leads out of its folder"),
    "shortlist.safetensors": ("../secret.json", r"shortlist\.safetensors is a link that leads out of its folder"),
    "tokenizer.json": (".env", r"tokenizer\.json is a link to the hidden file"),
    "source_tokenizer.json": (".git/config", r"source_tokenizer\.json is a link to the hidden file"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_a_link_leads_to_is_not_pushed(hub: LoopbackHub, trained: Trained, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(trained.model, tmp_path / "model"))
    (folder / ".git").mkdir()
    for secret in (tmp_path / "secret.json", folder / ".env", folder / ".git" / "config"):
        secret.write_text("{}")
    target, match = ELSEWHERE[name]
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(UserError, match=match):
        push_folder(folder, "alice/digits", token=ALICE)
    assert not hub.repos


def test_a_folder_that_only_looks_like_the_cache_is_no_excuse(
    hub: LoopbackHub, trained: Trained, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.model, tmp_path / "models--evil--it" / "snapshots" / "1"))
    (tmp_path / "secret.md").write_text("secret")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("../../../secret.md")
    with pytest.raises(UserError, match=r"README\.md is a link that leads out of its folder"):
        push_folder(folder, "alice/digits", token=ALICE)


TOKENS = ("hf_" + "a" * 34, "github_pat_" + "a" * 40, "sk-proj-" + "a" * 40, "AKIA" + "A" * 16)


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_of_others_are_known(hub: LoopbackHub, trained: Trained, tmp_path: Path, token: str) -> None:
    folder = Path(shutil.copytree(trained.model, tmp_path / "model"))
    with (folder / "README.md").open("a") as card:
        card.write(f"my key: {token}\n")
    with pytest.raises(UserError, match=r"README\.md holds what looks like an access token"):
        push_folder(folder, "alice/digits", token=ALICE)


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_an_access_token_is_not_pushed(hub: LoopbackHub, trained: Trained, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(trained.model, tmp_path / "model"))
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(text.replace("lit-seq2seq fit", f"lit-seq2seq fit --token hf_{'a' * 34}"))
    if name == "config.json":
        (folder / name).write_text(text.replace('"scores"', f'"note": "hf_{"b" * 34}", "scores"'))
    with pytest.raises(UserError, match=rf"{name} holds what looks like an access token"):
        push_folder(folder, "alice/digits", token=ALICE)
    assert not hub.repos


def test_what_is_no_model_is_not_pushed(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a model folder, it has no config\.json"):
        push_folder(tmp_path, "alice/digits", token=ALICE)
    assert hub.log == []


# ---------------------------------------------------------------------------------------------------- in the open


@pytest.mark.slow
def test_the_commands_work_over_the_environment(trained: Trained, tmp_path: Path) -> None:
    def run(*command: str, **more: str) -> str:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ALICE, **more}
        done = subprocess.run(
            [sys.executable, "-m", "lit_seq2seq", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    (tmp_path / "in.txt").write_text("\n".join(SENTENCES))
    read = ["--input", str(tmp_path / "in.txt"), "--model"]
    with LoopbackHub() as hub:
        run("push", "--model", str(trained.model), "--repo_id", "alice/digits")
        here = run("generate", *read, str(trained.model), HF_HOME=str(tmp_path / "a"))
        assert run("generate", *read, "alice/digits", HF_HOME=str(tmp_path / "b")) == here
    assert run("generate", *read, "alice/digits", HF_HOME=str(tmp_path / "b"), HF_HUB_OFFLINE="1") == here


def test_a_gated_data_set_is_known_where_its_cause_is_lost() -> None:
    told = reason_of(DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "the data set a/b")
    assert told is not None
    assert told.startswith("the data set a/b is gated: ask for access")
