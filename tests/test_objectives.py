"""What training minimises: each objective against its formula, and what all of them have to keep."""

import itertools
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torchmetrics.functional.text import char_error_rate

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.cli import main
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.metrics import CER, ChrF, CIDErD, Distinct1
from lit_seq2seq.nn import (
    CTC,
    CopyOutput,
    CoverageLoss,
    EncoderDecoder,
    GeneralAttention,
    NoSource,
    ParallelDecoder,
    TextEncoder,
    ZeroBridge,
)
from lit_seq2seq.reranking import MinimumBayesRisk
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.training import (
    CrossEntropy,
    Distillation,
    Loss,
    MinimumRisk,
    Objective,
    RDrop,
    ScheduledSampling,
    SelfCritical,
    WaitK,
)
from lit_seq2seq.training.objectives.rewards import Outputs
from lit_seq2seq.training.objectives.self_critical import reinforce
from lit_seq2seq.types import Batch, Shared, UserError
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
from tests.tiny import SIZES, Trained, check_resumed, make_data, make_model, make_trainer, needs_bfloat16, pairs, rows

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")


DROPPING = {
    "encoder": partial(TextEncoder, **SIZES, dropout=0.2),
    "decoder": partial(ParallelDecoder, **SIZES, dropout=0.2, attention=GeneralAttention),
}
MBR = partial(MinimumBayesRisk, metric=CER, samples=8)
OBJECTIVES = {
    "cross-entropy": CrossEntropy,
    "scheduled sampling": partial(ScheduledSampling, least=0.2, steps=4),
    "r-drop": RDrop,
    "minimum risk": partial(MinimumRisk, metric=ChrF, number=3),
    "self-critical": partial(SelfCritical, metric=ChrF, number=2),
    "wait-k": partial(WaitK, k=[1, 3]),
}
EARLY = {
    "encoder": partial(TextEncoder, **SIZES, bidirectional=False),
    "decoder": partial(ParallelDecoder, **SIZES, dropout=0.2, attention=GeneralAttention, bridge=ZeroBridge),
}
"""Networks that can write before their source has ended."""


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


@pytest.mark.parametrize("lr_factors", [None, {"encoder": 0.1}])
def test_parameters_of_an_objective_learn(lr_factors, tmp_path):
    model, data = make_model(objective=partial(Focal, gamma=0.0), lr_factors=lr_factors), make_data()
    make_trainer(tmp_path).fit(model, datamodule=data)
    assert model.objective.scale != 1


def test_an_objective_by_a_short_name():
    assert isinstance(make_model(objective="scheduled_sampling").objective, ScheduledSampling)
    with pytest.raises(UserError, match=r"there is no Objective called 'rdropp': choose among CrossEntropy, "):
        make_model(objective="rdropp")


def test_smoothing_out_of_its_range():
    with pytest.raises(UserError, match=r"label_smoothing must be from 0 to below 1, got 1\.0"):
        CrossEntropy(1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    check_resumed(tmp_path, objective=OBJECTIVES[name], **(EARLY if name == "wait-k" else DROPPING))


@needs_bfloat16
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", [*OBJECTIVES, "distillation"])
def test_gradients_in_16_bits_are_those_of_32(name, precision, trained: Trained):
    data, found = make_data(processor=load_model(trained.model).processor), []
    teaching = partial(Distillation, teachers=str(trained.model))
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    for plugin in (
        Precision(),
        HalfPrecision("bf16-true") if "true" in precision else MixedPrecision(precision, "cpu"),
    ):
        networks = EARLY if name == "wait-k" else {}
        model = make_model(objective=(OBJECTIVES | {"distillation": teaching})[name], **networks)
        model.attach(data.processor)
        model.objective.step = 1
        plugin.convert_module(model)
        model.objective.begin(model.model, data)
        torch.manual_seed(0)
        with plugin.forward_context():
            loss = model.objective(model.model, batch)
        assert loss.total.dtype == torch.float32
        loss.total.backward()
        found.append(torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()]))
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


def test_r_drop_drops_other_units_of_a_source_that_examples_share():
    model = network("parallel first additive").train()
    model.encoder.dropout = 0.5
    index = torch.tensor([0, 0, 1, 2])
    seen = []
    model.encoder.register_forward_hook(lambda *arguments: seen.append(arguments[-1].memory.values))
    RDrop().of(model, Shared(SOURCE.select(torch.arange(3)), index), TARGET)
    (memory,) = seen
    assert len(memory) == 6
    assert not torch.equal(memory[::2], memory[1::2])
    shared = Shared(SOURCE, torch.tensor([2, 0])).repeat(2)
    assert torch.equal(shared.distinct.values[shared.index], SOURCE.values[torch.tensor([2, 2, 0, 0])])


# ---------------------------------------------------------------------------------------------- risk and reward


def tiny(objective: object, **options: object) -> tuple[LitSeq2Seq, Batch]:
    """A model of two words whose outputs have two symbols at most, and three sentences to learn."""
    texts = {"source": ["x y", "y", "x"], "target": ["a b", "b", "a"]}
    split = Dataset.from_dict(texts)
    data = make_data(DatasetDict({"train": split, "validation": split}), test_size=0)
    data.setup("fit")
    model = make_model(objective=objective, generation=GenerationConfig(max_new_tokens=2), **options)
    model.attach(data.processor)
    disturb(model.net, 0.6)
    (batch,) = data.val_dataloader()
    return model, batch


def every_output(model: LitSeq2Seq, batch: Batch) -> tuple[list[list[int]], Tensor]:
    """All outputs there can be, with EOS where there is room for it, and their log-probabilities `(B, N)`."""
    specials = model.processor.target.specials
    symbols = [one for one in range(model.processor.target.size) if one not in (specials.pad, specials.bos)]
    words = [one for one in symbols if one != specials.eos]
    outputs = [[specials.eos], *([one, two] for one, two in itertools.product(words, symbols))]
    target = model.processor.target.collate([np.array(output) for output in outputs]).to("cpu")
    log_probs = []
    for place in range(len(batch)):
        source = batch.source.select(torch.tensor([place] * len(outputs)))
        found = model.net(source, target).log_softmax(-1).gather(-1, target.values[..., None])[..., 0]
        log_probs.append((found * target.mask).sum(dim=1))
    return outputs, torch.stack(log_probs)


def rewards_of(model: LitSeq2Seq, batch: Batch, outputs: list[list[int]]) -> Tensor:
    """Share of right characters of each output for each source, `(B, N)`; an unknown word is one wrong character."""
    texts = [
        model.processor.target.decode([one for one in output if one != model.processor.target.specials.eos])
        for output in outputs
    ]
    return 1 - torch.tensor([[error_rate(text, row[0]) for text in texts] for row in batch.references])


def error_rate(text: str, reference: str) -> float:
    return float(char_error_rate([text.replace("<unk>", "?")], [reference]))


def gradient(model: LitSeq2Seq, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, list(model.net.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


@pytest.mark.parametrize("sharpness", [1.0, 0.3])
def test_minimum_risk_over_all_outputs_is_the_expected_risk(sharpness):
    """Shen et al. 2016, equations 10 and 11, with every output among the candidates."""
    make = partial(
        MinimumRisk, metric=CER, cross_entropy=0.0, number=60, beam=True, sharpness=sharpness, include_target=False
    )
    model, batch = tiny(make)
    loss = model.objective(model.model, batch)
    outputs, log_probs = every_output(model, batch)
    assert len(outputs) == 13
    q = (sharpness * log_probs).softmax(dim=1)
    expected = (q * (1 - rewards_of(model, batch, outputs))).sum()
    assert_close(loss.total, expected)
    assert_close(gradient(model, loss.total), gradient(model, expected))
    assert loss.units == len(batch)
    assert_close(loss.nll, model.net.nll(batch.source, batch.target))


def test_minimum_risk_over_what_is_drawn():
    """The candidates are the different ones among what was drawn, and the target; cross-entropy has its share."""
    make = partial(MinimumRisk, metric=CER, cross_entropy=0.25, number=4, sharpness=0.5)
    model, batch = tiny(make, label_smoothing=0.1)
    torch.manual_seed(7)
    loss = model.objective(model.model, batch)
    torch.manual_seed(7)
    drawn = model.generate(batch.source, GenerationConfig(max_new_tokens=2, do_sample=True, num_return_sequences=4))
    tokenizer, risk = model.processor.target, torch.zeros(())
    for place, found in enumerate(drawn):
        ended = [[tokenizer.specials.eos] * (len(one.token_scores) > len(one.tokens)) for one in found]
        kept = {(*one.tokens.tolist(), *end) for one, end in zip(found, ended, strict=True)}
        kept.add(tuple(batch.target.values[place, : batch.target.lengths[place]].tolist()))
        log_probs = model.net.score(
            batch.source.select(torch.tensor([place] * len(kept))),
            tokenizer.collate([np.array(one) for one in kept]).to("cpu"),
        )
        risks = 1 - rewards_of(model, batch, [list(one) for one in kept])[place]
        risk += ((0.5 * log_probs.sum(dim=1)).softmax(dim=0) * risks).sum()
    likely = CrossEntropy(0.1).of(model.net, batch.source, batch.target).total
    assert_close(loss.total, 0.75 * risk + 0.25 * likely)


def test_the_gradient_of_self_critical_training_is_that_of_the_expected_reward():
    """Rennie et al. 2017, equations 4 and 7: over all samples, each as often as it is drawn, whatever the baseline."""
    model, batch = tiny(partial(SelfCritical, metric=CER))
    outputs, log_probs = every_output(model, batch)
    rewards = rewards_of(model, batch, outputs)
    rows = torch.arange(len(batch)).repeat_interleave(len(outputs))
    target = model.processor.target.collate([np.array(output) for output in outputs] * len(batch)).to("cpu")
    sampled = Outputs(rows, target, rewards.flatten())
    losses = reinforce(model.net, model.net.encode(batch.source), sampled, torch.tensor([0.1, 0.5, -0.3]))
    expected = -(log_probs.exp() * (rewards - torch.tensor([0.1, 0.5, -0.3])[:, None])).sum()
    assert_close(gradient(model, (log_probs.flatten().exp().detach() * losses).sum()), gradient(model, expected))


def test_self_critical_training_compares_samples_with_the_greedy_output():
    model, batch = tiny(partial(SelfCritical, metric=CER, cross_entropy=0.0, number=3))
    torch.manual_seed(7)
    loss = model.objective(model.model, batch)
    torch.manual_seed(7)
    limit = {"max_new_tokens": 2}
    drawn = model.generate(batch.source, GenerationConfig(do_sample=True, num_return_sequences=3, **limit))
    greedy = model.generate(batch.source, GenerationConfig(**limit))
    expected = 0
    for place, (found, (base,)) in enumerate(zip(drawn, greedy, strict=True)):
        reference = batch.references[place][0]
        for one in found:
            better = error_rate(base.text, reference) - error_rate(one.text, reference)
            expected -= better * one.log_prob / 3
    assert_close(loss.total, torch.tensor(expected))


@pytest.mark.parametrize("kind", [MinimumRisk, SelfCritical])
def test_cross_entropy_has_its_share(kind):
    model, batch = tiny(partial(kind, metric=CER, cross_entropy=1.0))
    loss, plain = model.objective(model.model, batch), CrossEntropy().of(model.net, batch.source, batch.target)
    assert_close(loss.total, plain.total)
    assert_close(loss.nll, plain.nll)


def test_search_is_without_dropout_and_leaves_the_modes_as_they_are():
    model, batch = tiny(partial(SelfCritical, metric=CER), **DROPPING)
    model.train()
    model.net.decoder.eval()  # as a frozen part is
    before = [part.training for part in model.modules()]
    found = [model.objective.search(model.model, batch)[0][0].log_prob for _ in range(3)]
    assert len(set(found)) == 1
    assert [part.training for part in model.modules()] == before


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [CrossEntropy, MinimumRisk])
def test_training_batches_have_references_where_they_are_needed(kind, streaming, tmp_path):
    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch)

    seen: list[Batch] = []
    dataset = Dataset.from_dict({**pairs(24), "more": pairs(24, seed=9)["target"]})
    data = make_data(DatasetDict({"train": dataset}), validation_size=0, test_size=0, reference_columns="more")
    if streaming:
        processor = data.processor
        data = make_data(
            IterableDatasetDict({"train": dataset.to_iterable_dataset()}),
            validation_size=0,
            test_size=0,
            reference_columns="more",
            streaming=True,
            processor=processor,
        )
    make_trainer(tmp_path, Look()).fit(make_model(objective=kind), datamodule=data)
    found = {
        row: (batch.texts[place], batch.references[place])
        for batch in seen
        if batch.texts
        for place, row in enumerate(batch.rows.tolist())
    }
    rows = zip(dataset["source"], dataset["target"], dataset["more"], strict=True)
    expected = {row: (source, (target, more)) for row, (source, target, more) in enumerate(rows)}
    if kind is CrossEntropy:
        assert not found
    elif streaming:
        assert sorted(found.values()) == sorted(expected.values())
    else:
        assert found == expected


def test_accumulated_batches_weigh_every_sentence_alike(tmp_path):
    found = []
    for size in (3, 8):
        make = partial(MinimumRisk, metric=ChrF, cross_entropy=0.5, number=4, beam=True)
        model = make_model(objective=make, optimizer=partial(SGD, lr=1.0))
        data = make_data(
            DatasetDict({"train": Dataset.from_dict(pairs(8))}), batch_size=size, validation_size=0, test_size=0
        )
        make_trainer(tmp_path, accumulate_grad_batches=10).fit(model, datamodule=data)
        found.append(model.state_dict())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_loader_without_references():
    model, batch = tiny(MinimumRisk)
    with pytest.raises(UserError, match="MinimumRisk needs training batches with references"):
        model.objective(model.model, replace(batch, references=()))


@pytest.mark.filterwarnings("ignore:the memory does not suffice", "ignore:CTC leaves out")
def test_two_processes_search_and_learn(tmp_path):
    """With CTC beside it, and gradients taken in parts: in each process every parameter gets one."""
    model = make_model(objective=partial(MinimumRisk, metric=CER, number=2), auxiliary=CTC, split_on_oom=True)
    data = make_data(rows(16, 4))
    model.attach(data.processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    two = {"strategy": DDPStrategy(start_method="forkserver"), "devices": 2}
    make_trainer(tmp_path, accumulate_grad_batches=2, **two).fit(model, datamodule=data)
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_metric_learns_from_the_training_references():
    data = make_data(Dataset.from_dict({**pairs(24), "more": pairs(24, seed=9)["target"]}), reference_columns="more")
    data.setup("fit")
    model = make_model(objective=partial(SelfCritical, metric=CIDErD))
    model.attach(data.processor)
    model.objective.begin(model.model, data)
    assert model.objective.metric.learned.segments == len(data._split("train")) < 24
    known = model.objective.metric.learned.found
    references = [row for rows in data.references("train") for row in rows]
    assert {word for text in references for word in text.split()} == {one for one, *more in known if not more}


def test_what_a_reward_cannot_train(tmp_path):
    make = partial(SelfCritical, cross_entropy=0.0)
    with pytest.raises(UserError, match=r"SelfCritical alone does not train what model\.auxiliary names"):
        make_trainer(tmp_path).fit(make_model(objective=make, auxiliary=CTC), datamodule=make_data())
    with pytest.raises(
        UserError, match=r"SelfCritical alone does not train what model\.attention_losses names: set its c"
    ):
        make_trainer(tmp_path).fit(make_model(objective=make, attention_losses=[CoverageLoss]), datamodule=make_data())
    with pytest.raises(UserError, match="Distinct1 is a score of many outputs, not of one"):
        make_trainer(tmp_path).fit(make_model(objective=partial(MinimumRisk, metric=Distinct1)), datamodule=make_data())


def test_a_reward_needs_a_source(tmp_path):
    decoder = partial(ParallelDecoder, **SIZES, bridge=ZeroBridge)
    model = make_model(objective=partial(MinimumRisk, metric=CER), encoder=NoSource, decoder=decoder, metrics=[])
    data = make_data(columns={"source": None}, source_tokenizer=None, target_tokenizer="word")
    with pytest.raises(UserError, match="MinimumRisk compares outputs with references, but without a source there are"):
        make_trainer(tmp_path).fit(model, datamodule=data)


def test_what_is_drawn_is_not_chosen_among_by_the_reranker_of_the_model():
    models = [tiny(partial(SelfCritical, metric=CER), reranker=reranker) for reranker in (None, MBR)]
    found = []
    for model, batch in models:
        torch.manual_seed(5)
        found.append(model.objective.search(model.model, batch, do_sample=True, num_return_sequences=3))
    first, second = ([[(one.text, one.log_prob) for one in row] for row in rows] for rows in found)
    assert first == second


# ---------------------------------------------------------------------------------------------- distillation


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_divergence_from_the_teachers(tmp_path, number, temperature):
    """By PyTorch's divergence from the mean of the teachers' probabilities."""
    folders = [str(tmp_path / f"teacher{seed}") for seed in range(number)]
    for seed, folder in enumerate(folders):
        teacher, batch = tiny(CrossEntropy)
        torch.manual_seed(seed)
        disturb(teacher.net, 0.6)
        teacher.save_pretrained(folder)
    make = partial(Distillation, teachers=folders, weight=0.25, temperature=temperature)
    model, batch = tiny(make, label_smoothing=0.1)
    model.objective.begin(model.model, None)
    loss = model.objective(model.model, batch)
    teachers = [LitSeq2Seq.from_pretrained(folder).net for folder in folders]
    taught = torch.stack([one(batch.source, batch.target).softmax(-1) for one in teachers]).mean(dim=0).log()
    scores = model.net(batch.source, batch.target)
    mask = batch.target.mask
    theirs, mine = ((x[mask] / temperature).log_softmax(-1) for x in (taught, scores))
    apart = temperature**2 * F.kl_div(mine, theirs, reduction="sum", log_target=True)
    plain = CrossEntropy(0.1).of(model.net, batch.source, batch.target)
    assert_close(loss.total, 0.75 * plain.total + 0.25 * apart)
    assert float(apart) > 0.1
    assert_close(loss[1:], plain[1:])


def test_a_student_learns_from_a_folder(trained: Trained, tmp_path, capsys):
    named = {"class_path": "lit_seq2seq.training.Distillation", "init_args": {"teachers": str(trained.model)}}
    given = [f"--model.objective={json.dumps(named)}", f"--data.processor={trained.model}"]
    given += ["--data.source_tokenizer=null", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", "--config", str(trained.recipe), *given, "--trainer.max_epochs=1"]) == 0
    last = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", str(trained.recipe), *given, f"--ckpt_path={last}"]) == 0
    state = torch.load(last, weights_only=True)["state_dict"]
    assert not any("teacher" in name for name in state)
    assert load_model(tmp_path / "version_0" / "model").generate(["eins"])


def test_a_teacher_of_another_vocabulary(trained: Trained, tmp_path):
    model = make_model(objective=partial(Distillation, teachers=str(trained.model)))
    data = make_data(Dataset.from_dict({"source": ["x y"] * 9, "target": ["a b"] * 9}))
    with pytest.raises(UserError, match=r"the teacher has another vocabulary than the model: set data\.processor"):
        make_trainer(tmp_path).fit(model, datamodule=data)


def test_a_teacher_alone_does_not_train_all(trained: Trained, tmp_path):
    make = partial(Distillation, teachers=str(trained.model), weight=1.0)
    with pytest.raises(
        UserError, match=r"Distillation alone does not train what model\.auxiliary names: set its weight b"
    ):
        make_trainer(tmp_path).fit(make_model(objective=make, auxiliary=CTC), datamodule=make_data())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(Distillation, teachers="x", weight=2.0), r"Distillation: weight=2\.0: must be a number from 0 to 1"),
        (
            partial(Distillation, teachers="x", temperature=0.0),
            r"Distillation: temperature=0\.0: must be .* above 0",
        ),
        (partial(MinimumRisk, cross_entropy=2.0), r"MinimumRisk: cross_entropy=2\.0: must be a number from 0 to 1"),
        (partial(MinimumRisk, sharpness=0.0), r"MinimumRisk: sharpness=0\.0: must be a number above 0"),
        (partial(MinimumRisk, number=0), "MinimumRisk: number=0: must be an integer of at least 1"),
        (partial(SelfCritical, number=0), "SelfCritical: number=0: must be an integer of at least 1"),
        (partial(RDrop, alpha=-1.0), r"RDrop: alpha=-1\.0: must be a number of at least 0"),
        (partial(ScheduledSampling, least=1.5), r"ScheduledSampling: least=1\.5: must be a number from 0 to 1"),
        (partial(ScheduledSampling, steps=0), "ScheduledSampling: steps=0: must be an integer of at least 1"),
        (partial(RDrop, alpha=math.nan), "RDrop: alpha: expected a number, got nan"),
        (partial(RDrop, alpha=math.inf), "RDrop: alpha=inf: must be a number of at least 0"),
        (partial(MinimumRisk, sharpness=math.inf), "MinimumRisk: sharpness=inf: must be a number above 0"),
        (
            partial(Distillation, teachers="x", temperature=math.inf),
            "Distillation: temperature=inf: must be .* above 0",
        ),
    ],
)
def test_numbers_out_of_range(make, words):
    with pytest.raises(UserError, match=words):
        make_model(objective=make)
