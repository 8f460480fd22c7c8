"""Attention that learns from word alignments, learnt from the data or given with it."""

import json
import math
from collections import defaultdict
from functools import partial

import pytest
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from torch import Tensor

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule
from lit_seq2seq.data.alignment import aligned_symbols
from lit_seq2seq.features import Frames, Processor, Tokenizer
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.metrics import CER
from lit_seq2seq.nn import CopyOutput, GeneralAttention, GuidedAlignment, ParallelDecoder, PyramidalEncoder, TextEncoder
from lit_seq2seq.nn.translations import Translations, pair_of
from lit_seq2seq.training import CrossEntropy, Distillation, MinimumRisk, RDrop, ScheduledSampling
from lit_seq2seq.training.split_batches import SplitBatches
from lit_seq2seq.types import AlignedTarget, Batch, Padded, UserError
from tests.nn.cases import assert_close, disturb
from tests.tiny import SIZES, Trained, check_resumed, make_data, make_model, make_trainer, needs_bfloat16, rows

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")

COPYING = {"decoder": partial(ParallelDecoder, **SIZES, attention=GeneralAttention), "output": CopyOutput}


def started(data: Seq2SeqDataModule, **options: object) -> tuple[LitSeq2Seq, Batch]:
    """A model that has begun to train, whose one attention loss is guided alignment, and a batch prepared by it."""
    model = make_model(**{"attention_losses": [GuidedAlignment], **options})
    data.setup("fit")
    model.attach(data.processor)
    disturb(model.net, 0.6)
    model.objective.begin(model.model, data)
    (term,) = model.net.attention_losses
    term.begin(model.model, data)
    if data.streaming:
        return model, term.prepare(next(iter(data.train_dataloader())))
    data._encoded("train").with_texts = model.needs_references
    return model, term.prepare(next(data.in_order("train", 8)))


def missed(model: LitSeq2Seq, batch: Batch, wanted: Tensor) -> float:
    """Equation 9 of Chen et al. 2016, symbol by symbol, without a weight."""
    weights = model.net.teach(model.net.encode(batch.source), batch.target).attention
    return sum(
        -float(wanted[row, t].double() @ weights[row, t].double().clamp(min=1e-30).log())
        for row in range(len(batch))
        for t in range(int(batch.target.lengths[row]))
    )


# ---------------------------------------------------------------------------------------------- learnt


def test_alignments_are_those_of_model_1():
    """Brown et al. 1993, equation 11, symbol by symbol, with the prior of Dyer et al. 2013."""
    source = Padded(torch.tensor([[5, 6, 3, 0], [6, 7, 6, 3], [7, 3, 0, 0]]), torch.tensor([3, 4, 2]))
    target = Padded(torch.tensor([[4, 5, 3], [5, 6, 3], [6, 3, 0]]), torch.tensor([3, 3, 2]))
    texts = [
        (row[:length].tolist(), other[:size].tolist())
        for row, length, other, size in zip(source.values, source.lengths, target.values, target.lengths, strict=True)
    ]
    chance: dict[tuple[int, int], float] = defaultdict(lambda: 1.0)
    for _ in range(3):
        counts: dict[tuple[int, int], float] = defaultdict(float)
        for words, others in texts:
            for f in others:
                total = sum(chance[e, f] for e in words)
                for e in words:
                    counts[e, f] += chance[e, f] / total
        totals = {e: sum(count for (other, _), count in counts.items() if other == e) for e, _ in counts}
        chance = defaultdict(float, {(e, f): count / totals[e] for (e, f), count in counts.items()})
    expected = torch.zeros(3, 3, 4)
    for place, (words, others) in enumerate(texts):
        for t, f in enumerate(others):
            near = [math.exp(-2.0 * abs(s / len(words) - t / len(others))) for s in range(len(words))]
            weights = torch.tensor([chance[e, f] * one for e, one in zip(words, near, strict=True)])
            expected[place, t, : len(words)] = weights / weights.sum()
    found = Translations.estimate([(source, target)], (8, 7), iterations=3)
    assert_close(found.align(source, target, tension=2.0), expected, check_dtype=False)
    unseen = Padded(torch.tensor([[5]]), torch.tensor([1]))
    assert not found.align(unseen, Padded(torch.tensor([[6]]), torch.tensor([1]))).any()


def test_attention_pays_for_what_it_misses_and_the_weight_falls():
    data = make_data()
    term = partial(GuidedAlignment, weight=0.5, steps=4)
    model, batch = started(data, attention_losses=[term], label_smoothing=0.1)
    plain = make_model(label_smoothing=0.1)
    plain.attach(data.processor)
    plain.load_state_dict(model.state_dict())
    found = Translations.estimate([pair_of(one) for one in data.in_order("train", 7)], (9, 9))
    wanted = found.align(batch.source, batch.target, 4.0)
    assert_close(batch.target.alignment, wanted, check_dtype=False)
    without = plain.objective(plain.model, batch).total
    for model.net.attention_losses[0].step, weight in ((0, 0.5), (1, 0.375), (4, 0.0), (9, 0.0)):
        total = model.objective(model.model, batch).total
        assert float(total) == pytest.approx(float(without) + weight * missed(model, batch, wanted), rel=1e-4)


def test_attention_finds_its_way_sooner(tmp_path):
    found = []
    for terms in ([], [partial(GuidedAlignment, weight=2.0)]):
        model, data = make_model(attention_losses=terms), make_data()
        make_trainer(tmp_path, max_epochs=4).fit(model, datamodule=data)
        source, target = pair_of(next(iter(data.val_dataloader())))
        weights = model.net.teach(model.net.encode(source), target).attention  # words stand at the same places
        found.append(float(weights.diagonal(dim1=1, dim2=2)[target.mask].mean()))
    assert found[1] > found[0] + 0.1


@pytest.mark.parametrize(
    ("objective", "share"),
    [
        (CrossEntropy, 1.0),
        (RDrop, 1.0),  # the mean of two passes, which are alike without dropout
        (ScheduledSampling, 1.0),
        (partial(Distillation, weight=0.25), 0.75),
        (partial(MinimumRisk, metric=CER, number=2, cross_entropy=0.25), 0.25),
    ],
)
def test_every_objective_takes_the_term(objective, share, trained: Trained):
    if getattr(objective, "func", None) is Distillation:
        objective = partial(objective, teachers=str(trained.model))
    data, totals = make_data(processor=load_model(trained.model).processor), []
    for weight in (0.0, 1.5):
        torch.manual_seed(0)
        terms = [partial(GuidedAlignment, weight=weight)]
        model, batch = started(data, objective=objective, attention_losses=terms)
        totals.append(float(model.objective(model.model, batch).total))
    assert totals[1] - totals[0] == pytest.approx(1.5 * share * missed(model, batch, batch.target.alignment), rel=1e-3)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    dropping = {
        "encoder": partial(TextEncoder, **SIZES, dropout=0.2),
        "decoder": partial(ParallelDecoder, **SIZES, dropout=0.2, attention=GeneralAttention),
    }

    terms = [partial(GuidedAlignment, steps=9)]  # of 10
    check_resumed(tmp_path, attention_losses=terms, objective=RDrop, **dropping)


def test_a_batch_in_parts_is_the_whole():
    model, batch = started(make_data())
    whole = model.objective(model.model, batch)
    gradients = torch.autograd.grad(whole.total, list(model.net.parameters()), allow_unused=True)
    splitting = SplitBatches()
    splitting.budget = 30
    parts = splitting.loss(partial(model.objective, model.model), batch, model.net.parameters())
    assert_close(parts.total, whole.total)
    found = torch.autograd.grad(parts.total, list(model.net.parameters()), allow_unused=True)
    assert_close([one for one in found if one is not None], [one for one in gradients if one is not None])


@needs_bfloat16
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_gradients_in_16_bits_are_those_of_32(precision):
    data, found = make_data(), []
    mixed = MixedPrecision(precision, "cpu") if "mixed" in precision else HalfPrecision(precision)
    for plugin in (Precision(), mixed):
        torch.manual_seed(0)
        model, batch = started(data)
        plugin.convert_module(model)
        with plugin.forward_context():
            loss = model.objective(model.model, batch)
        assert loss.total.dtype == torch.float32
        loss.total.backward()
        found.append(torch.cat([one.grad.flatten().float() for one in model.parameters() if one.grad is not None]))
    assert torch.cosine_similarity(*found, dim=0) > 0.98


def test_symbols_that_are_copied_count_as_one():
    texts = {"source": ["x y Wiseau", "y Tommy", "x"], "target": ["a b Wiseau", "b Tommy", "a"]}
    split = Dataset.from_dict(texts)
    known = make_data(Dataset.from_dict({"source": ["x y"] * 9, "target": ["a b"] * 9}), copy=True).processor
    data = make_data(DatasetDict({"train": split, "validation": split}), test_size=0, processor=known)
    model, batch = started(data, **COPYING)
    size = data.processor.target.size
    assert int(batch.target.values.max()) > size
    source, target = pair_of(batch)
    target = Padded(target.values.where(target.values < size, size), target.lengths)
    expected = Translations.estimate([(source, target)], (data.processor.source_feature.size, size + 1))
    assert_close(batch.target.alignment, expected.align(source, target, 4.0), check_dtype=False)
    model.objective(model.model, batch).total.backward()
    (row,) = (place for place, row in enumerate(batch.rows.tolist()) if row == 0)
    assert batch.target.alignment[row, 2].argmax() == 2


def test_a_folder_needs_no_data_to_be_used(tmp_path):
    model, _ = started(make_data(), attention_losses=[partial(GuidedAlignment, steps=7)])
    model.save_pretrained(tmp_path / "model")
    described = json.loads((tmp_path / "model" / "config.json").read_text())["model"]["attention_losses"]
    assert described == [{"class_path": "lit_seq2seq.nn.GuidedAlignment", "init_args": {"steps": 7}}]
    assert load_model(tmp_path / "model").generate(["eins zwei"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder": partial(ParallelDecoder, **SIZES, attention=None)}, "attention_losses need attention"),
        ({"attention_losses": [partial(GuidedAlignment, weight=-1.0)]}, r"weight of GuidedAlignment must .* got -1\.0"),
        ({"attention_losses": [partial(GuidedAlignment, steps=0)]}, "steps of GuidedAlignment must .* 1, got 0"),
    ],
)
def test_what_cannot_be_guided(options, words, tmp_path):
    model = make_model(**{"attention_losses": [GuidedAlignment], **options})
    with pytest.raises(UserError, match=words):
        make_trainer(tmp_path).fit(model, datamodule=make_data())


def test_a_source_without_symbols():
    tokenizer = Tokenizer("char")
    tokenizer.train(["abcd"])
    model = make_model(
        encoder=partial(PyramidalEncoder, hidden_size=12, factors=[1]), attention_losses=[GuidedAlignment]
    )
    model.attach(Processor(Frames(3), tokenizer))
    with pytest.raises(
        UserError, match=r"needs a source of symbols, which Frames does not read: leave it out of model"
    ):
        model.net.attention_losses[0].begin(model.model, None)


def test_an_encoder_that_joins_symbols():
    weights, lengths = torch.full((1, 2, 2), 0.5), torch.tensor([2])
    target = AlignedTarget(torch.tensor([[4, 3]]), lengths, torch.ones(1, 2, 4))
    with pytest.raises(UserError, match="an encoder that gives each of 4 symbols a place, but it has 2"):
        GuidedAlignment().of(weights, target)


# ---------------------------------------------------------------------------------------------- given

ALIGNED = {
    "source": ["der rote Hund", "Hund rot", "der Hund"],
    "target": ["the red dog", "a dog is red", "a dog"],
    "pairs": ["0-0 1-1 2-2", "0-1 1-3", ""],
}


def given(columns: dict[str, str] | None = None, texts: dict[str, list[str]] | None = None, **options: object):
    named = {"source": "source", "target": "target", "alignment": "pairs", **(columns or {})}
    split = Dataset.from_dict(ALIGNED if texts is None else texts)
    others = split.remove_columns("pairs")
    options = {"batch_size": 3, "test_size": 0, "columns": named, **options}
    return make_data(DatasetDict({"train": split, "validation": others}), **options)


def aligned(batch: Batch, data: Seq2SeqDataModule) -> dict[int, set[tuple[str, str]]]:
    """For each row the pairs of target and source symbol that are aligned, by their names and places."""
    found = {}
    for place, row in enumerate(batch.rows.tolist()):
        target = data.processor.target.tokens(batch.target.values[place].tolist())
        source = data.processor.source_feature.tokens(batch.source.values[place].tolist())
        where = batch.target.alignment[place].nonzero().tolist()
        found[row] = {(f"{target[t]}{t}", f"{source[s]}{s}") for t, s in where}
    return found


EXPECTED = {
    0: {("the0", "der0"), ("red1", "rote1"), ("dog2", "Hund2")},
    1: {("dog1", "Hund0"), ("red3", "rot1")},
    2: set(),
}


def test_given_alignments_take_the_place_of_learnt_ones():
    data = given()
    model, batch = started(data)
    assert aligned(batch, data) == EXPECTED
    wanted = batch.target.alignment.float()
    with_term = float(model.objective(model.model, batch).total)
    model.net.attention_losses[0].first_weight = 0.0
    without = float(model.objective(model.model, batch).total)
    assert with_term - without == pytest.approx(0.5 * missed(model, batch, wanted), rel=1e-4)


def test_all_symbols_of_a_word_share_its_alignment():
    data = given(source_tokenizer=Tokenizer("bpe", min_frequency=3), target_tokenizer=Tokenizer("char"))
    model, batch = started(data)
    row = torch.tensor([batch.rows.tolist().index(1)])
    source, target = batch.source.select(row), batch.target.select(row)
    names = data.processor.source_feature.tokens(source.values[0].tolist())
    assert names[:6] == ["▁Hund", "▁", "r", "o", "t", "<eos>"]
    hund, rot, dog, red = (0,), (1, 2, 3, 4), (1, 2, 3, 4), (8, 9, 10, 11)  # "a dog is red": a space begins a word
    expected = torch.zeros_like(target.alignment)
    for symbols, places in ((dog, hund), (red, rot)):
        expected[0, torch.tensor(symbols)[:, None], torch.tensor(places)] = True
    assert torch.equal(target.alignment, expected)
    weights = model.net.teach(model.net.encode(source), target).attention
    term = model.net.attention_losses[0].of(weights, target)
    logs = weights[0].log()
    assert_close(term, -0.5 * sum(sum(logs[t, s] for s in rot) / 4 for t in red) - 0.5 * sum(logs[t, 0] for t in dog))


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe", "unigram"])
@pytest.mark.parametrize("pretokenized", [False, True])
def test_symbols_know_their_words(kind, pretokenized):
    """Words by themselves have as many symbols as within a text, where these do not depend on their neighbours."""
    texts = ["Ja, „Größe“ (3.5)!", "don't  stop\tit ", " é한글 ﬁn ￭x", "a▁b ⟨V⟩ c"]
    tokenizer = Tokenizer(kind, vocab_size=90, pretokenized=pretokenized, normalization="nfkd")
    tokenizer.train(texts * 3)
    for text in texts:
        numbers = tokenizer.word_numbers(text)
        assert len(numbers) == len(tokenizer.encode([text])[0]) - 1
        assert numbers == sorted(numbers)
        words = [number for number in dict.fromkeys(numbers) if number < len(text.split())]
        assert words == list(range(len(text.split())))
        if kind == "word":
            alone = [len(tokenizer.encode([word])[0]) - 1 for word in text.split()]
            assert numbers == [number for number, count in enumerate(alone) for _ in range(count)]


def test_tags_and_a_prefix_are_no_words_of_the_source():
    texts = {**ALIGNED, "tag": ["en", "en;short", None]}
    data = given({"tags": "tag"}, texts, source_prefix="translate this: ")
    _, batch = started(data)
    assert aligned(batch, data)[1] == {("dog1", "Hund9"), ("red3", "rot10")}  # "this:" is two symbols, a tag three


def test_texts_that_are_cut_lose_the_pairs_beyond():
    data = given(limits={"max_source_length": 3, "max_target_length": 3})
    _, batch = started(data)
    assert aligned(batch, data) == {0: {("the0", "der0"), ("red1", "rote1")}, 1: {("dog1", "Hund0")}, 2: set()}


def test_a_stream_brings_its_alignments(tmp_path):
    path = tmp_path / "rows.jsonl"
    Dataset.from_dict(ALIGNED).to_json(path)
    columns = {"source": "source", "target": "target", "alignment": "pairs"}
    options = {"columns": columns, "streaming": True, "validation_size": 0, "test_size": 0, "batch_size": 3}
    data = make_data({"train": str(path)}, **options)
    started(data)
    found = [pairs for batch in data.train_dataloader() for pairs in aligned(batch, data).values()]  # in any order
    assert sorted(found, key=len) == sorted(EXPECTED.values(), key=len)
    data = make_data({"train": str(path)}, **{**options, "columns": {**columns, "alignment": None}})
    with pytest.raises(UserError, match=r"does not stream its data: set data.streaming to false, or name a column"):
        started(data)


def test_a_model_learns_from_given_alignments(tmp_path):
    texts = rows()
    crossed = {"source": [], "target": [], "pairs": []}
    for source, target in zip(texts["train"]["source"], texts["train"]["target"], strict=True):
        count = len(source.split())
        crossed["source"].append(source)
        crossed["target"].append(target)
        crossed["pairs"].append(" ".join(f"{count - 1 - place}-{place}" for place in range(count)))
    data = given(texts=crossed, batch_size=8)
    model, batch = started(data, attention_losses=[partial(GuidedAlignment, weight=20.0)])
    wanted, found = batch.target.alignment.float(), []
    found.append(missed(model, batch, wanted))
    make_trainer(tmp_path, max_epochs=4).fit(model, datamodule=data)
    found.append(missed(model, batch, wanted))
    assert found[1] < 0.9 * found[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "0-0 1-2 5-0",
            r"^row 1, 'Hund rot': 5-0 in columns.alignment names word 5 of the source, counted from 0, but it has 2$",
        ),
        (
            "0-4",
            r"^row 1, 'Hund rot': 0-4 in columns.alignment names word 4 of the target, counted from 0, but it has 4$",
        ),
        ("0-0 1", r"^row 1, 'Hund rot': expected pairs of words such as 0-0 1-2 in columns.alignment, but one is '1'$"),
        ("0-x", r"^row 1, 'Hund rot': expected pairs of words such as 0-0 1-2 in columns.alignment, but one is '0-x'$"),
        ("0-²", r"^row 1, 'Hund rot': expected pairs of words such as 0-0 1-2 in columns.alignment, but one is '0-²'$"),
        (
            "-1-0",
            r"^row 1, 'Hund rot': expected pairs of words such as 0-0 1-2 in columns.alignment, but one is '-1-0'$",
        ),
    ],
)
def test_lines_that_are_no_alignments(line, words):
    with pytest.raises(UserError, match=words):
        started(given(texts={**ALIGNED, "pairs": ["0-0", line, ""]}))


def test_columns_that_alignments_do_not_fit():
    with pytest.raises(UserError, match=r"expected a column 'links', but the columns are .*: set columns.alignment"):
        started(given({"alignment": "links"}))
    with pytest.raises(UserError, match=r"row 0, 'der rote Hund': expected one target, whose words columns.alignment"):
        started(given({"target": ["target", "source"]}))
    started(given(source_tokenizer=Tokenizer("bpe", min_frequency=3)))
    with pytest.raises(UserError, match=r"columns.alignment needs symbols that stay the same: set dropout of the tok"):
        # also where the cache has what was encoded without dropout
        started(given(source_tokenizer=Tokenizer("bpe", min_frequency=3, dropout=0.1)))


def test_pairs_of_words_to_pairs_of_symbols():
    """By a loop over all symbols."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        source, target = (sorted(torch.randint(-1, 4, (6,), generator=generator).tolist()) for _ in "st")
        links = {tuple(pair) for pair in torch.randint(0, 4, (5, 2), generator=generator).tolist()}
        expected = [[t, s] for t in range(6) for s in range(6) if (source[s], target[t]) in links]
        found = aligned_symbols(" ".join(f"{s}-{t}" for s, t in links), source, target, (4, 4))
        assert found.reshape(-1, 2).tolist() == expected
