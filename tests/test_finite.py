"""Weights that are no numbers, or too large for what is computed in, give no scores and no outputs; precisions."""

import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file, save_file

from lit_seq2seq import LitSeq2Seq, load_recipe
from lit_seq2seq.cli import main
from lit_seq2seq.export import export_model
from lit_seq2seq.export.onnx import halve
from lit_seq2seq.hub.folder import load_checkpoint
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import GenerationConfig, check_scores, search
from lit_seq2seq.types import SpecialIds, StepOutput, UserError, Value
from tests.tiny import Trained, make_data, make_model, make_trainer, needs_bfloat16

NAME = "encoder.embedding.weight"
needs_float16 = pytest.mark.skipif(
    not computes_in(torch.float16, "cpu"), reason="this CPU has no kernels for float16 recurrent layers"
)


@pytest.mark.parametrize(
    ("command", "spoilt"),
    [("validate", float("nan")), ("test", float("-inf")), ("predict", float("nan")), ("fit", float("-inf"))],
)
def test_a_checkpoint_with_spoilt_weights_is_an_error(trained: Trained, tmp_path, capsys, command, spoilt):
    checkpoint = load_checkpoint(trained.last)
    checkpoint["state_dict"][f"model.network.{NAME}"][4, 2] = spoilt
    torch.save(checkpoint, tmp_path / "spoilt.ckpt")
    options = [f"--ckpt_path={tmp_path / 'spoilt.ckpt'}", f"--trainer.default_root_dir={tmp_path}"]
    assert main([command, "--config", str(trained.recipe), *options]) == 1
    assert f"the checkpoint has values that are not finite in model.network.{NAME}: use" in capsys.readouterr().err


@pytest.mark.parametrize("value", [1e300, -1e39, float("nan")])
def test_weights_of_64_bits_that_32_do_not_hold_are_refused(trained: Trained, tmp_path, value):
    folder = shutil.copytree(trained.model, tmp_path / "model")
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    LitSeq2Seq.from_pretrained(folder)
    weights[NAME][3, 3] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"values that are not finite in {NAME}"):
        LitSeq2Seq.from_pretrained(folder)


def test_a_checkpoint_of_64_bits_that_32_do_not_hold_is_refused(trained: Trained, tmp_path):
    checkpoint = load_checkpoint(trained.last)
    checkpoint["state_dict"] = {name: tensor.double() for name, tensor in checkpoint["state_dict"].items()}
    checkpoint["state_dict"][f"model.network.{NAME}"][4, 2] = 1e200
    torch.save(checkpoint, tmp_path / "large.ckpt")
    with pytest.raises(UserError, match=f"the checkpoint has values that are not finite in model.network.{NAME}"):
        LitSeq2Seq.load_from_checkpoint(tmp_path / "large.ckpt")


def large(trained: Trained, value: float) -> LitSeq2Seq:
    model = LitSeq2Seq.from_pretrained(trained.model)
    with torch.no_grad():
        model.net.encoder.embedding.weight[3, 3] = value
    return model


def test_models_in_memory_are_looked_at(trained: Trained, tmp_path):
    data = make_data(processor=(model := large(trained, float("nan"))).processor)
    for use in (
        lambda: make_trainer(tmp_path).test(model, datamodule=data, verbose=False),
        lambda: make_trainer(tmp_path).predict(model, datamodule=data),
        lambda: model.save_pretrained(tmp_path / "saved"),
        lambda: Predictor(model),
        lambda: export_model(model, tmp_path / "exported", ["fp32"]),
    ):
        with pytest.raises(UserError, match=f"the model has values that are not finite in {NAME}: use an earlier"):
            use()


@needs_bfloat16
def test_weights_that_bfloat16_does_not_hold_are_refused(trained: Trained):
    model = large(trained, torch.finfo(torch.float32).max)
    Predictor(model)
    with pytest.raises(UserError, match=f"not finite in {NAME}, as bfloat16"):
        Predictor(model, dtype=torch.bfloat16)


def test_weights_that_16_bits_do_not_hold_are_refused(trained: Trained, tmp_path):
    model = large(trained, 70_000.0)
    data = make_data(processor=model.processor)
    with pytest.raises(UserError, match=r"not finite in .*, as float16|no kernels for precision 16-true"):
        make_trainer(tmp_path, precision="16-true").test(model, datamodule=data, verbose=False)


def test_an_exported_variant_of_16_bits_is_refused_if_they_do_not_hold_its_weights(tmp_path):
    onnx = pytest.importorskip("onnx")
    weights = [onnx.numpy_helper.from_array(np.array([[1.0, 70_000.0]], np.float32), "weight")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], weights)), tmp_path / "full.onnx")
    with pytest.raises(UserError, match="the model has values that are not finite in weight, as float16"):
        halve(tmp_path / "full.onnx", tmp_path / "half.onnx")


# what is really computed in


class Kinds(Callback):
    """The types of the weights, and of what the output layer computes."""

    def on_validation_start(self, trainer, pl_module):
        self.weights = {weight.dtype for weight in pl_module.net.parameters()}
        self.found = set()
        pl_module.net.decoder.register_forward_hook(self.see)

    on_test_start = on_validation_start

    def see(self, module, inputs, output):
        value = output[0] if isinstance(output, tuple) else output
        self.found.add(value.dtype)


@pytest.mark.parametrize(
    ("precision", "weights", "computed"),
    [
        ("32-true", torch.float32, torch.float32),
        pytest.param("bf16-mixed", torch.float32, torch.bfloat16, marks=needs_bfloat16),
        pytest.param("16-mixed", torch.float32, torch.bfloat16, marks=needs_bfloat16),
        pytest.param("bf16-true", torch.bfloat16, torch.bfloat16, marks=needs_bfloat16),
        pytest.param("16-true", torch.float16, torch.float16, marks=needs_float16),
    ],
)
def test_a_precision_is_what_is_computed_in(trained: Trained, tmp_path, precision, weights, computed):
    model, kinds = LitSeq2Seq.from_pretrained(trained.model), Kinds()
    data = make_data(processor=model.processor)
    make_trainer(tmp_path, kinds, precision=precision).test(model, datamodule=data, verbose=False)
    assert (kinds.weights, kinds.found) == ({weights}, {computed})


@needs_bfloat16
@pytest.mark.parametrize("asked", ["16-mixed", "16"])
def test_another_precision_than_asked_for_is_told(trained: Trained, asked):
    with pytest.warns(UserWarning, match=f"no kernels for precision {asked}: computing in bf16-mixed"):
        recipe = load_recipe(trained.recipe, [f"--trainer.precision={asked}"])
    assert recipe.trainer.precision == "bf16-mixed"


def test_32_bits_in_place_of_16_are_told(trained: Trained, monkeypatch):
    monkeypatch.setattr("lit_seq2seq.training.precision.computes_in", lambda dtype, device: dtype == torch.float32)
    with pytest.warns(UserWarning, match="no kernels for precision 16-true: computing in 32-true"):
        recipe = load_recipe(trained.recipe, ["--trainer.precision=16-true"])
    assert recipe.trainer.precision == "32-true"


@needs_float16
def test_the_advice_for_16_bits_names_what_a_cpu_has(tmp_path):
    with pytest.warns(UserWarning, match="compare with trainer.precision: bf16-mixed"):
        make_trainer(tmp_path, precision="16-true", max_steps=1, limit_val_batches=0).fit(
            make_model(optimizer=torch.optim.SGD), datamodule=make_data()
        )


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}])
def test_a_model_that_computes_nan_writes_nothing(options):
    model, config = make_model(), GenerationConfig(max_new_tokens=4, **options)
    model.attach(make_data().processor)
    torch.nn.init.constant_(model.net.output.projection.weight, 3e38)  # finite, but not what is computed from it
    with pytest.raises(UserError, match="the model computes NaN"):
        model.generate(["eins zwei"], config)

    def step(tokens: np.ndarray, state: Value) -> StepOutput:
        return StepOutput(np.full((len(tokens), 6), np.nan, np.float32), state)

    found = search(step, Value(), batch_size=1, specials=SpecialIds(), config=config, device=None)
    with pytest.raises(UserError, match="the model computes NaN"):
        check_scores([found[0][0].score])
