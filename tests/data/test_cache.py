import os
import tempfile
from pathlib import Path

import datasets
import pytest

from lit_seq2seq.data.cache import cache_folder
from lit_seq2seq.types import UserError


def refuse(monkeypatch: pytest.MonkeyPatch, *roots: Path) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).parent not in roots and allowed(path, mode))


def test_where_the_cache_cannot_be_written_another_folder_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    refuse(monkeypatch, tmp_path / "home")
    with pytest.warns(UserWarning, match="the cache .*home cannot be written: what is made goes to"):
        folder = cache_folder()
    assert folder.is_dir()
    assert cache_folder() == folder
    assert folder.parent == datasets.config.HF_DATASETS_CACHE


def test_a_cache_whose_name_is_not_utf8_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / os.fsdecode(b"caf\xe9"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be written: what is made goes to"):
        assert cache_folder().is_dir()


def test_where_nothing_can_be_written_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    made = tmp_path / "made"
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: str(made))
    refuse(monkeypatch, tmp_path / "home", made)
    with pytest.raises(UserError, match=r"cannot write to the cache .*home, nor to .*made: set HF_DATASETS_CACHE"):
        cache_folder()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: (tmp_path / "none" / "there").mkdir())
    with pytest.raises(UserError, match=r"cannot write to the cache .*, nor make a temporary folder"):
        cache_folder()
