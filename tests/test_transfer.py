"""A trained model goes on with other data: the same vocabulary, a longer one, another target."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import tokenizers
import torch
import yaml
from datasets import Dataset, DatasetDict
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe
from lit_seq2seq.cli import main
from lit_seq2seq.features import LogMel, Processor, Records, Tokenizer
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.metrics import ExactMatch
from lit_seq2seq.nn import CTC, CopyOutput, ParallelDecoder, PyramidalEncoder, TextEncoder
from lit_seq2seq.types import UserError
from tests.tiny import SIZES, Trained, make_data, make_model, make_trainer, pairs, rows, write_csv

OLD = ["zwei drei", "eins", "vier fünf eins"]
NEW = ["eins sechs", "sechs sieben", "zehn eins sieben sechs"]
KINDS = ("word", "char", "byte", "bpe", "unigram")


def trained_tokenizer(model: str, **options: object) -> Tokenizer:
    tokenizer = Tokenizer(model, **{"vocab_size": 40, **options})
    tokenizer.train(OLD * 3)
    return tokenizer


# vocabularies


@pytest.mark.parametrize("model", KINDS)
def test_old_symbols_keep_their_ids(model: str) -> None:
    old = trained_tokenizer(model)
    new = old.extended(NEW, limit=30)
    assert new.symbols[: len(old)] == old.symbols
    assert len(set(new.symbols)) == len(new) == new.backend.get_vocab_size()
    assert (len(new) > len(old)) == (model != "byte")
    assert new.specials == old.specials
    for text in NEW + OLD:
        assert new.decode(new.encode_batch([text])[0]) == text
    if model in ("word", "char", "byte"):
        assert new.encode_batch(OLD) == old.encode_batch(OLD)
    assert new.encode_batch(NEW) == Tokenizer.from_dict(new.to_dict()).encode_batch(NEW)


@pytest.mark.parametrize("model", ["word", "char", "bpe", "unigram"])
def test_no_more_symbols_are_added_than_allowed(model: str) -> None:
    old = trained_tokenizer(model)
    assert len(old.extended(NEW, limit=2)) == len(old) + 2
    assert old.extended(OLD, limit=0).symbols == old.symbols


def test_the_most_frequent_words_are_added() -> None:
    assert trained_tokenizer("word").extended(NEW, limit=2).symbols[-2:] == ["sechs", "sieben"]
    rare = trained_tokenizer("word", min_frequency=2).extended(NEW, limit=9)
    assert rare.symbols[-2:] == ["sechs", "sieben"]


def test_new_merges_join_what_old_ones_leave() -> None:
    old = trained_tokenizer("bpe")
    new = old.extended(["xyzxyz xyz"] * 5, limit=20)
    assert old.specials.unk in old.encode_batch(["xyz"])[0]
    assert len(new.encode_batch(["xyz"])[0]) == 1
    assert new.encode_batch(["eins"]) == old.encode_batch(["eins"])


def test_a_tokenizer_of_a_file_grows_by_its_own_rules(tmp_path: Path) -> None:
    trained_tokenizer("word", lowercase=True).save(tmp_path / "tokenizer.json")
    new = Tokenizer(file=str(tmp_path / "tokenizer.json")).extended(["SECHS, Eins"], limit=5)
    assert new.symbols[-2:] == ["sechs", "￭,"]
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}))
    backend.save(str(tmp_path / "pieces.json"))
    with pytest.raises(UserError, match=r"of this kind \(WordPiece\) cannot be extended: set data\.extend_vocabulary"):
        Tokenizer(file=str(tmp_path / "pieces.json")).extended(NEW, limit=5)


def test_records_grow() -> None:
    old = Records()
    old.train([["name[Aromi], food[Indian]"]])
    new = old.extended([["name[Aromi], area[centre]"]], limit=5)
    assert new.symbols[: old.size] == old.symbols
    assert sorted(new.symbols[old.size :]) == ["centre", "⟨area⟩"]


# networks

NETWORKS = {
    "free": {},
    "target": {"tie_embeddings": "target"},
    "all": {"tie_embeddings": "all"},
    "ctc": {"auxiliary": CTC},
    "copy": {"output": CopyOutput},
    "copy tied": {"output": CopyOutput, "tie_embeddings": "target"},
}


def start(shared: bool = False, **options: object) -> tuple[LitSeq2Seq, Processor]:
    """A model and a longer vocabulary for it."""
    source = trained_tokenizer("word")
    target = source if shared else trained_tokenizer("char")
    copy = "output" in options
    model = make_model(**options)
    model.attach(Processor(source, target, copy=copy))
    longer = source.extended(NEW, 10)
    return model.eval(), Processor(longer, longer if shared else target.extended(NEW, 10), copy=copy)


def scores(model: LitSeq2Seq, old: Processor) -> Tensor:
    """Score old symbols only, `(B, T, V)`: what they are relative to each other."""
    target = old.target.collate(old.target.encode(OLD)).to("cpu")
    with torch.no_grad():
        found = model(model.processor.source(OLD), target)[..., : len(old.target)]
    return found - found[..., :1]


@pytest.mark.parametrize("name", NETWORKS)
def test_old_symbols_score_as_before(name: str) -> None:
    model, longer = start(shared=name == "all", **NETWORKS[name])
    old, before = model.processor, scores(model, model.processor)
    memory = model.encode(old.source(OLD)).memory.values
    model.adapt(longer)
    torch.testing.assert_close(model.encode(longer.source(OLD)).memory.values, memory, rtol=0, atol=0)
    generated = model.processor.copy  # the gate's share of generating falls with every symbol that can be generated
    known = scores(model, old)
    if not generated:
        torch.testing.assert_close(known, before, rtol=1e-5, atol=1e-5)
    else:
        layer, features = model.net.output.generate, torch.randn(3, SIZES["hidden_size"])
        other, _ = start(**NETWORKS[name])
        torch.testing.assert_close(layer(features)[:, : len(old.target)], other.net.output.generate(features))
    assert known.shape == before.shape
    assert model.net.decoder.embedding.num_embeddings == len(longer.target) > len(old.target)


def test_new_rows_start_like_those_of_a_new_model() -> None:
    model, longer = start()
    old = len(model.processor.target)
    model.adapt(longer)
    rows_ = model.net.decoder.embedding.weight[old:]
    assert rows_.std().item() == pytest.approx(SIZES["embedding_dim"] ** -0.25, rel=0.35)
    assert model.net.output.projection.bias[old:].tolist() == [0] * len(rows_)


def test_another_target_starts_anew_and_all_else_stays() -> None:
    model, _ = start()
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    target = Tokenizer("word")
    target.train(["one two", "three"])
    model.adapt(Processor(model.processor.source_feature, target))
    fresh = {"decoder.embedding.weight", "output.projection.weight", "output.projection.bias"}
    for name, tensor in model.net.state_dict().items():
        assert name in fresh or torch.equal(tensor, before[name]), name
    assert model.net.decoder.embedding.num_embeddings == len(target)


def test_what_does_not_fit_is_said() -> None:
    model, longer = start()
    for options, message in (
        (
            {"encoder": partial(TextEncoder, embedding_dim=10, hidden_size=12)},
            r"is \(.*\) in the saved model and \(.*here",
        ),
        (
            {"encoder": partial(TextEncoder, num_layers=2, **SIZES)},
            "this model has encoder.*, but the saved one has not",
        ),
        ({"tie_embeddings": "target"}, "embedding.weight and .* are shared, but not in the saved|saved one has not"),
        (
            {"decoder": partial(ParallelDecoder, **SIZES)},
            "the saved model has decoder.attention.*, but this one has not",
        ),
    ):
        other = make_model(**options)
        other.attach(longer)
        with pytest.raises(UserError, match=message):
            other.model.take(model.model)
    speech = make_model(encoder=partial(PyramidalEncoder, hidden_size=12))
    speech.attach(Processor(LogMel(n_mels=10), longer.target))
    with pytest.raises(UserError, match="reads its source in another way than the model: give the source_feature"):
        speech.adapt(Processor(longer.source_feature, longer.target))


# training


def new_rows() -> DatasetDict:
    """Numbers with a word that was not there before."""
    more = {side: [f"{text} {word}" for text in pairs(16, seed=9)[side]] for side, word in EXTRA.items()}
    return DatasetDict(train=Dataset.from_dict(more), validation=Dataset.from_dict(more))


EXTRA = {"source": "sechs", "target": "six"}


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_a_loaded_model_is_trained_on_new_words(shared: bool, tmp_path: Path) -> None:
    model = make_model(tie_embeddings="all" if shared else "none")
    model.attach(make_data(shared_vocabulary=shared).processor)
    model.save_pretrained(tmp_path / "old")
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "old", {"optimizer": partial(torch.optim.SGD, lr=0.1)})
    data = make_data(new_rows(), processor=str(tmp_path / "old"), extend_vocabulary=5, test_size=0)
    make_trainer(tmp_path).fit(loaded, datamodule=data)
    assert loaded.hparams["optimizer"]["class_path"].endswith("SGD")
    assert "six" in loaded.processor.target.symbols
    assert loaded.processor.shared == shared
    loaded.save_pretrained(tmp_path / "new")
    again = LitSeq2Seq.from_pretrained(tmp_path / "new")
    batch = next(iter(data.val_dataloader()))
    loaded.eval()
    torch.testing.assert_close(again(batch.source, batch.target), loaded(batch.source, batch.target), rtol=0, atol=0)
    with pytest.raises(UserError, match="the data has another vocabulary than the model's"):
        make_trainer(tmp_path).fit(again, datamodule=make_data(new_rows(), test_size=0))


def test_a_new_target_language_keeps_the_source(tmp_path: Path) -> None:
    old = make_data()
    chars = make_data(new_rows(), processor=old.processor, target_tokenizer=Tokenizer("char"), test_size=0).processor
    assert chars.source_feature is old.processor.source_feature
    assert chars.target.config["model"] == "char"


def test_settings_that_exclude_each_other() -> None:
    processor = make_data().processor
    with pytest.raises(UserError, match=r"both are set: unset one, as by --data.source_tokenizer null"):
        make_data(processor=processor, source_tokenizer=Tokenizer("word"))
    with pytest.raises(UserError, match="extend_vocabulary, 3, must be at least 0 and needs a processor: set it"):
        Seq2SeqDataModule(rows(), extend_vocabulary=3)


def write_finetuning(folder: Path, model: Path) -> Path:
    write_csv(folder / "new.csv", new_rows()["train"].to_dict())
    text = FINETUNING.format(folder=folder, model=model)
    (folder / "finetune.yaml").write_text(text, encoding="utf-8")
    return folder / "finetune.yaml"


FINETUNING = """\
data: {{dataset: {folder}/new.csv, validation_size: 4, test_size: 0, batch_size: 8, extend_vocabulary: 5}}
model:
  init_from: {model}
  optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.001}}}}
  lr_factors: {{encoder: 0.1}}
trainer: {{accelerator: cpu, max_epochs: 1, default_root_dir: {folder}/runs, enable_model_summary: false}}
"""


def test_a_recipe_takes_what_it_does_not_say_from_the_model(trained: Trained, tmp_path: Path) -> None:
    path = write_finetuning(tmp_path, trained.model)
    recipe = load_recipe(path, ["--model.encoder.init_args.dropout", "0.5", "--model.generation.num_beams", "2"])
    saved = json.loads((trained.model / "config.json").read_text())["model"]
    hparams = recipe.model.hparams
    assert hparams["decoder"] == saved["decoder"]
    assert hparams["metrics"] == saved["metrics"]
    assert hparams["encoder"]["init_args"] == {**saved["encoder"]["init_args"], "dropout": 0.5}
    assert (hparams["generation"]["num_beams"], hparams["generation"]["max_new_tokens"]) == (2, 6)
    assert hparams["lr_scheduler"] is None


def test_the_command_line_starts_from_a_model(trained: Trained, tmp_path: Path) -> None:
    path = write_finetuning(tmp_path, trained.model)
    assert main(["fit", "--config", str(path)]) == 0
    run = tmp_path / "runs" / "version_0"
    before, after = (LitSeq2Seq.from_pretrained(folder) for folder in (trained.model, run / "model"))
    assert after.processor.target.symbols == [*before.processor.target.symbols, "six"]
    first = slice(0, len(before.processor.target))
    drift = after.net.decoder.embedding.weight[first] - before.net.decoder.embedding.weight
    assert 0 < drift.abs().max() < 0.01
    assert after.init_from is None
    assert main(["validate", "--config", str(path), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0


class OwnMetric(ExactMatch):
    """A class outside the package."""


def test_a_run_goes_on_without_the_model_that_it_started_from(trained: Trained, tmp_path: Path) -> None:
    start = Path(shutil.copytree(trained.model, tmp_path / "start"))
    metrics = '--model.metrics=[lit_seq2seq.metrics.BLEU, {"class_path": "tests.test_transfer.OwnMetric"}]'

    def run(name: str, *options: str) -> Path:
        root = f"--trainer.default_root_dir={tmp_path / name}"
        given = [metrics, root, "--data.extend_vocabulary=1", *options]
        built = load_recipe(write_finetuning(tmp_path, start), given)
        built.trainer.fit(built.model, datamodule=built.datamodule)
        return tmp_path / name

    whole = run("whole", "--trainer.max_epochs=2")
    half = run("half")
    shutil.rmtree(start)
    again = ["fit", "--config", str(tmp_path / "finetune.yaml"), metrics, f"--trainer.default_root_dir={half}"]
    assert main([*again, "--data.extend_vocabulary=1", "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    last = half / "version_0" / "checkpoints" / "last.ckpt"
    weights, expected = (load_checkpoint(path / last.relative_to(half))["state_dict"] for path in (half, whole))
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    recipe = str(tmp_path / "finetune.yaml")
    assert main(["validate", "--config", recipe, metrics, "--ckpt_path", str(last)]) == 0
    saved = half / "version_0" / "config.yaml"
    assert yaml.safe_load(saved.read_text(encoding="utf-8"))["data"]["extend_vocabulary"] == 1


def test_python_goes_on_without_the_model_that_it_started_from(trained: Trained, tmp_path: Path) -> None:
    start = str(shutil.copytree(trained.model, tmp_path / "start"))
    make = LitSeq2Seq.from_pretrained(start).hparams

    def fit(model: LitSeq2Seq, processor: Processor | str, epochs: int, **options: str) -> LitSeq2Seq:
        data = Seq2SeqDataModule(new_rows(), processor=processor, batch_size=8, extend_vocabulary=1, test_size=0)
        saving = ModelCheckpoint(tmp_path / "saved", filename="half", every_n_epochs=1)
        trainer = make_trainer(tmp_path, saving, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, datamodule=data, **options)
        return model

    def fresh() -> LitSeq2Seq:
        return LitSeq2Seq(**{**make, "init_from": start, "lr_scheduler": None})

    torch.manual_seed(0)
    whole = fit(fresh(), start, 2)
    torch.manual_seed(0)
    shutil.rmtree(tmp_path / "saved")
    fit(fresh(), start, 1)
    last = str(tmp_path / "saved" / "half.ckpt")
    shutil.rmtree(start)
    advice = r"there is no folder .*; to go on with a run from ckpt_path, .* LitSeq2Seq.load_from_checkpoint\(PATH\)"
    with pytest.raises(UserError, match=f"processor: {advice}"):
        fit(fresh(), start, 2, ckpt_path=last)
    again = LitSeq2Seq.load_from_checkpoint(last)
    with pytest.raises(UserError, match=f"init_from: {advice}"):
        fit(fresh(), again.processor, 2, ckpt_path=last)
    fit(again, again.processor, 2, ckpt_path=last)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_mistakes_of_the_command_line_are_said(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_finetuning(tmp_path, trained.model)
    with pytest.raises(UserError, match="both are set: unset one"):
        load_recipe(path, ["--data.source_tokenizer.model", "word"])
    with pytest.raises(UserError, match="there is no folder"):
        load_recipe(path, ["--model.init_from", str(tmp_path / "none")])
    assert main(["fit", "--config", str(path), "--model.decoder.init_args.embedding_dim", "10"]) == 1
    assert "in the saved model" in capsys.readouterr().err
