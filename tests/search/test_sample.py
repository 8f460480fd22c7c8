import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import SPECIALS, VOCABULARY, Chains, PlainModel, assert_equal, run, tokens_of

from lit_seq2seq import arrays
from lit_seq2seq.search import GenerationConfig, NoRepeatedNGrams, greedy_search, sample_search, search
from lit_seq2seq.search.sample import draw, keep_top_k, keep_top_p
from lit_seq2seq.search.task import Task

EOS = SPECIALS.eos


def sampling(**options) -> GenerationConfig:
    return GenerationConfig(**{"do_sample": True, "max_new_tokens": 8, "seed": 0, **options})


def first_tokens(chains: Chains, config: GenerationConfig) -> Counter[int]:
    return Counter(
        tokens_of(hypothesis)[0] if len(hypothesis.tokens) else EOS
        for hypothesis in run(chains, config, sample_search)[0]
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (2, 1.0), (0, 0.7), (3, 0.8)])
def test_frequencies_match_probabilities(temperature, top_k, top_p):
    """Pearson's chi-square with at most 3 degrees of freedom exceeds 21 in one of 10,000 seeds."""
    chains = Chains.random(1, seed=0, sharpness=1.0)
    config = sampling(num_return_sequences=4000, max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    weights = {t: math.exp(v / temperature) for t, v in PlainModel(chains, 0, config).next(()).items()}
    ranked = sorted(weights, key=weights.__getitem__, reverse=True)[: top_k or None]
    total = sum(weights[token] for token in ranked)
    nucleus, mass = [], 0.0
    for token in ranked:
        if mass < top_p:
            nucleus.append(token)
            mass += weights[token] / total
    counts = first_tokens(chains, config)
    assert set(counts) == set(nucleus)
    kept = sum(weights[token] for token in nucleus)
    expected = {token: 4000 * weights[token] / kept for token in nucleus}
    assert sum((counts[token] - expected[token]) ** 2 / expected[token] for token in nucleus) < 21


@pytest.mark.parametrize("options", [sampling(num_return_sequences=2), GenerationConfig(max_new_tokens=8)])
def test_sentences_that_end_long_before_most_others_are_not_changed_by_waiting(options):
    chains = Chains.random(40, seed=3)
    prefix = torch.tensor([4, 5] * 8).repeat(40, 1)
    prefix[:3] = SPECIALS.pad
    together = run(chains, options, search, prefix=prefix)
    assert len(chains.seen[10]) == 40 * len(together[0])  # they waited
    assert_equal(run(chains.rows([0, 1, 2]), options, search), together[:3])


def test_later_tokens_follow_their_own_distribution():
    chains = Chains.random(1, seed=4, sharpness=1.0)
    config = sampling(num_return_sequences=4000, max_new_tokens=2, min_new_tokens=2)
    pairs = Counter(tokens_of(hypothesis) for hypothesis in run(chains, config, sample_search)[0])
    model = PlainModel(chains, 0, config)
    first = {token: math.exp(value) for token, value in model.next(()).items()}
    chi_square = 0.0
    for one, weight in first.items():
        second = {token: math.exp(value) for token, value in model.next((one,)).items()}
        for other, other_weight in second.items():
            expected = 4000 * weight / sum(first.values()) * other_weight / sum(second.values())
            chi_square += (pairs[one, other] - expected) ** 2 / expected
    assert chi_square < 32  # 8 degrees of freedom, one in 10,000


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}, {"temperature": 1e-40}])
def test_without_choice_sampling_is_greedy(options):
    chains = Chains.random(5, seed=1, zeros=0.1)
    rules = {"max_new_tokens": 8, "min_new_tokens": 2, "no_repeat_ngram_size": 3}
    greedy = run(chains, GenerationConfig(**rules), greedy_search)
    assert_equal(run(chains, sampling(**rules, **options)), greedy)


def test_seed_makes_it_reproducible():
    chains = Chains.random(4, seed=2, sharpness=0.5)
    config = sampling(num_return_sequences=3)
    assert_equal(run(chains, config, sample_search), run(chains, config, sample_search))
    other = run(chains, sampling(num_return_sequences=3, seed=1))
    assert [tokens_of(h[0]) for h in other] != [tokens_of(h[0]) for h in run(chains, config, sample_search)]


def test_without_seed_the_global_random_state_decides():
    chains = Chains.random(4, seed=2, sharpness=0.5)
    config = sampling(num_return_sequences=3, seed=None)
    torch.manual_seed(7)
    first, second = run(chains, config, sample_search), run(chains, config, sample_search)
    torch.manual_seed(7)
    assert_equal(run(chains, config, sample_search), first)
    assert [tokens_of(h[0]) for h in second] != [tokens_of(h[0]) for h in first]


def test_batch_mates_change_nothing():
    chains = Chains.random(5, seed=3, sharpness=0.5)
    config = sampling(num_return_sequences=2, max_new_tokens=12)
    prefix = torch.tensor([[4, 0], [0, 0], [5, 1], [0, 0], [1, 0]])
    together = run(chains, config, prefix=prefix)
    assert_equal(run(chains.rows([0, 1]), config, prefix=prefix[:2, :1]), together[:2])
    mates = chains.rows([0, 4, 2, 3, 1])
    swapped = run(mates, config, prefix=prefix[[0, 4, 2, 3, 1]])
    assert_equal([swapped[0], *swapped[2:4]], [together[0], *together[2:4]])


def test_a_sentence_leaves_when_all_its_samples_have_ended():
    chains = Chains.random(3, seed=5, sharpness=0.5)
    results = run(chains, sampling(num_return_sequences=2, max_new_tokens=30))
    steps = [max(len(hypothesis.token_scores) for hypothesis in hypotheses) for hypotheses in results]
    assert len(set(steps)) > 1
    assert [sum(sentence in seen for seen in chains.seen) for sentence in range(3)] == steps


def test_scores_are_those_of_the_model_itself():
    chains = Chains.random(2, seed=6)
    config = sampling(num_return_sequences=4, temperature=3.0, top_k=2, top_p=0.9, length_penalty=0.5)
    for sentence, hypotheses in enumerate(run(chains, config, return_attention=True)):
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for hypothesis in hypotheses:
            tokens = tokens_of(hypothesis)
            said = (*tokens, EOS)[: len(hypothesis.token_scores)]
            read = (SPECIALS.bos, *tokens)[: len(said)]
            before = (SPECIALS.pad, *read)[: len(said)]
            expected = chains.table[sentence, list(before), list(read), list(said)]
            torch.testing.assert_close(hypothesis.token_scores, expected)
            torch.testing.assert_close(hypothesis.attention, chains.attention[sentence, list(read)])
            assert hypothesis.score == pytest.approx(expected.sum().item() / len(said) ** 0.5, rel=1e-5)


def test_search_picks_the_method():
    chains = Chains.random(2, seed=0)
    assert len(run(chains, sampling(num_return_sequences=5), search)[0]) == 5
    assert len(run(chains, GenerationConfig(max_new_tokens=4), search)[0]) == 1
    beams = GenerationConfig(num_beams=4, num_return_sequences=4, max_new_tokens=4)
    assert len(run(chains, beams, search)[0]) == 4
    with pytest.raises(AssertionError):
        assert_equal(run(chains, sampling(max_new_tokens=4), search), run(chains, beams, search))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.floats(0, 1).map(lambda x: x if x > 1e-3 else 0.0), min_size=1, max_size=9).filter(any),
    uniform=st.sampled_from([0.0, 0.3, 0.999, 1 - 2**-24]) | st.floats(0, 1, exclude_max=True, width=32),
)
def test_tokens_without_probability_are_never_drawn(weights, uniform):
    probabilities = torch.tensor(weights) / sum(weights)
    assert weights[int(draw(probabilities, torch.tensor(uniform)))] > 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), p=st.floats(0.01, 1.0), k=st.integers(1, 12))
def test_filters_keep_the_smallest_sufficient_set(seed, p, k):
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    probabilities = logits.softmax(-1)
    for before, kept in zip(probabilities, keep_top_p(logits, p) > -math.inf, strict=True):
        assert before[kept].sum() >= p - 1e-9
        assert before[kept].sum() - before[kept].min() < p + 1e-9
        assert kept.all() or before[kept].min() > before[~kept].max()
    kept = keep_top_k(logits, k)
    assert ((kept == logits) | (kept == -math.inf)).all()
    assert ((kept > -math.inf).sum(-1) == min(k, 9)).all()
    assert torch.equal(kept.max(-1).values, logits.max(-1).values)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    paths=st.lists(st.lists(st.integers(1, 4), min_size=6, max_size=6), min_size=1, max_size=4), size=st.integers(1, 8)
)
def test_exactly_the_repeating_tokens_are_blocked(paths, size):
    state = NoRepeatedNGrams(size).start(Task(len(paths), SPECIALS, arrays.on("cpu")))
    for tokens in torch.tensor(paths).T:
        state = state.update(tokens)
    blocked = state.allow(torch.zeros(len(paths), VOCABULARY)) < 0
    for path, row in zip(paths, blocked.tolist(), strict=True):
        ngrams = [path[i : i + size] for i in range(len(path) - size + 1)]
        context = path[len(path) - size + 1 :] if size <= len(path) else None
        banned = [context is not None and [*context, token] in ngrams for token in range(VOCABULARY)]
        assert row == [token != EOS and found for token, found in enumerate(banned)]
