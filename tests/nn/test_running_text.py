"""Text without a source, read whole, step by step and in pieces."""

from functools import partial

import pytest
import torch

from lit_seq2seq.nn import EncoderDecoder, LearnedBridge, NoSource, ParallelDecoder, TextEncoder, ZeroBridge
from lit_seq2seq.types import Padded
from tests.nn.cases import (
    KINDS_OF_CELLS,
    NETWORKS,
    SOURCE,
    SPECIALS,
    TARGET,
    TARGET_SIZE,
    assert_close,
    cross_entropy,
    disturb,
    network,
    step_log_probs,
    tensors,
)
from tests.nn.pieces import check_pieces

TEXT = torch.tensor([[4, 6, 7, 3, 5, 5, 4, 3, 7], [7, 3, 3, 4, 4, 4, 6, 5, 6]])  # with ends within
WHOLE = Padded(TEXT, torch.tensor([9, 9]))


def language_model(cell: object = "lstm", bridge: object = ZeroBridge) -> EncoderDecoder:
    torch.manual_seed(0)
    decoder = partial(ParallelDecoder, embedding_dim=5, hidden_size=6, num_layers=2, cell=cell, bridge=bridge)
    return disturb(EncoderDecoder(0, TARGET_SIZE, NoSource, decoder, tie_embeddings="target")).eval()


def pieces(*sizes: int) -> list[Padded]:
    return [Padded(part, torch.full((2,), part.shape[1])) for part in TEXT.split(sizes, dim=1)]


def nothing(rows: int) -> Padded:
    return Padded(torch.zeros(rows, 1, dtype=torch.long), torch.ones(rows, dtype=torch.long))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_any_decoder_goes_on_where_it_was(name: str) -> None:
    model = network(name)
    tokens = model.shift(TARGET)
    whole = model.decoder(tokens, model.start(model.encode(SOURCE)))
    found, state = [], model.start(model.encode(SOURCE))
    for part in tokens.split((1, 3, 2), dim=1):
        output, state = model.decoder.run(part, state)
        found.append(output)
    assert_close(torch.cat([output.features for output in found], dim=1), whole.features)
    if whole.attention is not None:
        assert_close(torch.cat([output.attention for output in found], dim=1), whole.attention)


@pytest.mark.parametrize("cell", KINDS_OF_CELLS.values(), ids=KINDS_OF_CELLS)
@pytest.mark.parametrize("bridge", [ZeroBridge, LearnedBridge])
@torch.no_grad()
def test_text_in_pieces_is_one_long_text(cell: object, bridge: object) -> None:
    model = language_model(cell, bridge)
    _, expected, end = model.read_on(WHOLE, model.begin(nothing(2)))
    for sizes in ((4, 5), (1, 1, 2, 5), (3, 3, 3)):
        total, before = torch.zeros(()), model.begin(nothing(2))
        for part in pieces(*sizes):
            _, nll, before = model.read_on(part, before)
            total += nll
        assert_close(total, expected)
        for mine, theirs in zip(tensors(before), tensors(end), strict=True):
            assert_close(mine, theirs)
    inputs = torch.tensor([[2, 4, 6, 7, 2, 5, 5, 4, 2], [2, 7, 2, 2, 4, 4, 4, 6, 5]])  # each text begins with BOS
    log_probs = step_log_probs(model, inputs, model.start(model.encode(nothing(2))))
    assert_close(-log_probs.gather(2, TEXT[..., None]).sum(), expected)


def test_gradients_end_where_a_piece_begins() -> None:
    model = language_model(bridge=LearnedBridge).train()
    first, second = pieces(4, 5)
    _, _, before = model.read_on(first, model.begin(nothing(2)))
    loss, _, _ = model.read_on(second, before)
    loss.backward()
    assert model.decoder.bridge.initial.grad is None
    assert model.decoder.embedding.weight.grad is not None


@torch.no_grad()
def test_a_single_text_is_scored_as_any_target() -> None:
    model = language_model()
    loss, nll = cross_entropy(model, nothing(4), TARGET)
    assert_close(loss, -model.score(nothing(4), TARGET).sum())
    alone = Padded(TARGET.values[:1], TARGET.lengths[:1])
    assert_close(model.read_on(alone, model.begin(nothing(1)))[1], cross_entropy(model, nothing(1), alone)[1])
    assert_close(nll, loss)


@torch.no_grad()
def test_prompts_do_not_reach_the_states_but_begin_the_outputs() -> None:
    model = language_model()
    prompts = Padded(torch.tensor([[5, 6, 0], [0, 0, 0]]), torch.tensor([3, 1]))
    encoded, blank = model.encode(prompts), model.encode(nothing(2))
    assert encoded.prefix is prompts.values
    for mine, theirs in zip(tensors(model.start(encoded)), tensors(model.start(blank)), strict=True):
        assert_close(mine, theirs)
    log_probs = model.step(torch.full((2,), SPECIALS.bos), model.start(blank)).log_probs
    assert_close(log_probs.exp().sum(dim=1), torch.ones(2))


def test_a_source_that_would_not_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="NoSource reads no source, but the data has one"):
        NoSource(9)
    with pytest.raises(ValueError, match="there are no source symbols to embed"):
        TextEncoder(0)


def test_no_source_does_not_come_in_pieces() -> None:
    check_pieces(NoSource(0), Padded(torch.zeros(1, 0, dtype=torch.long), torch.tensor([0])))
