"""Copying: one distribution over the vocabulary and over what each source has beyond it."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

import lit_seq2seq.nn.output as output_module
from lit_seq2seq.nn import (
    CopyOutput,
    CoverageLoss,
    DecoderOutput,
    DecoderShape,
    EncoderDecoder,
    Output,
    OutputLayer,
    ParallelDecoder,
)
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.types import Copies, CopySource, Padded
from tests.nn.cases import (
    COPY_SOURCE,
    COPY_TARGET,
    DECODERS,
    ENCODERS,
    SIZES,
    SPECIALS,
    TARGET,
    TARGET_SIZE,
    assert_close,
    cross_entropy,
    disturb,
    gradient_of,
    step_log_probs,
)
from tests.tiny import needs_bfloat16

COPYING = ["parallel general", "parallel first additive", "parallel multi-head", "feeding general"]
COPYING += ["feeding additive coverage", "conditional additive coverage", "conditional default", "feeding location"]
SHAPE = DecoderShape(features=4, hidden=3, context=5, embedded=2)


def copying(name: str, vocabulary: int = TARGET_SIZE, **options: object) -> EncoderDecoder:
    """Build a copying model whose parameters are all at random."""
    encoder = ENCODERS["bidirectional lstm"]
    model = EncoderDecoder(9, vocabulary, encoder, DECODERS[name], output=CopyOutput, **options)
    return disturb(model, 0.6).eval()


def one(source: CopySource, index: int) -> CopySource:
    """Take one source alone, without padding."""
    row, length = source.select(torch.tensor([index])), int(source.lengths[index])
    return CopySource(row.values[:, :length], row.lengths, row.ids[:, :length], row.symbols)


def parts(rows: int, positions: int) -> DecoderOutput:
    sizes = (SHAPE.features, positions, SHAPE.hidden, SHAPE.context, SHAPE.embedded)
    features, attention, *others = (torch.randn(rows, size) for size in sizes)
    return DecoderOutput(features, attention.softmax(-1), *others)


@pytest.mark.parametrize("block", [1, 3 * 50, 1 << 24])
def test_likelihoods_piece_by_piece_are_those_of_the_whole(block, monkeypatch) -> None:
    monkeypatch.setattr(output_module, "BLOCK_SCORES", block)
    layer = disturb(OutputLayer(SHAPE, 50))
    features = torch.randn(4, 6, SHAPE.features, requires_grad=True)
    output = DecoderOutput(features, None, features, None, features)
    weights = torch.randn(TARGET.values.shape)
    found = layer.likelihoods(output, TARGET, None)
    expected = Output.likelihoods(layer, output, TARGET, None)
    assert_close(found, expected)
    learning = [features, *layer.parameters()]
    one, other = (torch.autograd.grad((weights * values).sum(), learning) for values in (found, expected))
    assert_close(one, other)


def test_probabilities_are_the_mixture_of_the_paper() -> None:
    """See et al. 2017, eq. 8 and 9, in NumPy."""
    layer, vocabulary = disturb(CopyOutput(SHAPE, 6)), 6
    output = parts(2, 4)
    ids = np.array([[4, 6, 4, 7], [7, 6, 5, 3]])
    found = layer.log_probs(output, Copies.of(torch.tensor(ids), 2)).exp().detach().numpy()

    values = {name: tensor.detach().double().numpy() for name, tensor in output._asdict().items()}
    weights = {name: tensor.detach().double().numpy() for name, tensor in layer.named_parameters()}
    inputs = np.concatenate([values["hidden"], values["context"], values["embedded"]], axis=1)
    generate = 1 / (1 + np.exp(-(inputs @ weights["gate.weight"].T + weights["gate.bias"])))
    scores = values["features"] @ weights["generate.projection.weight"].T + weights["generate.projection.bias"]
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = np.zeros((2, vocabulary + 2))
    expected[:, :vocabulary] = generate * softmax
    for row, position in itertools.product(range(2), range(4)):
        expected[row, ids[row, position]] += (1 - generate[row, 0]) * values["attention"][row, position]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", COPYING)
@torch.no_grad()
def test_stepping_equals_the_parallel_pass(name: str) -> None:
    model = copying(name)
    log_probs = step_log_probs(model, model.shift(COPY_TARGET), model.start(model.encode(COPY_SOURCE)))
    assert_close(log_probs, model(COPY_SOURCE, COPY_TARGET))
    assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]))
    scores = model.score(COPY_SOURCE, COPY_TARGET)
    assert_close(scores.sum(), -cross_entropy(model, COPY_SOURCE, COPY_TARGET)[1])
    assert (scores[COPY_TARGET.mask] < 0).all()


@pytest.mark.parametrize("name", COPYING)
@torch.no_grad()
def test_padding_batch_mates_and_their_order_change_nothing(name: str) -> None:
    model = copying(name)
    batch = model(COPY_SOURCE, COPY_TARGET)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(model(COPY_SOURCE.select(order), COPY_TARGET.select(order)), batch[order])
    for index, length in enumerate(COPY_TARGET.lengths):
        source = one(COPY_SOURCE, index)
        alone = model(source, Padded(COPY_TARGET.values[index : index + 1, :length], length[None]))[0]
        assert alone.shape[-1] == TARGET_SIZE + len(source.symbols[0])
        assert_close(batch[index, :length, : alone.shape[-1]], alone)
        assert (batch[index, :length, alone.shape[-1] :] == -torch.inf).all()


def test_an_empty_source_leaves_only_generating() -> None:
    layer = disturb(CopyOutput(SHAPE, 6))
    output = parts(1, 3)._replace(attention=torch.zeros(1, 3))
    log_probs = layer.log_probs(output, Copies.of(torch.tensor([[4, 6, 6]]), 1))
    assert_close(log_probs[:, :6], layer.generate.log_probs(output, None))


@pytest.mark.parametrize("name", COPYING)
def test_every_parameter_gets_a_gradient_that_equals_the_one_of_the_whole_distribution(name: str) -> None:
    model = copying(name).train()
    loss, nll = cross_entropy(model, COPY_SOURCE, COPY_TARGET)
    assert_close(loss.detach(), nll)
    got = torch.autograd.grad(loss, list(model.parameters()))
    log_probs = model(COPY_SOURCE, COPY_TARGET)
    whole = -log_probs.gather(-1, COPY_TARGET.values[..., None])[..., 0][COPY_TARGET.mask].sum()
    expected = torch.autograd.grad(whole, list(model.parameters()))
    assert_close(loss, whole)
    for one_gradient, other in zip(got, expected, strict=True):
        assert_close(one_gradient, other, rtol=1e-3, atol=1e-4)
        assert (one_gradient != 0).any()


def test_smoothing_concerns_the_vocabulary_alone() -> None:
    model = copying("parallel general")
    plain, smoothed = (cross_entropy(model, COPY_SOURCE, COPY_TARGET, smoothing)[0] for smoothing in (0.0, 0.1))
    output = model.teach(model.encode(COPY_SOURCE), COPY_TARGET)
    generated = model.output.generate.log_probs(output, None)[COPY_TARGET.mask]
    assert_close(smoothed, 0.9 * plain - 0.1 * generated.mean(dim=-1).sum())


@needs_bfloat16
@pytest.mark.parametrize("name", COPYING)
def test_bfloat16_comes_close(name: str) -> None:
    model = copying(name).train()
    expected, _ = cross_entropy(model, COPY_SOURCE, COPY_TARGET)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cross_entropy(model, COPY_SOURCE, COPY_TARGET)
        steps = step_log_probs(model, model.shift(COPY_TARGET), model.start(model.encode(COPY_SOURCE)))
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert_close(steps.exp().sum(-1), torch.ones(steps.shape[:2]))
    near, exact = (gradient_of(value, list(model.parameters())) for value in (loss, expected))
    assert torch.cosine_similarity(near, exact, dim=0) > 0.99


def test_symbols_beyond_the_vocabulary_are_read_as_unknown() -> None:
    model = copying("parallel general")
    unknown = COPY_TARGET.values.masked_fill(COPY_TARGET.values >= TARGET_SIZE, SPECIALS.unk)
    assert_close(model.shift(COPY_TARGET), model.shift(Padded(unknown, COPY_TARGET.lengths)))


def outputs(model: EncoderDecoder, source: CopySource, longest: int) -> list[tuple[tuple[int, ...], float]]:
    """Every output of at most `longest` symbols with its log-probability, best first; scored one by one in parallel."""
    size = model.output.vocab_size + len(source.symbols[0])
    symbols = [index for index in range(size) if index not in (SPECIALS.pad, SPECIALS.bos, SPECIALS.eos)]
    ended = [(*p, SPECIALS.eos) for n in range(longest) for p in itertools.product(symbols, repeat=n)]
    every = ended + list(itertools.product(symbols, repeat=longest))
    lengths = torch.tensor([len(output) for output in every])
    values = torch.tensor([output + (0,) * (longest - len(output)) for output in every])
    scores = model.score(source.repeat(len(every)), Padded(values, lengths)).sum(dim=1).tolist()
    return sorted(zip(every, scores, strict=True), key=lambda pair: -pair[1])


def find(model: EncoderDecoder, source: CopySource, config: GenerationConfig, prefix=None):
    encoded = model.encode(source)
    rows = len(source.lengths)
    return search(
        model.step,
        model.start(encoded),
        batch_size=rows,
        specials=SPECIALS,
        config=config,
        prefix=prefix,
        source_mask=encoded.memory.mask,
        return_attention=True,
    )


@pytest.mark.parametrize("name", COPYING)
@torch.no_grad()
def test_beam_search_equals_exhaustive_search_over_the_extended_vocabulary(name: str) -> None:
    """A beam as wide as all prefixes; sentences of different lengths and vocabularies, so that some leave early."""
    model = copying(name, vocabulary=6)
    ids = COPY_SOURCE.ids.where(COPY_SOURCE.ids < TARGET_SIZE, COPY_SOURCE.ids - TARGET_SIZE + 6).where(
        (COPY_SOURCE.ids < 6) | (COPY_SOURCE.ids >= TARGET_SIZE), torch.tensor(4)
    )
    source = CopySource(COPY_SOURCE.values, COPY_SOURCE.lengths, ids, COPY_SOURCE.symbols)
    config = GenerationConfig(num_beams=40, num_return_sequences=8, max_new_tokens=3, length_normalization="none")
    found = find(model, source, config)
    beyond = 0
    for index, hypotheses in enumerate(found):
        expected = outputs(model, one(source, index), longest=3)[:8]
        for hypothesis, (tokens, score) in zip(hypotheses, expected, strict=True):
            kept = tokens[:-1] if tokens[-1] == SPECIALS.eos else tokens
            assert tuple(hypothesis.tokens.tolist()) == kept
            assert hypothesis.log_prob == pytest.approx(score, abs=1e-4)
            beyond += sum(token >= 6 for token in kept)
    assert beyond > 0, "nothing beyond the vocabulary among the best: the test would show nothing"


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"do_sample": True, "num_return_sequences": 3, "seed": 1}])
@torch.no_grad()
def test_every_search_takes_copied_symbols_in_a_prefix_and_scores_them_as_given(options: dict[str, object]) -> None:
    model = copying("feeding additive coverage")
    config = GenerationConfig(max_new_tokens=4, no_repeat_ngram_size=2, min_new_tokens=2, **options)
    prefix = torch.tensor([[TARGET_SIZE + 1, 4], [TARGET_SIZE, 0], [5, 0], [0, 0]])
    found = find(model, COPY_SOURCE, config, prefix)
    for index, hypotheses in enumerate(found):
        length = int((prefix[index] != 0).sum())
        source = one(COPY_SOURCE, index)
        for hypothesis in hypotheses:
            tokens = hypothesis.tokens
            assert tokens[:length].tolist() == prefix[index, :length].tolist()
            ended = len(hypothesis.token_scores) > len(tokens)
            target = torch.cat([tokens, torch.tensor([SPECIALS.eos])]) if ended else tokens
            scores = model.score(source, Padded(target[None], torch.tensor([len(target)])))[0]
            assert_close(hypothesis.token_scores[length:], scores[length:], rtol=1e-4, atol=1e-4)
            assert int(tokens.max()) < TARGET_SIZE + len(source.symbols[0])


@torch.no_grad()
def test_coverage_loss_is_that_of_the_paper() -> None:
    weights = torch.randn(2, 4, 3).softmax(-1)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    expected, values = 0.0, weights.numpy()
    for row in range(2):
        for step in range(int(mask[row].sum())):
            for position in range(3):
                expected += min(values[row, step, position], values[row, :step, position].sum())
    assert_close(CoverageLoss(0.5)(weights, mask).item(), 0.5 * float(expected))


def test_coverage_loss_joins_the_loss_but_not_the_likelihood() -> None:
    plain = copying("conditional additive coverage")
    covered = EncoderDecoder(
        9, 8, ENCODERS["bidirectional lstm"], DECODERS["conditional additive coverage"], output=CopyOutput,
        attention_losses=[partial(CoverageLoss, weight=2.0)],
    )  # fmt: skip
    covered.load_state_dict(plain.state_dict())
    (loss, nll), (more, same) = (cross_entropy(model.eval(), COPY_SOURCE, COPY_TARGET) for model in (plain, covered))
    term = CoverageLoss(2.0)(plain.teach(plain.encode(COPY_SOURCE), COPY_TARGET).attention, COPY_TARGET.mask)
    assert_close(nll, same)
    assert_close(more, loss + term)
    assert torch.autograd.grad(term, plain.decoder.attention.coverage.weight)[0].any()


def test_parts_that_need_attention_say_so() -> None:
    encoder, decoder = ENCODERS["bidirectional lstm"], partial(ParallelDecoder, **SIZES)
    with pytest.raises(ValueError, match="CopyOutput copies what attention looks at: give the decoder an attention"):
        EncoderDecoder(9, 8, encoder, decoder, output=CopyOutput)
    with pytest.raises(ValueError, match="attention_losses need attention, but the decoder has none"):
        EncoderDecoder(9, 8, encoder, decoder, attention_losses=[CoverageLoss])
    with pytest.raises(ValueError, match="weight of CoverageLoss must be at least 0, got -1"):
        CoverageLoss(-1)
    model = copying("parallel general")
    plain = Padded(COPY_SOURCE.values, COPY_SOURCE.lengths)
    with pytest.raises(ValueError, match="CopyOutput needs a source whose symbols have target ids"):
        cross_entropy(model, plain, COPY_TARGET)
