"""Language models: texts without a source, each by itself or as running text."""

import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch import Callback, seed_everything
from starlette.testclient import TestClient

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, Seq2SeqModel, pipeline
from lit_seq2seq.callbacks import Checkpoint
from lit_seq2seq.cli import main
from lit_seq2seq.cli.recipe import main as recipe_main
from lit_seq2seq.cli.summary import typed
from lit_seq2seq.export import export_model
from lit_seq2seq.features import Prompt, Tokenizer
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import BLEU
from lit_seq2seq.nn import LearnedBridge, NoSource, ParallelDecoder, TextEncoder, ZeroBridge
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.serve import make_app
from lit_seq2seq.serve.page import Page
from lit_seq2seq.serve.schema import RequestLimits
from lit_seq2seq.training.objectives import RDrop
from lit_seq2seq.types import Padded, UserError
from tests.test_recipes import small
from tests.test_resume import Kill, KilledError, Seen, after, equal
from tests.tiny import make_trainer, pairs

COLUMNS = {"source": None, "target": "text"}


def texts(count: int, seed: int) -> list[str]:
    return pairs(count, seed)["target"]


def rows(train: int = 40) -> DatasetDict:
    sizes = {"train": train, "validation": 11, "test": 10}
    return DatasetDict({name: Dataset.from_dict({"text": texts(n, i)}) for i, (name, n) in enumerate(sizes.items())})


def make_data(**options: Any) -> Seq2SeqDataModule:
    settings = {"columns": COLUMNS, "target_tokenizer": Tokenizer("word"), "batches": {"size": 8}, **options}
    return Seq2SeqDataModule(settings.pop("dataset", None) or rows(), **settings)


def make_model(**options: Any) -> LitSeq2Seq:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"embedding_dim": 8, "hidden_size": 12, "bridge": LearnedBridge}
    defaults = {
        "encoder": NoSource,
        "decoder": partial(ParallelDecoder, **sizes, dropout=0.2),
        "tie_embeddings": "target",
        "optimizer": partial(torch.optim.Adam, lr=0.02),
        "generation": GenerationConfig(max_new_tokens=6),
        "task": "text-generation",
    }
    return LitSeq2Seq(**{**defaults, **options})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts, each by itself, saved as a folder."""
    folder = tmp_path_factory.mktemp("model")
    model = make_model()
    trainer = make_trainer(folder, max_epochs=20, limit_val_batches=0)
    trainer.fit(model, datamodule=make_data())
    model.save_pretrained(folder / "saved")
    return folder / "saved"


@torch.no_grad()
def nats_of(model: LitSeq2Seq, found: list[str]) -> tuple[float, int]:
    """Score texts by steps: the negative log-likelihood in all, and the number of symbols."""
    total, count = 0.0, 0
    network, specials = model.net, model.processor.target.specials
    for ids in model.processor.target.encode(found):
        state = network.start(model.encode([""]))
        for before, after_it in itertools.pairwise([specials.bos, *ids.tolist()]):
            step = network.step(torch.tensor([before]), state)
            state, total, count = step.state, total - float(step.log_probs[0, after_it]), count + 1
    return total, count


# each text by itself


def test_perplexity_and_bits_per_character_are_those_of_all_texts(tmp_path, trained):
    model = LitSeq2Seq.from_pretrained(trained)
    scores = make_trainer(tmp_path).test(model, datamodule=make_data(), verbose=False)[0]
    found = texts(10, 2)
    nats, count = nats_of(model, found)
    assert scores["test_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert scores["test_ppl"] == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert scores["test_bpc"] == pytest.approx(nats / math.log(2) / sum(len(text) + 1 for text in found), rel=1e-5)
    assert model.scores.signatures == {
        "ppl": "per:token|eos:yes|vocabulary:9|state:new",
        "bpc": "per:character|eos:yes|vocabulary:9|state:new",
    }
    assert model.scores.rows == 10


def test_all_characters_of_texts_count_also_spaces(tmp_path):
    found = ["  a  b", "b\u0301    a", "a"]
    parts = {name: Dataset.from_dict({"text": found}) for name in ("train", "validation", "test")}
    model, data = make_model(), make_data(dataset=DatasetDict(parts), target_tokenizer="char")
    model.attach(data.processor)
    model.eval()
    scores = make_trainer(tmp_path).test(model, datamodule=data, verbose=False)[0]
    nats, count = nats_of(model, found)
    assert count == sum(len(text) + 1 for text in found) == 17
    assert scores["test_bpc"] == pytest.approx(nats / math.log(2) / 17, rel=1e-5)


def test_a_saved_model_steps_without_a_source(trained):
    model = Seq2SeqModel.from_pretrained(trained)
    encoded = model.encode(["", "", ""])
    step = model.searched.step(torch.full((3,), 2), model.searched.start(encoded))
    torch.testing.assert_close(step.log_probs.exp().sum(dim=1), torch.ones(3))
    torch.testing.assert_close(step.log_probs[0], step.log_probs[2])
    assert isinstance(model.processor.source_feature, Prompt)
    assert not (trained / "source_tokenizer.json").exists()


def test_outputs_begin_with_their_prompts_however_they_come_together(trained):
    model = Seq2SeqModel.from_pretrained(trained)
    prompts = ["", "four five", "one", None]
    found = model.generate(prompts, GenerationConfig(num_beams=3, max_new_tokens=6))
    alone = [model.generate([one], GenerationConfig(num_beams=3, max_new_tokens=6))[0] for one in prompts]
    assert [row[0].text for row in found] == [row[0].text for row in alone]
    assert all(row[0].text.startswith(one or "") for one, row in zip(prompts, found, strict=True))
    assert found[1][0].log_prob == pytest.approx(alone[1][0].log_prob, rel=1e-4)
    given = model.decode(model.encode(["four"]), prefix=torch.tensor([model.processor.target.encode_batch(["one"])[0]]))
    assert given[0][0].text.startswith("one")


def test_pipelines_have_the_shapes_of_transformers(trained):
    write = pipeline("text-generation", model=trained)
    one = write("one two")
    assert [list(found) for found in one] == [["generated_text"]]
    assert one[0]["generated_text"].startswith("one two")
    assert write(["one two", ""]) == [one, write("")]
    drawn = write("three", do_sample=True, num_return_sequences=3, seed=1)
    assert len(drawn) == 3
    assert all(found["generated_text"].startswith("three") for found in drawn)
    assert "".join(write.stream("one two")) == one[0]["generated_text"]


def test_predictions_go_on_from_prompts_or_from_nothing(tmp_path, trained):
    model = LitSeq2Seq.from_pretrained(trained)
    prompts = Dataset.from_dict({"prompt": ["two", "", "five one"]})
    data = make_data(columns={"source": "prompt", "target": "text"}, predict_dataset=prompts, target_tokenizer=None)
    found = [one for batch in make_trainer(tmp_path).predict(model, datamodule=data) for one in batch]
    by_row = {one["row"]: one["hypotheses"][0]["text"] for one in found}
    assert by_row[0].startswith("two")
    assert by_row[2].startswith("five one")
    assert by_row[1]
    freely = [one for batch in make_trainer(tmp_path).predict(model, datamodule=make_data()) for one in batch]
    assert len(freely) == 10
    assert {one["hypotheses"][0]["text"] for one in freely} == {by_row[1]}


@pytest.mark.parametrize(
    ("model", "data", "told"),
    [
        ({"encoder": TextEncoder}, {}, "there are no source symbols to embed: set model.encoder to lit_seq2seq.nn.NoS"),
        ({}, {"columns": {"source": "text", "target": "text"}}, "the data has one: set data.columns.source to null"),
        (
            {"decoder": partial(ParallelDecoder, hidden_size=12)},
            {},
            "DenseBridge .the ZeroBridge where there is no sou",
        ),
        ({"metrics": [BLEU]}, {}, "metrics compare outputs with references"),
        ({}, {"source_tokenizer": Tokenizer("word")}, "columns.source is null, so that there is nothing to read"),
        ({}, {"source_feature": Tokenizer("word")}, "columns.source is null, so that there is nothing to read"),
        (
            {},
            {"source_feature": Prompt(), "columns": {"source": "text", "target": "text"}},
            "expected columns.source to be null, as the model has no source, but it is text",
        ),
        ({}, {"columns": {**COLUMNS, "tags": "text"}}, "expected no columns.tags"),
        ({}, {"copy": True}, "expected text sources to copy from, got Prompt"),
    ],
)
def test_what_does_not_go_together_is_told(tmp_path, model, data, told):
    with pytest.raises(UserError, match=told):
        make_trainer(tmp_path).fit(make_model(**model), datamodule=make_data(**data))


def test_a_vocabulary_that_grows_is_that_of_prompts_too(trained):
    data = make_data(
        dataset=DatasetDict(train=Dataset.from_dict({"text": ["one six", "seven"]})),
        processor=str(trained),
        extend_vocabulary=5,
        splits={"validation_size": 0, "test_size": 0},
        target_tokenizer=None,
    )
    model = LitSeq2Seq.from_pretrained(trained)
    model.adapt(data.processor)
    assert len(model.processor.target) == 11
    assert model.generate(["six seven"])[0][0].text.startswith("six seven")


# running text

RUNNING = {"size": 3, "bptt": 4, "eval_size": 1}


def test_perplexity_of_running_text_is_that_of_one_pass(tmp_path, trained):
    model = LitSeq2Seq.from_pretrained(trained)
    found = {}
    for bptt in (4, 1000):
        data = make_data(batches={**RUNNING, "bptt": bptt}, target_tokenizer=None)
        found[bptt] = make_trainer(tmp_path).test(model, datamodule=data, verbose=False)[0]
    assert found[4] == pytest.approx(found[1000], rel=1e-5)
    target = model.processor.target.encode(texts(10, 2))
    ids = torch.tensor([[index for row in target for index in row.tolist()]])
    with torch.no_grad():
        begun = model.net.begin(model.processor.source([""]))
        _, nats, _ = model.net.read_on(Padded(ids, torch.tensor([ids.shape[1]])), begun)
    assert found[4]["test_loss"] == pytest.approx(float(nats) / ids.shape[1], rel=1e-5)
    characters = sum(len(text) + 1 for text in texts(10, 2))
    assert found[4]["test_bpc"] == pytest.approx(float(nats) / math.log(2) / characters, rel=1e-5)
    assert model.scores.signatures["ppl"] == "per:token|eos:yes|vocabulary:9|state:carried|streams:1"
    alone = make_trainer(tmp_path).test(model, datamodule=make_data(target_tokenizer=None), verbose=False)[0]
    assert alone["test_loss"] != pytest.approx(found[4]["test_loss"], rel=1e-3)


class Losses(Callback):
    """The loss of each training batch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(float(trainer.callback_metrics["train_loss"]))


def test_training_carries_the_state_across_batches_and_validations(tmp_path):
    """With a rate of 0, losses by pieces are those of whole streams; in each epoch anew."""
    losses = Losses()
    model = make_model(
        decoder=partial(ParallelDecoder, embedding_dim=8, hidden_size=12, bridge=ZeroBridge),
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    data = make_data(batches={**RUNNING, "size": 2})
    make_trainer(tmp_path, losses, max_epochs=2, val_check_interval=2).fit(model, datamodule=data)
    batches = list(data.train_dataloader())
    half = len(batches)
    assert losses.found[:half] == pytest.approx(losses.found[half:])
    model.eval()
    streams = [[int(x) for b in batches for x in b.target.values[row, : b.target.lengths[row]]] for row in range(2)]
    nats = 0.0
    for stream in streams:
        ids = torch.tensor([stream])
        with torch.no_grad():
            begun = model.net.begin(model.processor.source([""]))
            nats += float(model.net.read_on(Padded(ids, torch.tensor([len(stream)])), begun)[1])
    sizes = [int(batch.target.total) for batch in batches]
    found = sum(loss * size for loss, size in zip(losses.found, sizes, strict=False))
    assert found == pytest.approx(nats, rel=1e-5)


def run(folder: Path, *callbacks: Callback, resume: Path | None = None, **options: Any) -> LitSeq2Seq:
    model, data = make_model(), make_data(batches={**RUNNING, "num_workers": options.pop("num_workers", 0)})
    keep = Checkpoint("val_loss", dirpath=str(folder), save_top_k=0, every_n_steps=1)
    seed_everything(7, verbose=False)
    options = {"max_epochs": 2, "enable_checkpointing": True, "limit_train_batches": 7, **options}
    make_trainer(folder, *callbacks, keep, **options).fit(model, datamodule=data, ckpt_path=resume)
    return model


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3, "num_workers": 1}, {"accumulate_grad_batches": 2}])
def test_a_run_that_is_killed_within_running_text_goes_on_exactly(tmp_path, options):
    seen = Seen()
    whole = run(tmp_path / "whole", seen, **options)
    last = max(seen.step_of.values())
    folder = tmp_path / "cut"
    with pytest.raises(KilledError):
        run(folder, Seen(), Kill(2), **options)
    for step in (last // 2, last - 1):
        with pytest.raises(KilledError):
            run(folder, Seen(), Kill(step), resume=folder / "last.ckpt", **options)
    again = Seen()
    equal(run(folder, again, resume=folder / "last.ckpt", **options), whole)
    assert again.batches == after(seen.batches, min(again.batches))
    assert again.scores == after(seen.scores, last)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": RDrop}, "RDrop reads each target by itself: leave data.batches.bptt out"),
        ({"split_on_oom": True}, "split_on_oom takes batches apart"),
    ],
)
def test_what_running_text_does_not_go_with_is_told(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        make_trainer(tmp_path).fit(make_model(**options), datamodule=make_data(batches=RUNNING))


def test_other_pieces_are_refused_within_an_epoch(tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, Kill(2))
    data = make_data(batches={**RUNNING, "bptt": 5})
    with pytest.raises(UserError, match="was interrupted within an epoch with bptt 4, but it is 5"):
        make_trainer(tmp_path, max_epochs=2).fit(make_model(), datamodule=data, ckpt_path=tmp_path / "last.ckpt")


# where it is used


def test_the_command_line_reads_a_prompt_a_line(trained, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two\n\nfive\n", encoding="utf-8")
    assert main(["generate", "--model", str(trained), "--input", str(prompts)]) == 0
    first, free, last = capsys.readouterr().out.splitlines()
    write = pipeline("text-generation", model=trained)
    assert [first, free, last] == [one[0]["generated_text"] for one in write(["one two", "", "five"])]
    assert first.startswith("one two")
    assert free


def test_an_exported_model_goes_on_from_prompts_as_the_model_does(trained, tmp_path):
    model = Seq2SeqModel.from_pretrained(trained)
    export_model(model, tmp_path, ["fp32"])
    exported, prompts = Model(tmp_path), ["one two", "", "five", None]
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        expected = model.generate(prompts, model.generation.changed(options))
        found = exported(prompts, **options)
        assert [[one.text for one in row] for row in found] == [[one.text for one in row] for row in expected]
        scores = [[one.score for one in row] for row in expected]
        assert [[one.score for one in row] for row in found] == [pytest.approx(row, rel=1e-4) for row in scores]


def test_the_server_and_the_page_take_a_prompt_or_none(trained):
    write = pipeline("text-generation", model=trained)
    with TestClient(make_app(str(trained), RequestLimits()), base_url="http://localhost") as client:
        for prompt in ("one two", ""):
            answer = client.post("/predict", json={"text": prompt}).json()
            assert answer["outputs"][0]["text"] == write(prompt)[0]["generated_text"]
        lines = [json.loads(line) for line in client.post("/stream", json={"text": "one two"}).text.splitlines()]
    assert "".join(line.get("text", "") for line in lines) == write("one two")[0]["generated_text"]
    _, table, picture = Page(Predictor(Seq2SeqModel.from_pretrained(trained))).answer(
        "", 1, 1, 6, sample=False, temperature=1.0
    )
    assert [row[1] for row in table] == [write("")[0]["generated_text"]]
    assert picture is None


def test_plain_text_is_read_a_text_a_line(tmp_path):
    for name, seed in {"train": 0, "validation": 1, "test": 2}.items():
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(12, seed)) + "\n", encoding="utf-8")
    for given in (str(tmp_path), {name: str(tmp_path / f"{name}.txt") for name in ("train", "validation", "test")}):
        data = Seq2SeqDataModule(given, columns=COLUMNS, target_tokenizer="word", batches={"size": 4})
        assert [text for _, text in data.first_rows("train", 3)] == texts(12, 0)[:3]


def test_the_recipe_ends_with_scores_outputs_and_a_command(tmp_path, capsys):
    path = Path(__file__).parent.parent / "recipes" / "language_model" / "builtin.yaml"
    assert recipe_main(path, [*small(path, tmp_path), "--trainer.enable_progress_bar=false"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    model = tmp_path / "version_0" / "model"
    assert f"echo '' | {typed('lit-seq2seq')} generate --model {model} --num_return_sequences 3" in out
    for found in ("bpc", "ppl", "Ten outputs of the test split", "recipes/language_model/your_files.yaml"):
        assert found in out
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-generation" in card
    assert "per:character" in card
