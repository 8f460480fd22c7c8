"""Cells by name in recipes and in Python, and in what is saved of them."""

import json
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_seq2seq import Seq2SeqModel, load_recipe
from lit_seq2seq.cli.commands import save_best
from lit_seq2seq.nn import LSTM, MinGRU, ParallelDecoder, TextEncoder
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, write_recipe

SIZES = {"embedding_dim": 4, "hidden_size": 6}
OWN_FILE = """
    import torch
    from lit_seq2seq.nn import Cell

    class Leaky(Cell):
        def __init__(self, input_size: int, hidden_size: int, keep: float = 0.5) -> None:
            super().__init__(input_size, hidden_size)
            self.inputs, self.keep = torch.nn.Linear(input_size, hidden_size), keep

        def advance(self, entered, state, mask=None):
            return (self.keep * state[0] + self.inputs(entered),)
    """


def fitted(folder: Path, cell: object) -> Path:
    """Train a recipe with a cell in encoder and decoder; return the folder of the model."""
    path = write_recipe(folder)
    recipe = yaml.safe_load(path.read_text())
    for part in ("encoder", "decoder"):
        recipe["model"][part]["init_args"]["cell"] = cell
    recipe["trainer"]["max_epochs"] = 1
    path.write_text(yaml.safe_dump(recipe))
    built = load_recipe(path)
    built.trainer.fit(built.model, datamodule=built.datamodule)
    saved = save_best(built.trainer, built.model)
    assert saved is not None
    return saved


def parts(folder: Path) -> list[Any]:
    model = json.loads((folder / "config.json").read_text())["model"]
    return [model[part]["init_args"]["cell"] for part in ("encoder", "decoder")]


def written(folder: Path, **options: Any) -> list[str]:
    return said(Seq2SeqModel.from_pretrained(folder, **options))


def said(model: Seq2SeqModel) -> list[str]:
    return [found[0].text for found in model.generate(["eins zwei", "drei"])]


NAMED: list[tuple[object, object]] = [
    ({"class_path": "lit_seq2seq.nn.MinGRU"}, {"class_path": "lit_seq2seq.nn.MinGRU", "init_args": {}}),
    ("SLSTM", {"class_path": "lit_seq2seq.nn.SLSTM", "init_args": {}}),
    (
        {"class_path": "lit_seq2seq.nn.LSTM", "init_args": {"layer_norm": True}},
        {"class_path": "lit_seq2seq.nn.LSTM", "init_args": {"layer_norm": True}},
    ),
    ("lstm", "lstm"),
]


@pytest.mark.parametrize(("cell", "saved"), NAMED)
def test_a_recipe_with_a_cell_trains_is_saved_and_loads(cell: object, saved: object, tmp_path: Path) -> None:
    folder = fitted(tmp_path, cell)
    assert parts(folder) == [saved, saved]
    model = Seq2SeqModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    assert written(tmp_path / "again") == written(folder) == said(model)
    assert (tmp_path / "again" / "config.json").read_text() == (folder / "config.json").read_text()


def test_a_cell_of_ones_own_trains_and_loads_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_cells.py").write_text(textwrap.dedent(OWN_FILE))
    monkeypatch.syspath_prepend(tmp_path)
    named = {"class_path": "own_cells.Leaky", "init_args": {"keep": 0.8}}
    folder = fitted(tmp_path, named)
    assert parts(folder) == [named, named]
    with pytest.raises(UserError, match=r"names own_cells.Leaky, which is outside .* trust=\('own_cells',\)"):
        written(folder)
    assert len(written(folder, trust="own_cells")) == 2


IN_PYTHON: list[tuple[object, object]] = [
    ("gru", "gru"),
    ("GRU", "gru"),
    (MinGRU, {"class_path": "lit_seq2seq.nn.MinGRU", "init_args": {}}),
    (
        partial(LSTM, layer_norm=True),
        {"class_path": "lit_seq2seq.nn.LSTM", "init_args": {"layer_norm": True}},
    ),
]


@pytest.mark.parametrize(("cell", "saved"), IN_PYTHON)
def test_python_names_a_cell_or_hands_one_over(cell: object, saved: object, tmp_path: Path) -> None:
    model = make_model(
        encoder=partial(TextEncoder, cell=cell, **SIZES), decoder=partial(ParallelDecoder, cell=cell, **SIZES)
    )
    model.attach(make_data().processor)
    model.save_pretrained(tmp_path / "model")
    assert parts(tmp_path / "model") == [saved, saved]
    assert written(tmp_path / "model") == said(model.eval().model)


@pytest.mark.parametrize("cell", ["lstn", "TextEncoder", 3])
def test_what_is_no_cell_is_refused(cell: object) -> None:
    with pytest.raises(UserError, match="cell"):
        TextEncoder(9, cell=cell)  # type: ignore[arg-type]


def test_what_is_no_cell_is_refused_in_a_folder(tmp_path: Path) -> None:
    model = make_model()
    model.attach(make_data().processor)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for cell in ("lstn", 3, {"class_path": "lit_seq2seq.nn.TextEncoder", "init_args": {}}):
        config["model"]["encoder"]["init_args"]["cell"] = cell
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError):
            Seq2SeqModel.from_pretrained(tmp_path)
