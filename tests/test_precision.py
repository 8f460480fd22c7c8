"""Precisions that change the type of weights and inputs: `trainer.precision: bf16-true`."""

from functools import partial

import datasets
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import HalfPrecision

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.callbacks import EMA, Checkpoint
from lit_seq2seq.features import Frames, Tokenizer
from lit_seq2seq.nn import (
    CTC,
    ConditionalGRUDecoder,
    CopyOutput,
    InputFeedingDecoder,
    PyramidalEncoder,
)
from lit_seq2seq.types import UserError
from tests.tiny import SIZES, loss_of, make_data, make_model, make_trainer, needs_bfloat16, pairs, rows

pytestmark = [
    needs_bfloat16,
    pytest.mark.filterwarnings(
        "ignore:.*smaller than the logging interval", "ignore:.*exists and is not empty", "ignore:.*LeafSpec.*"
    ),
]
quiet = pytest.mark.filterwarnings("ignore:bf16-true keeps")


class Losses(Callback):
    """The losses of training, and their types."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.values.append(outputs["loss"].item())
        self.dtypes.add(outputs["loss"].dtype)


def fit(folder, *callbacks, precision="bf16-true", epochs=1, data=None, ckpt_path=None, model=(), **options):
    model = make_model(**{"optimizer": partial(torch.optim.Adam, lr=0.03, fused=True), **dict(model)})
    options = {"precision": precision, "max_epochs": epochs, "gradient_clip_val": 1.0, **options}
    trainer = make_trainer(folder, *callbacks, **options)
    trainer.fit(model, datamodule=data or make_data(rows(120), batch_size=16), ckpt_path=ckpt_path)
    return trainer, model


@quiet
def test_all_has_16_bits_but_the_loss_which_falls_as_in_single_precision(tmp_path):
    losses, single = Losses(), Losses()
    start = make_model()  # drawn in single precision for both: in 16 bits other numbers are drawn
    start.attach(make_data(rows(120)).processor)
    start.save_pretrained(tmp_path / "start")
    same = {"init_from": str(tmp_path / "start")}
    trainer, model = fit(tmp_path, losses, epochs=4, model=same)
    fit(tmp_path, single, epochs=4, precision="32-true", model=same)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {each["exp_avg"].dtype for each in trainer.optimizers[0].state.values()} == {torch.bfloat16}
    assert losses.dtypes == {torch.float32}
    assert losses.values[-1] < 0.6 * losses.values[0]
    assert losses.values[-1] == pytest.approx(single.values[-1], rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder": partial(InputFeedingDecoder, **SIZES)},
        {"decoder": partial(InputFeedingDecoder, **SIZES, num_layers=2)},
        {"decoder": partial(ConditionalGRUDecoder, **SIZES)},
        {"output": CopyOutput},
        {"auxiliary": CTC},
        {"label_smoothing": 0.1, "split_on_oom": True},
    ],
    ids=["parallel", "feeding", "feeding by steps", "conditional", "copy", "ctc", "smoothed, in parts"],
)
def test_loss_and_gradients_are_near_those_of_single_precision(options):
    data = make_data(rows(16), copy="output" in options, batch_size=16)
    data.setup("fit")
    model = make_model(**options)
    model.attach(data.processor)
    batch = next(iter(data.train_dataloader()))

    def taken() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        loss, *_ = model._loss(batch)
        loss.backward()
        return loss, torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])

    loss, gradient = taken()
    model.bfloat16()
    with HalfPrecision("bf16-true").forward_context():
        rough, near = taken()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(loss.item(), rel=0.01)
    assert torch.cosine_similarity(near, gradient, dim=0) > 0.999


@quiet
def test_numbers_of_the_source_are_converted(tmp_path):
    targets = pairs(16)["target"]
    features = [torch.randn(6, 3, generator=torch.Generator().manual_seed(row)).tolist() for row in range(16)]
    split = datasets.Dataset.from_dict({"source": features, "target": targets})
    data = make_data(
        datasets.DatasetDict({"train": split, "validation": split}),
        source_feature=Frames(3),
        source_tokenizer=None,
        target_tokenizer=Tokenizer("word"),
        test_size=0,
    )
    encoder = partial(PyramidalEncoder, hidden_size=12)
    trainer, model = fit(tmp_path, data=data, model={"encoder": encoder})
    exact = loss_of(model.float(), data.val_dataloader())
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(exact, rel=0.01)


@quiet
def test_a_resumed_run_ends_with_the_same_weights_and_the_saved_model_gives_the_same_scores(tmp_path):
    _, whole = fit(tmp_path, epochs=2)
    fit(tmp_path, Checkpoint(dirpath=tmp_path, save_last=True), epochs=1, enable_checkpointing=True)
    trainer, resumed = fit(tmp_path, epochs=2, ckpt_path=tmp_path / "last.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    trainer.model.save_pretrained(tmp_path / "model")
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.state_dict(), whole.state_dict(), rtol=0, atol=0, check_dtype=False)
    data = make_data(rows(120), processor=loaded.processor)
    before, after = (
        make_trainer(tmp_path, precision="bf16-true").validate(one, datamodule=data, verbose=False)[0]
        for one in (resumed, loaded)
    )
    assert before == after


def test_a_warning_says_what_is_lost(tmp_path):
    with pytest.warns(UserWarning, match=r"1/256 of a weight are lost: compare with trainer.precision: bf16-mixed"):
        fit(tmp_path, data=make_data(rows(16)))


def test_a_moving_average_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"set trainer.precision to bf16-mixed, or leave EMA out"):
        fit(tmp_path, EMA(0.99), data=make_data(rows(16)))
