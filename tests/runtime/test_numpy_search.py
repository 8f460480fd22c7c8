import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch

from lit_seq2seq.arrays import NUMPY, Array, log_mean
from lit_seq2seq.runtime.network import Decodable, Ensemble, GraphState, Named, Start
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.shortlist import Shortlist
from lit_seq2seq.types import Padded, StepOutput, UserError, Value
from tests.search.search_cases import SPECIALS, Chains, assert_equal, run

CONFIGS = {
    "greedy": {},
    "greedy limits": {"min_new_tokens": 3, "max_new_tokens": 5, "no_repeat_ngram_size": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "wide": {"num_beams": 8, "num_return_sequences": 8, "length_normalization": "none"},
    "early": {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 3},
    "never": {"num_beams": 4, "early_stopping": "never", "length_penalty": -1.0},
    "average": {"num_beams": 2, "length_normalization": "average", "min_new_tokens": 2},
    "wu coverage": {"num_beams": 4, "length_normalization": "wu", "length_penalty": 0.8, "coverage_penalty": 0.4},
    "joint": {"ctc_weight": 0.4},
    "joint beam": {"num_beams": 3, "num_return_sequences": 3, "ctc_weight": 0.4, "length_penalty": 0.5},
    "CTC alone, beam": {"num_beams": 4, "num_return_sequences": 2, "ctc_weight": 1.0},
    "best path": {"ctc_weight": 1.0},
    "best path, short": {"ctc_weight": 1.0, "max_new_tokens": 2, "length_normalization": "wu"},
    "n-grams": {"num_beams": 5, "no_repeat_ngram_size": 1, "num_return_sequences": 3, "max_new_tokens": 9},
}


def frames(chains: Chains, seed: int) -> Padded:
    """CTC's log-probabilities at as many positions as there are in the source; every other one surely is a blank."""
    scores = torch.randn(*chains.mask.shape, chains.table.shape[-1], generator=torch.Generator().manual_seed(seed))
    scores[:, 1::2, SPECIALS.pad] = torch.inf
    return Padded((2 * scores).nan_to_num(posinf=1e4).log_softmax(-1), chains.mask.sum(1))


SAMPLED = {
    "plain": {},
    "sharpened": {"temperature": 0.5, "num_return_sequences": 3},
    "cut": {"top_k": 2, "num_return_sequences": 2, "min_new_tokens": 3},
    "nucleus": {"top_p": 0.6, "temperature": 1.5, "num_return_sequences": 4},
    "both": {"top_k": 3, "top_p": 0.5, "length_normalization": "average", "coverage_penalty": 0.2},
    "joint": {"ctc_weight": 0.4, "num_return_sequences": 2},
}


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("options", [*CONFIGS.values(), *({"do_sample": True, **one} for one in SAMPLED.values())])
def test_numpy_finds_the_hypotheses_of_torch(options: dict, zeros: float) -> None:
    for seed in range(3):
        config = GenerationConfig(**{"max_new_tokens": 7, "seed": seed, **options})
        chains = Chains.random(6, seed, zeros)
        run(chains, config, frames=frames(chains, seed) if config.ctc_weight else None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_logarithms_are_those_of_numpy(dtype: type) -> None:
    first, second = np.random.default_rng(0).normal(0, 200, (2, 40, 50)).astype(dtype)
    first[::3], second[::2, ::2] = -np.inf, -np.inf
    expected = np.logaddexp(first, second)
    np.testing.assert_allclose(NUMPY.logaddexp(first, second), expected, rtol=1e-6)
    np.testing.assert_allclose(log_mean([first, second]), expected - np.log(2), rtol=1e-6)
    with NUMPY.quiet():
        np.testing.assert_allclose(NUMPY.logsumexp(first), np.logaddexp.reduce(first, axis=-1), rtol=1e-6)
    whole = log_mean([torch.from_numpy(first), torch.from_numpy(second)])
    np.testing.assert_allclose(whole.numpy(), expected - np.log(2), rtol=1e-6)


def test_no_seed_draws_something_else_each_time() -> None:
    chains = Chains.random(6, 0).in_numpy()
    config = GenerationConfig(do_sample=True, max_new_tokens=20, min_new_tokens=20)
    options = {"batch_size": 6, "specials": SPECIALS, "config": config, "device": None}
    first, second = (search(chains.step, chains.start(), **options) for _ in range(2))
    assert [row[0].tokens.tolist() for row in first] != [row[0].tokens.tolist() for row in second]


class Table(Decodable):
    """A model that is a table."""

    def __init__(self, chains: Chains, config: GenerationConfig) -> None:
        self.chains, self.specials, self.config = chains.in_numpy(), SPECIALS, config

    @property
    def shortlist(self) -> Shortlist:
        raise UserError("a table has no shortlist")

    def start(self, source: Named, candidates: Padded | None = None) -> Start:
        size = self.chains.batch_size
        values = {"memory.rows": np.arange(size), "before": np.zeros((size, 1), np.int64)}
        return Start(GraphState(values), self.chains.mask, source["frames"])

    def step(self, tokens: Array, state: GraphState) -> StepOutput[GraphState]:
        rows = np.repeat(state.values["memory.rows"], state.beams)
        log_probs = self.chains.table[rows, state.values["before"].flatten(), tokens]
        after = {**state.values, "before": tokens.reshape(-1, state.beams)}
        return StepOutput(log_probs, GraphState(after, state.beams), self.chains.attention[rows, tokens])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "ctc_weight": 0.3, "coverage_penalty": 0.1}])
def test_an_ensemble_searches_with_the_mean_of_probabilities_and_attention(options: dict) -> None:
    config = GenerationConfig(max_new_tokens=6, **options)
    one, other = Chains.random(5, 0, 0.2), Chains.random(5, 1, 0.0)
    other = replace(other, mask=one.mask)
    mean = Chains((one.table.exp() + other.table.exp()).div(2).log(), (one.attention + other.attention) / 2, one.mask)
    given = frames(one, 0)
    joined = Ensemble([Table(one, config), Table(other, config)])
    found = joined.generate({"frames": given.values.numpy()}, return_attention=True)
    whole = run(mean, config, frames=given if config.ctc_weight else None, return_attention=True)
    lengths = one.mask.sum(1).tolist()
    cut = [
        [each if each.attention is None else replace(each, attention=each.attention[:, :length]) for each in row]
        for length, row in zip(lengths, whole, strict=True)
    ]
    assert_equal(found, cut)


def test_an_ensemble_needs_frames_of_one_length() -> None:
    one, other = Chains.random(5, 0), Chains.random(5, 1)
    config = GenerationConfig(ctc_weight=0.5)
    with pytest.raises(UserError, match="ctc_weight needs encoders that shorten sources alike, but these differ"):
        Ensemble([Table(one, config), Table(other, config)]).generate({"frames": frames(one, 0).values.numpy()})


def test_what_the_model_lacks_is_explained() -> None:
    class Nothing(Value):
        pass

    def step(tokens: Array, state: Nothing) -> StepOutput[Nothing]:
        return StepOutput(np.zeros((1, 6), np.float32), state)

    def found(**options: float) -> object:
        config = GenerationConfig(**options)
        return search(step, Nothing(), batch_size=1, specials=SPECIALS, config=config, device=None)

    with pytest.raises(UserError, match=r"coverage_penalty=0.5: needs a model with attention; set coverage_penalty to"):
        found(coverage_penalty=0.5)
    with pytest.raises(UserError, match=r"ctc_weight=0.5: needs a model with CTC; set it to 0"):
        found(ctc_weight=0.5)


def test_the_version_is_told_without_torch() -> None:
    code = "import sys, lit_seq2seq\nprint(lit_seq2seq.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{version('lit_seq2seq')} False\n"


def test_the_runtime_imports_neither_torch_nor_datasets() -> None:
    code = "import sys\nfrom lit_seq2seq.runtime import command\n"
    code += "print([name for name in ('torch', 'datasets', 'lightning', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
