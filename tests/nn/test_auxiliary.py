import math
import warnings
from functools import partial
from itertools import product

import pytest
import torch

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.features import Frames, Processor, Tokenizer
from lit_seq2seq.nn import (
    CTC,
    AdditiveAttention,
    CopyOutput,
    EncoderDecoder,
    EncoderShape,
    Ensemble,
    InputFeedingDecoder,
    PyramidalEncoder,
    TextEncoder,
)
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Padded, UserError
from tests.nn.cases import SIZES, SOURCE, TARGET, assert_close, cross_entropy, disturb, row, widen

VECTORS = Padded(torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 4, 7, 2]))
DECODER = partial(InputFeedingDecoder, attention=AdditiveAttention, **SIZES)


def speech(weight: float | None = 0.4, factors: tuple[int, ...] = (1, 1)) -> EncoderDecoder:
    encoder = partial(PyramidalEncoder, hidden_size=6, factors=factors)
    auxiliary = None if weight is None else partial(CTC, weight=weight)
    return disturb(EncoderDecoder(3, 8, encoder, DECODER, auxiliary=auxiliary)).eval()


def likelihood(frames: torch.Tensor, labels: list[int]) -> float:
    """Sum over all paths."""
    total = 0.0
    for path in product(sorted({0, *labels}), repeat=len(frames)):
        joined = [symbol for place, symbol in enumerate(path) if place == 0 or symbol != path[place - 1]]
        if [symbol for symbol in joined if symbol] == labels:
            total += math.prod(frames[place, symbol].exp().item() for place, symbol in enumerate(path))
    return total


def test_the_loss_is_that_of_all_paths_of_the_target_without_eos() -> None:
    ctc = disturb(CTC(EncoderShape(3, 1, 3), vocab_size=8, blank=0))
    target = Padded(torch.tensor([[4, 4, 6, 3], [7, 3, 0, 0], [3, 0, 0, 0], [5, 3, 0, 0]]), torch.tensor([4, 2, 1, 2]))
    frames = ctc.frames(VECTORS).values
    expected = 0.0
    for index, labels in enumerate([[4, 4, 6], [7], [], [5]]):
        expected -= math.log(likelihood(frames[index, : int(VECTORS.lengths[index])], labels))
    assert_close(ctc.loss(VECTORS, target).item(), expected)


def test_the_loss_joins_that_of_the_decoder_by_its_weight_and_leaves_the_likelihood_alone() -> None:
    joined, plain = speech(0.4), speech(None)
    plain.load_state_dict(joined.state_dict(), strict=False)
    target = Padded(torch.tensor([[4, 6, 7, 3], [7, 3, 0, 0], [3, 0, 0, 0], [6, 3, 0, 0]]), torch.tensor([4, 2, 1, 2]))
    assert joined.auxiliary is not None
    ctc = joined.auxiliary.loss(joined.encode(VECTORS).memory, target)
    loss, nll = cross_entropy(joined, VECTORS, target)
    assert_close(loss, 0.6 * cross_entropy(plain, VECTORS, target)[0] + 0.4 * ctc)
    assert_close(nll, cross_entropy(plain, VECTORS, target)[1])
    loss.backward()
    for name, parameter in joined.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_padding_and_batch_mates_change_nothing() -> None:
    model = speech()
    target = Padded(torch.tensor([[4, 6, 7, 3], [7, 3, 0, 0], [3, 0, 0, 0], [6, 3, 0, 0]]), torch.tensor([4, 2, 1, 2]))
    whole = cross_entropy(model, VECTORS, target)[0]
    wide = Padded(torch.nn.functional.pad(VECTORS.values, (0, 0, 0, 3), value=7.0), VECTORS.lengths)
    assert_close(cross_entropy(model, wide, widen(target, 2, fill=5))[0], whole)
    alone = sum(cross_entropy(model, row(VECTORS, index), row(target, index))[0] for index in range(4))
    assert_close(alone, whole)


def test_a_target_that_needs_more_positions_than_there_are_is_left_out_with_a_warning() -> None:
    ctc = disturb(CTC(EncoderShape(3, 1, 3), vocab_size=8, blank=0))
    fits = Padded(torch.tensor([[4, 6, 3]]), torch.tensor([3]))
    repeats = Padded(torch.tensor([[4, 4, 3]]), torch.tensor([3]))  # needs a blank between
    memory = row(VECTORS, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ctc.loss(memory, fits) > 0
    with pytest.warns(UserWarning, match=r"more positions than the encoder has: join fewer neighbours \(factors"):
        loss = ctc.loss(memory, repeats)
    assert loss == 0
    loss.backward()
    assert ctc.dense.weight.grad is not None
    assert not ctc.dense.weight.grad.any()


@pytest.mark.parametrize("weight", [0.0, -1, 1.1])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of CTC must be above 0 and at most 1, got"):
        CTC(EncoderShape(3, 1, 3), 8, 0, weight=weight)


def test_copied_symbols_have_no_place_in_it() -> None:
    with pytest.raises(ValueError, match="auxiliary knows no symbols beyond the vocabulary: leave it out"):
        EncoderDecoder(9, 8, partial(TextEncoder, **SIZES), DECODER, output=CopyOutput, auxiliary=CTC)


def test_text_can_be_aligned_too() -> None:
    network = disturb(EncoderDecoder(9, 8, partial(TextEncoder, **SIZES), DECODER, auxiliary=CTC)).eval()
    assert network.auxiliary is not None
    memory = network.encode(SOURCE).memory
    with pytest.warns(UserWarning, match="more positions than the encoder has"):  # for the first and the last target
        loss = network.auxiliary.loss(memory, TARGET)
    frames = network.auxiliary.frames(memory).values
    assert_close(loss.item(), -math.log(likelihood(frames[1, :2], [7])) - math.log(likelihood(frames[2, :4], [])))


@pytest.fixture
def model() -> LitSeq2Seq:
    tokenizer = Tokenizer("char")
    tokenizer.train(["abcd"])
    made = LitSeq2Seq(
        partial(PyramidalEncoder, hidden_size=6, factors=[1]), DECODER, auxiliary=partial(CTC, weight=0.2)
    )
    made.attach(Processor(Frames(3), tokenizer))
    disturb(made.net)
    return made.eval()


def texts(model: LitSeq2Seq, weight: float, **options: int) -> list[list[int]]:
    found = model.generate(VECTORS, GenerationConfig(max_new_tokens=6, ctc_weight=weight, **options))
    return [hypotheses[0].tokens.tolist() for hypotheses in found]


@pytest.mark.parametrize(("weight", "beams"), [(0.5, 1), (0.5, 3), (1.0, 1), (1.0, 3)])
def test_a_saved_model_decodes_the_same(model: LitSeq2Seq, weight: float, beams: int, tmp_path) -> None:
    before = texts(model, weight, num_beams=beams)
    model.save_pretrained(tmp_path)
    loaded = LitSeq2Seq.from_pretrained(tmp_path)
    assert loaded.net.auxiliary is not None
    assert loaded.net.auxiliary.weight == 0.2
    assert texts(loaded, weight, num_beams=beams) == before


def test_an_ensemble_averages_probabilities_at_each_position(model: LitSeq2Seq) -> None:
    other = LitSeq2Seq(partial(PyramidalEncoder, hidden_size=6, factors=[1]), DECODER, auxiliary=CTC)
    other.attach(model.processor)
    both = [model, other.eval()]
    ensemble = LitSeq2Seq.ensemble(both)
    frames = ensemble.model.searched.frames(ensemble.encode(VECTORS))
    parts = [member.net.frames(member.encode(VECTORS)).values.exp() for member in both]
    assert_close(frames.values.exp()[VECTORS.mask], ((parts[0] + parts[1]) / 2)[VECTORS.mask])
    assert len(texts(ensemble, 0.5, num_beams=2)) == 4
    network = Ensemble([speech(), speech(factors=(2, 1))])
    encoded = network.encode(VECTORS)
    with pytest.raises(UserError, match="needs encoders that shorten sources alike"):
        network.frames(encoded)
    mixed = Ensemble([speech(), speech(None)])
    assert mixed.frames(mixed.encode(VECTORS)) is None
