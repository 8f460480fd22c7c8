import math
from collections import defaultdict
from itertools import product

import pytest
import torch
from search_cases import SPECIALS, VOCABULARY, Chains, assert_equal, tokens_of
from search_cases import run as searched

from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.search.best_path import best_path
from lit_seq2seq.search.scorers.ctc import Prefixes
from lit_seq2seq.types import Padded, UserError

LENGTHS = [4, 1, 3]
LABELS = [1, 4, 5]  # what may be produced: neither padding, which is the blank, nor BOS nor EOS


def random_frames(seed: int, sharpness: float = 2.0) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(len(LENGTHS), max(LENGTHS), VOCABULARY, generator=generator, dtype=torch.float64)
    return Padded(logits.log_softmax(-1), torch.tensor(LENGTHS))


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    joined = [symbol for place, symbol in enumerate(path) if place == 0 or symbol != path[place - 1]]
    return tuple(symbol for symbol in joined if symbol != SPECIALS.pad)


def outputs(frames: Padded, sentence: int) -> dict[tuple[int, ...], float]:
    """Probability of every output, summed over every path."""
    total: dict[tuple[int, ...], float] = defaultdict(float)
    table = frames.values[sentence, : LENGTHS[sentence]].exp().tolist()
    for path in product(range(VOCABULARY), repeat=LENGTHS[sentence]):
        total[collapse(path)] += math.prod(row[symbol] for row, symbol in zip(table, path, strict=True))
    return total


def beginning(found: dict[tuple[int, ...], float], prefix: tuple[int, ...]) -> float:
    return sum(value for output, value in found.items() if output[: len(prefix)] == prefix)


def close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-8, abs_tol=1e-8)


def log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


@pytest.mark.parametrize("prefix", [p for length in range(4) for p in product([4, 5], repeat=length)])
@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_probabilities_of_beginnings_equal_the_sum_over_all_paths(prefix, sharpness):
    frames = random_frames(1, sharpness)
    state = Prefixes.start(frames, SPECIALS).extend(torch.full((3,), SPECIALS.bos))
    for symbol in prefix:
        state = state.extend(torch.full((3,), symbol))
    changes = state.continuations()
    for sentence in range(len(LENGTHS)):
        found = outputs(frames, sentence)
        before = log(beginning(found, prefix))
        assert close(state.log_prob[sentence].item(), before)
        if before == -math.inf:
            assert not changes[sentence, LABELS].any()
            continue
        for symbol in LABELS:
            assert close(changes[sentence, symbol].item(), log(beginning(found, (*prefix, symbol))) - before)
        assert close(changes[sentence, SPECIALS.eos].item(), log(found.get(prefix, 0.0)) - before)


def run(chains: Chains, frames: Padded, config: GenerationConfig, prefix=None):
    return searched(chains, config, prefix=prefix, frames=frames)


def exhaustive(chains: Chains, frames: Padded, sentence: int, weight: float, longest: int) -> dict[tuple, float]:
    """The joint score of every output that ends within `longest` tokens, or is cut there."""
    found, scores = outputs(frames, sentence), {}
    for length in range(longest + 1):
        for tokens in product(LABELS, repeat=length):
            before = (SPECIALS.pad, SPECIALS.bos, *tokens)
            table = chains.table[sentence]
            decoder = sum(table[before[i], before[i + 1], before[i + 2]].item() for i in range(length))
            if length < longest:
                decoder += table[before[-2], before[-1], SPECIALS.eos].item()
            ctc = found.get(tokens, 0.0) if length < longest else beginning(found, tokens)
            if ctc:
                scores[tokens] = weight * math.log(ctc) + ((1 - weight) * decoder if weight < 1 else 0)
    return scores


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_equals_exhaustive_search_of_the_joint_score(weight, seed):
    chains, frames = Chains.random(3, seed), random_frames(seed)
    config = GenerationConfig(
        num_beams=90, num_return_sequences=8, max_new_tokens=4, length_normalization="none", ctc_weight=weight
    )
    for sentence, hypotheses in enumerate(run(chains, frames, config)):
        scores = exhaustive(chains, frames, sentence, weight, 4)
        expected = sorted(scores, key=scores.__getitem__, reverse=True)[:8]
        assert [tokens_of(hypothesis) for hypothesis in hypotheses] == expected
        for hypothesis, tokens in zip(hypotheses, expected, strict=True):
            assert math.isclose(hypothesis.score, scores[tokens], rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_padding_and_batch_mates_change_nothing(beams, weight):
    chains, frames = Chains.random(3, 7), random_frames(7)
    wider = Padded(torch.nn.functional.pad(frames.values, (0, 0, 0, 3), value=-0.3), frames.lengths)
    config = GenerationConfig(num_beams=beams, num_return_sequences=beams, max_new_tokens=5, ctc_weight=weight)
    together = run(chains, frames, config)
    assert_equal(together, run(chains, wider, config))
    for sentence in range(3):
        alone = Padded(frames.values[[sentence], : LENGTHS[sentence]], frames.lengths[[sentence]])
        assert_equal([together[sentence]], run(chains.rows([sentence]), alone, config))


def test_a_forced_beginning_that_ctc_holds_impossible_is_left_to_the_decoder():
    chains, frames = Chains.random(3, 3), random_frames(3)
    config = GenerationConfig(num_beams=3, max_new_tokens=3, length_normalization="none", ctc_weight=0.5)
    prefix = torch.tensor([[4, 4, 5, 5]] * 3)  # needs six positions
    hypotheses = run(chains, frames, config, prefix=prefix)
    plain = run(chains, frames, GenerationConfig(num_beams=3, max_new_tokens=3, length_normalization="none"), prefix)
    for [found], [expected] in zip(hypotheses, plain, strict=True):
        assert tokens_of(found) == tokens_of(expected)
        assert found.score == pytest.approx(0.5 * expected.score)


def test_the_best_path_is_the_most_probable_symbol_at_each_position():
    frames = random_frames(5)
    config = GenerationConfig(ctc_weight=1, length_normalization="none")
    for sentence, [hypothesis] in enumerate(run(Chains.random(3, 5), frames, config)):
        table = frames.values[sentence, : LENGTHS[sentence]]
        values, path = table.index_fill(1, torch.tensor([SPECIALS.bos, SPECIALS.eos]), -math.inf).max(-1)
        assert tokens_of(hypothesis) == collapse(tuple(path.tolist()))
        assert hypothesis.log_prob == pytest.approx(values.sum().item())
        assert len(hypothesis.token_scores) == len(hypothesis.tokens) + 1
        assert hypothesis.token_scores.sum().item() == pytest.approx(hypothesis.score)


def test_scores_of_a_best_path_belong_to_its_tokens():
    path = torch.tensor([[0, 4, 4, 0, 4, 5, 0, 0]])
    frames = torch.full((1, 8, VOCABULARY), -50.0)
    frames.scatter_(2, path[..., None], -torch.arange(1.0, 9.0).view(1, 8, 1))
    [[hypothesis]] = best_path(Padded(frames, torch.tensor([7])), SPECIALS, GenerationConfig(ctc_weight=1))
    assert tokens_of(hypothesis) == (4, 4, 5)
    assert hypothesis.token_scores.tolist() == [-6.0, -9.0, -6.0, -7.0]
    [[cut]] = best_path(Padded(frames, torch.tensor([7])), SPECIALS, GenerationConfig(max_new_tokens=2, ctc_weight=1))
    assert tokens_of(cut) == (4, 4)
    assert (cut.log_prob, cut.score) == (-15.0, -7.5)


def test_a_limit_on_tokens_makes_ctc_alone_search_instead():
    chains, frames = Chains.random(3, 5), random_frames(5)
    found = run(chains, frames, GenerationConfig(ctc_weight=1, min_new_tokens=2, max_new_tokens=4))
    lengths = [len(hypothesis.tokens) for [hypothesis] in found]
    assert lengths[1] == 1  # a single position gives no second token
    assert min(lengths[0], lengths[2]) >= 2


def test_a_weight_without_ctc_is_explained():
    with pytest.raises(UserError, match=r"ctc_weight=0\.3: needs a model with CTC; set it to 0, or train with model\."):
        run(Chains.random(3, 0), None, GenerationConfig(ctc_weight=0.3))
    with pytest.raises(UserError, match=r"ctc_weight=1\.5: must be a number from 0 to 1"):
        GenerationConfig(ctc_weight=1.5)


def test_long_sources_keep_their_precision():
    """The forward variables by the plain recursion, in logarithms, over many positions."""
    generator = torch.Generator().manual_seed(0)
    frames = (8 * torch.randn(1, 600, VOCABULARY, generator=generator)).log_softmax(-1)
    tokens = torch.randint(4, 6, (40,), generator=generator).tolist()
    state = Prefixes.start(Padded(frames, torch.tensor([600])), SPECIALS)
    for token in tokens:
        state = state.extend(torch.tensor([token]))
    expected = -torch.nn.functional.ctc_loss(
        frames.transpose(0, 1).double(), torch.tensor([tokens]), [600], [40], blank=SPECIALS.pad, reduction="none"
    )
    ended = state.log_prob + state.continuations()[:, SPECIALS.eos]
    torch.testing.assert_close(ended, expected, rtol=1e-9, atol=1e-6)
