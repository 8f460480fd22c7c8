import math
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import SPECIALS, VOCABULARY, Chains, PlainModel, assert_equal, assert_same, run, tokens_of

from lit_seq2seq.search import GenerationConfig, beam_search, greedy_search, search
from lit_seq2seq.types import StepOutput, UserError, Value

WIDE = 90  # more than all open hypotheses of four tokens


def prefix_of(prefixes: list[tuple[int, ...]]) -> torch.Tensor:
    width = max(map(len, prefixes))
    return torch.tensor([[*prefix, *[SPECIALS.pad] * (width - len(prefix))] for prefix in prefixes]).view(
        len(prefixes), width
    )


@st.composite
def configs(draw: st.DrawFn, beams: st.SearchStrategy[int]) -> GenerationConfig:
    num_beams, max_new_tokens = draw(beams), draw(st.integers(1, 4))
    return GenerationConfig(
        num_beams=num_beams,
        num_return_sequences=draw(st.integers(1, min(num_beams, 8))),
        max_new_tokens=max_new_tokens,
        min_new_tokens=draw(st.integers(0, max_new_tokens)),
        no_repeat_ngram_size=draw(st.integers(0, 3)),
        early_stopping=draw(st.sampled_from([False, "never"])),
        length_penalty=draw(st.sampled_from([-2.0, -0.5, 0.0, 0.6, 1.0, 3.0])),
        length_normalization=draw(st.sampled_from(["none", "average", "power", "wu"])),
        coverage_penalty=draw(st.sampled_from([0.0, 0.0, 0.3, 2.0])),
    )


PREFIXES = st.lists(st.lists(st.sampled_from([1, 4, 5]), max_size=2).map(tuple), min_size=3, max_size=3)
CHAINS = st.builds(Chains.random, st.just(3), st.integers(0, 10**6), st.sampled_from([0.0, 0.2]), drift=st.just(0.01))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chains=CHAINS, config=configs(st.just(WIDE)), prefixes=PREFIXES)
def test_wide_beam_equals_exhaustive_search(chains, config, prefixes):
    results = run(chains, config, beam_search, prefix=prefix_of(prefixes))
    for sentence, hypotheses in enumerate(results):
        outputs = PlainModel(chains, sentence, config, prefixes[sentence]).outputs()
        expected = sorted(outputs, key=lambda found: -found.score)[: config.num_return_sequences]
        assert_same(hypotheses, expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chains=CHAINS, config=configs(st.integers(2, 5)), prefixes=PREFIXES)
def test_narrow_beam_misses_nothing_that_a_beam_without_early_stopping_finds(chains, config, prefixes):
    results = run(chains, config, beam_search, prefix=prefix_of(prefixes))
    for sentence, hypotheses in enumerate(results):
        assert_same(hypotheses, PlainModel(chains, sentence, config, prefixes[sentence]).beam_search())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
def test_early_stopping_true_stops_once_num_beams_have_ended(seed, length_penalty):
    chains = Chains.random(4, seed)
    config = GenerationConfig(
        num_beams=3, num_return_sequences=3, max_new_tokens=7, early_stopping=True, length_penalty=length_penalty
    )
    for sentence, hypotheses in enumerate(run(chains, config, beam_search)):
        assert_same(hypotheses, PlainModel(chains, sentence, config).beam_search())


def test_early_stopping_true_can_miss_what_false_finds():
    chains = Chains.random(40, seed=0)
    scores = {
        early: [
            hypotheses[0].score
            for hypotheses in run(
                chains,
                GenerationConfig(num_beams=2, max_new_tokens=9, length_penalty=2.0, early_stopping=early),
                beam_search,
            )
        ]
        for early in (True, False)
    }
    assert all(late >= soon - 1e-9 for late, soon in zip(scores[False], scores[True], strict=True))
    assert scores[False] != scores[True]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(chains=CHAINS, config=configs(st.just(1)), prefixes=PREFIXES)
def test_one_beam_is_greedy_search(chains, config, prefixes):
    prefix = prefix_of(prefixes)
    beam = run(chains, config, beam_search, prefix=prefix)
    assert_equal(beam, run(chains, config, greedy_search, prefix=prefix))
    for sentence, hypotheses in enumerate(beam):
        assert_same(hypotheses, PlainModel(chains, sentence, config, prefixes[sentence]).beam_search())


@pytest.mark.parametrize("method", [beam_search, greedy_search])
@pytest.mark.parametrize("seed", range(5))
def test_batch_mates_and_their_order_change_nothing(method, seed):
    chains = Chains.random(6, seed, zeros=0.1)
    beams = 1 if method is greedy_search else 3
    config = GenerationConfig(num_beams=beams, num_return_sequences=beams, max_new_tokens=8, coverage_penalty=0.2)
    prefix = prefix_of([(4,), (), (5, 1), (4, 4), (), (1,)])
    together = run(chains, config, method, prefix=prefix)
    order = [3, 0, 5, 1, 4, 2]
    assert_equal(run(chains.rows(order), config, method, prefix=prefix[order]), [together[i] for i in order])
    alone = [run(chains.rows([i]), config, method, prefix=prefix[[i]])[0] for i in range(6)]
    assert_equal(alone, together)


def certain_after(steps: list[int]) -> Chains:
    """Sentences that say 4 and then, at their own step, almost surely EOS."""
    chains = Chains.random(len(steps), seed=0)
    logits = torch.zeros(len(steps), VOCABULARY, VOCABULARY, VOCABULARY, dtype=torch.float64)
    for sentence, number in enumerate(steps):
        logits[sentence, ..., SPECIALS.eos if number == 0 else 4] = 20.0
        if number == 1:
            logits[sentence, :, 4, SPECIALS.eos] = 40.0
    chains.table = logits.log_softmax(-1)
    return chains


@pytest.mark.parametrize(("method", "beams"), [(greedy_search, 1), (beam_search, 1), (beam_search, 3)])
def test_finished_sentences_leave_the_batch(method, beams):
    chains = certain_after([0, 2, 1, 0])
    config = GenerationConfig(num_beams=beams, max_new_tokens=5, length_normalization="none")
    results = run(chains, config, method)
    assert [tokens_of(hypotheses[0]) for hypotheses in results] == [(), (4,) * 5, (4,), ()]
    assert chains.seen == [[0, 1, 2, 3], [1] * beams + [2] * beams, [1] * beams, [1] * beams, [1] * beams]


def test_search_goes_on_only_while_the_bound_allows():
    chains = certain_after([0])
    run(chains, GenerationConfig(num_beams=3, max_new_tokens=50, length_penalty=1.0), beam_search)
    with_one = len(chains.seen)
    run(
        chains,
        GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=50, length_penalty=1.0),
        beam_search,
    )
    assert with_one == 1
    assert 1 < len(chains.seen) <= 50


def test_a_negative_length_penalty_bounds_by_the_next_length():
    chains = Chains.random(1, seed=0)
    chains.table[0, :, SPECIALS.bos] = torch.tensor([0.0, 0.1, 0.0, 0.35, 0.55, 0.0]).log()
    run(chains, GenerationConfig(num_beams=2, max_new_tokens=9, length_penalty=-1.0), beam_search)
    assert len(chains.seen) == 1  # 1 * log(0.35), the end found, is above 2 * log(0.55), the best that may follow


def test_length_counts_eos_but_not_the_prefix():
    chains = certain_after([1])
    config = GenerationConfig(num_beams=2, max_new_tokens=3)
    ((best, *_),) = run(chains, config, beam_search)
    assert tokens_of(best) == (4,)
    assert best.score == pytest.approx(best.log_prob / 2, rel=1e-4)  # 4 EOS
    ((best, *_),) = run(chains, config, beam_search, prefix=torch.tensor([[5, 4]]))
    assert tokens_of(best) == (5, 4)
    assert best.score == best.log_prob  # EOS
    assert best.token_scores[:2].tolist() == [0, 0]


@pytest.mark.parametrize("method", [beam_search, greedy_search])
def test_max_new_tokens_counts_eos(method):
    chains = certain_after([1])
    (one,), (two,) = (run(chains, GenerationConfig(max_new_tokens=limit), method)[0] for limit in (1, 2))
    assert tokens_of(one) == tokens_of(two) == (4,)
    assert len(one.token_scores) == 1
    assert len(two.token_scores) == 2


@pytest.mark.parametrize("method", [beam_search, greedy_search])
def test_padding_and_bos_are_never_produced(method):
    chains = Chains.random(4, seed=1)
    chains.table[..., [SPECIALS.pad, SPECIALS.bos]] = -0.01
    results = run(chains, GenerationConfig(num_beams=1 if method is greedy_search else 4, max_new_tokens=6), method)
    produced = {token for hypotheses in results for h in hypotheses for token in tokens_of(h)}
    assert produced <= {1, 4, 5}


@pytest.mark.parametrize("method", [beam_search, greedy_search])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_occurs_twice(method, size):
    chains = Chains.random(8, seed=2)
    chains.table[..., SPECIALS.eos] -= 8
    beams = 1 if method is greedy_search else 4
    config = GenerationConfig(num_beams=beams, num_return_sequences=beams, max_new_tokens=12, no_repeat_ngram_size=size)
    lengths = []
    for hypothesis in chain(*run(chains, config, method)):
        tokens = tokens_of(hypothesis)
        ngrams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
        assert len(ngrams) == len(set(ngrams))
        lengths.append(len(tokens))
    assert max(lengths) > size


def test_token_scores_and_attention_follow_each_hypothesis():
    chains = Chains.random(3, seed=3)
    config = GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=6)
    for sentence, hypotheses in enumerate(run(chains, config, beam_search, return_attention=True)):
        for hypothesis in hypotheses:
            tokens = list(tokens_of(hypothesis))
            ended = len(hypothesis.token_scores) > len(tokens)
            read = [SPECIALS.bos, *tokens] if ended else [SPECIALS.bos, *tokens[:-1]]
            said = [*tokens, SPECIALS.eos] if ended else tokens
            before = [SPECIALS.pad, *read][: len(read)]
            torch.testing.assert_close(hypothesis.token_scores, chains.table[sentence, before, read, said])
            torch.testing.assert_close(hypothesis.attention, chains.attention[sentence, read])
            assert hypothesis.log_prob == pytest.approx(hypothesis.token_scores.sum().item())


@pytest.mark.parametrize("method", [beam_search, greedy_search])
def test_attention_is_left_out_unless_asked_for(method):
    chains = Chains.random(1, seed=0)
    config = GenerationConfig(max_new_tokens=3)
    assert run(chains, config, method)[0][0].attention is None
    assert run(chains, config, method, return_attention=True)[0][0].attention is not None


def test_ties_go_by_hypothesis_and_then_by_token():
    chains = Chains.random(2, seed=0)
    chains.table[:] = -math.log(4)
    config = GenerationConfig(num_beams=13, num_return_sequences=13, max_new_tokens=2, length_normalization="none")
    pairs = [(one, *other) for one in (1, 4, 5) for other in ((1,), (), (4,), (5,))]
    for hypotheses in run(chains, config, beam_search):
        assert [tokens_of(hypothesis) for hypothesis in hypotheses] == [(), *pairs]


@pytest.mark.parametrize("method", [beam_search, greedy_search])
def test_a_hypothesis_that_nothing_may_follow_ends_at_no_cost(method):
    chains = Chains.random(1, seed=0)
    chains.table[:, :, 4] = -math.inf
    chains.table[:, :, SPECIALS.bos] = -math.inf
    chains.table[:, :, SPECIALS.bos, 4] = -0.5
    config = GenerationConfig(num_beams=1 if method is greedy_search else 3, max_new_tokens=6, min_new_tokens=3)
    ((only,),) = run(chains, config, method)
    assert tokens_of(only) == (4,)
    assert only.token_scores.tolist() == [-0.5, 0]
    assert only.log_prob == -0.5


@pytest.mark.parametrize("beams", [1, 4])
def test_extreme_length_penalties_give_finite_scores(beams):
    chains = Chains.random(2, seed=0)
    for penalty in (-43.0, 43.0):
        for kind in ("power", "wu"):
            config = GenerationConfig(
                num_beams=beams, max_new_tokens=5, length_penalty=penalty, length_normalization=kind
            )
            for hypotheses in run(chains, config, search):
                assert math.isfinite(hypotheses[0].score)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_that_gives_nan_shows_it_in_the_score(beams):
    chains = Chains.random(2, seed=0)
    chains.table[1] = math.nan
    config = GenerationConfig(num_beams=beams, max_new_tokens=4)
    for model, device in ((chains, "cpu"), (chains.in_numpy(), None)):
        options = {"batch_size": 2, "specials": SPECIALS, "config": config, "device": device}
        sane, broken = search(model.step, model.start(), **options)
        assert math.isfinite(sane[0].score)
        assert math.isnan(broken[0].score)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("beams", [1, 3])
def test_low_precision_log_probs_are_summed_in_single_precision(dtype, beams):
    chains = Chains.random(3, seed=5)
    rounded = Chains(chains.table.to(dtype).double(), chains.attention, chains.mask)
    config = GenerationConfig(num_beams=beams, num_return_sequences=beams, max_new_tokens=8)
    low = run(Chains(chains.table.to(dtype), chains.attention, chains.mask), config, search)
    for one, other in zip(chain(*low), chain(*run(rounded, config, search)), strict=True):
        assert one.token_scores.dtype == torch.float32
        assert tokens_of(one) == tokens_of(other)
        assert one.score == pytest.approx(other.score, rel=1e-5)


def test_the_models_own_tensor_is_not_changed():
    table = torch.zeros(1, VOCABULARY).log_softmax(-1)

    class Nothing(Value):
        pass

    def step(tokens, state):
        return StepOutput(table, state)

    before = table.clone()
    config = GenerationConfig(max_new_tokens=3, min_new_tokens=1, no_repeat_ngram_size=1)
    for method in (beam_search, greedy_search):
        method(step, Nothing(), batch_size=1, specials=SPECIALS, config=config)
    assert torch.equal(table, before)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ([[4], [5]], r"shape \(2, 1\): must be \(1, P\)"),
        ([[0, 4]], "padding before a token: pad shorter prefixes at the end"),
        ([[4, SPECIALS.eos]], "prefix has a BOS or EOS id"),
        ([[SPECIALS.bos, 4]], "prefix has a BOS or EOS id"),
        ([[-3]], "prefix has numbers that are no ids"),
        ([[4.5]], "prefix has numbers that are no ids"),
    ],
)
@pytest.mark.parametrize("method", [beam_search, greedy_search])
def test_malformed_prefixes_are_refused(method, prefix, message):
    with pytest.raises(UserError, match=message):
        run(Chains.random(1, seed=0), GenerationConfig(), method, prefix=torch.tensor(prefix))


@pytest.mark.parametrize("method", [beam_search, greedy_search])
def test_coverage_penalty_needs_attention(method):
    chains = Chains.random(1, seed=0)

    def step(tokens, state):
        output = chains.step(tokens, state)
        return StepOutput(output.log_probs, output.state)

    with pytest.raises(UserError, match=r"coverage_penalty=0\.5: needs a model with attention"):
        method(step, chains.start(), batch_size=1, specials=SPECIALS, config=GenerationConfig(coverage_penalty=0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("beams", [1, 4])
def test_gpu_gives_what_the_cpu_gives(beams):
    chains = Chains.random(8, seed=0, zeros=0.1)
    moved = Chains(chains.table.cuda(), chains.attention.cuda(), chains.mask.cuda())
    config = GenerationConfig(
        num_beams=beams, num_return_sequences=beams, max_new_tokens=8, coverage_penalty=0.1, no_repeat_ngram_size=3
    )
    assert_equal(run(moved, config, search, return_attention=True), run(chains, config, search, return_attention=True))
