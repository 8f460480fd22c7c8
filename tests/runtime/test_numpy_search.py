import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch

from lit_seq2seq.runtime.beam import Array, State, Step, StepFunction
from lit_seq2seq.runtime.network import Decodable, Ensemble, Start
from lit_seq2seq.runtime.readers import Named
from lit_seq2seq.runtime.sampling import distribution
from lit_seq2seq.runtime.search import search as numpy_search
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.search.sample import sampler
from lit_seq2seq.shortlist import Candidates, Shortlist
from lit_seq2seq.types import Padded, StepOutput, UserError
from tests.search.search_cases import SPECIALS, Chains, ChainState

Found = list[list[tuple[list[int], float, list[float]]]]

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


def single(chains: Chains, config: GenerationConfig, given: Padded | None = None) -> Found:
    """Search with torch in single precision."""

    def step(tokens: torch.Tensor, state: ChainState) -> StepOutput[ChainState]:
        output = chains.step(tokens, state)
        return StepOutput(output.log_probs.float(), output.state, output.attention)

    options = {"batch_size": chains.batch_size, "specials": SPECIALS, "config": config}
    found = search(step, chains.start(), **options, source_mask=chains.mask, frames=given)
    return [[(h.tokens.tolist(), h.score, h.token_scores.tolist()) for h in row] for row in found]


def numpy_steps(chains: Chains) -> tuple[StepFunction, State]:
    def step(tokens: Array, state: State) -> Step:
        read = torch.from_numpy(tokens)
        rows, before = torch.from_numpy(state["memory.rows"])[:, None], torch.from_numpy(state["before"])
        log_probs = chains.table[rows, before, read].float().numpy()
        return Step(log_probs, chains.attention[rows, read].numpy(), {**state, "before": tokens})

    return step, {"memory.rows": np.arange(chains.batch_size), "before": np.zeros((chains.batch_size, 1), np.int64)}


def assert_same(found: Found, expected: Found) -> None:
    for row, other in zip(found, expected, strict=True):
        assert [one[0] for one in row] == [one[0] for one in other]
        for one, two in zip(row, other, strict=True):
            assert one[1] == pytest.approx(two[1], rel=1e-5)
            assert one[2] == pytest.approx(two[2], rel=1e-5)


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("name", CONFIGS)
def test_numpy_finds_the_hypotheses_of_torch(name: str, zeros: float) -> None:
    config = GenerationConfig(**{"max_new_tokens": 7, **CONFIGS[name]})
    for seed in range(5):
        chains = Chains.random(6, seed, zeros)
        given = frames(chains, seed) if config.ctc_weight else None
        found = numpy_search(
            *numpy_steps(chains),
            chains.mask.numpy(),
            SPECIALS,
            config=config,
            frames=None if given is None else given.values.numpy(),
        )
        assert_same([[tuple(one) for one in row] for row in found], single(chains, config, given))


SAMPLED = {
    "plain": {},
    "sharpened": {"temperature": 0.5, "num_return_sequences": 3},
    "cut": {"top_k": 2, "num_return_sequences": 2, "min_new_tokens": 3},
    "nucleus": {"top_p": 0.6, "temperature": 1.5, "num_return_sequences": 4},
    "both": {"top_k": 3, "top_p": 0.5, "length_normalization": "average", "coverage_penalty": 0.2},
    "joint": {"ctc_weight": 0.4, "num_return_sequences": 2},
}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_same_random_numbers_draw_the_same_outputs(name: str) -> None:
    for seed in range(5):
        config = GenerationConfig(do_sample=True, seed=seed, **{"max_new_tokens": 7, **SAMPLED[name]})
        chains = Chains.random(6, seed, 0.3)
        given = frames(chains, seed) if config.ctc_weight else None

        class Random:
            """Torch's numbers."""

            def random(self, shape: tuple[int, ...], _: type, seed: int = seed) -> Array:
                return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).numpy()

        values = None if given is None else given.values.numpy()
        found = numpy_search(
            *numpy_steps(chains), chains.mask.numpy(), SPECIALS, config=config, frames=values, random=Random()
        )
        assert_same([[tuple(one) for one in row] for row in found], single(chains, config, given))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.3}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.4}]
)
def test_outputs_are_drawn_from_the_same_probabilities(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerationConfig(do_sample=True, **options)
    log_probs = torch.randn(4, 3, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    seen = []
    monkeypatch.setattr("lit_seq2seq.search.sample.draw", lambda probabilities, _: seen.append(probabilities))
    sampler(config, 4, "cpu")(log_probs, torch.arange(4), torch.zeros(4, dtype=torch.long))
    found = distribution(log_probs.numpy(), config)
    assert (found == 0).tolist() == (seen[0] == 0).tolist()
    np.testing.assert_allclose(found, seen[0].numpy(), rtol=2e-6)


def test_a_seed_draws_the_same_again_and_no_seed_does_not() -> None:
    chains = Chains.random(6, 0, 0.0)

    def drawn(seed: int | None) -> list[list[int]]:
        config = GenerationConfig(do_sample=True, max_new_tokens=20, min_new_tokens=20, seed=seed)
        found = numpy_search(*numpy_steps(chains), chains.mask.numpy(), SPECIALS, config=config)
        return [row[0].tokens for row in found]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


class Table(Decodable):
    """A model that is a table."""

    def __init__(self, chains: Chains, config: GenerationConfig) -> None:
        self.chains, self.specials, self.config = chains, SPECIALS, config
        self._step, self._state = numpy_steps(chains)

    @property
    def shortlist(self) -> Shortlist:
        raise UserError("a table has no shortlist")

    def start(self, source: Named, candidates: Candidates | None = None) -> Start:
        return Start(self._state, self.chains.mask.numpy(), source["frames"])

    def step(self, tokens: Array, state: State) -> Step:
        return self._step(tokens, state)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "ctc_weight": 0.3, "coverage_penalty": 0.1}])
def test_an_ensemble_searches_with_the_mean_of_probabilities_and_attention(options: dict) -> None:
    config = GenerationConfig(max_new_tokens=6, **options)
    one, other = Chains.random(5, 0, 0.2), Chains.random(5, 1, 0.0)
    other = replace(other, mask=one.mask)
    mean = Chains((one.table.exp() + other.table.exp()).div(2).log(), (one.attention + other.attention) / 2, one.mask)
    given = frames(one, 0)
    joined = Ensemble([Table(one, config), Table(other, config)])
    found = joined.generate({"frames": given.values.numpy()})
    assert_same(
        [[tuple(one) for one in row] for row in found], single(mean, config, given if config.ctc_weight else None)
    )


def test_an_ensemble_needs_frames_of_one_length() -> None:
    one, other = Chains.random(5, 0), Chains.random(5, 1)
    config = GenerationConfig(ctc_weight=0.5)
    with pytest.raises(UserError, match="ctc_weight needs encoders that shorten sources alike, but these differ"):
        Ensemble([Table(one, config), Table(other, config)]).generate({"frames": frames(one, 0).values.numpy()})


def test_what_the_model_lacks_is_explained() -> None:
    def step(tokens: Array, state: State) -> Step:
        return Step(np.zeros((1, 1, 6), np.float32), None, state)

    mask = np.ones((1, 1), bool)
    with pytest.raises(UserError, match=r"coverage_penalty=0.5: needs a model with attention; set coverage_penalty to"):
        numpy_search(step, {}, mask, SPECIALS, config=GenerationConfig(coverage_penalty=0.5))
    with pytest.raises(UserError, match=r"ctc_weight=0.5: needs a model with CTC; set it to 0"):
        numpy_search(step, {}, mask, SPECIALS, config=GenerationConfig(ctc_weight=0.5))


def test_the_version_is_told_without_torch() -> None:
    code = "import sys, lit_seq2seq\nprint(lit_seq2seq.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{version('lit_seq2seq')} False\n"


def test_the_runtime_imports_neither_torch_nor_datasets() -> None:
    modules = "config, copying, records, search, slots, network, text, vectors, audio, images"
    code = f"import sys\nfrom lit_seq2seq import shortlist\nfrom lit_seq2seq.runtime import {modules}\n"
    code += "print([name for name in ('torch', 'datasets', 'lightning', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
