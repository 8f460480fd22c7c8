"""Several sources at once: what every encoder, attention and decoder promises holds for them, too."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lit_seq2seq.nn import (
    AdditiveAttention,
    Attention,
    EncoderDecoder,
    GeneralAttention,
    HierarchicalAttention,
    JoinedMemory,
    LocationAwareAttention,
    MultiHeadAttention,
    MultiSourceEncoder,
    TextEncoder,
)
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.types import Padded, Shared, Sources, UserError
from tests.nn.cases import (
    ATTENTIONS,
    BRIDGES,
    IMAGE_ENCODERS,
    KINDS,
    SIZES,
    SOURCE,
    SOURCE_SIZE,
    SPECIALS,
    TARGET,
    TARGET_SIZE,
    assert_close,
    disturb,
    row,
    step_features,
    step_log_probs,
    tensors,
    widen,
)

ENCODERS = {
    "text": partial(TextEncoder, num_layers=2, **SIZES),
    "image": IMAGE_ENCODERS["convolutions"],
    "tags": partial(TextEncoder, cell="gru", embedding_dim=4, hidden_size=4),
}
TAGS = Padded(torch.tensor([[4, 5], [5, 0], [6, 4], [4, 0]]), torch.tensor([2, 1, 2, 0]))  # the last has none
IMAGES = Padded(torch.randn(4, 8, 8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([8] * 4))
SOURCES = Sources({"text": SOURCE, "image": IMAGES, "tags": TAGS})
NAMES = tuple(ENCODERS)
COMBINATIONS: dict[str, Callable[[int, int], Attention]] = {
    **{f"flat {name}": ATTENTIONS[name] for name in ("general", "additive", "multi-head", "location")},
    "hierarchical": partial(HierarchicalAttention, attentions=dict.fromkeys(NAMES, AdditiveAttention)),
    "hierarchical mixed": partial(
        HierarchicalAttention,
        attentions={
            "text": GeneralAttention,
            "image": partial(MultiHeadAttention, num_heads=2),
            "tags": partial(LocationAwareAttention, filters=2, kernel_size=3),
        },
        attention_size=3,
    ),
}
NETWORKS = [(kind, combination) for kind in KINDS for combination in COMBINATIONS]
all_networks = pytest.mark.parametrize(("kind", "combination"), NETWORKS)


def encoder() -> MultiSourceEncoder:
    sizes = {"text": SOURCE_SIZE, "image": 3, "tags": 7}
    return disturb(MultiSourceEncoder(sizes, ENCODERS, hidden_size=6), scale=0.1).eval()


def build(kind: str, combination: str, **options: object) -> EncoderDecoder:
    decoder = partial(KINDS[kind], attention=COMBINATIONS[combination], num_layers=2, **options)
    sizes = {"text": SOURCE_SIZE, "image": 3, "tags": 7}
    made = EncoderDecoder(sizes, TARGET_SIZE, partial(MultiSourceEncoder, encoders=ENCODERS, hidden_size=6), decoder)
    return disturb(made).eval()


def alone(index: int) -> Sources:
    """Take one example, without any padding but a column for what is empty."""
    parts = {name: row(part, index) for name, part in SOURCES.parts.items()}
    return Sources({name: part if part.values.shape[1] else widen(part, 1, fill=0) for name, part in parts.items()})


def padded() -> Sources:
    """Add padding to the texts and the tags."""
    return Sources({**SOURCES.parts, "text": widen(SOURCE, 3, fill=7), "tags": widen(TAGS, 2, fill=5)})


def test_sizes_are_as_promised() -> None:
    made = encoder()
    encoded, shape = made(SOURCES), made.shape
    assert encoded.memory.values.shape == (4, 5 + 4 + 2, shape.memory_size)
    assert encoded.memory.lengths.tolist() == [5 + 4 + 2, 2 + 4 + 1, 4 + 4 + 2, 1 + 4]
    assert encoded.final.h.shape == (4, shape.final_layers, shape.final_size)
    assert encoded.final.others == shape.others == ()


def test_the_memory_is_that_of_each_source_in_turn_projected() -> None:
    made = encoder()
    memory = made(SOURCES).memory
    for index in range(4):
        start = 0
        for name, part in SOURCES.parts.items():
            own = made.encoders[name](part).memory
            length = int(own.lengths[index])
            expected = made.projections[name](own.values[index, :length])
            assert_close(memory.values[index, start : start + length], expected)
            start += length
        assert start == memory.lengths[index]


@torch.no_grad()
def test_padding_batch_mates_and_order_change_nothing_in_the_memory() -> None:
    made = encoder()
    encoded, order = made(SOURCES), torch.tensor([3, 1, 0, 2])
    for other in (made(padded()), made(SOURCES.select(order)).select(order.argsort())):
        assert_close(tensors(other.final), tensors(encoded.final))
        assert_close(other.memory.lengths, encoded.memory.lengths)
        mask = encoded.memory.mask
        assert_close(other.memory.values[:, : mask.shape[1]][mask], encoded.memory.values[mask])
    for index in range(4):
        single = made(alone(index))
        assert_close(single.final.h[0], encoded.final.h[index])
        length = int(single.memory.lengths[0])
        assert_close(single.memory.values[0, :length], encoded.memory.values[index, :length])


def test_every_source_reaches_the_final_state_and_has_gradients() -> None:
    made = encoder().train()
    encoded = made(SOURCES)
    (encoded.final.h.square().sum() + encoded.memory.values.square().sum()).backward()
    assert [name for name, parameter in made.named_parameters() if not parameter.grad.any()] == []


@all_networks
@torch.no_grad()
def test_stepping_equals_the_parallel_pass(kind: str, combination: str) -> None:
    model = build(kind, combination)
    tokens = model.shift(TARGET)
    output = model.decoder(tokens, model.start(model.encode(SOURCES)))
    features, weights, _ = step_features(model, tokens, model.start(model.encode(SOURCES)))
    assert_close(features, output.features)
    assert_close(weights, output.attention)
    log_probs = step_log_probs(model, tokens, model.start(model.encode(SOURCES)))
    assert_close(log_probs, model(SOURCES, TARGET).log_softmax(dim=-1))


@all_networks
@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(kind: str, combination: str) -> None:
    model = build(kind, combination)
    scores = model(SOURCES, TARGET)
    assert_close(model(padded(), TARGET), scores)
    for index in range(4):
        target = row(TARGET, index)
        assert_close(model(alone(index), target)[0], scores[index, : target.lengths[0]])


@all_networks
@torch.no_grad()
def test_weights_sum_to_one_over_the_real_positions(kind: str, combination: str) -> None:
    model = build(kind, combination)
    encoded = model.encode(SOURCES)
    weights = model.decoder(model.shift(TARGET), model.start(encoded)).attention
    assert weights is not None
    assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:2]))
    assert not weights.masked_select(~encoded.memory.mask[:, None]).any()


@all_networks
@torch.no_grad()
def test_beam_search_finds_the_same_for_each_example_alone(kind: str, combination: str) -> None:
    model = build(kind, combination)
    config = GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=6)

    def found(sources: Sources) -> list[list[tuple[list[int], Tensor]]]:
        encoded = model.encode(sources)
        hypotheses = search(
            model.step,
            model.start(encoded),
            batch_size=len(encoded.memory.lengths),
            specials=SPECIALS,
            config=config,
            source_mask=encoded.memory.mask,
        )
        return [[(h.tokens.tolist(), torch.tensor(h.score)) for h in row] for row in hypotheses]

    together = found(SOURCES)
    for index in range(4):
        (single,) = found(alone(index))
        assert [tokens for tokens, _ in single] == [tokens for tokens, _ in together[index]]
        assert_close(torch.stack([s for _, s in single]), torch.stack([s for _, s in together[index]]))


@pytest.mark.parametrize("bridge", list(BRIDGES))
@torch.no_grad()
def test_any_bridge_starts_the_decoder(bridge: str) -> None:
    model = build("parallel first", "hierarchical", bridge=BRIDGES[bridge])
    steps = step_log_probs(model, model.shift(TARGET), model.start(model.encode(SOURCES)))
    assert_close(steps, model(SOURCES, TARGET).log_softmax(dim=-1))


def memories() -> tuple[MultiSourceEncoder, Tensor, JoinedMemory]:
    made = encoder()
    return made, torch.randn(4, 2, 6), made(SOURCES).memory


def one(memory: JoinedMemory, name: str, index: int) -> Tensor:
    part = memory.parts[name]
    return part.values[index, : part.lengths[index]]  # (S_k, M)


@torch.no_grad()
def test_flat_attention_is_one_softmax_over_the_states_of_all_sources() -> None:
    _, query, memory = memories()
    attention = disturb(AdditiveAttention(6, 6)).eval()
    context, weights, _ = attention(query, attention.prepare(memory))
    for index in range(4):
        states = torch.cat([one(memory, name, index) for name in NAMES])  # U_c h, of all sources
        inner = attention.query(query[index])[:, None] + attention.key(states)[None]
        expected = attention.energy(torch.tanh(inner))[..., 0].softmax(dim=-1)  # (Q, S)
        assert_close(weights[index, :, : len(states)], expected)
        assert_close(context[index], expected @ states)


@torch.no_grad()
def test_hierarchical_attention_weighs_the_contexts_of_the_sources() -> None:
    _, query, memory = memories()
    attention = disturb(HierarchicalAttention(6, 6, dict.fromkeys(NAMES, AdditiveAttention))).eval()
    context, weights, _ = attention(query, attention.prepare(memory))
    for index in range(4):
        contexts, energies, parts = [], [], []
        for name in NAMES:
            states, own = one(memory, name, index), attention.attentions[name]
            if not len(states):
                continue
            inner = own.query(query[index])[:, None] + own.key(states)[None]
            alpha = own.energy(torch.tanh(inner))[..., 0].softmax(dim=-1)
            contexts.append(alpha @ states)
            energies.append(
                attention.energy(torch.tanh(attention.query(query[index]) + attention.key[name](contexts[-1])))
            )
            parts.append(alpha)
        beta = torch.cat(energies, dim=-1).softmax(dim=-1)  # (Q, K)
        expected = sum(beta[:, k : k + 1] * found for k, found in enumerate(contexts))
        assert_close(context[index], expected)
        joined = torch.cat([beta[:, k : k + 1] * alpha for k, alpha in enumerate(parts)], dim=-1)
        assert_close(weights[index, :, : joined.shape[-1]], joined)
    assert_close(attention.scores(query, attention.prepare(memory), None).softmax(dim=-1), weights)


@torch.no_grad()
def test_hierarchical_attention_looks_where_each_query_may() -> None:
    _, query, memory = memories()
    attention = disturb(HierarchicalAttention(6, 6, dict.fromkeys(NAMES, AdditiveAttention))).eval()
    mask = torch.rand(4, 2, memory.values.shape[1]) < 0.5
    mask[0, 0] = False
    mask[1, 1, :2] = False  # nothing of the text
    _, weights, _ = attention(query, attention.prepare(memory), mask=mask)
    assert not weights[~mask].any()
    seen = (mask & memory.mask[:, None]).any(dim=-1)
    assert_close(weights.sum(dim=-1), seen.to(weights.dtype))
    everywhere = attention(query, attention.prepare(memory), mask=torch.ones_like(mask))
    assert_close(everywhere[:2], attention(query, attention.prepare(memory))[:2])


@torch.no_grad()
def test_a_shared_source_is_encoded_once_and_given_to_each_example() -> None:
    model, index = build("parallel first", "hierarchical"), torch.tensor([1, 0, 1, 3])
    shared = Shared(SOURCES, index)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0].lengths)))
    assert_close(model(shared, TARGET), model(SOURCES.select(index), TARGET))
    assert seen == [4, 4]
    assert shared.lengths.tolist() == SOURCES.lengths[index].tolist()
    part = shared.select(torch.tensor([3, 1]))
    assert part.lengths.tolist() == SOURCES.lengths[[3, 0]].tolist()
    assert shared.repeat(2).index.tolist() == [2, 3, 0, 1, 2, 3, 6, 7]
    assert_close(model(shared.repeat(2), TARGET.repeat(2)), model(shared, TARGET).repeat_interleave(2, dim=0))


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ValueError, match="expected an encoder for each source, text, image, got encoders for text, tags"
    ):
        MultiSourceEncoder({"text": 5, "image": 3}, {"text": ENCODERS["text"], "tags": ENCODERS["tags"]})
    with pytest.raises(ValueError, match="but there is only one, got encoders for text: name the sources of data"):
        MultiSourceEncoder(5, {"text": ENCODERS["text"]})
    with pytest.raises(ValueError, match=r"attentions whose contexts have one size, but they have \[6, 8\]"):
        HierarchicalAttention(8, 6, {"text": AdditiveAttention, "tags": MultiHeadAttention})
    other = HierarchicalAttention(6, 6, {"text": AdditiveAttention})
    with pytest.raises(UserError, match="has attentions for text, but the sources are text, image, tags"):
        other.prepare(memories()[2])
    with pytest.raises(UserError, match="but the sources are not named: use a MultiSourceEncoder"):
        other.prepare(Padded(torch.zeros(1, 2, 6), torch.tensor([2])))
    with pytest.raises(ValueError, match="tie_embeddings: all needs source and target embeddings"):
        EncoderDecoder(
            {"text": SOURCE_SIZE, "image": 3, "tags": 7},
            TARGET_SIZE,
            partial(MultiSourceEncoder, encoders=ENCODERS, hidden_size=6),
            KINDS["parallel"],
            tie_embeddings="all",
        )
