import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.search.scores import best_reachable, coverage_score, length_divisor, normalize
from lit_seq2seq.types import UserError

KINDS = ["none", "average", "power", "wu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "^num_beams=0: must be an integer of at least 1$"),
        ({"num_beams": 2.5}, r"num_beams=2\.5: must be an integer"),
        ({"num_beams": True}, "num_beams=True: must be an integer"),
        ({"num_return_sequences": 0}, "num_return_sequences=0: must be an integer of at least 1"),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences=3: must be at most num_beams=2; raise num_be",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be an integer of at least 1"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1: must be an integer of at least 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9: must be at most max_new_tokens=8"),
        ({"do_sample": True, "num_beams": 2}, "num_beams=2: must be 1 with do_sample=True"),
        ({"temperature": 0}, "temperature=0: must be a number above 0"),
        ({"temperature": math.nan}, "temperature=nan: must be"),
        ({"temperature": "hot"}, "temperature='hot': must be a number"),
        ({"top_k": -1}, "top_k=-1: must be an integer of at least 0"),
        ({"top_p": 0.0}, r"top_p=0\.0: must be a number above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p=1\.5: must be"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size=-2: must be"),
        ({"early_stopping": "always"}, "early_stopping='always': must be True, False or 'never'"),
        ({"early_stopping": 1}, "early_stopping=1: must be True, False or 'never'"),
        ({"length_penalty": math.inf}, "length_penalty=inf: must be a finite number"),
        ({"length_normalization": "mean"}, "length_normalization='mean': must be one of none, average, power, wu"),
        ({"coverage_penalty": -0.1}, r"coverage_penalty=-0\.1: must be a number from 0 to 1000"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message) as caught:
        GenerationConfig(**options)
    assert "\n" not in str(caught.value)


def test_sampling_may_return_more_sequences_than_beams():
    assert GenerationConfig(do_sample=True, num_return_sequences=7).num_return_sequences == 7


@pytest.mark.parametrize(
    ("kind", "expected"), [("none", 1), ("average", 7), ("power", 7**0.6), ("wu", ((5 + 7) / (5 + 1)) ** 0.6)]
)
def test_length_divisors(kind, expected):
    assert length_divisor(torch.tensor(7.0), kind, 0.6).item() == pytest.approx(expected)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    log_prob=st.floats(-50, 0),
    fall=st.floats(0, 20),
    lengths=st.lists(st.integers(1, 60), min_size=3, max_size=3).map(sorted),
    kind=st.sampled_from(KINDS),
    penalty=st.floats(-3, 3),
)
def test_no_end_of_a_hypothesis_beats_its_bound(log_prob, fall, lengths, kind, penalty):
    shortest, length, longest = (torch.tensor(value, dtype=torch.float64) for value in lengths)
    bound = best_reachable(torch.tensor(log_prob, dtype=torch.float64), shortest, longest, kind, penalty=penalty)
    end = torch.tensor(log_prob - fall, dtype=torch.float64)
    assert normalize(end, length_divisor(length, kind, penalty)) <= bound + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [-1.0, 0.7])
def test_the_bound_can_be_reached(kind, penalty):
    log_prob, lengths = torch.tensor(-3.0), torch.arange(2.0, 10.0)
    bound = best_reachable(log_prob, lengths[0], lengths[-1], kind, penalty=penalty)
    assert normalize(log_prob, length_divisor(lengths, kind, penalty)).max() == bound


def test_coverage_score_is_the_formula_over_real_positions():
    attention = torch.tensor([[0.5, 1.7, 0.25, 0.0], [1.0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True, False]] * 2)
    expected = [0.4 * (math.log(0.5) + math.log(0.25)), 0.0]
    assert coverage_score(attention, mask, 0.4).tolist() == pytest.approx(expected)


def test_coverage_score_of_a_position_never_seen_is_finite():
    score = coverage_score(torch.tensor([0.0, 1.0]), None, 1.0).item()
    assert math.isfinite(score)
    assert score < -80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.7}, r"temperature=0\.7 has no effect without do_sample=True"),
        ({"top_p": 0.9, "num_beams": 3}, r"top_p=0\.9 has no effect without do_sample=True"),
        ({"seed": 3}, "seed=3 has no effect without do_sample=True"),
        ({"early_stopping": True}, "early_stopping=True has no effect with num_beams=1"),
        (
            {"num_beams": 3, "length_penalty": 2, "length_normalization": "average"},
            "length_penalty=2 has no effect with length_normalization=average",
        ),
    ],
)
def test_options_without_effect_are_told(options, message):
    with pytest.warns(UserWarning, match=message):
        found = GenerationConfig().changed(options)
    assert found == GenerationConfig(**options)


def test_options_with_effect_and_those_that_change_nothing_are_not_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = GenerationConfig(num_beams=3, temperature=0.7, length_normalization="none", length_penalty=2.0)
        assert own.changed({"num_beams": 1, "max_new_tokens": 9}).temperature == 0.7
        GenerationConfig().changed({"do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.9, "seed": 1})
        GenerationConfig().changed({"num_beams": 2, "early_stopping": True, "length_penalty": 2.0})
        GenerationConfig().changed({"temperature": 1.0, "top_p": 1, "seed": None, "early_stopping": False})
