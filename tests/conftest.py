import contextlib
import gc
import io
import multiprocessing
import signal
import time
import types
from collections.abc import Iterator
from pathlib import Path

import datasets.config
import datasets.utils.file_utils
import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.utils._http
import pytest
import torch

from lit_seq2seq.cli import main
from tests.loopback_hub import LoopbackHub
from tests.tiny import Trained, write_recipe

FORKED = ["callbacks", "memory", "metrics", "objectives", "signals", "soundness"]
multiprocessing.set_forkserver_preload(["lit_seq2seq.cli.fit", *(f"tests.test_{name}" for name in FORKED)])
"""What tests of several processes need, imported once: theirs are forked from a process that has no threads."""


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Listen to SIGINT even where the tests run in the background, which shells start deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _leave_process_group() -> Iterator[None]:
    """End what a strategy has begun in this process: processes forked later would wait for its threads for ever.

    They would also wait if they were the ones to collect what is left of it.
    """
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny run of `lit-seq2seq fit`; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(root)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["fit", "--config", str(recipe)]) == 0
    return Trained(recipe, Path(root, "runs", "version_0"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub that the clients in this process take for the real one, with an empty cache and nobody logged in."""
    with LoopbackHub() as server:
        constants = huggingface_hub.constants
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        impatient = types.SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
        for module in (huggingface_hub.file_download, huggingface_hub.utils._http, datasets.utils.file_utils):
            monkeypatch.setattr(module, "time", impatient)
        yield server


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what all imports have left, which stays to the end."""
    gc.collect()
    gc.freeze()
