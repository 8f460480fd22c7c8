"""Keeps what tests and docstring examples cache out of the user's home."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(cache))
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        yield
