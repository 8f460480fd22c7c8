"""Attentions that move from left to right: equal to what enumeration of all paths gives."""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from lit_seq2seq import Seq2SeqModel, load_recipe
from lit_seq2seq.nn import (
    CopyOutput,
    EncoderDecoder,
    HardMonotonicDecoder,
    Looked,
    MoChA,
    MonotonicAttention,
    OutputLayer,
    TextEncoder,
)
from lit_seq2seq.nn.transfer import transfer_weights
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Padded
from tests.nn.cases import SIZES, SOURCE, TARGET, assert_close, cross_entropy, disturb, gradient_of, row
from tests.tiny import needs_bfloat16, write_recipe

STEPS, LENGTH = 3, 4
MEMORY = Padded(torch.randn(2, LENGTH, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([LENGTH, 3]))
QUERY = torch.randn(2, STEPS, 6, generator=torch.Generator().manual_seed(1))
Made = MonotonicAttention | MoChA


def build(make: Callable[[int, int], Made] = MonotonicAttention) -> Made:
    torch.manual_seed(0)
    return disturb(make(6, 5), scale=1.0)


def quiet(chunk_size: int | None = None, **options: float) -> Callable[[int, int], Made]:
    made = MonotonicAttention if chunk_size is None else partial(MoChA, chunk_size=chunk_size)
    return partial(made, noise=0.0, **options)


def paths(stops: Tensor) -> Tensor:
    """Enumerate all paths through `stops (T, S)`: the probability of being at each position at each step."""
    steps, length = stops.shape
    weights = torch.zeros_like(stops)
    for path in product(range(length + 1), repeat=steps):  # length: it has left the source
        probability, place = torch.ones(()), 0
        for t, goal in enumerate(path):
            if goal < place:
                probability = torch.zeros(())
                break
            for j in range(place, min(goal, length)):
                probability = probability * (1 - stops[t, j])
            if goal < length:
                probability = probability * stops[t, goal]
            place = goal
        for t, goal in enumerate(path):
            if goal < length:
                weights[t, goal] += probability
    return weights


def test_expected_weights_are_those_of_all_paths() -> None:
    attention = build(quiet())
    ready = attention.prepare(MEMORY)
    context, weights = attention.scan(QUERY, ready, attention.start(ready))
    stops = attention.scores(QUERY, ready, None).sigmoid() * MEMORY.mask[:, None]
    for b in range(2):
        expected = paths(stops[b])
        assert_close(weights[b], expected)
        assert_close(context[b], expected @ MEMORY.values[b])
    assert 0.005 < float(weights.sum(dim=-1).min()) < float(weights.sum(dim=-1).max()) < 0.95


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 9])
def test_chunks_are_softmaxes_that_end_where_attention_stops(chunk_size: int) -> None:
    attention = build(quiet(chunk_size))
    ready = attention.prepare(MEMORY)
    _, weights = attention.scan(QUERY, ready, attention.start(ready))
    stops = attention.scores(QUERY, ready, None).sigmoid() * MEMORY.mask[:, None]
    inner = attention.chunk_query(QUERY)[:, :, None] + attention.chunk_key(MEMORY.values)[:, None]
    energies = attention.chunk_energy(torch.tanh(inner))[..., 0]
    for b in range(2):
        places, expected = paths(stops[b]), torch.zeros(STEPS, LENGTH)
        for t, k in product(range(STEPS), range(int(MEMORY.lengths[b]))):
            begin = max(0, k - chunk_size + 1)
            expected[t, begin : k + 1] += places[t, k] * energies[b, t, begin : k + 1].softmax(dim=0)
        assert_close(weights[b], expected)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_decided_energies_give_in_training_what_evaluation_gives(chunk_size: int | None) -> None:
    attention = build(quiet(chunk_size))
    with torch.no_grad():
        attention.energy.gain.fill_(1e3)
    ready = attention.prepare(MEMORY)
    soft = attention.train().scan(QUERY, ready, attention.start(ready))
    hard = attention.eval().scan(QUERY, ready, attention.start(ready))
    assert_close(soft, hard)
    assert hard[1].any()
    if chunk_size is None:
        assert set(hard[1].unique().tolist()) == {0.0, 1.0}
    state = attention.start(ready)
    for t in range(STEPS):
        context, weights, state = attention(QUERY[:, t : t + 1], ready, state)
        assert_close(context, hard[0][:, t : t + 1])
        assert_close(weights, hard[1][:, t : t + 1])


def test_it_goes_right_only_and_once_out_of_the_source_sees_nothing() -> None:
    attention = MonotonicAttention(6, 5).eval()
    stops = torch.tensor([[[0.0, 1, 0, 1]], [[1.0, 1, 0, 0]], [[1.0, 0, 0, 1]], [[1.0, 1, 1, 0]], [[1.0, 1, 1, 1]]])
    before, seen = torch.tensor([[1.0, 0, 0, 0]]), []
    for column in stops:
        before = attention.move(column, before)
        seen.append(before[0].tolist())
    assert seen == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sources_stay_exact_and_so_do_gradients(dtype: torch.dtype) -> None:
    """Cumulative products of 2,000 factors underflow; the recurrence does not."""
    torch.manual_seed(0)
    attention = build(quiet(2))
    memory = Padded(3 * torch.randn(2, 2000, 5), torch.tensor([2000, 1500]))
    query = 3 * torch.randn(2, 6, 6)

    def looked(attention: Made, memory: Padded, query: Tensor) -> tuple[Tensor, Tensor]:
        """The weights, and the gradient of what is seen in them."""
        values = memory.values.clone().requires_grad_()
        ready = attention.prepare(Padded(values, memory.lengths))
        context, weights = attention.scan(query, ready, attention.start(ready))
        return weights, gradient_of(context.square().sum(), [values, *attention.parameters()])

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        weights, gradient = looked(attention, memory, query)
    exact = copy.deepcopy(attention).double(), memory.map(torch.Tensor.double), query.double()
    expected, precise = looked(*exact)
    near = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=near)
    assert torch.cosine_similarity(gradient.double(), precise, dim=0) > 1 - near
    ready = attention.prepare(memory)
    if dtype == torch.float32:
        stops = attention.scores(query, ready, None).double().sigmoid() * memory.mask[:, None]
        place = torch.zeros(2, 2000, dtype=torch.double)
        place[:, 0] = 1
        for t in range(6):
            after, reached = torch.zeros_like(place), torch.zeros(2, dtype=torch.double)
            for j in range(2000):
                reached = reached + place[:, j]
                after[:, j] = stops[:, t, j] * reached
                reached = reached - after[:, j]
            found = attention.move(stops[:, t].float(), place.float())
            torch.testing.assert_close(found.double(), after, rtol=1e-4, atol=1e-30)
            place = after


def test_noise_is_of_training_alone() -> None:
    attention = build(partial(MonotonicAttention, offset=0.0))
    ready = attention.prepare(MEMORY)
    state = attention.start(ready)
    assert not torch.equal(attention.scan(QUERY, ready, state)[1], attention.scan(QUERY, ready, state)[1])
    attention.eval()
    assert torch.equal(attention.scan(QUERY, ready, state)[1], attention.scan(QUERY, ready, state)[1])


def test_a_chunk_has_a_position() -> None:
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        MoChA(6, 5, chunk_size=0)


def test_it_starts_at_the_first_position() -> None:
    attention = build()
    state = attention.start(attention.prepare(MEMORY))
    assert isinstance(state, Looked)
    assert state.weights.tolist() == [[1, 0, 0, 0]] * 2


# the decoder that sums over alignments


def summing(**options: object) -> EncoderDecoder:
    torch.manual_seed(0)
    decoder = partial(HardMonotonicDecoder, **{**SIZES, **options})
    return disturb(EncoderDecoder(9, 8, partial(TextEncoder, **SIZES), decoder)).eval()


def enumerated(network: EncoderDecoder, source: Padded, target: Padded) -> float:
    """Sum the probability of one target over all alignments, from the weights and nothing else."""
    decoder = network.decoder
    assert isinstance(decoder, HardMonotonicDecoder)
    memory = network.encode(source).memory.values[0]  # (S, M)
    state = decoder.start(network.encode(source))
    hidden, _ = decoder.stack(decoder.embed(network.shift(target)), state.cells)
    length, steps = len(memory), hidden.shape[1]
    moves = torch.zeros(steps, length, length)
    for t, i in product(range(steps), range(length)):
        if decoder.order == 0:
            moves[t, i, i:] = (decoder.key(memory[i:]) @ hidden[0, t]).softmax(dim=0)
        else:
            last = min(length, i + decoder.jumps)
            jumps = decoder.move(hidden[0, t]) + decoder.key(memory[i])
            moves[t, i, i:last] = jumps[: last - i].softmax(dim=0)
    inner = decoder.query(hidden[0])[:, None] + decoder.value(memory)[None]
    symbols = decoder.symbols(inner.tanh()).softmax(dim=-1)  # (T, S, V)
    total = 0.0
    for alignment in product(range(length), repeat=steps):
        probability, place = 1.0, 0
        for t, (goal, token) in enumerate(zip(alignment, target.values[0].tolist(), strict=True)):
            probability *= float(moves[t, place, goal]) * float(symbols[t, goal, token])
            place = goal
        total += probability
    return math.log(total)


@pytest.mark.parametrize("options", [{}, {"order": 1, "jumps": 2}, {"order": 1, "jumps": 9}, {"order": 1, "jumps": 1}])
@torch.no_grad()
def test_a_target_is_as_probable_as_all_its_alignments(options: dict[str, int]) -> None:
    network = summing(**options)
    scores = network.score(SOURCE, TARGET)
    loss, nll = cross_entropy(network, SOURCE, TARGET)
    for index in range(len(SOURCE.lengths)):
        source, target = row(SOURCE, index), row(TARGET, index)
        assert float(scores[index].sum()) == pytest.approx(enumerated(network, source, target), rel=1e-4)
    assert_close(loss, -scores.sum())
    assert_close(nll, loss)


@torch.no_grad()
def test_weights_are_the_probability_of_each_position_before_its_symbol_is_known() -> None:
    network = summing(order=1, jumps=2)
    weights = network.teach(network.encode(SOURCE), TARGET).attention
    assert weights is not None
    assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:2]))
    assert (weights[0, 0, 2:] < 1e-20).all()
    assert weights[0, 1, 2] > 0


@torch.no_grad()
def test_labels_are_smoothed_over_the_summed_distribution() -> None:
    network = summing()
    log_probs = network(SOURCE, TARGET)[TARGET.mask]
    expected = 0.9 * cross_entropy(network, SOURCE, TARGET)[0] - 0.1 * log_probs.mean(dim=-1).sum()
    assert_close(cross_entropy(network, SOURCE, TARGET, 0.1)[0], expected)


@needs_bfloat16
def test_sixteen_bits_keep_the_sum_over_alignments_in_thirty_two() -> None:
    network = summing().train()
    expected = cross_entropy(network, SOURCE, TARGET)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cross_entropy(network, SOURCE, TARGET)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    near, exact = (gradient_of(value, list(network.parameters())) for value in (loss, expected))
    assert torch.cosine_similarity(near, exact, dim=0) > 0.99


def test_its_output_layer_grows_with_the_vocabulary() -> None:
    old = summing()
    new = EncoderDecoder(9, 11, partial(TextEncoder, **SIZES), partial(HardMonotonicDecoder, **SIZES)).eval()
    transfer_weights(old, new, 9, 8)
    assert_close(new.decoder.symbols.weight[:8], old.decoder.symbols.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": CopyOutput}, "CopyOutput copies what attention looks at"),
        ({"output": type("Other", (OutputLayer,), {})}, "predicts symbols by itself: leave out output"),
        ({"tie_embeddings": "target"}, "predicts symbols by itself: leave out output and tie_embeddings"),
    ],
)
def test_another_output_layer_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EncoderDecoder(9, 8, partial(TextEncoder, **SIZES), partial(HardMonotonicDecoder, **SIZES), **options)


def test_a_recipe_names_it_and_its_model_is_loaded_again(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    options = {"embedding_dim": 4, "hidden_size": 12, "order": 1}
    recipe["model"]["decoder"] = {"class_path": "lit_seq2seq.nn.HardMonotonicDecoder", "init_args": options}
    recipe["model"]["tie_embeddings"] = "none"
    recipe["trainer"]["max_epochs"] = 1
    path.write_text(yaml.safe_dump(recipe))
    built = load_recipe(path)
    built.trainer.fit(built.model, datamodule=built.datamodule)
    built.model.save_pretrained(tmp_path / "model")
    loaded = Seq2SeqModel.from_pretrained(tmp_path / "model")
    assert isinstance(loaded.net.decoder, HardMonotonicDecoder)
    together = loaded.generate(["eins zwei", "drei"], GenerationConfig(num_beams=3, max_new_tokens=9))
    (alone,) = loaded.generate(["drei"], GenerationConfig(num_beams=3, max_new_tokens=9))
    assert alone[0].tokens.tolist() == together[1][0].tokens.tolist()
    assert alone[0].score == pytest.approx(together[1][0].score, abs=1e-4)


def test_there_is_a_jump() -> None:
    with pytest.raises(ValueError, match="jumps must be at least 1, got 0"):
        summing(order=1, jumps=0)
