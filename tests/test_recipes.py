import json
import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

import lit_seq2seq
from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe, pipeline
from lit_seq2seq.recipe import main
from lit_seq2seq.types import UserError
from tests.tiny import pairs, write_csv

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").as_posix()


def files(folder: Path, source: str, target: str, features: list[str], records: bool = False) -> dict[str, str]:
    """Write the three splits, with the columns that a recipe names."""
    found = {}
    for seed, split in enumerate(("train", "validation", "test")):
        columns = pairs(30, seed)
        if records:
            columns["source"] = [f"words[{text}]" for text in columns["source"]]
        if "." in source:
            root, first, second = source.split(".")[0], source.split(".")[1], target.split(".")[1]
            rows = zip(columns["source"], columns["target"], strict=True)
            lines = [json.dumps({root: {first: before, second: after}}) for before, after in rows]
            path = folder / f"{split}.jsonl"
            path.write_text("\n".join(lines), encoding="utf-8")
        else:
            tags = {name: ["A;B"] * 30 for name in features}
            path = write_csv(folder / f"{split}.csv", {source: columns["source"], target: columns["target"], **tags})
        found[split] = str(path)
    return found


def small(path: Path, folder: Path) -> list[str]:
    """Give settings that shrink a recipe's model, data and run."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = config["data"]
    sizes = [
        f"--model.{side}.init_args.{size}=8"
        for side in ("encoder", "decoder")
        for size in ("embedding_dim", "hidden_size")
    ]
    run = {"default_root_dir": folder, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    run |= {
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
        "accelerator": "cpu",
        "enable_model_summary": "false",
    }
    arguments = [*sizes, *(f"--trainer.{name}={value}" for name, value in run.items())]
    if isinstance(data["dataset"], dict):
        counts = {"train_size": 60, "validation_size": 8, "test_size": 12}
        return [*arguments, *(f"--data.dataset.init_args.{name}={value}" for name, value in counts.items())]
    columns = (data["source_column"], data["target_column"], data.get("feature_columns", []))
    records = "Records" in str(data.get("source_feature"))
    arguments.append(f"--data.dataset={json.dumps(files(folder, *columns, records=records))}")
    return [*arguments, "--data.name=null"]


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_trains_from_any_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(path, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(path, settings)
    assert isinstance(recipe.model, LitSeq2Seq)
    assert isinstance(recipe.datamodule, Seq2SeqDataModule)
    assert isinstance(recipe.trainer, Trainer)
    recipe.trainer.fit(recipe.model, datamodule=recipe.datamodule)
    assert recipe.trainer.global_step == 1
    monitor = recipe.trainer.checkpoint_callback.monitor
    assert monitor in recipe.trainer.callback_metrics
    assert list(tmp_path.rglob("last.ckpt"))
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_begins_with_its_command_hardware_and_time(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    head = "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    task = path.parent.name
    assert f"python recipes/{task}.py" in head
    for config in re.findall(r"--config (\S+)", head):
        assert config == f"recipes/{named(path)}"


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_a_script_is_thin(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 20
    (default,) = re.findall(r'"(\w+\.yaml)"', script.read_text(encoding="utf-8"))
    assert (script.with_suffix("") / default).is_file()


def test_the_demo_ends_with_scores_samples_pictures_and_the_next_commands(tmp_path: Path, capfd) -> None:
    default = ROOT / "recipes" / "translation" / "builtin.yaml"
    assert main(default, [*small(default, tmp_path), "--data.source_tokenizer.vocab_size=80"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    run = tmp_path / "version_0"
    for name in ("attention.png", "curves.png", "model"):
        assert (run / name).exists()
    assert "Ten outputs of the test split" in out
    for score in ("exact_match", "bleu", "chrf", "loss", "ppl"):
        assert score in out
    assert f"lit-seq2seq generate --model {run / 'model'} --num_beams 5" in out
    assert "tensorboard --logdir" in out
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "test_exact_match" in card
    assert len(pipeline("translation", run / "model")(["1", "2"])) == 2


def test_mistakes_in_a_recipe_are_explained(tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_text("data: {dataset: x, batchsize: 3}\n")
    with pytest.raises(UserError, match=r"did you mean data\.batch_size"):
        load_recipe(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_text("data: {dataset: x\n")
    assert main(tmp_path / "y.yaml", []) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("error: ")


def test_the_package_offers_what_the_documents_name() -> None:
    assert set(lit_seq2seq.__all__) == {"LitSeq2Seq", "Seq2SeqDataModule", "load_recipe", "pipeline"}
    for name in lit_seq2seq.__all__:
        assert getattr(lit_seq2seq, name).__doc__
