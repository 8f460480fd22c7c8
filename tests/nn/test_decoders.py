from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_seq2seq.nn import (
    ConditionalGRUDecoder,
    DecoderState,
    DotAttention,
    EncoderDecoder,
    EncoderShape,
    InputFeedingDecoder,
    ParallelDecoder,
)
from lit_seq2seq.types import Encoded, Padded
from tests.nn.cases import (
    DECODERS,
    KINDS,
    NETWORKS,
    SIZES,
    SOURCE,
    TARGET,
    assert_close,
    cross_entropy,
    network,
    row,
    step_features,
    step_log_probs,
    widen,
)

SHAPE = EncoderShape(memory_size=6, final_layers=1, final_size=6, others=(6,))


def start(model: EncoderDecoder, source: Padded = SOURCE) -> DecoderState:
    return model.start(model.encode(source))


def beam(state: DecoderState, hypotheses: int) -> DecoderState:
    """Grow from one hypothesis per source to several."""
    sources = state.cells.h.shape[0]
    return state.select(torch.arange(sources)[:, None].expand(sources, hypotheses))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_stepping_equals_the_parallel_pass(name: str) -> None:
    model = network(name)
    tokens = model.shift(TARGET)
    output = model.decoder(tokens, start(model))
    features, weights, _ = step_features(model, tokens, start(model))
    log_probs = step_log_probs(model, tokens, start(model))
    assert_close(features, output.features)
    assert_close(log_probs, model(SOURCE, TARGET).log_softmax(dim=-1))
    assert_close(weights, output.attention)
    assert features.shape == (*tokens.shape, model.decoder.output_size)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_hypotheses_of_a_beam_step_like_targets_of_their_own(name: str) -> None:
    model, hypotheses = network(name), 3
    sources = len(SOURCE.lengths)
    tokens = torch.randint(4, 8, (sources, hypotheses, 4))  # (B, K, T)
    features, weights, _ = step_features(model, tokens.flatten(0, 1), beam(start(model), hypotheses))
    for k in range(hypotheses):
        output = model.decoder(tokens[:, k], start(model))
        assert_close(features.unflatten(0, (sources, hypotheses))[:, k], output.features)
        if weights is not None:
            assert_close(weights.unflatten(0, (sources, hypotheses))[:, k], output.attention)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_select_reorders_hypotheses_and_drops_sources(name: str) -> None:
    model, hypotheses = network(name), 2
    sources = len(SOURCE.lengths)
    before = torch.randint(4, 8, (sources, hypotheses, 2))
    after = torch.randint(4, 8, (2, 3, 2))
    *_, state = step_features(model, before.flatten(0, 1), beam(start(model), hypotheses))
    index = torch.tensor([[3, 2, 3], [6, 6, 7]])  # sources 1 and 3 go on, with three hypotheses each
    features, weights, _ = step_features(model, after.flatten(0, 1), state.select(index))

    past = before.flatten(0, 1)[index]  # (2, 3, 2)
    for k in range(3):
        whole = torch.cat([past[:, k], after[:, k]], dim=1)
        kept = Padded(SOURCE.values[[1, 3]], SOURCE.lengths[[1, 3]])
        output = model.decoder(whole, start(model, kept))
        assert_close(features.unflatten(0, (2, 3))[:, k], output.features[:, 2:])
        if weights is not None:
            assert output.attention is not None
            assert_close(weights.unflatten(0, (2, 3))[:, k], output.attention[:, 2:])


@torch.no_grad()
def test_a_beam_shares_the_memory_of_its_source() -> None:
    state = beam(start(network("feeding general")), 5)
    assert state.memory is not None
    assert state.memory.keys.shape[0] == len(SOURCE.lengths)
    assert state.cells.h.shape[0] == 5 * len(SOURCE.lengths)


@torch.no_grad()
def test_the_summary_is_the_top_final_state_and_is_kept_only_where_needed() -> None:
    encoded = network("three layers encoder").encode(SOURCE)
    shape = EncoderShape(memory_size=6, final_layers=3, final_size=6)
    for attention, use_summary in [(None, False), (None, True), (DotAttention, True)]:
        decoder = ParallelDecoder(8, shape, attention=attention, use_summary=use_summary, **SIZES)
        assert_close(decoder.start(encoded).summary, encoded.final.h[:, 2])
    assert ParallelDecoder(8, shape, attention=DotAttention, **SIZES).start(encoded).summary is None


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_batch_mates_and_padding_change_nothing(name: str) -> None:
    model = network(name)
    batch = model(SOURCE, TARGET)
    weights = model.decoder(model.shift(TARGET), start(model)).attention
    padded = model(widen(SOURCE, 3, fill=7), widen(TARGET, 2, fill=6))
    for index, (width, length) in enumerate(zip(SOURCE.lengths, TARGET.lengths, strict=True)):
        source, target = row(SOURCE, index), row(TARGET, index)
        alone = model(source, target)[0]
        assert_close(batch[index, :length], alone)
        assert_close(padded[index, :length], alone)
        if weights is not None:
            expected = model.decoder(model.shift(target), start(model, source)).attention
            assert_close(weights[index, :length, :width], expected[0])
            assert (weights[index, :, width:] == 0).all()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_batch_order_changes_nothing(name: str) -> None:
    model, order = network(name).double(), torch.tensor([2, 0, 3, 1])  # rounding differs with the place in the batch
    shuffled = model(SOURCE.select(order), TARGET.select(order))
    assert_close(shuffled, model(SOURCE, TARGET)[order])


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_has_no_gradient(name: str) -> None:
    model = network(name)
    source, target = widen(SOURCE, 1, fill=1), widen(TARGET, 1, fill=1)  # 1 occurs nowhere else
    cross_entropy(model, source, target)[0].backward()
    for embedding in (model.encoder.token_embedding, model.decoder.embedding):
        assert embedding is not None
        assert embedding.weight.grad is not None
        assert (embedding.weight.grad[1] == 0).all()
        assert (embedding.weight.grad[5] != 0).any()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_an_empty_source_gives_finite_scores_that_padding_does_not_touch(name: str) -> None:
    model = network(name)
    empty = Padded(SOURCE.values, SOURCE.lengths.clone().index_fill_(0, torch.tensor([1]), 0))
    logits = model(empty, TARGET)
    assert logits.isfinite().all()
    assert_close(model(widen(empty, 2, fill=8), TARGET), logits)
    assert_close(logits[[0, 2, 3]], model(SOURCE, TARGET)[[0, 2, 3]])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_later_tokens_do_not_touch_earlier_features(name: str) -> None:
    model = network(name)
    tokens = model.shift(TARGET)
    changed = torch.cat([tokens[:, :3], 7 - tokens[:, 3:]], dim=1)
    before, after = (model.decoder(x, start(model)).features for x in (tokens, changed))
    assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize("name", ["parallel first additive", "feeding general", "conditional additive coverage"])
def test_dropout_changes_training_but_not_evaluation(name: str) -> None:
    options = {"num_layers": 3, "residual": True, "dropout": 0.5, "locked_dropout": True, "state_dropout": 0.5}
    model = network(name, **options)
    assert_close(model(SOURCE, TARGET), model(SOURCE, TARGET), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(SOURCE, TARGET), model(SOURCE, TARGET))


@pytest.mark.parametrize("kind", KINDS)
def test_locked_dropout_of_embeddings_holds_over_time_and_differs_between_rows(kind: str) -> None:
    decoder = KINDS[kind](8, SHAPE, dropout=0.5, locked_dropout=True).train()
    torch.nn.init.ones_(decoder.embedding.weight)
    vectors = decoder.embed(torch.full((16, 7), 4))  # (16, 7, 5)
    assert (vectors == vectors[:, :1]).all()
    assert len(vectors[:, 0].unique(dim=0)) > 1
    assert {round(value, 5) for value in vectors.unique().tolist()} == {0.0, 2.0}


@pytest.mark.parametrize("name", ["feeding general", "conditional additive coverage"])
def test_stepping_decoders_hold_their_masks_over_a_sequence(name: str) -> None:
    """The only dropout left is locked or on states, so that equal masks must give the parallel pass."""
    options = {"num_layers": 3, "residual": True, "locked_dropout": True, "state_dropout": 0.5}
    model = network(name, dropout=0.0, **options).train()
    stack = next(module for name, module in model.decoder.named_children() if name in ("stack", "above"))
    stack.dropout = 0.5
    tokens = model.shift(TARGET)
    torch.manual_seed(1)
    expected = model.decoder(tokens, start(model)).features
    torch.manual_seed(1)
    state = model.decoder.lock_masks(start(model))
    assert state.masks is not None
    features, *_ = step_features(model, tokens, state)
    assert_close(features, expected)
    assert not torch.allclose(step_features(model, tokens, replace(state, masks=None))[0], expected)

    order = torch.tensor([[2], [0], [3], [1]])
    mixed = model.decoder.lock_masks(start(model)).select(order).masks
    assert mixed is not None
    assert all(mask is None or mask.shape[0] == 4 for mask in mixed.states)
    chosen = state.select(order).masks
    assert chosen is not None
    assert_close(chosen.states[0], state.masks.states[0][order[:, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_without_layers_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        KINDS[kind](8, SHAPE, num_layers=0)


def test_sizes_of_features() -> None:
    shape = EncoderShape(memory_size=10, final_layers=1, final_size=6, others=(6,))
    assert ParallelDecoder(8, shape, combine="concat", **SIZES).output_size == 6
    assert InputFeedingDecoder(8, shape, combine="concat", **SIZES).output_size == 16
    assert ConditionalGRUDecoder(8, shape, combine="concat", **SIZES).output_size == 16
    assert ConditionalGRUDecoder(8, shape, **SIZES).output_size == 6


SEEING = [name for name in DECODERS if "no attention" not in name and " none " not in name]
REACH = torch.tensor([2, 2, 3, 1, 4, 5])  # of each step; attention may see less than before, too


def softened(name: str) -> EncoderDecoder:
    """Let monotonic attentions weigh all places where they may stop, as in training: more depends on a mask then."""
    model = network(name)
    if model.decoder.attention_module is not None:
        model.decoder.attention_module.train()
    return model


@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_a_mask_narrows_steps_and_the_parallel_pass_alike(name: str) -> None:
    model = softened(name)
    tokens, state = model.shift(TARGET), start(model)
    output, after = model.decoder.run(tokens, state.narrowed(REACH))
    whole = model.decoder(tokens, state)
    assert after.visible is None
    assert_close(model.teach(model.encode(SOURCE), TARGET, reach=REACH).features, output.features)
    if output.attention is not None:
        seen = torch.arange(5) < REACH[:, None]
        assert (output.attention * ~seen == 0).all()
        assert not torch.allclose(output.attention, whole.attention)
    features = []
    for t, column in enumerate(tokens.unbind(dim=1)):
        step, state = model.decoder.step(column, state.narrowed(REACH[t : t + 1]))
        features.append(step.features)
    assert_close(torch.stack(features, dim=1), output.features)
    everything = model.decoder(tokens, start(model).narrowed(torch.full((6,), 5)))
    assert_close(everything.features, whole.features)


@pytest.mark.parametrize("name", SEEING)
def test_what_lies_beyond_a_mask_changes_nothing(name: str) -> None:
    model = softened(name)
    tokens, encoded = model.shift(TARGET), model.encode(SOURCE)
    reach = torch.tensor([1, 2, 2, 3, 3, 4])
    found = []
    for noise in (torch.zeros(1), torch.randn(4, 5, 6)):
        values = (encoded.memory.values.detach() + 9 * noise * (torch.arange(5) >= 3)[:, None]).requires_grad_()
        state = replace(model.start(encoded), memory=model.start(of(encoded, values)).memory)
        features = model.decoder(tokens, state.narrowed(reach)).features
        (gradient,) = torch.autograd.grad(features[:, :3].square().sum(), values)
        assert (gradient[:, 2:] == 0).all()
        assert (gradient[:, 1] != 0).any()
        found.append(features)
    assert_close(found[0][:, :5], found[1][:, :5])
    assert not torch.allclose(found[0][:, 5], found[1][:, 5])


def of(encoded: Encoded, values: Tensor) -> Encoded:
    return replace(encoded, memory=Padded(values, encoded.memory.lengths))


@pytest.mark.parametrize("name", ["parallel general", "feeding location", "hard monotonic"])
@torch.no_grad()
def test_hypotheses_of_a_beam_see_what_their_source_shows(name: str) -> None:
    model = network(name)
    tokens = torch.tensor([5, 6, 7, 4])
    state = beam(start(model), 3).narrowed(torch.tensor([2]))
    state = state.select(torch.tensor([[3, 4], [9, 10]]))  # sources 1 and 3 go on, with two hypotheses each
    kept = start(model).select(torch.tensor([[1, 1], [3, 3]])).narrowed(torch.tensor([2]))
    assert_close(model.decoder.step(tokens, state)[0].features, model.decoder.step(tokens, kept)[0].features)
