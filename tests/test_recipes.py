import io
import itertools
import json
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from datasets import Dataset, Image
from lightning.pytorch import Callback, Trainer

import lit_seq2seq
from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe, pipeline
from lit_seq2seq.callbacks import GradualUnfreezing
from lit_seq2seq.cli import main as cli_main
from lit_seq2seq.cli.recipe import main
from lit_seq2seq.cli.summary import generate_command, typed
from lit_seq2seq.features import Feature, Records, Tokenizer
from lit_seq2seq.features import Image as ImageFeature
from lit_seq2seq.inference.roads import writes_early
from lit_seq2seq.types import UserError
from tests.backbones import write_backbone
from tests.nn.cases import disturb
from tests.tiny import Trained, make_model, pairs, write_csv

ROOT = Path(__file__).parent.parent
FINETUNING = sorted((ROOT / "recipes").rglob("finetune.yaml"))
OBJECTIVES = sorted((ROOT / "recipes" / "objectives").glob("*.yaml"))
RECIPES = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path not in FINETUNING + OBJECTIVES]
TASKS = {
    "translation": "translation",
    "multimodal": "translation",
    "summarization": "summarization",
    "captioning": "image-to-text",
    "speech": "automatic-speech-recognition",
    "language_model": "text-generation",
}
SCRIPTS = [path for path in sorted((ROOT / "recipes").glob("*.py")) if path.with_suffix("").is_dir()]


def named(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").as_posix()


def files(folder: Path, source: str, target: str, features: list[str], records: bool = False) -> dict[str, str]:
    """Write the three splits, with the columns that a recipe names."""
    found = {}
    for seed, split in enumerate(("train", "validation", "test")):
        columns = pairs(30, seed)
        if records:
            columns["source"] = [f'"name[{text}], near[{text}]"' for text in columns["source"]]
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


def vectors(folder: Path, source: str, target: str, *, channels: int | None, speaker: str | None = None) -> str:
    """Write a folder of the three splits with ready frames, or with samples where `channels` is unknown."""
    rng = np.random.default_rng(0)
    shape = (300,) if channels is None else (30, channels)
    for seed, split in enumerate(("train", "validation", "test")):
        texts = pairs(20, seed)["target"]
        columns = {source: [rng.normal(size=shape).astype(np.float32).tolist() for _ in texts], target: texts}
        columns |= {speaker: ["ann", "bob"] * (len(texts) // 2)} if speaker else {}
        Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return json.dumps({split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")})


def images(folder: Path, source: str, target: str, text: str | None = None, count: int = 20) -> dict[str, str]:
    """Write the three splits with images, and texts beside them; a pattern of columns becomes two of them."""
    found = {}
    for seed, split in enumerate(("train", "validation", "test")):
        texts = pairs(count, seed)["target"]
        columns = {target.replace("*", str(number)): texts for number in range(2)}
        columns |= {text: texts} if text else {}
        files = [{"bytes": png(number), "path": None} for number in range(count)]
        rows = Dataset.from_dict({source: files, **columns}).cast_column(source, Image())
        rows.to_parquet(folder / f"{split}.parquet")
        found[split] = str(folder / f"{split}.parquet")
    return found


def png(number: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (20, 16), (number, 3 * number, 5 * number)).save(file, "PNG")
    return file.getvalue()


DOCUMENTED = ["logging", "email", "http", "importlib", "xml", "statistics", "inspect", "typing", "threading", "difflib"]
DOCUMENTED += ["shutil", "unittest"]


def documented(folder: Path) -> Path:
    """Link to a few modules of Python in place of all that are installed, which take seconds to read."""
    found, library = folder / "modules", Path(sysconfig.get_path("stdlib"))
    found.mkdir(exist_ok=True)
    for name in DOCUMENTED:
        place = next(path for path in (library / name, library / f"{name}.py") if path.exists())
        if not (found / place.name).exists():
            (found / place.name).symlink_to(place)
    return found


def small(path: Path, folder: Path) -> list[str]:
    """Give settings that shrink a recipe's model, data and run."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = config["data"]
    sizes = [
        f"--model.{side}.init_args.{size}=8"
        for side in ("encoder", "decoder")
        for size in ("embedding_dim", "hidden_size")
        if size in config["model"][side].get("init_args", {})
    ]
    if config["model"]["encoder"]["class_path"].endswith("ConvEncoder"):
        sizes += ["--model.encoder.init_args.widths=[16, 16]", "--data.source_feature.init_args.size=16"]
    backbone = backbones(config, folder)
    run = {"default_root_dir": folder, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    run |= {
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
        "accelerator": "cpu",
        "enable_model_summary": "false",
    }
    arguments = [*sizes, *backbone, *(f"--trainer.{name}={value}" for name, value in run.items())]
    where = data.get("columns", {"source": "source", "target": "target"})
    if isinstance(data.get("dataset"), dict):
        given: dict[str, object] = {"train_size": 60, "validation_size": 8, "test_size": 12}
        if data["dataset"]["class_path"].endswith("JoinedRecordings"):
            singles = vectors(folder, where["source"], where["target"], channels=None)
            given |= {"dataset": singles, "name": "null", "evaluate": "null", "speaker_column": "null"}
        if data["dataset"]["class_path"].endswith("DocstringSummaries"):
            given["folders"] = json.dumps([str(documented(folder))])
        return [*arguments, *(f"--data.dataset.init_args.{name}={value}" for name, value in given.items())]
    records = "Records" in str(data.get("source_feature"))
    if "source_feature" in data and not records and "PretrainedTokenizer" not in str(data["source_feature"]):
        feature, columns = data["source_feature"], (where["source"], where["target"])
        if feature["class_path"].endswith("MultiSource"):
            named = where["source"]
            arguments.append(
                f"--data.dataset={json.dumps(images(folder, named['image'], columns[1], named['text'], 4))}"
            )
            return [*arguments, "--data.num_workers=0"]
        if feature["class_path"].endswith("Image"):
            arguments.append(f"--data.dataset={json.dumps(images(folder, *columns))}")
            return [*arguments, "--data.name=null"]
        ready = vectors(folder, *columns, channels=feature["init_args"].get("channels"), speaker=where.get("speaker"))
        arguments.append(f"--data.dataset={ready}")
        return [*arguments, "--data.name=null", "--data.train_split=train", "--data.target_tokenizer.vocab_size=60"]
    columns = (where["source"] or "nothing", where["target"], where.get("tags", []))
    arguments.append(f"--data.dataset={json.dumps(files(folder, *columns, records=records))}")
    return [*arguments, "--data.name=null"]


def backbones(config: dict[str, Any], folder: Path) -> list[str]:
    """Give a tiny random model in the place of a pretrained one."""
    kinds = {"TextBackbone": "bert", "SpeechBackbone": "wav2vec2", "VisionBackbone": "convnext"}
    kind = kinds.get(config["model"]["encoder"]["class_path"].rpartition(".")[2])
    if kind is None:
        return []
    place = write_backbone(kind, folder / "backbone")
    feature = config["data"]["source_feature"].get("init_args", {})
    readers = ["--data.source_feature"] if "name" in feature else []
    resized = ["--data.source_feature.init_args.size=32"] if "size" in feature else []
    return [f"{part}.init_args.name={place}" for part in ["--model.encoder", *readers]] + resized


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_trains_from_any_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(path, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(path, settings)
    assert isinstance(recipe.model, LitSeq2Seq)
    assert isinstance(recipe.datamodule, Seq2SeqDataModule)
    assert isinstance(recipe.trainer, Trainer)
    assert recipe.model.model.task == TASKS.get(path.parent.name, "text2text-generation")
    recipe.trainer.fit(recipe.model, datamodule=recipe.datamodule)
    assert recipe.trainer.global_step == 1
    monitor = recipe.trainer.checkpoint_callback.monitor
    assert monitor in recipe.trainer.callback_metrics
    assert list(tmp_path.rglob("last.ckpt"))
    assert list(Path.cwd().iterdir()) == []


# what docs/live.md says of each recipe
STREAMED: dict[str, list[str]] = {
    "speech/telephone_live.yaml": [],
    "speech/fsdd_transducer.yaml": [],
    "speech/an4_live.yaml": [],
    "transduction/g2p_transducer.yaml": ["--model.encoder.init_args.bidirectional", "false"],
    "translation/multi30k_wait_k.yaml": [],
    "translation/builtin.yaml": ["--config", "recipes/objectives/wait_k.yaml"],
}


@pytest.mark.parametrize("recipe", STREAMED)
def test_what_the_page_says_is_enough_to_stream(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path, settings = ROOT / "recipes" / recipe, STREAMED[recipe]
    page = (ROOT / "docs" / "live.md").read_text(encoding="utf-8")
    assert path.name in page
    assert " ".join(settings) in page
    built = load_recipe(path, [*small(path, tmp_path), *settings])
    model, data = built.model, built.datamodule
    model.attach(data.processor)
    disturb(model.net).eval()
    assert writes_early(model.model)
    (source, _), *_ = data.first_rows("validation", 1)
    sound = isinstance(source, dict)
    whole = np.asarray(source["array"], dtype=np.int16) if sound else source
    options = {"sampling_rate": source["sampling_rate"]} if sound else {}
    written = []
    for count in (1, 3):
        live = pipeline(model.model.task, model.model).live(**options, max_new_tokens=9)
        for begin in range(0, len(whole), 1 + len(whole) // count):
            live.feed(whole[begin : begin + 1 + len(whole) // count])
        live.finish()
        written.append(live.text)
    assert written[0] == written[1] != ""


def test_the_stages_of_a_pretrained_image_model_learn_one_after_the_other(tmp_path: Path) -> None:
    path = ROOT / "recipes" / "captioning" / "backbone.yaml"
    recipe = load_recipe(path, [*small(path, tmp_path), "--trainer.max_epochs=3", "--data.num_workers=0"])
    (unfreezing,) = (found for found in recipe.trainer.callbacks if isinstance(found, GradualUnfreezing))
    named = unfreezing.unfreeze_at_epoch
    unfreezing.unfreeze_at_epoch = {part: epoch and epoch // 3 for part, epoch in named.items()}
    weights: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LitSeq2Seq) -> None:
            weights.append({name: weight.clone() for name, weight in pl_module.net.encoder.backbone.named_parameters()})

    recipe.trainer.callbacks.append(Keep())
    recipe.model.attach(recipe.datamodule.processor)
    Keep().on_train_epoch_end(recipe.trainer, recipe.model)
    recipe.trainer.fit(recipe.model, datamodule=recipe.datamodule)
    moved = [
        {name for name in new if not torch.equal(old[name], new[name])} for old, new in itertools.pairwise(weights)
    ]
    assert [{name.split(".")[2] for name in epoch} for epoch in moved] == [set(), {"3"}, {"2", "3"}]


@pytest.mark.parametrize("path", FINETUNING, ids=named)
def test_a_finetuning_recipe_starts_from_the_model_that_the_built_in_one_leaves(path: Path, tmp_path: Path) -> None:
    built_in = path.with_name("builtin.yaml")
    settings = small(built_in, tmp_path)
    first = load_recipe(built_in, settings)
    first.model.attach(first.datamodule.processor)
    first.model.save_pretrained(tmp_path / "model")
    kept = [setting for setting in settings if setting.startswith(("--trainer.", "--data.dataset."))]
    kept.append("--data.dataset.init_args.seed=0")  # what is cached already
    recipe = load_recipe(path, [*kept, f"--model.init_from={tmp_path / 'model'}"])
    recipe.trainer.fit(recipe.model, datamodule=recipe.datamodule)
    old, new = first.model.processor, recipe.model.processor
    assert new.target.symbols[: len(old.target)] == old.target.symbols
    assert recipe.trainer.checkpoint_callback.monitor in recipe.trainer.callback_metrics
    described = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_from"]
    assert described.startswith(yaml.safe_load(built_in.read_text(encoding="utf-8"))["trainer"]["default_root_dir"])


@pytest.mark.parametrize("path", OBJECTIVES, ids=named)
def test_an_objective_is_laid_over_a_recipe(path: Path, trained: Trained, tmp_path: Path) -> None:
    given = [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1", "--model.optimizer.init_args.lr=0.01"]
    if path.stem == "distillation":
        given += [f"--data.processor={trained.model}", f"--model.objective.init_args.teachers={trained.model}"]
    assert cli_main(["fit", "--config", str(trained.recipe), "--config", str(path), *given]) == 0
    described = json.loads((tmp_path / "version_0" / "model" / "config.json").read_text(encoding="utf-8"))
    wanted = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    part = "objective" if "objective" in wanted else "attention_losses"
    (named_there,), (found,) = (
        one if isinstance(one, list) else [one] for one in (wanted[part], described["model"][part])
    )
    assert found["class_path"] == named_there["class_path"]
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    configs = re.findall(r"--config (\S+)", "\n".join(head))
    assert f"recipes/{named(path)}" in configs
    assert all((ROOT / config).is_file() for config in configs)


@pytest.mark.parametrize("path", [*RECIPES, *FINETUNING], ids=named)
def test_a_recipe_begins_with_its_command(path: Path) -> None:
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
    assert f"{typed('lit-seq2seq')} generate --model {run / 'model'} --num_beams 5" in out
    assert "tensorboard --logdir" in out
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "test_exact_match" in card
    assert len(pipeline("translation", run / "model")(["1", "2"])) == 2


@pytest.mark.parametrize(
    ("first", "feature", "line"),
    [
        ("""it's "five" $HOME""", Tokenizer(), """it's "five" $HOME"""),
        ({"name": "Fred's", "food": None}, Records(), """{"name": "Fred's", "food": null}"""),
        ("name[Fred's]", Records(), "name[Fred's]"),
        (b"pixels", ImageFeature(size=8), None),
        ("two\nlines", Tokenizer(), "cat FILE"),
        ("long " * 100, Tokenizer(), "cat FILE"),
    ],
)
def test_the_command_for_an_output_can_be_typed(first: object, feature: Feature, line: str | None) -> None:
    command = generate_command(first, feature, make_model().model, Path("model"))
    given, _, rest = command.partition(" | ")
    assert rest == f"{typed('lit-seq2seq')} generate --model model --num_beams 5"
    if line in (None, "cat FILE"):
        assert given == (line or "ls FILES")
    else:
        assert subprocess.run(["bash", "-c", given], capture_output=True, text=True, check=True).stdout == f"{line}\n"


def test_a_recipe_that_samples_says_how_to_draw_several(tmp_path: Path, capsys) -> None:
    default = ROOT / "recipes" / "text_generation" / "builtin.yaml"
    assert main(default, [*small(default, tmp_path), "--trainer.enable_progress_bar=false"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    model = tmp_path / "version_0" / "model"
    assert f"{typed('lit-seq2seq')} generate --model {model} --num_return_sequences 3" in out
    assert "recipes/text_generation/your_files.yaml --data.dataset YOUR_FOLDER" in out
    assert "distinct2" in out
    texts = pipeline("text2text-generation", model)("Is there a train to Oslo?", num_return_sequences=3)
    assert [list(text) for text in texts] == [["generated_text"]] * 3


def test_a_recipe_without_a_test_split_shows_the_validation_split(tmp_path: Path, capsys, caplog) -> None:
    path = ROOT / "recipes" / "transduction" / "g2p.yaml"
    splits = files(tmp_path, "orthography", "phones", [])
    given = {split: splits[split] for split in ("train", "validation")}
    quiet = "--trainer.enable_progress_bar=false"
    assert main(path, [*small(path, tmp_path), f"--data.dataset={json.dumps(given)}", quiet]) == 0
    assert "There is no test split, so the validation split is scored; the splits are train, validation." in caplog.text
    out = " ".join(capsys.readouterr().out.split())
    assert "Ten outputs of the validation split" in out
    assert "Validation scores after" in out
    card = (tmp_path / "version_0" / "model" / "README.md").read_text(encoding="utf-8")
    assert "val_per" in card  # not only what the checkpoint was chosen by


def test_a_recipe_with_a_single_row_scores_nothing(tmp_path: Path, capsys, caplog) -> None:
    path = ROOT / "recipes" / "translation" / "your_files.yaml"
    rows = write_csv(tmp_path / "one.csv", {"source": ["eins"], "target": ["one"]})
    assert main(path, [*small(path, tmp_path), f"--data.dataset={rows}", "--trainer.enable_progress_bar=false"]) == 0
    assert "There is no test and no validation split, so nothing is scored; the splits are train." in caplog.text
    out = capsys.readouterr().out
    assert "scores" not in out
    assert "YOUR_FOLDER" not in out


def test_a_recipe_ends_with_a_command_for_the_files_it_was_given(tmp_path: Path, capsys) -> None:
    path, run = ROOT / "recipes" / "translation" / "your_files.yaml", tmp_path / "version_0"
    given = f"--data.dataset={json.dumps(files(tmp_path, 'source', 'target', []))}"
    assert main(path, [*small(path, tmp_path), given, "--trainer.enable_progress_bar=false"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.strip().startswith(
        f"{typed('lit-seq2seq')} test --config {run}/config.yaml --ckpt_path {run}/checkpoints/"
    )
    assert cli_main(shlex.split(last)[shlex.split(last).index("test") :]) == 0


def test_mistakes_in_a_recipe_are_explained(tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_text("data: {dataset: x, batchsize: 3}\n")
    with pytest.raises(UserError, match=r"did you mean data\.batches"):
        load_recipe(tmp_path / "x.yaml")
    (tmp_path / "y.yaml").write_text("data: {dataset: x\n")
    assert main(tmp_path / "y.yaml", []) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("error: ")


def test_the_package_offers_what_the_documents_name() -> None:
    assert set(lit_seq2seq.__all__) == {"LitSeq2Seq", "Seq2SeqDataModule", "Seq2SeqModel", "load_recipe", "pipeline"}
    for name in lit_seq2seq.__all__:
        assert getattr(lit_seq2seq, name).__doc__
