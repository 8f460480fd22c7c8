"""What training minimises: each objective against its formula, and what all of them have to keep."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.callbacks import Checkpoint
from lit_seq2seq.cli import main
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.nn import CopyOutput, EncoderDecoder, GeneralAttention, ParallelDecoder, TextEncoder
from lit_seq2seq.training import CrossEntropy, Loss, Objective, RDrop, ScheduledSampling
from lit_seq2seq.types import UserError
from tests.nn.cases import (
    COPY_SOURCE,
    COPY_TARGET,
    DECODERS,
    ENCODERS,
    NETWORKS,
    SOURCE,
    TARGET,
    TARGET_SIZE,
    assert_close,
    cross_entropy,
    disturb,
    network,
    widen,
)
from tests.tiny import SIZES, Trained, make_data, make_model, make_trainer, needs_bfloat16

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")


DROPPING = {
    "encoder": partial(TextEncoder, **SIZES, dropout=0.2),
    "decoder": partial(ParallelDecoder, **SIZES, dropout=0.2, attention=GeneralAttention),
}
OBJECTIVES = {
    "cross-entropy": CrossEntropy,
    "scheduled sampling": partial(ScheduledSampling, least=0.2, steps=4),
    "r-drop": RDrop,
}


class Focal(Objective):
    """`-sum_t (1 - p_t)^gamma log p_t` (Lin et al. 2017), with a scale of its own that learns."""

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 2.0) -> None:
        super().__init__(label_smoothing)
        self.gamma = gamma
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, model, batch):
        output = model.net.teach(model.net.encode(batch.source), batch.target)
        log_probs = model.net.output.log_probs(output, batch.source.copies)[batch.target.mask]
        chosen = log_probs.gather(1, batch.target.values[batch.target.mask][:, None])
        total = -(self.scale * (1 - chosen.exp()) ** self.gamma * chosen).sum()
        return Loss(total, -chosen.sum().detach(), batch.target.total)


def test_an_objective_in_a_file_of_its_own_trains_resumes_and_is_saved(trained: Trained, tmp_path, capsys):
    named = {"class_path": "tests.test_objectives.Focal", "init_args": {"gamma": 1.0}}
    options = [f"--model.objective={json.dumps(named)}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", "--config", str(trained.recipe), *options, "--trainer.max_epochs=1"]) == 0
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", str(trained.recipe), *options, f"--ckpt_path={last}"]) == 0
    folder = tmp_path / "version_0" / "model"
    described = json.loads((folder / "config.json").read_text())["model"]["objective"]
    assert described == named
    loaded = LitSeq2Seq.from_pretrained(folder, trust="tests")
    assert isinstance(loaded.objective, Focal)
    assert loaded.objective.gamma == 1
    assert load_model(folder).generate(["eins zwei"])[0][0].text is not None  # needs no objective, nor trust in it


def test_parameters_of_an_objective_learn(tmp_path):
    model, data = make_model(objective=partial(Focal, gamma=0.0)), make_data()
    make_trainer(tmp_path).fit(model, datamodule=data)
    assert model.objective.scale != 1


def test_smoothing_out_of_its_range():
    with pytest.raises(UserError, match=r"label_smoothing must be from 0 to below 1, got 1\.0"):
        CrossEntropy(1.0)


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.values.append(outputs["loss"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    def fit(epochs: int, path: Path | None = None) -> LitSeq2Seq:
        model, data = make_model(objective=OBJECTIVES[name], **DROPPING), make_data()
        checkpoint = Checkpoint(dirpath=tmp_path / str(epochs), save_last=True)
        trainer = make_trainer(tmp_path, checkpoint, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, datamodule=data, ckpt_path=path)
        return model

    whole = fit(2)
    fit(1)
    torch.testing.assert_close(fit(2, tmp_path / "1" / "last.ckpt").state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_falls(name, tmp_path):
    losses = Losses()
    make_trainer(tmp_path, losses, max_epochs=8).fit(make_model(objective=OBJECTIVES[name]), datamodule=make_data())
    assert torch.stack(losses.values[-5:]).mean() < 0.8 * torch.stack(losses.values[:5]).mean()


@needs_bfloat16
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_in_16_bits_are_those_of_32(name):
    data, found = make_data(), []
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for sixteen in (False, True):
        model = make_model(objective=OBJECTIVES[name])
        model.attach(data.processor)
        model.objective.step = 1
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=sixteen):
            loss = model.objective(model.model, batch)
        loss.total.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.cosine_similarity(*found, dim=0) > 0.98


# ---------------------------------------------------------------------------------------------- scheduled sampling


def test_the_teacher_leaves_by_and_by():
    objective, rates = ScheduledSampling(least=0.4, steps=4), []
    for objective.step in (0, 1, 2, 4, 9):
        rates.append(objective.rate)
    assert rates == pytest.approx([1.0, 0.85, 0.7, 0.4, 0.4])


@pytest.mark.parametrize("name", NETWORKS)
def test_sampled_inputs_are_the_predictions_of_a_first_pass(name):
    model, objective = network(name), ScheduledSampling(0.1, least=0.0, steps=1)
    assert_close(objective.of(model, SOURCE, TARGET)[:2], CrossEntropy(0.1).of(model, SOURCE, TARGET)[:2])
    objective.step = 1  # all inputs are predictions
    encoded = model.encode(SOURCE)
    predicted = model(SOURCE, TARGET).argmax(-1)
    inputs = torch.cat([model.shift(TARGET)[:, :1], predicted[:, :-1]], dim=1)
    expected = model.output.loss(model.teach(encoded, TARGET, inputs), TARGET, None, 0.1)
    assert_close(objective.of(model, SOURCE, TARGET)[:2], expected)


def test_about_as_many_inputs_are_sampled_as_the_rate_says():
    model, objective, seen = network("parallel first additive"), ScheduledSampling(least=0.75, steps=1), []
    objective.step = 1
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    source, target = SOURCE.repeat(200), TARGET.repeat(200)
    objective.of(model, source, target)
    given, read = seen
    predicted = model(source, target).argmax(-1)[:, :-1]
    differ = (predicted != given[:, 1:]) & target.mask[:, 1:]
    share = (read[:, 1:] != given[:, 1:])[differ].float().mean()
    assert torch.equal(read[:, 0], given[:, 0])
    assert float(share) == pytest.approx(0.25, abs=0.05)


# ---------------------------------------------------------------------------------------------- r-drop


def copying(dropout: float = 0.0) -> EncoderDecoder:
    decoder = partial(DECODERS["feeding general"], dropout=dropout)
    return disturb(EncoderDecoder(9, TARGET_SIZE, ENCODERS["bidirectional lstm"], decoder, output=CopyOutput), 0.6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_r_drop_is_the_formula_of_the_paper(dropout):
    """Liang et al. 2021, equations 2 to 4, by PyTorch's divergence; halved."""
    model = network("parallel first additive", dropout=dropout).train()
    torch.manual_seed(1)
    loss = RDrop(0.1, alpha=3.0).of(model, SOURCE, TARGET)
    torch.manual_seed(1)
    twice = TARGET.repeat(2)
    log_probs = model(SOURCE.repeat(2), twice).double().log_softmax(-1)
    targets = twice.values.masked_fill(~twice.mask, -100)
    losses = F.cross_entropy(log_probs.transpose(1, 2), targets, reduction="sum", label_smoothing=0.1)
    first, second = (log_probs[place::2][TARGET.mask] for place in (0, 1))
    both = [F.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((first, second), (second, first))]
    assert_close(loss.total.double(), (losses + 3.0 * sum(both) / 2) / 2)
    assert loss.units == TARGET.total
    if dropout == 0:
        assert_close(loss[:2], CrossEntropy(0.1).of(model, SOURCE, TARGET)[:2])
    else:
        assert both[0] > 0.01


def test_r_drop_of_what_is_copied_is_finite_and_knows_no_padding():
    model = copying(0.3).train()
    loss = RDrop().of(model, COPY_SOURCE, COPY_TARGET)
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    still = copying()
    assert_close(
        RDrop().of(still, COPY_SOURCE, widen(COPY_TARGET, 2, fill=5)).total,
        cross_entropy(still, COPY_SOURCE, COPY_TARGET)[0],
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(RDrop, alpha=-1.0), r"alpha of RDrop must be at least 0, got -1\.0"),
        (partial(ScheduledSampling, least=1.5), r"least of ScheduledSampling must be from 0 to 1, got 1\.5"),
        (partial(ScheduledSampling, steps=0), "steps of ScheduledSampling must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(make, words):
    with pytest.raises(UserError, match=words):
        make_model(objective=make)
