import contextlib
import io
from pathlib import Path

import pytest
import torch

from lit_seq2seq.cli import main
from tests.tiny import Trained, write_recipe


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny run of `lit-seq2seq fit`; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(root)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["fit", "--config", str(recipe)]) == 0
    return Trained(recipe, Path(root, "runs", "version_0"))
