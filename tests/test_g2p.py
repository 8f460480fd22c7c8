"""The script that trains one configuration on every language, on generated data in the folder layout of the task."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_seq2seq import load_recipe
from tests.tiny import pairs

SCRIPT = Path(__file__).parent.parent / "recipes" / "transduction" / "all_languages.py"
SIZES = [
    f"--model.{side}.init_args.{size}=8" for side in ("encoder", "decoder") for size in ("embedding_dim", "hidden_size")
]
QUICK = [*SIZES, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--samples.count=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two languages, one of them without a test split, and a configuration of both together."""
    root = tmp_path_factory.mktemp("g2p")
    lines = ["---", "configs:"]
    layout = {"aaa": ("train", "validation", "test"), "bbb": ("train", "validation")}
    for language, splits in layout.items():
        (root / language).mkdir()
        lines += [f"- config_name: {language}", "  data_files:"]
        for seed, split in enumerate(splits):
            columns = pairs(20, seed)
            rows = zip(columns["source"], columns["target"], strict=True)
            texts = [json.dumps({"orthography": source, "phones": target}) for source, target in rows]
            (root / language / f"{split}.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
            lines += [f"  - split: {split}", f"    path: {language}/{split}.jsonl"]
    lines += ["- config_name: all", "  data_files:", "  - split: train", "    path: '*/train.jsonl'", "---"]
    (root / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return runpy.run_path(str(SCRIPT))["main"]


def cells(output: Path) -> dict[tuple[str, str], list[str]]:
    """Read the table: language and kind of run, and the columns with a figure."""
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (output / "scores.md").read_text(encoding="utf-8").splitlines()
    ]
    return {(row[0], row[1]): [name for name, cell in zip(head[2:], row[2:], strict=True) if cell] for row in rows}


def test_every_language_is_trained_scored_and_joined_once(folder: Path, main, tmp_path: Path, capsys) -> None:
    output = tmp_path / "runs"
    arguments = ["--data", str(folder), "--output", str(output), "--seeds", "1", "2", *QUICK, *QUIET]
    assert main(arguments) == 0
    dev, test = ["dev WER", "dev PER"], ["test WER", "test PER"]
    table = cells(output)
    assert table == {
        ("aaa", "mean of 2"): [*dev, *test, "minutes"],
        ("aaa", "ensemble of 2"): [*dev, *test],
        ("bbb", "mean of 2"): [*dev, "minutes"],
        ("bbb", "ensemble of 2"): dev,
        ("average of 2", "mean of 2"): [*dev, *test, "minutes"],
        ("average of 2", "ensemble of 2"): [*dev, *test],
    }
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*.json")}
    removed = output / "bbb" / "2" / "scores.json"
    removed.unlink()
    assert main(arguments) == 0
    again = {path for path in files if path.stat().st_mtime_ns != files[path] and path.name == "scores.json"}
    assert again == {removed}
    assert cells(output) == table
    capsys.readouterr()
    assert main([*arguments, "--trainer.max_steps=3"]) == 1
    assert "have other settings" in capsys.readouterr().err


def test_a_plain_folder_has_a_folder_for_each_language(folder: Path, main, tmp_path: Path) -> None:
    """Without configurations in a README, and with a file beside them; of one language alone, its splits."""
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("README.md"))
    (plain / "notes.txt").touch()
    output = tmp_path / "runs"
    assert main(["--data", str(plain), "--output", str(output), *QUICK, *QUIET]) == 0
    assert [name for name, _ in cells(output)] == ["aaa", "bbb", "average of 2"]
    assert main(["--data", str(plain / "bbb"), "--output", str(tmp_path / "one"), *QUICK, *QUIET]) == 0
    assert [name for name, _ in cells(tmp_path / "one")] == ["bbb", "average of 1"]


@pytest.mark.parametrize("name", [[], ["--data.name=fre"]])
def test_a_folder_of_ones_own_needs_no_name(folder: Path, caplog, name: list[str]) -> None:
    recipe = load_recipe(SCRIPT.with_name("g2p.yaml"), [f"--data.dataset={folder / 'aaa'}", *QUICK, *name])
    with caplog.at_level("INFO"):
        recipe.datamodule.setup("fit")
    assert set(recipe.datamodule.splits) == {"train", "validation", "test"}
    assert ("data.name: fre is left out, as dataset " in caplog.text) == bool(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere/at/all"], "cannot open '/nowhere/at/all': check --data"),
        (["--languages", "ccc"], "expected languages of aaa, bbb, but got 'ccc': check --languages"),
        (["--bogus", "3"], "unrecognized arguments: --bogus 3"),
        (["--trainer.max_epoch", "3"], "did you mean trainer.max_epochs?"),
    ],
)
def test_mistakes_are_explained_in_one_line(folder: Path, main, tmp_path, capsys, arguments, message) -> None:
    assert main(["--data", str(folder), "--output", str(tmp_path / "runs"), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "runs" / "settings.json").exists()
