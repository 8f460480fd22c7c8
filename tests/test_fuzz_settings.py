"""Whatever a recipe or a data set holds, it is used, or refused in one line."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pytest
import yaml
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from lit_seq2seq.cli import main
from lit_seq2seq.types import UserError
from tests.test_bad_input import error_line
from tests.test_fuzz import ANY
from tests.tiny import make_data, write_recipe

few = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=150, phases=[Phase.generate])  # a recipe is small enough to read

# recipes

JUNK = st.sampled_from(
    [
        *(
            None,
            True,
            0,
            -1,
            10**30,
            0.5,
            float("nan"),
            float("inf"),
            "",
            "a",
            "null",
            "os.system",
            "x" * 5000,
            "é\u2028x",
        ),
        *("2020-01-01", "1e3", b"ab", [], [None], [["a"]], {}, {"a": 1}, {1: 2}, {"class_path": "os.system"}),
        *({"class_path": 1}, {"class_path": "lit_seq2seq.nn.TextEncoder", "init_args": 3}),
    ]
)


def places(value: object, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(place for key, inner in items for place in places(inner, (*before, key)))]


def outcome(path: Path) -> None:
    """Run a recipe for one batch: all is well, or one line tells what is wrong."""
    err = io.StringIO()
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        status = main(["fit", "--config", str(path), "--trainer.fast_dev_run=1", "--trainer.logger=false"])
    if status:
        assert status == 1
        assert len(error_line(err.getvalue())) < 1500


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no waiting for hubs that cannot be reached
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield write_recipe(tmp_path_factory.mktemp("fuzz"))


def change_and_run(recipe: Path, data: st.DataObject) -> None:
    whole = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    *outer, last = data.draw(st.sampled_from([place for place in places(whole) if place]), "place")
    inner = whole
    for key in outer:
        inner = inner[key]
    if isinstance(inner, dict) and data.draw(st.booleans(), "another name"):
        last = data.draw(st.sampled_from(["a b", 1, None, "init_args", "patience"]), "name")
    inner[last] = data.draw(JUNK, "value")
    path = recipe.with_name("changed.yaml")
    path.write_text(yaml.safe_dump(whole, allow_unicode=True), encoding="utf-8")
    outcome(path)


@few
@given(data=st.data())
def test_a_recipe_with_another_setting(recipe: Path, data: st.DataObject) -> None:
    change_and_run(recipe, data)


@pytest.mark.slow
@many
@given(data=st.data())
def test_a_recipe_with_another_setting_often(recipe: Path, data: st.DataObject) -> None:
    change_and_run(recipe, data)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
FILES = {
    "tabs": b"data:\n\tdataset: a\n",
    "not UTF-8": "data: {dataset: f\xfcnf}".encode("latin-1"),
    "NUL": b"data: {dataset: a\x00b}",
    "half a mapping": b"data: {dataset: ",
    "a list": b"- data\n- model\n",
    "a number": b"3",
    "nothing": b"",
    "a tag that runs code": b"data: !!python/object/apply:os.system ['id']",
    "two documents": b"data: {}\n---\nmodel: {}\n",
    "a billion laughs": BOMB.encode(),
    "an alias of itself": b"data: &a {dataset: *a}",
    "a key twice": b"seed_everything: 1\nseed_everything: {a: b}\n",
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_recipe(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(FILES[case])
    assert main(["fit", "--config", str(path)]) == 1
    assert len(error_line(capsys.readouterr().err)) < 1500


# rows

CELL = st.one_of(
    st.none(),
    ANY,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=5),
    st.booleans(),
    st.lists(st.none() | ANY, max_size=3),
    st.dictionaries(st.sampled_from("ab"), ANY, max_size=2),
)
COLUMN = st.lists(ANY | st.none(), min_size=3, max_size=3) | st.lists(CELL, min_size=3, max_size=3)
NAMES = st.sampled_from(["source", "target", "source.a", "t*", "*", "", "target.b", "[", "ü"])


@settings(few, max_examples=20)
@given(source=COLUMN, target=COLUMN, names=st.tuples(NAMES, NAMES), empty=st.sampled_from(["drop", "keep", "error"]))
def test_any_rows(source: list[object], target: list[object], names: tuple[str, str], empty: str) -> None:
    try:
        rows = Dataset.from_dict({"source": source, "target": target})
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
        assume(False)  # no data set
    if names[0] == "ü":
        names = ("source", "target")
    splits = DatasetDict(train=rows, validation=rows)
    message, batches = "", []
    try:
        data = make_data(splits, source_column=names[0], target_column=names[1], empty=empty, test_size=0)
        data.setup("fit")
        batches = [*data.train_dataloader(), *data.val_dataloader()]
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert message or all(int(batch.target.lengths.min()) > 0 for batch in batches)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("model", "optimizer", "init_args", "lr"), None, "the optimizer or its schedule cannot be made"),
        (("model", "decoder", "init_args", "embedding_dim"), 0, "the model cannot be built"),
        (("seed_everything",), -1, "seed_everything: -1 is not in bounds"),
        (("checkpoint", "mode"), "x" * 5000, "`mode` can be min, max but got xxx"),
        (("data", "dataset", "test"), "x" * 5000, "the name of a file is too long"),
        (("model", "lr_scheduler"), {}, "cannot be made: a class is abstract"),
        (("model", "generation", "max_new_tokens"), 10**30, "below 2^31"),
        (("data", "source_tokenizer", "model"), None, "Tokenizer: model: expected one of 'word', "),
    ],
)
def test_settings_that_once_ended_in_a_traceback(
    recipe: Path, place: tuple[str, ...], value: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    *outer, last = place
    inner = whole
    for key in outer:
        inner = inner[key]
    inner[last] = value
    path = recipe.with_name("once.yaml")
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    assert main(["fit", "--config", str(path), "--trainer.fast_dev_run=1", "--trainer.logger=false"]) == 1
    line = error_line(capsys.readouterr().err)
    assert message in line
    assert len(line) < 1500
