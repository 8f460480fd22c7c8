from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lit_seq2seq.nn import (
    AdditiveAttention,
    Attention,
    AttentionMemory,
    DotAttention,
    LocationAwareAttention,
    Looked,
    MultiHeadAttention,
)
from lit_seq2seq.types import Padded, Value
from tests.nn.cases import ATTENTIONS, assert_close, disturb, tensors

Array = NDArray[np.float64]
Weights = dict[str, Array]
QUERY_SIZE, MEMORY_SIZE, BATCH, QUERIES = 6, 4, 3, 2
LENGTHS = torch.tensor([5, 2, 3])
MONOTONIC = {"monotonic", "MoChA"}  # see test_monotonic.py
all_attentions = pytest.mark.parametrize("name", ATTENTIONS)


def build(name: str, memory_size: int = MEMORY_SIZE) -> Attention:
    return disturb(ATTENTIONS[name](QUERY_SIZE, memory_size))


def inputs(memory_size: int = MEMORY_SIZE) -> tuple[torch.Tensor, Padded]:
    """Queries, and memory with arbitrary padding."""
    return torch.randn(BATCH, QUERIES, QUERY_SIZE), Padded(torch.randn(BATCH, 5, memory_size), LENGTHS)


def under_way(attention: Attention, memory: Padded, queries: int = QUERIES) -> tuple[AttentionMemory, Value | None]:
    """What the source is attended by, and the state after three steps of each hypothesis."""
    ready = attention.prepare(memory)
    state = attention.start(ready)
    state = None if state is None else state.repeat(queries)
    for query in torch.randn(3, BATCH, queries, QUERY_SIZE, generator=torch.Generator().manual_seed(0)):
        state = attention(query, ready, state)[2]
    return ready, state


def dot(w: Weights, q: Array, v: Array, seen: Array) -> Array:
    return (v @ w["key.weight"].T) @ q


def scaled_dot(w: Weights, q: Array, v: Array, seen: Array) -> Array:
    return dot(w, q, v, seen) / np.sqrt(len(q))


def additive(w: Weights, q: Array, v: Array, seen: Array) -> Array:
    inner = w["query.weight"] @ q + w["query.bias"] + v @ w["key.weight"].T
    return np.tanh(inner) @ w["energy.weight"][0]


def additive_coverage(w: Weights, q: Array, v: Array, seen: Array) -> Array:
    inner = w["query.weight"] @ q + w["query.bias"] + v @ w["key.weight"].T
    return np.tanh(inner + seen[:, None] * w["coverage.weight"][:, 0]) @ w["energy.weight"][0]


def location(w: Weights, q: Array, v: Array, seen: Array) -> Array:
    kernel = w["convolution.weight"][:, 0]  # (filters, width)
    half = kernel.shape[1] // 2
    padded = np.pad(seen, half)
    convolved = np.stack([kernel @ padded[s : s + kernel.shape[1]] for s in range(len(seen))])  # (S, filters)
    inner = w["query.weight"] @ q + w["query.bias"] + v @ w["key.weight"].T + convolved @ w["location.weight"].T
    return np.tanh(inner) @ w["energy.weight"][0]


SCORES: dict[str, Callable[[Weights, Array, Array, Array], Array]] = {
    "dot": dot,
    "scaled dot": scaled_dot,
    "general": dot,
    "additive": additive,
    "additive coverage": additive_coverage,
    "location": location,
    "location cumulative": location,
}


def softmax(x: Array) -> Array:
    exponents = np.exp(x - x.max())
    result: Array = exponents / exponents.sum()
    return result


@pytest.mark.parametrize("name", SCORES)
def test_attention_equals_numpy(name: str) -> None:
    attention = build(name)
    query, memory = inputs()
    ready, state = under_way(attention, memory)
    seen = state.weights.detach() if isinstance(state, Looked) else torch.zeros(BATCH * QUERIES, 5)
    weights = {key: value.double().numpy() for key, value in attention.state_dict().items()}
    context, attended, _ = attention(query, ready, state)
    for b in range(BATCH):
        size = int(LENGTHS[b])
        values = memory.values[b, :size].double().numpy()
        for k in range(QUERIES):
            before = seen[b * QUERIES + k, :size].double().numpy()
            expected = softmax(SCORES[name](weights, query[b, k].double().numpy(), values, before))
            np.testing.assert_allclose(attended[b, k, :size].detach().numpy(), expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(context[b, k].detach().numpy(), expected @ values, rtol=1e-4, atol=1e-5)


def test_multi_head_attention_equals_numpy() -> None:
    attention = build("multi-head")
    query, memory = inputs()
    w = {key: value.double().numpy() for key, value in attention.state_dict().items()}
    context, attended, _ = attention(query, attention.prepare(memory))
    for b in range(BATCH):
        size = int(LENGTHS[b])
        values = memory.values[b, :size].double().numpy()
        for k in range(QUERIES):
            q = w["query.weight"] @ query[b, k].double().numpy()
            heads, mean = [], np.zeros(size)
            for part in (slice(0, 3), slice(3, 6)):
                a = softmax(values @ w["key.weight"][part].T @ q[part] / np.sqrt(3))
                heads.append(a @ (values @ w["value.weight"][part].T))
                mean += a / 2
            np.testing.assert_allclose(attended[b, k, :size].detach().numpy(), mean, rtol=1e-4, atol=1e-6)
            expected = w["output.weight"] @ np.concatenate(heads)
            np.testing.assert_allclose(context[b, k].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_every_attention_has_a_reference() -> None:
    assert {*SCORES, "multi-head", *MONOTONIC} == set(ATTENTIONS)


def assert_sums_to_one(name: str, weights: torch.Tensor) -> None:
    """Monotonic attention may have left the source, and then sees less of it, or nothing."""
    total = weights.sum(dim=-1)
    assert_close(total.clamp(max=1) if name in MONOTONIC else torch.ones_like(total), total)


@all_attentions
def test_weights_are_a_distribution_over_real_positions(name: str) -> None:
    attention = build(name)
    query, memory = inputs()
    context, weights, _ = attention(query, *under_way(attention, memory))
    assert_sums_to_one(name, weights)
    assert (weights.masked_select(~memory.mask[:, None]) == 0).all()
    assert (weights.masked_select(memory.mask[:, None]) > 0).all()
    assert context.shape == (BATCH, QUERIES, attention.context_size)


@all_attentions
def test_queries_of_one_source_do_not_touch_each_other(name: str) -> None:
    attention = build(name)
    query, memory = inputs()
    ready, state = under_way(attention, memory)
    mask = torch.rand(BATCH, QUERIES, 5) < 0.7
    context, weights, after = attention(query, ready, state, mask)
    for k in range(QUERIES):
        rows = torch.arange(BATCH) * QUERIES + k
        own = None if state is None else state.select(rows)
        alone, alone_weights, alone_after = attention(query[:, k : k + 1], ready, own, mask[:, k : k + 1])
        assert_close(context[:, k : k + 1], alone)
        assert_close(weights[:, k : k + 1], alone_weights)
        assert_close(tensors(after.select(rows)) if after else [], tensors(alone_after) if alone_after else [])


@all_attentions
def test_one_call_for_all_steps_equals_a_call_for_each(name: str) -> None:
    attention, (query, memory) = build(name), inputs()
    ready = attention.prepare(memory)
    for mask in (None, torch.rand(BATCH, QUERIES, 5) < 0.7):
        contexts, weights = attention.scan(query, ready, attention.start(ready), mask)
        state = attention.start(ready)
        for t in range(QUERIES):
            column = None if mask is None else mask[:, t : t + 1]
            context, weight, state = attention(query[:, t : t + 1], ready, state, column)
            assert_close(contexts[:, t : t + 1], context)
            assert_close(weights[:, t : t + 1], weight)


@all_attentions
def test_a_query_looks_only_where_it_may(name: str) -> None:
    attention, (query, memory) = build(name), inputs()
    ready, state = under_way(attention, memory)
    reach = torch.tensor([3, 1])  # of each query, as by a policy that reads as it writes
    mask = (torch.arange(5) < reach[:, None]).expand(BATCH, -1, -1)
    _, weights, _ = attention(query, ready, state, mask)
    assert not weights.masked_select(~mask).any()
    assert_sums_to_one(name, weights)
    later = Padded(memory.values.masked_fill(~mask.any(dim=1)[..., None], 9.0), memory.lengths)
    assert_close(attention(query, attention.prepare(later), state, mask)[1], weights)


@all_attentions
def test_padding_changes_nothing_and_has_no_gradient(name: str) -> None:
    attention = build(name)
    query, memory = inputs()
    values = memory.values.requires_grad_()
    context, weights, _ = attention(query, *under_way(attention, memory))
    (gradient,) = torch.autograd.grad(context.square().sum() + weights.square().sum(), values)
    assert (gradient[~memory.mask] == 0).all()
    assert (gradient[memory.mask] != 0).any()

    wide = Padded(torch.cat([values.where(memory.mask[..., None], 9.0), torch.ones(BATCH, 2, MEMORY_SIZE)], 1), LENGTHS)
    wide_context, wide_weights, _ = attention(query, *under_way(attention, wide))
    assert_close(wide_context, context)
    assert_close(wide_weights[..., :5], weights)


@all_attentions
def test_an_empty_source_gives_zero_weights(name: str) -> None:
    attention = build(name)
    query, memory = inputs()
    context, weights, _ = attention(query, *under_way(attention, Padded(memory.values, LENGTHS * 0)))
    assert (weights == 0).all()
    assert (context == 0).all()


@all_attentions
@pytest.mark.parametrize("memory_size", [MEMORY_SIZE, QUERY_SIZE])
def test_any_memory_size_will_do(name: str, memory_size: int) -> None:
    attention = build(name, memory_size)
    query, memory = inputs(memory_size)
    context, *_ = attention(query, *under_way(attention, memory))
    assert context.shape[-1] == attention.context_size == (QUERY_SIZE if name == "multi-head" else memory_size)


def test_dot_attention_of_equal_sizes_has_no_parameters() -> None:
    assert not list(DotAttention(4, 4).parameters())


@pytest.mark.parametrize(("name", "cumulative"), [("location", False), ("location cumulative", True)])
def test_what_is_remembered(name: str, cumulative: bool) -> None:
    attention, (query, memory) = build(name), inputs()
    ready, before = under_way(attention, memory)
    _, weights, after = attention(query, ready, before)
    assert isinstance(before, Looked)
    assert isinstance(after, Looked)
    assert_close(after.weights, weights.flatten(0, 1) + (before.weights if cumulative else 0))


@pytest.mark.parametrize("name", ["additive coverage", "location", "location cumulative"])
def test_a_missing_state_is_named(name: str) -> None:
    attention = build(name)
    query, memory = inputs()
    with pytest.raises(ValueError, match="expected the state that start or the step before has returned, got None"):
        attention(query, attention.prepare(memory))


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        LocationAwareAttention(6, 4, kernel_size=4)


def test_heads_must_divide_the_query() -> None:
    with pytest.raises(ValueError, match="query_size 6 is not divisible by num_heads 4"):
        MultiHeadAttention(6, 4)


def test_attention_size_defaults_to_the_query_size() -> None:
    assert AdditiveAttention(6, 4).energy.in_features == 6
    assert AdditiveAttention(6, 4, attention_size=3).energy.in_features == 3
