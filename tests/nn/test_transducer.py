"""The transducer: equal to what enumeration of all alignments gives."""

import math
from functools import partial
from itertools import combinations_with_replacement, product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from lit_seq2seq import Seq2SeqModel, load_recipe
from lit_seq2seq.nn import EncoderDecoder, TextEncoder, TransducerDecoder
from lit_seq2seq.nn.decoders import transducer
from lit_seq2seq.nn.transfer import transfer_weights
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.types import Padded, SpecialIds
from tests.nn.cases import SIZES, SOURCE, SPECIALS, TARGET, assert_close, cross_entropy, disturb, gradient_of, row
from tests.tiny import needs_bfloat16, write_recipe


def network(size: int = 8, specials: SpecialIds = SPECIALS, **options: object) -> EncoderDecoder:
    torch.manual_seed(0)
    decoder = partial(TransducerDecoder, **{**SIZES, **options})
    return disturb(EncoderDecoder(9, size, partial(TextEncoder, **SIZES), decoder, specials=specials), 0.5).eval()


@torch.no_grad()
def joint(network: EncoderDecoder, source: Padded, target: Padded) -> Tensor:
    """Compute the probability of each symbol at each position, after each symbol, by the weights: `(S, T, V)`."""
    decoder = network.decoder
    assert isinstance(decoder, TransducerDecoder)
    memory = network.encode(source).memory.values[0]  # (S, M)
    state = decoder.start(network.encode(source))
    hidden, _ = decoder.stack(decoder.embed(network.shift(target)), state.cells)
    inner = decoder.query(hidden[0])[None] + decoder.value(memory)[:, None]  # (S, T, J)
    return decoder.symbols(inner.tanh()).double().softmax(dim=-1)


def enumerated(network: EncoderDecoder, source: Padded, target: Padded, eos: int = SPECIALS.eos) -> float:
    """Sum the probability of one target over all alignments: where each of its symbols is written."""
    table, (*symbols, _) = joint(network, source, target), target.values[0].tolist()
    total = 0.0
    for places in combinations_with_replacement(range(len(table)), len(symbols)):
        probability, written = 1.0, 0
        for s in range(len(table)):
            for _ in range(places.count(s)):
                probability *= float(table[s, written, symbols[written]])
                written += 1
            probability *= float(table[s, written, eos])
        total += probability
    return math.log(total)


@torch.no_grad()
def test_a_target_is_as_probable_as_all_its_alignments() -> None:
    made = network(joint_size=7)
    scores = made.score(SOURCE, TARGET)
    for index in range(len(SOURCE.lengths)):
        source, target = row(SOURCE, index), row(TARGET, index)
        assert float(scores[index].sum()) == pytest.approx(enumerated(made, source, target), rel=1e-5)
    loss, nll = cross_entropy(made, SOURCE, TARGET)
    assert_close(loss, -scores.sum())
    assert_close(nll, loss)
    assert int(TARGET.lengths[3]) > int(SOURCE.lengths[3])  # more symbols than source positions


@torch.no_grad()
def test_the_blank_is_eos_whatever_its_id() -> None:
    made = network(specials=SpecialIds(pad=5, unk=1, bos=2, eos=0))
    target = Padded(torch.tensor([[4, 6, 0]]), torch.tensor([3]))
    source = row(SOURCE, 2)
    assert float(made.score(source, target).sum()) == pytest.approx(enumerated(made, source, target, eos=0), rel=1e-5)


@torch.no_grad()
def test_the_next_symbol_is_a_distribution_and_attention_tells_where_it_is_written() -> None:
    made = network()
    output = made.teach(made.encode(SOURCE), TARGET)
    assert_close(output.features.exp().sum(dim=-1), torch.ones(TARGET.values.shape))
    assert output.attention is not None
    assert_close(output.attention.sum(dim=-1), torch.ones(TARGET.values.shape))
    table = joint(made, row(SOURCE, 2), row(TARGET, 2))[:, 0]  # before any symbol
    for s in range(4):
        came = math.prod(float(table[r, SPECIALS.eos]) for r in range(s))
        left = 1.0 if s == 3 else 1 - float(table[s, SPECIALS.eos])
        assert float(output.attention[2, 0, s]) == pytest.approx(came * left, rel=1e-4)


@pytest.mark.parametrize("block", [1, 2**24])
def test_gradients_are_those_of_differences(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transducer, "BLOCK", block)
    made = network().double()
    encoded = made.encode(SOURCE)
    weights = [made.decoder.query.bias, made.decoder.symbols.bias]

    def loss(*given: Tensor) -> Tensor:
        return made.likelihoods(encoded, TARGET).sum()

    assert torch.autograd.gradcheck(loss, weights, check_batched_grad=False)


def test_parts_of_the_joint_layer_give_what_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(dropout=0.3, fast_emit=0.1).train()
    parameters = list(made.parameters())
    found = []
    for block in (2**24, 4 * 5 * 8 * 2, 1):
        monkeypatch.setattr(transducer, "BLOCK", block)
        made.decoder.dropout = 0.0  # whose masks differ
        found.append([cross_entropy(made, SOURCE, TARGET, 0.1)[0]])
        found[-1].append(gradient_of(found[-1][0], parameters))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_dropout_of_the_joint_layer_is_the_same_at_all_positions_and_when_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = network(dropout=0.5).train()
    decoder = made.decoder
    assert isinstance(decoder, TransducerDecoder)
    alike = decoder.join(
        torch.ones(2, 1, 6, decoder.symbols.in_features), torch.ones(2, 3, 1, decoder.symbols.in_features)
    )
    assert_close(alike, alike[:, :, :1].expand_as(alike))  # (B, T, S, V)
    assert not torch.allclose(alike[:, 0], alike[:, 1])
    found, parameters = [], list(made.parameters())
    monkeypatch.setattr(transducer, "BLOCK", 4 * 5 * 8 * 2)
    for again in (transducer.checkpoint, lambda function, *given, use_reentrant: function(*given)):
        monkeypatch.setattr(transducer, "checkpoint", again)
        torch.manual_seed(3)
        found.append(gradient_of(cross_entropy(made, SOURCE, TARGET)[0], parameters))
    assert torch.equal(*found)


def test_fast_emit_weighs_the_symbols_of_the_target_in_the_gradient() -> None:
    """By equation 8 of the paper: the gradient by each log-probability of a symbol grows, that by a blank does not."""
    source, target = row(SOURCE, 0), row(TARGET, 3)
    plain, fast = network(), network(fast_emit=0.25).train()
    bias = plain.decoder.symbols.bias

    def gradient(made: EncoderDecoder) -> Tensor:
        return gradient_of(-made.likelihoods(made.encode(source), target).sum(), [made.decoder.symbols.bias])

    table, (*symbols, _) = joint(plain, source, target).log().requires_grad_(), target.values[0].tolist()
    paths = []
    for places in combinations_with_replacement(range(len(table)), len(symbols)):
        told, written = [], 0
        for s in range(len(table)):
            for _ in range(places.count(s)):
                told.append(table[s, written, symbols[written]])
                written += 1
            told.append(table[s, written, SPECIALS.eos])
        paths.append(torch.stack(told).sum())
    (slope,) = torch.autograd.grad(-torch.stack(paths).logsumexp(0), table)  # (S, T, V)
    weights = torch.full_like(slope, 1.25)
    weights[..., SPECIALS.eos] = 1
    for made, scaled in ((plain, slope), (fast, slope * weights)):
        through = scaled - table.detach().exp() * scaled.sum(dim=-1, keepdim=True)  # of the softmax
        torch.testing.assert_close(gradient(made), through.sum(dim=(0, 1)).to(bias.dtype), rtol=1e-4, atol=1e-5)
    assert_close(fast.score(source, target), plain.score(source, target))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_long_sources_stay_exact_and_so_do_gradients(scale: float) -> None:
    """By the plain recursion of Graves (2012, section 2.4), in 64 bits."""
    torch.manual_seed(0)
    made = disturb(network(), scale / 10)
    source = Padded(torch.randint(4, 9, (2, 700)), torch.tensor([700, 650]))
    target = Padded(torch.tensor([[4, 5, 5, 7, 6, 4, 4, 5, 3], [7, 6, 5, 4, 4, 5, 3, 0, 0]]), torch.tensor([9, 7]))
    scores = made.likelihoods(made.encode(source), target).sum(dim=1)
    exact = made.double()
    encoded = exact.encode(source)
    symbols = exact.decoder.emit(
        exact.decoder.stack(exact.decoder.embed(exact.shift(target)), exact.decoder.start(encoded).cells)[0],
        exact.decoder.start(encoded),
    )
    for index in range(2):
        length, table = int(source.lengths[index]), symbols[index].tolist()  # [T][S][V]
        before = [0.0] + [-math.inf] * (length - 1)
        for row_of, token in zip(table, target.values[index, : target.lengths[index]].tolist(), strict=False):
            came: list[float] = []
            for s in range(length):
                stayed = came[-1] + row_of[s - 1][SPECIALS.eos] if s else -math.inf
                came.append(float(np.logaddexp(before[s], stayed)))
            before = [one + row_of[s][token] for s, one in enumerate(came)]
        assert before[-1] > -math.inf
        assert float(scores[index].detach()) == pytest.approx(before[-1], rel=1e-5)
    made.float()
    gradient = gradient_of(made.likelihoods(made.encode(source), target).sum(), list(made.parameters()))
    made.double()
    precise = gradient_of(made.likelihoods(made.encode(source), target).sum(), list(made.parameters()))
    assert torch.cosine_similarity(gradient.double(), precise, dim=0) > 0.9999


@needs_bfloat16
def test_sixteen_bits_keep_the_sum_over_alignments_in_thirty_two() -> None:
    made = network().train()
    expected = cross_entropy(made, SOURCE, TARGET)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cross_entropy(made, SOURCE, TARGET)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    near, exact = (gradient_of(value, list(made.parameters())) for value in (loss, expected))
    assert torch.cosine_similarity(near, exact, dim=0) > 0.99


@pytest.mark.filterwarnings("ignore:some outputs are empty")
@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all_outputs() -> None:
    made, longest = network(6), 3
    sources = SOURCE.select(torch.tensor([1, 2, 3]))
    config = GenerationConfig(
        num_beams=60, num_return_sequences=60, max_new_tokens=longest + 1, length_normalization="none"
    )
    found = search(made.step, made.start(made.encode(sources)), batch_size=3, specials=SPECIALS, config=config)
    for index, hypotheses in enumerate(found):
        source, scores = row(sources, index), {}
        for length in range(longest + 1):
            for tokens in product([1, 4, 5], repeat=length):
                target = Padded(torch.tensor([[*tokens, SPECIALS.eos]]), torch.tensor([length + 1]))
                scores[tokens] = enumerated(made, source, target)
        ended = [one for one in hypotheses if len(one.tokens) <= longest][:9]
        best = sorted(scores, key=lambda tokens: -scores[tokens])[: len(ended)]
        assert [tuple(one.tokens.tolist()) for one in ended] == best
        assert [one.score for one in ended] == pytest.approx([scores[tokens] for tokens in best], abs=1e-4)
        assert len(ended) > 3


def test_its_output_layer_grows_with_the_vocabulary() -> None:
    old, new = network(), network(11)
    transfer_weights(old, new, 9, 8)
    assert_close(new.decoder.symbols.weight[:8], old.decoder.symbols.weight)


def test_a_gradient_has_no_negative_weight() -> None:
    with pytest.raises(ValueError, match="fast_emit must be at least 0, got -1"):
        network(fast_emit=-1)


def test_a_recipe_names_it_and_its_model_is_loaded_again(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    options = {"embedding_dim": 4, "hidden_size": 12, "joint_size": 8, "fast_emit": 0.01}
    recipe["model"]["decoder"] = {"class_path": "lit_seq2seq.nn.TransducerDecoder", "init_args": options}
    recipe["model"]["tie_embeddings"] = "none"
    recipe["trainer"]["max_epochs"] = 1
    path.write_text(yaml.safe_dump(recipe))
    built = load_recipe(path)
    built.trainer.fit(built.model, datamodule=built.datamodule)
    built.model.save_pretrained(tmp_path / "model")
    loaded = Seq2SeqModel.from_pretrained(tmp_path / "model")
    assert isinstance(loaded.net.decoder, TransducerDecoder)
    together = loaded.generate(["eins zwei", "drei"], GenerationConfig(num_beams=3, max_new_tokens=9))
    (alone,) = loaded.generate(["drei"], GenerationConfig(num_beams=3, max_new_tokens=9))
    assert alone[0].tokens.tolist() == together[1][0].tokens.tolist()
    assert alone[0].score == pytest.approx(together[1][0].score, abs=1e-4)
