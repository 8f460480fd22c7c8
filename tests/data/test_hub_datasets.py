"""Data sets of the hub over HTTP: the real clients against a hub on this machine."""

import io
import itertools
import json
import re
import shlex
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import PIL.Image
import pytest
import soundfile
import yaml

from lit_seq2seq import Seq2SeqDataModule, load_recipe
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.types import UserError
from tests.loopback_hub import LoopbackHub
from tests.tiny import pairs

SIZES = {"train": 40, "validation": 12, "test": 10}
ROWS = {split: pairs(size, seed) for seed, (split, size) in enumerate(SIZES.items())}


def parquet(rows: dict[str, list[str]]) -> bytes:
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(rows).to_parquet(buffer)
    return buffer.getvalue()


def nested(rows: dict[str, list[str]]) -> bytes:
    lines = [{"translation": {"de": a, "en": b}} for a, b in zip(rows["source"], rows["target"], strict=True)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


PARQUET = {f"data/{split}-00000-of-00001.parquet": parquet(rows) for split, rows in ROWS.items()}
FORMS = {
    "parquet": (PARQUET, {}),
    "json": (
        {f"{split}.jsonl": nested(rows) for split, rows in ROWS.items()},
        {"source_column": "translation.de", "target_column": "translation.en"},
    ),
}


@pytest.fixture
def sets(hub: LoopbackHub) -> LoopbackHub:
    for form, (files, _) in FORMS.items():
        hub.add("datasets", f"alice/{form}", files)
    return hub


def open_set(dataset: str, **options: object) -> Seq2SeqDataModule:
    data = Seq2SeqDataModule(dataset, source_tokenizer=Tokenizer("word"), batch_size=8, **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_fetched_or_streamed(sets: LoopbackHub, form: str, streaming: bool) -> None:
    data = open_set(f"alice/{form}", streaming=streaming, **FORMS[form][1])
    assert data.splits == list(SIZES)
    texts = [
        data.processor.target.decode(ids) for batch in data.train_dataloader() for ids in batch.target.values.tolist()
    ]
    assert sorted(texts) == sorted(ROWS["train"]["target"])


def test_a_revision_is_read(sets: LoopbackHub) -> None:
    sets.repos["datasets", "alice/json"].commit(FORMS["parquet"][0], "columns")
    assert len(open_set("alice/json", revision="columns").splits) == 3


def test_offline_the_cache_serves(sets: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_set("alice/parquet")._split("train")[:]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    sets.log.clear()
    assert open_set("alice/parquet")._split("train")[:] == first
    assert sets.log == []
    with pytest.raises(UserError, match="dataset 'alice/json' is neither a path here nor can the hub be reached"):
        open_set("alice/json")


REFUSALS: dict[str, tuple[str, dict[str, str], str]] = {
    "missing": ("alice/none", {}, "the hub has no such thing as dataset 'alice/none', or it is private: check the id"),
    "private": ("alice/private", {}, "the hub has no such thing as dataset 'alice/private', or it is private"),
    "gated": ("alice/gated", {}, "dataset 'alice/gated' is gated: ask for access on its page"),
    "wrong token": ("alice/private", {}, "the hub does not know the token"),
    "revision": ("alice/parquet", {"revision": "v2"}, "dataset 'alice/parquet' has no revision v2: name a branch"),
    "name": (
        "alice/parquet",
        {"name": "v2"},
        "dataset 'alice/parquet' cannot be read: BuilderConfig 'v2' not found. Available: ",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_explained(sets: LoopbackHub, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.add("datasets", "alice/private", PARQUET, private=True)
    sets.add("datasets", "alice/gated", PARQUET, gated=True)
    name, options, match = REFUSALS[case]
    if case == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        open_set(name, **options)
    assert "\n" not in str(caught.value)


def test_who_has_a_token_reads_a_private_one(sets: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.add("datasets", "alice/private", PARQUET, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert open_set("alice/private").splits == list(SIZES)


def test_a_connection_that_drops_is_taken_up_where_it_broke(sets: LoopbackHub) -> None:
    sets.drops = 2
    assert open_set("alice/parquet")._split("train")[:] == ROWS["train"]
    assert sets.drops == 0
    assert sets.ranges


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_a_connection_that_keeps_dropping_is_explained(sets: LoopbackHub, streaming: bool) -> None:
    data = Seq2SeqDataModule(
        "alice/parquet", processor=open_set("alice/json", **FORMS["json"][1]).processor, streaming=streaming
    )
    if streaming:
        data._split("train")
    sets.drops = 1_000_000
    with pytest.raises(
        UserError, match=r"the connection for .* was lost or not made .*check network and HF_ENDPOINT"
    ) as caught:
        list(data.train_dataloader()) if streaming else data.setup("fit")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ those of the recipes

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
TABLE = {
    (cells := re.split(r"\s*\|\s*", line.strip("| ")))[0].strip("`"): [
        re.findall(r"`([^`]+)`", cell) for cell in cells[1:]
    ]
    for line in (ROOT / "docs" / "hub_datasets.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
}
FOLDERS = ("data/an4",)  # to be replaced by a folder, as the recipe says


def dataset_of(recipe: Path) -> str:
    named = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("data", {}).get("dataset", "")
    return named if isinstance(named, str) and "/" in named and named not in FOLDERS else ""


def value(column: str, row: int) -> object:
    """Make a value such as a column of this name holds."""
    file = io.BytesIO()
    if column == "image":
        PIL.Image.new("RGB", (20, 16), (row, 3 * row, 5 * row)).save(file, "PNG")
    elif column == "audio":
        soundfile.write(file, np.sin(np.arange(4000 + 100 * row) / 5), 16000, format="WAV")
    elif column == "meaning_representation":
        return f"name[Aromi], near[Zizzi], area[{pairs(12)['source'][row]}]"
    else:
        return pairs(12)["target"][row]
    return {"bytes": file.getvalue(), "path": None}


def files_of(name: str) -> tuple[dict[str, bytes], str]:
    """Make the files that the page says a data set has, and name the branch where they are."""
    places, (pattern,), columns, _ = TABLE[name]
    rows: list[dict[str, object]] = [{} for _ in range(12)]
    for number, column in itertools.product(range(12), columns):
        root, _, inner = column.partition(".")
        made = value(column, number)
        rows[number][root] = {**rows[number].get(root, {}), inner: made} if inner else made
    table = datasets.Dataset.from_list(rows)
    for column, kind in (("image", datasets.Image()), ("audio", datasets.Audio(decode=False))):
        table = table.cast_column(column, kind) if column in columns else table
    buffer = io.BytesIO()
    {"parquet": table.to_parquet, "csv": table.to_csv}.get(pattern.rpartition(".")[2], table.to_json)(buffer)
    before, splits, after = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern).groups()
    paths = {split: f"{before}{split}{after}" for split in splits.split(",")}
    files = {path.replace("*", "0000"): buffer.getvalue() for path in paths.values()}
    branch = next((place for place in places if "/" in place), "main")
    if places and branch == "main":
        listed = [{"split": split, "path": path} for split, path in paths.items()]
        card = yaml.safe_dump({"configs": [{"config_name": places[0], "data_files": listed}]})
        files["README.md"] = f"---\n{card}---\n".encode()
    return files, branch


def read_first(hub: LoopbackHub, recipe: Path, name: str, *more: str) -> list[tuple[object, str]]:
    """Read the first row of a data set that has the form the page tells with a recipe."""
    files, branch = files_of(name)
    script = {f"{name.split('/')[1]}.py": b""}
    repo = hub.add("datasets", name, files if branch == "main" else script)
    repo.commit(files, branch)
    options = ["--data.num_workers", "0", "--trainer.logger", "false", "--trainer.accelerator", "cpu", *more]
    data = load_recipe(recipe, options).datamodule
    assert {"train", "validation", "test"} <= set(data.splits)
    return data.first_rows("train", 1)


@pytest.mark.parametrize(
    "recipe",
    [path for path in RECIPES if dataset_of(path) and "backbone" not in path.stem],
    ids=lambda path: f"{path.parent.name} {path.stem}",
)
def test_the_recipes_read_data_sets_of_the_form_that_the_page_tells(
    hub: LoopbackHub, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((source, target),) = read_first(hub, recipe, dataset_of(recipe))
    assert (source is None) == (recipe.parent.name == "language_model")
    assert target.lower() in pairs(12)["target"]


def test_the_comment_on_xsum_is_right(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes" / "summarization" / "cnn_dailymail.yaml"
    comment = re.search(r"# XSum: (.*)\n# +(.*)", recipe.read_text(encoding="utf-8"))
    more = shlex.split(" ".join(comment.groups()))
    assert read_first(hub, recipe, more[1], *more)[0][1] in pairs(12)["target"]


def test_a_loading_script_on_the_hub_is_explained(hub: LoopbackHub) -> None:
    hub.add("datasets", "alice/script", {"script.py": b""})
    with pytest.raises(UserError, match=r"is a loading script, which cannot be run: set data\.revision to refs/conv"):
        open_set("alice/script")


def test_the_page_lists_every_data_set_of_the_recipes() -> None:
    assert {dataset_of(path) for path in RECIPES} - {""} == set(TABLE) - {"EdinburghNLP/xsum"}
