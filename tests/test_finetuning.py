"""Which parts learn, when, and how fast."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.callbacks import EMA, Checkpoint, GradualUnfreezing
from lit_seq2seq.nn import ConvEncoder, EncoderDecoder, ParallelDecoder, TextEncoder
from lit_seq2seq.nn.parts import find_part, parameter_groups
from lit_seq2seq.schedules import OneCycle
from lit_seq2seq.types import UserError
from tests.nn.cases import ENCODERS, IMAGE_ENCODERS
from tests.tiny import SIZES, make_data, make_model, make_trainer


class Epochs(Callback):
    """Keeps the weights before each epoch and after the last, and the rates of the last step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights.append({name: p.detach().clone() for name, p in pl_module.net.named_parameters()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        self.rates = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def moved(self, epoch: int) -> set[str]:
        """Name the weights that changed in an epoch."""
        first, last = self.weights[epoch], self.weights[epoch + 1]
        return {name for name in first if not torch.equal(first[name], last[name])}


CASES = {
    "AdamW": (partial(AdamW, lr=0.01, weight_decay=0.1), OneCycle),
    "fused AdamW": (partial(AdamW, lr=0.01, fused=True), None),
    "SGD": (partial(SGD, lr=0.1, momentum=0.9), partial(StepLR, step_size=3)),
}


@pytest.mark.parametrize(("optimizer", "scheduler"), CASES.values(), ids=CASES)
def test_parts_learn_from_their_epoch_on(optimizer: object, scheduler: object, tmp_path: Path) -> None:
    seen = Epochs()
    frozen = GradualUnfreezing({"encoder": 1, "encoder.embedding": 2, "decoder.embedding": None})
    model = make_model(optimizer=optimizer, lr_scheduler=scheduler)
    make_trainer(tmp_path, frozen, seen, max_epochs=3).fit(model, datamodule=make_data())
    names = set(seen.weights[0])
    encoder = {name for name in names if name.startswith("encoder.")}
    never = {"decoder.embedding.weight"}
    assert seen.moved(0) == names - encoder - never
    assert seen.moved(1) == names - {"encoder.embedding.weight"} - never
    assert seen.moved(2) == names - never


def test_a_resumed_run_frees_what_the_whole_one_does(tmp_path: Path) -> None:
    def run(name: str, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        model = make_model(lr_scheduler=OneCycle, lr_factors={"encoder": 0.5})
        callbacks = [GradualUnfreezing({"encoder": 1, "decoder.embedding": None}), EMA(0.9)]
        callbacks.append(Checkpoint("val_loss", save_top_k=-1, dirpath=str(tmp_path / name)))
        trainer = make_trainer(tmp_path, *callbacks, max_epochs=3, enable_checkpointing=True)
        trainer.fit(model, datamodule=make_data(), ckpt_path=ckpt_path)
        return model.net.state_dict()

    whole = run("whole")
    for epoch in (0, 1):
        resumed = run(f"resumed{epoch}", next((tmp_path / "whole").glob(f"epoch={epoch}*.ckpt")))
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_a_shared_weight_is_frozen_while_one_of_its_parts_is(tmp_path: Path) -> None:
    seen = Epochs()
    model = make_model(tie_embeddings="target")
    make_trainer(tmp_path, GradualUnfreezing({"decoder.embedding": 1}), seen, max_epochs=2).fit(
        model, datamodule=make_data()
    )
    assert "decoder.embedding.weight" not in seen.moved(0)
    assert "output.projection.bias" in seen.moved(0)
    assert "decoder.embedding.weight" in seen.moved(1)


def test_the_statistics_of_a_frozen_part_stay() -> None:
    model, callback = LightningModule(), GradualUnfreezing({"encoder": 1})
    model.net = nn.ModuleDict({"encoder": nn.BatchNorm1d(2)})
    norm, x = model.net["encoder"], torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    callback.freeze_before_training(model)
    torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
    assert norm.running_mean.tolist() == [0, 0]
    callback.finetune_function(model, 1, SGD(model.parameters(), lr=1.0))
    assert norm(x).mean(dim=0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert norm.running_mean.tolist() != [0, 0]


def test_unknown_parts_are_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, GradualUnfreezing({"encoder.embeddings": 1}))
    with pytest.raises(UserError, match=r"no 'encoder\.embeddings': the parts of encoder are embedding, stack: check "):
        trainer.fit(make_model(), datamodule=make_data())
    with pytest.raises(UserError, match=r"the parts of the model are encoder, .*: check lr_factors"):
        make_trainer(tmp_path).fit(make_model(lr_factors={"endocer": 0.5}), datamodule=make_data())
    with pytest.raises(UserError, match=r"no 'encoder\.embedding\.x': encoder\.embedding|embedding has no parts"):
        find_part(nn.ModuleDict({"embedding": nn.Embedding(2, 2)}), "embedding.x", "x")
    with pytest.raises(UserError, match="lr_factors must be above 0, but that of encoder is 0: freeze"):
        make_trainer(tmp_path).fit(make_model(lr_factors={"encoder": 0}), datamodule=make_data())


def factors_of(network: nn.Module, factors: object) -> dict[str, float]:
    """Name the factor of every parameter."""
    names = {id(p): name for name, p in network.named_parameters()}
    groups = parameter_groups(network, factors)
    found = {names[id(p)]: group["factor"] for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(names)
    return found


def network(tie: str = "none", layers: int = 2) -> EncoderDecoder:
    encoder = partial(TextEncoder, num_layers=layers, **SIZES)
    return EncoderDecoder(9, 9, encoder, partial(ParallelDecoder, **SIZES), tie_embeddings=tie)


def test_the_longest_name_and_the_least_factor_count() -> None:
    found = factors_of(network("target"), {"encoder": 0.1, "encoder.embedding": 0.5, "output": 0.2})
    assert found["encoder.embedding.weight"] == 0.5
    assert {value for name, value in found.items() if name.startswith("encoder.stack")} == {0.1}
    assert found["decoder.embedding.weight"] == found["output.projection.bias"] == 0.2
    assert {value for name, value in found.items() if name.startswith("decoder.") and "embed" not in name} == {1.0}


def test_rates_fall_from_the_last_block_of_the_encoder_to_its_embedding() -> None:
    found = factors_of(network(layers=3), 0.5)
    assert found.pop("encoder.embedding.weight") == 0.5**4
    for layer in range(3):
        assert {found[name] for name in found if f"encoder.stack.layers.{layer}." in name} == {0.5 ** (3 - layer)}
    assert {value for name, value in found.items() if not name.startswith("encoder.stack")} == {1.0}


@pytest.mark.parametrize("make", [*ENCODERS.values(), *IMAGE_ENCODERS.values()], ids=[*ENCODERS, *IMAGE_ENCODERS])
def test_every_encoder_has_rates_that_rise_from_its_input_to_its_output(make: object) -> None:
    whole = nn.ModuleDict({"encoder": make(3 if isinstance(make, partial) and make.func is ConvEncoder else 9)})
    found = factors_of(whole, 0.5)
    rates = [found[name] for name, _ in whole.named_parameters()]
    assert rates == sorted(rates)
    assert rates[0] < 1


@pytest.mark.parametrize("scheduler", [None, OneCycle, partial(StepLR, step_size=1, gamma=0.5)])
def test_schedules_scale_the_rate_of_each_part(scheduler: object, tmp_path: Path) -> None:
    seen = Epochs()
    model = make_model(lr_scheduler=scheduler, lr_factors={"encoder": 0.1, "decoder.embedding": 0.5})
    make_trainer(tmp_path, seen).fit(model, datamodule=make_data())
    full, half, tenth = seen.rates
    assert (half / full, tenth / full) == pytest.approx((0.5, 0.1))
    if scheduler is None:
        assert full == 0.01
    model.save_pretrained(tmp_path / "model")
    assert LitSeq2Seq.from_pretrained(tmp_path / "model").lr_factors == model.lr_factors
    model.learning_rate = 0.02
    for config in model.trainer.lr_scheduler_configs:
        assert config.scheduler.base_lrs == pytest.approx([0.02, 0.01, 0.002])


def test_a_schedule_that_sets_one_rate_for_all_is_refused(tmp_path: Path) -> None:
    model = make_model(lr_scheduler=partial(OneCycleLR, max_lr=0.1, total_steps=50), lr_factors={"encoder": 0.1})
    with pytest.raises(UserError, match="sets one rate for all parts, whatever lr_factors says: use one that scales"):
        make_trainer(tmp_path).fit(model, datamodule=make_data())


@pytest.mark.slow
def test_frozen_parts_over_two_processes(tmp_path: Path) -> None:
    options = {"max_epochs": 2, "accumulate_grad_batches": 10}  # one step an epoch

    def trainer(strategy: str) -> Trainer:
        return make_trainer(tmp_path, GradualUnfreezing({"encoder": 1}), strategy=strategy, devices=2, **options)

    with pytest.raises(Exception, match=r"set trainer\.strategy to ddp_find_unused_parameters_true"):
        trainer("ddp_spawn").fit(make_model(), datamodule=make_data())
    sgd = partial(SGD, lr=0.5)
    model, alone = make_model(optimizer=sgd), make_model(optimizer=sgd)
    for one in (model, alone):
        one.attach(make_data().processor)
    alone.load_state_dict(model.state_dict())
    trainer("ddp_spawn_find_unused_parameters_true").fit(model, datamodule=make_data())
    once = make_trainer(tmp_path, GradualUnfreezing({"encoder": 1}), **options)
    once.fit(alone, datamodule=make_data())
    assert once.global_step == 2
    torch.testing.assert_close(model.net.state_dict(), alone.net.state_dict(), rtol=1e-4, atol=1e-5)
