import csv
import json
import math
from functools import partial
from pathlib import Path

import pytest
import sacrebleu
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.tuner import Tuner
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule
from lit_seq2seq.callbacks import EMA, Checkpoint, PredictionWriter, average_checkpoints
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.nn import CTC, CopyOutput, TextEncoder
from lit_seq2seq.schedules import InverseSquareRoot, OneCycle
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import UserError
from tests.nn.cases import cross_entropy
from tests.tiny import DIGITS, loss_of, make_data, make_model, make_trainer, pairs, rows

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*smaller than the logging interval", "ignore:.*exists and is not empty", "ignore:.*LeafSpec.*"
)


class Collect(Callback):
    """The outputs of an evaluation, and their references."""

    def __init__(self) -> None:
        self.hypotheses: list[str] = []
        self.references: list[str] = []

    def on_test_batch_end(self, trainer, pl_module, outputs, *_):
        self.hypotheses += outputs["hypotheses"]
        self.references += [references[0] for references in outputs["references"]]

    on_validation_batch_end = on_test_batch_end


def weights(model: LitSeq2Seq) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.net.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[LitSeq2Seq, Seq2SeqDataModule]:
    """A model that has learned something, and its data; not to be changed."""
    model, data = make_model(optimizer=partial(torch.optim.Adam, lr=0.03)), make_data(rows(120), batch_size=16)
    make_trainer(tmp_path_factory.mktemp("learned"), max_epochs=8).fit(model, datamodule=data)
    return model.eval(), data


# evaluation


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_are_those_of_the_whole_split(learned, tmp_path, split):
    model, data = learned
    collected = Collect()
    trainer = make_trainer(tmp_path, collected)
    evaluate = trainer.validate if split == "val" else trainer.test
    scores = evaluate(model, datamodule=data, verbose=False)[0]
    assert len(collected.hypotheses) == {"val": 12, "test": 10}[split]
    expected = sacrebleu.corpus_bleu(collected.hypotheses, [collected.references]).score
    assert expected > 5
    assert scores[f"{split}_bleu"] == pytest.approx(expected, rel=1e-5)
    right = sum(h == r for h, r in zip(collected.hypotheses, collected.references, strict=True))
    assert scores[f"{split}_exact_match"] == pytest.approx(100 * right / len(collected.hypotheses))
    assert "tok:13a" in model.scores.signatures["bleu"]
    loss = loss_of(model, data.val_dataloader() if split == "val" else data.test_dataloader())
    assert scores[f"{split}_loss"] == pytest.approx(loss, rel=1e-5)
    assert scores[f"{split}_ppl"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_predictions_have_their_sources_and_references_in_the_file(learned, tmp_path):
    model, data = learned
    test = data._opened()["test"]
    make_trainer(tmp_path, PredictionWriter(str(tmp_path / "found.jsonl"), format="jsonl")).predict(
        model, datamodule=data, return_predictions=False
    )
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["source"] for row in found] == test["source"][:]
    assert [row["references"] for row in found] == [[text] for text in test["target"]]
    assert all(row["hypotheses"][0]["text"] for row in found)
    (tmp_path / "new.txt").write_text("eins zwei\n\ndrei\n")
    data = make_data(predict_dataset=str(tmp_path / "new.txt"), processor=model.processor)
    (batch,) = make_trainer(tmp_path).predict(model, datamodule=data)
    assert {row["row"]: (row["source"], row["references"]) for row in batch} == {
        0: ("eins zwei", []),
        1: ("", []),
        2: ("drei", []),
    }
    texts = {row["row"]: row["hypotheses"][0]["text"] for row in batch}
    assert [bool(texts[row]) for row in range(3)] == [True, False, True]


def test_predictions_name_their_rows_and_equal_the_test(learned, tmp_path):
    model, data = learned
    collected = Collect()
    make_trainer(tmp_path, collected).test(model, datamodule=data, verbose=False)
    batches = make_trainer(tmp_path).predict(model, datamodule=data)
    found = {prediction["row"]: prediction["hypotheses"][0]["text"] for batch in batches for prediction in batch}
    assert sorted(found) == list(range(10))
    assert sorted(found.values()) == sorted(collected.hypotheses)
    order = [source for batch in data.predict_dataloader() for source in batch.texts]
    assert sorted(order) == sorted(pairs(10, seed=2)["source"])


def test_fit_validates_with_its_own_number_of_beams(tmp_path):
    generation = GenerationConfig(num_beams=3, num_return_sequences=2, max_new_tokens=5)
    model, data = make_model(generation=generation, fit_num_beams=2), make_data()
    assert model.fit_generation == GenerationConfig(num_beams=2, max_new_tokens=5)
    make_trainer(tmp_path).fit(model, datamodule=data)
    predictions = make_trainer(tmp_path).predict(model, datamodule=data)
    assert {len(prediction["hypotheses"]) for batch in predictions for prediction in batch} == {2}


def test_several_beams_score_at_least_as_well(learned):
    model, data = learned
    for batch in data.test_dataloader():
        one = model.generate(batch.source, GenerationConfig(max_new_tokens=6, length_normalization="none"))
        many = model.generate(batch.source, GenerationConfig(6, max_new_tokens=6, length_normalization="none"))
        for greedy, beam in zip(one, many, strict=True):
            assert beam[0].log_prob >= greedy[0].log_prob - 1e-4


# gradients

UNEVEN = [
    "eins",
    "zwei drei",
    "eins zwei drei vier fünf eins",
    "vier",
    "fünf vier",
    "eins eins eins eins",
    "zwei",
    "drei",
]


def uneven_data(batch_size: int) -> Seq2SeqDataModule:
    targets = [" ".join(DIGITS[word] for word in text.split()) for text in UNEVEN]
    split = Dataset.from_dict({"source": UNEVEN, "target": targets})
    return make_data(DatasetDict({"train": split, "validation": split}), batch_size=batch_size, test_size=0)


def step(folder: Path, auxiliary: type[CTC] | None = None, **options: object) -> tuple[LitSeq2Seq, Trainer]:
    """Take one step of gradient descent over uneven batches, fewer than the ten to accumulate."""
    model = make_model(optimizer=partial(SGD, lr=1.0), label_smoothing=0.1, auxiliary=auxiliary)
    data = uneven_data(3)
    model.attach(data.processor)
    trainer = make_trainer(folder, accumulate_grad_batches=10, **options)
    trainer.fit(model, datamodule=data)
    return model, trainer


def one_batch(auxiliary: type[CTC] | None = None) -> tuple[LitSeq2Seq, dict[str, Tensor]]:
    """Take the same step by hand, over one batch."""
    model, data = make_model(label_smoothing=0.1, auxiliary=auxiliary), uneven_data(8)
    model.attach(data.processor)
    start = weights(model)
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert len(batches) == 1
    loss, _ = cross_entropy(model.net, batches[0].source, batches[0].target, 0.1)
    (loss / batches[0].target.total).backward()
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter -= parameter.grad
    assert all(not torch.equal(tensor, start[name]) for name, tensor in weights(model).items())
    return model, weights(model)


@pytest.mark.filterwarnings("ignore:CTC leaves out")
@pytest.mark.parametrize("auxiliary", [None, CTC])
def test_accumulated_batches_weigh_every_token_alike(tmp_path, auxiliary):
    _, expected = one_batch(auxiliary)
    model, trainer = step(tmp_path, auxiliary)
    assert trainer.global_step == 1
    torch.testing.assert_close(weights(model), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}])
def test_two_processes_equal_one(tmp_path, options):
    model, expected = one_batch()
    parts, trainer = step(tmp_path, strategy=DDPStrategy(start_method="forkserver", **options), devices=2)
    torch.testing.assert_close(weights(parts), expected, rtol=1e-5, atol=1e-6)
    alone = make_trainer(tmp_path).validate(model, datamodule=uneven_data(8), verbose=False)[0]
    for name in ("val_loss", "val_bleu", "val_exact_match"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(alone[name], rel=1e-4)


def test_gradients_are_clipped_by_their_common_norm(tmp_path):
    class Norm(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                self.found = float(torch.nn.utils.get_total_norm(gradients))

    norm = Norm()
    trainer = make_trainer(tmp_path, norm, gradient_clip_val=1e-3, max_steps=2)
    trainer.fit(make_model(), datamodule=make_data())
    assert norm.found == pytest.approx(1e-3, rel=1e-3)
    assert float(trainer.callback_metrics["grad_norm"]) > 1e-3


@pytest.mark.parametrize(("gradient", "left"), [(0.3, 0.3), (2.0, 0.5), (math.nan, math.nan), (math.inf, math.nan)])
def test_only_gradients_over_the_limit_change(tmp_path, gradient, left):
    class One(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            first, *others = [p.grad for p in pl_module.parameters() if p.grad is not None]
            for grad in (first, *others):
                grad.zero_()
            first.view(-1)[0] = gradient

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.left = next(p.grad for p in pl_module.parameters() if p.grad is not None).view(-1)[0]

    one = One()
    trainer = make_trainer(tmp_path, one, gradient_clip_val=0.5, max_steps=1)
    trainer.fit(make_model(), datamodule=make_data())
    torch.testing.assert_close(one.left, torch.tensor(left), rtol=1e-4, atol=0, equal_nan=True)
    torch.testing.assert_close(trainer.callback_metrics["grad_norm"], torch.tensor(gradient), equal_nan=True)


def test_the_norm_of_gradients_is_logged_without_clipping(tmp_path):
    class Norm(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self.found = torch.cat([gradient.flatten() for gradient in gradients]).norm()

    norm = Norm()
    trainer = make_trainer(tmp_path, norm, max_steps=2, log_every_n_steps=2)
    trainer.fit(make_model(), datamodule=make_data())
    torch.testing.assert_close(trainer.callback_metrics["grad_norm"], norm.found)


def test_a_batch_too_large_to_decode_is_decoded_in_parts(learned, monkeypatch):
    model, data = learned
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    whole, sizes = model.model.write(batch.source, batch.texts), []
    encode = model.model.encode

    def small(source):
        sizes.append(len(source.lengths))
        if len(source.lengths) > 2:
            torch.empty(2**50)
        return encode(source)

    monkeypatch.setattr(model.model, "encode", small)
    parts = model.model.write(batch.source, batch.texts)
    assert [[one.text for one in row] for row in parts] == [[one.text for one in row] for row in whole]
    assert max(sizes) == len(batch.texts) > 2
    monkeypatch.setattr(model.model, "encode", lambda _: torch.empty(2**50))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        model.model.write(batch.source, batch.texts)


def test_training_learns(learned, tmp_path):
    model, data = learned
    before = make_model()
    before.attach(data.processor)
    scores = [
        make_trainer(tmp_path).validate(m, datamodule=data, verbose=False)[0]["val_loss"] for m in (before, model)
    ]
    assert scores[1] < 0.6 * scores[0]


# resuming and saving


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "ema"])
def test_resumed_equals_uninterrupted(tmp_path, averaged):
    def run(name: str, ckpt_path: Path | None = None) -> LitSeq2Seq:
        model = make_model(lr_scheduler=OneCycle)
        checkpoint = Checkpoint("val_loss", save_top_k=-1, dirpath=str(tmp_path / name))
        callbacks = [checkpoint, *([EMA(0.9)] if averaged else [])]
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=3, enable_checkpointing=True)
        trainer.fit(model, datamodule=make_data(), ckpt_path=ckpt_path)
        return model

    whole = run("whole")
    first = next((tmp_path / "whole").glob("epoch=0*.ckpt"))
    resumed = run("resumed", first)
    equal(weights(resumed), weights(whole))
    last = [load_checkpoint(tmp_path / name / "last.ckpt") for name in ("whole", "resumed")]
    equal(*(checkpoint["state_dict"] for checkpoint in last))
    assert not list(tmp_path.rglob("*.part"))


def outputs(model: LitSeq2Seq, data: Seq2SeqDataModule) -> list[tuple[Tensor, list[list[int]]]]:
    found = []
    for batch in data.test_dataloader():
        hypotheses = model.generate(batch.source, GenerationConfig(num_beams=2, num_return_sequences=2))
        tokens = [hypothesis.tokens.tolist() for row in hypotheses for hypothesis in row]
        with torch.no_grad():
            found.append((model(batch.source, batch.target), tokens))
    return found


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_a_saved_folder_gives_the_same_model(tmp_path, shared):
    data = make_data(shared_vocabulary=shared)
    model = make_model(tie_embeddings="all" if shared else "target", label_smoothing=0.1)
    make_trainer(tmp_path).fit(model.train(), datamodule=data)
    model.save_pretrained(tmp_path / "model", {"test_bleu": 12.345})
    one, two = {"tokenizer.json", "tokenizer_config.json"}, {"source_tokenizer.json", "target_tokenizer.json"}
    names = {"config.json", "model.safetensors", "processor.json", "README.md"} | (one if shared else two)
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "| test_bleu | 12.35 | BLEU\\|nrefs:1" in card
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")
    assert not loaded.training
    assert dict(loaded.hparams) == dict(model.hparams)
    data.setup("test")
    torch.testing.assert_close(outputs(loaded, data), outputs(model.eval(), data), rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "again")
    equal(*(load_file(tmp_path / name / "model.safetensors") for name in ("model", "again")))


def test_a_checkpoint_gives_the_same_model(learned, tmp_path):
    model, data = learned
    trainer = make_trainer(tmp_path)
    trainer.validate(model, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = LitSeq2Seq.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert dict(loaded.hparams) == dict(model.hparams)
    data.setup("test")
    torch.testing.assert_close(outputs(loaded, data), outputs(model, data), rtol=0, atol=0)


def test_a_loaded_model_trains_on(learned, tmp_path):
    model, _ = learned
    model.save_pretrained(tmp_path / "model")
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")
    before = weights(loaded)

    class Mode(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            assert all(part.training for part in pl_module.net.modules())

    make_trainer(tmp_path, Mode(), max_steps=1).fit(loaded, datamodule=make_data(processor=loaded.processor))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(loaded).items())


def test_another_vocabulary_is_refused(learned, tmp_path):
    model, _ = learned
    with pytest.raises(UserError, match="another vocabulary than the model's: give the settings"):
        make_trainer(tmp_path).validate(model, datamodule=make_data(source_tokenizer=Tokenizer("char")))


def test_settings_of_training_a_tokenizer_are_no_other_vocabulary():
    model, tokenizer = make_model(), Tokenizer("bpe", vocab_size=40)
    tokenizer.train(["eins zwei"])
    model.attach(Processor(tokenizer, tokenizer))
    other = Tokenizer.from_json(tokenizer.to_json(), model="bpe", vocab_size=41, dropout=0.1)
    model.attach(Processor(other, other))
    with pytest.raises(UserError, match="another vocabulary"):
        model.attach(Processor(other, other, source_prefix="x"))


@pytest.mark.parametrize("use", ["validate", "test", "predict"])
def test_a_model_that_is_not_attached_takes_the_vocabulary_of_the_checkpoint(use, trained, tmp_path):
    def run(model, data):
        options = {} if use == "predict" else {"verbose": False}
        return getattr(make_trainer(tmp_path), use)(model, datamodule=data, ckpt_path=trained.last, **options)

    others = {**rows(), "train": Dataset.from_dict({"source": ["sechs sieben"] * 9, "target": ["six"] * 9})}
    expected = run(LitSeq2Seq.load_from_checkpoint(trained.last), make_data())
    for dataset in (others, {name: others[name] for name in ("validation", "test")}):
        assert run(make_model(), make_data(DatasetDict(dataset))) == expected
    learned = make_data(DatasetDict(others))
    learned.setup("fit")
    with pytest.raises(UserError, match="the data has another vocabulary than the model's"):
        run(make_model(), learned)


def test_a_model_without_data_says_so():
    model = make_model()
    with pytest.raises(UserError, match="no vocabulary yet"):
        _ = model.processor
    with pytest.raises(UserError, match="no vocabulary yet"):
        _ = model.net
    with pytest.raises(UserError, match=r"label_smoothing must be from 0 to below 1, got 1\.5"):
        make_model(label_smoothing=1.5)


def test_embeddings_that_cannot_be_tied_are_explained(tmp_path):
    model = make_model(tie_embeddings="all", encoder=partial(TextEncoder, embedding_dim=4, hidden_size=12))
    with pytest.raises(UserError, match=r"cannot be built: tie_embeddings: all .*use a shared vocabulary"):
        make_trainer(tmp_path).fit(model, datamodule=make_data())


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="not written by lit_seq2seq"):
        make_model().on_load_checkpoint({"state_dict": {}})


# vectors, schedules, learning rate


def test_pretrained_vectors_start_the_embeddings(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {' '.join([str(number)] * 8)}\n" for number, word in enumerate(["zwei", "two"])))

    class Seen(Callback):
        def on_train_start(self, trainer, pl_module):
            self.source = pl_module.net.encoder.token_embedding.weight.clone()
            self.target = pl_module.net.decoder.embedding.weight.clone()

    seen, model, data = Seen(), make_model(source_vectors=str(path), target_vectors=str(path)), make_data()
    make_trainer(tmp_path, seen, max_steps=1).fit(model, datamodule=data)
    assert seen.source[data.processor.source_feature.words().index("zwei")].tolist() == [0.0] * 8
    assert seen.target[data.processor.target.words().index("two")].tolist() == [1.0] * 8
    path.unlink()
    model.save_pretrained(tmp_path / "model")
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")  # needs the file no more
    make_trainer(tmp_path).test(loaded, datamodule=data, verbose=False)


class Rates(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [0.1] * 6),
        (partial(StepLR, step_size=2, gamma=0.5), [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]),
        (partial(InverseSquareRoot, warmup_steps=2), [0.05, 0.1, 0.1 * (2 / 3) ** 0.5, 0.1 * 0.5**0.5]),
        (partial(OneCycle, warmup=0.5, start=0.0, end=0.0), [0.1 * f for f in (0, 0.3454915, 0.9045085, 0.9045085)]),
        (partial(OneCycleLR, max_lr=0.3, total_steps=7, pct_start=3 / 7, div_factor=3), [0.1, 0.2, 0.3]),
        (partial(ReduceLROnPlateau, patience=0, threshold=1e9, factor=0.1), [0.1] * 3 + [0.01] * 3),
    ],
    ids=["constant", "StepLR", "InverseSquareRoot", "OneCycle", "OneCycleLR", "ReduceLROnPlateau"],
)
def test_schedules_move_the_rate_after_each_step(tmp_path, schedule, expected):
    found, model = Rates(), make_model(optimizer=partial(SGD, lr=0.1), lr_scheduler=schedule)
    options = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1}
    make_trainer(tmp_path, found, **options).fit(model, datamodule=make_data())
    assert len(found.rates) == 6
    assert found.rates[: len(expected)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2},
        {"max_steps": 3, "max_epochs": -1},
        {"max_steps": 9, "max_epochs": 1},
        {"max_epochs": 3, "limit_train_batches": 4},
        {"max_epochs": 3, "limit_train_batches": 0.5},
    ],
)
def test_one_cycle_learns_the_number_of_steps(tmp_path, options):
    model, data = make_model(lr_scheduler=OneCycle), make_data()
    data.setup("fit")
    per_epoch = data.batches_per_epoch
    limit = options.get("limit_train_batches", 1.0)
    used = min(limit, per_epoch) if isinstance(limit, int) else int(limit * per_epoch)
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2, limit_val_batches=0, **options)
    trainer.fit(model, datamodule=data)
    expected = 3 if options.get("max_steps") == 3 else options["max_epochs"] * -(-used // 2)
    assert model.lr_schedulers().total_steps == trainer.global_step == expected


def test_one_cycle_without_an_end_says_so(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=-1)
    with pytest.raises(UserError, match=r"OneCycle needs the number of steps: set total_steps"):
        trainer.fit(make_model(lr_scheduler=OneCycle), datamodule=make_data())


def test_the_learning_rate_finder_sets_the_rate(tmp_path):
    found, model, data = Rates(), make_model(lr_scheduler=partial(StepLR, step_size=1000)), make_data()
    assert model.learning_rate == 0.01
    trainer = make_trainer(tmp_path, found, limit_val_batches=0, max_epochs=5)
    suggestion = Tuner(trainer).lr_find(model, datamodule=data, min_lr=1e-4, num_training=20).suggestion()
    assert suggestion != 0.01
    assert model.learning_rate == model.hparams["optimizer"]["init_args"]["lr"] == suggestion
    trainer.fit(model, datamodule=data)
    assert found.rates[-1] == pytest.approx(suggestion)
    model.save_pretrained(tmp_path / "model")
    assert LitSeq2Seq.from_pretrained(tmp_path / "model").learning_rate == suggestion
    assert not list(tmp_path.glob(".lr_find*"))


def test_the_learning_rate_finder_works_as_a_callback(tmp_path):
    found, model = Rates(), make_model(lr_scheduler=partial(StepLR, step_size=1000))
    finder = LearningRateFinder(min_lr=1e-4, num_training_steps=20)
    trainer = make_trainer(tmp_path, finder, EMA(0.9), found, limit_val_batches=0, max_epochs=5)
    trainer.fit(model, datamodule=make_data())
    assert model.learning_rate == finder.optimal_lr.suggestion()
    assert found.rates == pytest.approx([model.learning_rate] * len(found.rates))


# short runs, logs, averages


def test_fast_dev_run_leaves_nothing(tmp_path):
    model, data = make_model(lr_scheduler=OneCycle), make_data()
    trainer = make_trainer(tmp_path, fast_dev_run=True)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert trainer.global_step == 1
    assert list(tmp_path.iterdir()) == []


def test_the_average_is_what_is_saved(tmp_path):
    class Last(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.weights = weights(pl_module)

    last, model = Last(), make_model()
    checkpoint = Checkpoint("val_loss", dirpath=str(tmp_path))
    make_trainer(tmp_path, EMA(0.9), last, checkpoint, enable_checkpointing=True).fit(model, datamodule=make_data())
    assert any(not torch.equal(last.weights[name], tensor) for name, tensor in weights(model).items())
    loaded = LitSeq2Seq.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    equal(weights(loaded), weights(model))
    equal(average_checkpoints([tmp_path / "last.ckpt"]), dict(model.state_dict()))


def test_logs_hold_the_scores(trained):
    with (trained.run / "metrics.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for column in ("train_loss", "val_loss", "val_ppl", "val_bleu", "val_exact_match"):
        assert any(row[column] for row in table), column
    assert list(trained.run.glob("events.out.tfevents*"))


def test_hypotheses_of_a_model_have_their_texts() -> None:
    data, model = make_data(), make_model()
    model.attach(data.processor)
    source = data.processor.source(["eins zwei", "drei"])
    config = GenerationConfig(num_beams=3, num_return_sequences=3, min_new_tokens=2, max_new_tokens=4)
    decoded = model.decode(model.encode(source), config)
    together = LitSeq2Seq.ensemble([model, model])
    for found in (decoded, model.generate(source, config), together.decode(together.encode(source), config)):
        for hypothesis in (one for row in found for one in row):
            assert hypothesis.text == data.processor.target.decode(hypothesis.tokens.tolist()) != ""


def test_copied_symbols_are_named_by_generate_and_unknown_to_decode() -> None:
    data = make_data(copy=True)
    model = make_model(output=CopyOutput)
    model.attach(data.processor)
    source = data.processor.source(["eins Wiseau"])
    size = data.processor.target.size
    config = GenerationConfig(do_sample=True, num_return_sequences=60, temperature=9.0, max_new_tokens=5, seed=1)
    generated, decoded = model.generate(source, config)[0], model.decode(model.encode(source), config)[0]
    copied = [place for place, one in enumerate(generated) if (one.tokens >= size).any()]
    assert copied
    names = set(source.extra(0))
    assert "Wiseau" in names
    for place in copied:
        assert names & set(generated[place].text.split())
        assert not names & set(decoded[place].text.split())
        assert "<unk>" in decoded[place].text
