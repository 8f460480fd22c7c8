"""Folders that older versions wrote load, and write what they wrote then; see tests/golden/make.py."""

import json
from pathlib import Path

import pytest

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.hub.folder import FORMAT

GOLDEN = sorted(path.parent for path in Path(__file__).parent.glob("golden/*/expected.json"))


def test_every_format_has_golden_folders() -> None:
    assert {int(folder.name.split("-")[0]) for folder in GOLDEN} == set(range(1, FORMAT + 1))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_an_old_folder_writes_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    model = LitSeq2Seq.from_pretrained(folder / "model")
    assert model.model.provenance.scores == {"test_bleu": 12.5}
    assert pipeline("translation", model)(expected["inputs"], num_beams=expected["num_beams"]) == expected["outputs"]
    model.save_pretrained(tmp_path)
    again = pipeline("translation", str(tmp_path))
    assert again(expected["inputs"], num_beams=expected["num_beams"]) == expected["outputs"]
