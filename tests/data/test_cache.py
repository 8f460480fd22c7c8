import importlib
import os
import sys
import tempfile
from pathlib import Path

import datasets
import pytest

from lit_seq2seq import Seq2SeqDataModule
from lit_seq2seq.data.cache import cache_folder
from lit_seq2seq.features import MultiSource, Waveform
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


WALK = """
import numpy as np
from lit_seq2seq.features import Feature


class Walk(Feature):
    size, stored_as, config = 1, "float32", {}

    def encode(self, raw, training=False):
        return [np.full((len(text), 1), %s, np.float32) for text in raw]

    def nothing(self):
        return np.zeros((1, 1), np.float32)


class Other(Walk):
    def encode(self, raw, training=False):
        return [-array for array in super().encode(raw)]
"""


@pytest.mark.parametrize("several", [False, True])
def test_what_other_code_has_made_is_not_taken_from_the_cache(several, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python takes files of one second and one size for the same
    rows = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"source": ["ab", "c"], "target": ["x", "y"]})})

    def first(name: str, scale: float) -> float:
        (tmp_path / "my_cached_walk.py").write_text(WALK % scale)
        monkeypatch.delitem(sys.modules, "my_cached_walk", raising=False)
        importlib.invalidate_caches()
        feature = getattr(importlib.import_module("my_cached_walk"), name)()
        source = {"one": "source"} if several else "source"
        made = MultiSource({"one": feature}) if several else feature
        data = Seq2SeqDataModule(
            rows, columns={"source": source}, source_feature=made, target_tokenizer="word", batches={"size": 2}
        )
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        return float((batch.source.parts["one"] if several else batch.source).values[0, 0, 0])

    assert [first("Walk", 1.0), first("Other", 1.0), first("Walk", 2.0), first("Walk", 1.0)] == [1.0, -1.0, 2.0, 1.0]


def test_features_of_two_classes_are_two():
    class First(Waveform):
        pass

    assert Waveform().identity() != First().identity()
