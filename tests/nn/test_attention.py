from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lit_seq2seq.nn import (
    AdditiveAttention,
    Attention,
    AttentionHistory,
    DotAttention,
    LocationAwareAttention,
    MultiHeadAttention,
)
from lit_seq2seq.types import Padded
from tests.nn.cases import ATTENTIONS, assert_close, disturb

Array = NDArray[np.float64]
Weights = dict[str, Array]
Score = Callable[[Weights, Array, Array, Array, Array], float]
QUERY_SIZE, MEMORY_SIZE, BATCH, QUERIES = 6, 4, 3, 2
LENGTHS = torch.tensor([5, 2, 3])
all_attentions = pytest.mark.parametrize("name", ATTENTIONS)


def build(name: str, memory_size: int = MEMORY_SIZE) -> Attention:
    return disturb(ATTENTIONS[name](QUERY_SIZE, memory_size))


def inputs(memory_size: int = MEMORY_SIZE) -> tuple[torch.Tensor, Padded, AttentionHistory]:
    """Queries, memory with arbitrary padding, and a history of three steps."""
    memory = Padded(torch.randn(BATCH, 5, memory_size), LENGTHS)
    past = torch.rand(3, BATCH * QUERIES, 5) * memory.mask.repeat_interleave(QUERIES, dim=0)
    past = past / past.sum(dim=-1, keepdim=True)
    return torch.randn(BATCH, QUERIES, QUERY_SIZE), memory, AttentionHistory(past[-1], past.sum(dim=0))


def dot(w: Weights, q: Array, v: Array, last: Array, total: Array) -> Array:
    return (v @ w["key.weight"].T) @ q


def scaled_dot(w: Weights, q: Array, v: Array, last: Array, total: Array) -> Array:
    return dot(w, q, v, last, total) / np.sqrt(len(q))


def additive(w: Weights, q: Array, v: Array, last: Array, total: Array) -> Array:
    inner = w["query.weight"] @ q + w["query.bias"] + v @ w["key.weight"].T
    return np.tanh(inner) @ w["energy.weight"][0]


def additive_coverage(w: Weights, q: Array, v: Array, last: Array, total: Array) -> Array:
    inner = w["query.weight"] @ q + w["query.bias"] + v @ w["key.weight"].T
    return np.tanh(inner + total[:, None] * w["coverage.weight"][:, 0]) @ w["energy.weight"][0]


def location(w: Weights, q: Array, v: Array, last: Array, total: Array) -> Array:
    kernel = w["convolution.weight"][:, 0]  # (filters, width)
    half = kernel.shape[1] // 2
    padded = np.pad(last, half)
    seen = np.stack([kernel @ padded[s : s + kernel.shape[1]] for s in range(len(last))])  # (S, filters)
    inner = w["query.weight"] @ q + w["query.bias"] + v @ w["key.weight"].T + seen @ w["location.weight"].T
    return np.tanh(inner) @ w["energy.weight"][0]


def location_cumulative(w: Weights, q: Array, v: Array, last: Array, total: Array) -> Array:
    return location(w, q, v, total, total)


SCORES: dict[str, Callable[[Weights, Array, Array, Array, Array], Array]] = {
    "dot": dot,
    "scaled dot": scaled_dot,
    "general": dot,
    "additive": additive,
    "additive coverage": additive_coverage,
    "location": location,
    "location cumulative": location_cumulative,
}


def softmax(x: Array) -> Array:
    exponents = np.exp(x - x.max())
    result: Array = exponents / exponents.sum()
    return result


@pytest.mark.parametrize("name", SCORES)
def test_attention_equals_numpy(name: str) -> None:
    attention = build(name)
    query, memory, history = inputs()
    weights = {key: value.double().numpy() for key, value in attention.state_dict().items()}
    context, attended = attention(query, attention.prepare(memory), history)
    for b in range(BATCH):
        size = int(LENGTHS[b])
        values = memory.values[b, :size].double().numpy()
        for k in range(QUERIES):
            row = b * QUERIES + k
            last, total = (h[row, :size].double().numpy() for h in (history.last, history.total))
            expected = softmax(SCORES[name](weights, query[b, k].double().numpy(), values, last, total))
            np.testing.assert_allclose(attended[b, k, :size].detach().numpy(), expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(context[b, k].detach().numpy(), expected @ values, rtol=1e-4, atol=1e-5)


def test_multi_head_attention_equals_numpy() -> None:
    attention = build("multi-head")
    query, memory, _ = inputs()
    w = {key: value.double().numpy() for key, value in attention.state_dict().items()}
    context, attended = attention(query, attention.prepare(memory))
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
    assert {*SCORES, "multi-head"} == set(ATTENTIONS)


@all_attentions
def test_weights_are_a_distribution_over_real_positions(name: str) -> None:
    attention = build(name)
    query, memory, history = inputs()
    context, weights = attention(query, attention.prepare(memory), history)
    assert_close(weights.sum(dim=-1), torch.ones(BATCH, QUERIES))
    assert (weights.masked_select(~memory.mask[:, None]) == 0).all()
    assert (weights.masked_select(memory.mask[:, None]) > 0).all()
    assert context.shape == (BATCH, QUERIES, attention.context_size)


@all_attentions
def test_queries_of_one_source_do_not_touch_each_other(name: str) -> None:
    attention = build(name)
    query, memory, history = inputs()
    context, weights = attention(query, attention.prepare(memory), history)
    for k in range(QUERIES):
        own = history.select(torch.arange(BATCH) * QUERIES + k)
        alone, alone_weights = attention(query[:, k : k + 1], attention.prepare(memory), own)
        assert_close(context[:, k : k + 1], alone)
        assert_close(weights[:, k : k + 1], alone_weights)


@all_attentions
def test_padding_changes_nothing_and_has_no_gradient(name: str) -> None:
    attention = build(name)
    query, memory, history = inputs()
    values = memory.values.requires_grad_()
    context, weights = attention(query, attention.prepare(memory), history)
    (gradient,) = torch.autograd.grad(context.square().sum() + weights.square().sum(), values)
    assert (gradient[~memory.mask] == 0).all()
    assert (gradient[memory.mask] != 0).any()

    wide = Padded(torch.cat([values.where(memory.mask[..., None], 9.0), torch.ones(BATCH, 2, MEMORY_SIZE)], 1), LENGTHS)
    longer = AttentionHistory(*(torch.nn.functional.pad(h, (0, 2)) for h in (history.last, history.total)))
    wide_context, wide_weights = attention(query, attention.prepare(wide), longer)
    assert_close(wide_context, context)
    assert_close(wide_weights[..., :5], weights)


@all_attentions
def test_an_empty_source_gives_zero_weights(name: str) -> None:
    attention = build(name)
    query, memory, history = inputs()
    context, weights = attention(query, attention.prepare(Padded(memory.values, LENGTHS * 0)), history)
    assert (weights == 0).all()
    assert (context == 0).all()


@all_attentions
@pytest.mark.parametrize("memory_size", [MEMORY_SIZE, QUERY_SIZE])
def test_any_memory_size_will_do(name: str, memory_size: int) -> None:
    attention = build(name, memory_size)
    query, memory, history = inputs(memory_size)
    context, _ = attention(query, attention.prepare(memory), history)
    assert context.shape[-1] == attention.context_size == (QUERY_SIZE if name == "multi-head" else memory_size)


def test_dot_attention_of_equal_sizes_has_no_parameters() -> None:
    assert not list(DotAttention(4, 4).parameters())


def test_history_adds_up() -> None:
    history = AttentionHistory(torch.zeros(1, 2), torch.zeros(1, 2))
    for weights in ([[0.25, 0.75]], [[0.5, 0.5]]):
        history = history.add(torch.tensor(weights))
    assert history.last.tolist() == [[0.5, 0.5]]
    assert history.total.tolist() == [[0.75, 1.25]]


@pytest.mark.parametrize("name", ["additive coverage", "location", "location cumulative"])
def test_a_missing_history_is_named(name: str) -> None:
    attention = build(name)
    query, memory, _ = inputs()
    assert attention.uses_history
    with pytest.raises(ValueError, match=f"{type(attention).__name__} needs the history of earlier weights, got None"):
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
