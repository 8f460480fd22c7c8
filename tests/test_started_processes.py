"""Processes that the trainer starts by itself, as it does in notebooks: what they learn comes home."""

import json
import multiprocessing
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.callbacks import EMA
from lit_seq2seq.cli import main
from lit_seq2seq.hub.folder import load_checkpoint, tensors_of
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, make_trainer, write_recipe

pytestmark = pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork")

FRESH = {"class_path": "DDPStrategy", "init_args": {"start_method": "forkserver"}}  # a process without threads
STRATEGIES = [
    json.dumps(FRESH),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp_fork", "ddp_notebook", "ddp_spawn")),
]


def start(folder: Path, strategy: str, *callbacks: object):
    given = DDPStrategy(start_method="forkserver") if strategy == STRATEGIES[0] else strategy
    return make_trainer(folder, *callbacks, strategy=given, devices=1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_model_at_home_is_the_one_that_was_trained(tmp_path, strategy):
    model, data = make_model(), make_data()
    trainer = start(tmp_path, strategy, EMA(0.5))
    trainer.fit(model, datamodule=data)
    fitted = {name: float(trainer.callback_metrics[name]) for name in ("val_loss", "val_bleu")}
    here = make_trainer(tmp_path).validate(model, datamodule=make_data(), verbose=False)[0]
    assert {name: here[name] for name in fitted} == pytest.approx(fitted)
    assert trainer.validate(model, datamodule=data, verbose=False)[0]["val_loss"] == pytest.approx(fitted["val_loss"])
    model.save_pretrained(tmp_path / "model")
    saved = LitSeq2Seq.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(saved.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert all(isinstance(tensor, torch.Tensor) for tensor in model.state_dict().values())
    trainer.save_checkpoint(tmp_path / "home.ckpt")
    assert LitSeq2Seq.load_from_checkpoint(tmp_path / "home.ckpt").processor.identity() == model.processor.identity()


def test_a_vocabulary_that_grew_comes_home(tmp_path):
    model, data = make_model(), make_data()
    make_trainer(tmp_path).fit(model, datamodule=data)
    more = make_data(processor=model.processor, extend_vocabulary=20)
    more.dataset["train"] = more.dataset["train"].map(lambda row: {**row, "target": f"{row['target']} indeed"})
    before = model.processor.target.size
    start(tmp_path, STRATEGIES[0]).fit(model, datamodule=more)
    assert model.processor.target.size == before + 1 == model.net.decoder.embedding.num_embeddings


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_command_leaves_the_best_model(tmp_path, strategy):
    options = [f"--trainer.strategy={strategy}", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", str(write_recipe(tmp_path)), *options]) == 0
    (best,) = (tmp_path / "runs" / "version_0" / "checkpoints").glob("epoch*.ckpt")
    saved = LitSeq2Seq.from_pretrained(tmp_path / "runs" / "version_0" / "model")
    torch.testing.assert_close(dict(saved.state_dict()), tensors_of(load_checkpoint(best)), rtol=0, atol=0)
    assert saved.model.provenance.data == "own files train.csv, validation.csv, test.csv"
    assert saved.model.provenance.scores.keys() == {"val_bleu"}
    assert f"val_bleu={saved.model.provenance.scores['val_bleu']:.3f}" in best.name


# a model that was neither fitted nor loaded


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_a_network_that_nobody_built_or_loaded_is_not_evaluated(tmp_path, what):
    model, data = make_model(), make_data()
    for _ in range(2):
        with pytest.raises(UserError, match=r"no vocabulary yet: fit it .* or ckpt_path"):
            getattr(make_trainer(tmp_path), what)(model, datamodule=data)
    make_trainer(tmp_path).fit(model, datamodule=data)
    getattr(make_trainer(tmp_path), what)(model, datamodule=data)


def test_random_weights_are_told(tmp_path):
    model, data = make_model(), make_data()
    model.attach(data.processor)

    def use() -> None:
        make_trainer(tmp_path).validate(model, datamodule=data, verbose=False)
        list(Predictor(model).stream(["eins"]))
        model.save_pretrained(tmp_path / "model")
        LitSeq2Seq.ensemble([model])

    with pytest.warns(UserWarning, match="weights are random") as found:
        use()
    assert len([one for one in found if "weights are random" in str(one.message)]) == 4
    model.half().float().double().float()
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")
    torch.nn.init.normal_(model.net.decoder.embedding.weight)  # a loop of one's own
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*weights are random")
        use()
        make_trainer(tmp_path).test(loaded, datamodule=data, verbose=False)
