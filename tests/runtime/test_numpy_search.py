import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from lit_seq2seq.runtime.errors import UserError
from lit_seq2seq.runtime.search import Array, Options, State, Step, beam_search
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.types import StepOutput
from tests.search.search_cases import SPECIALS, Chains, ChainState

CONFIGS = {
    "greedy": {},
    "greedy limits": {"min_new_tokens": 3, "max_new_tokens": 5, "no_repeat_ngram_size": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "wide": {"num_beams": 8, "num_return_sequences": 8, "length_normalization": "none"},
    "early": {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 3},
    "never": {"num_beams": 4, "early_stopping": "never", "length_penalty": -1.0},
    "average": {"num_beams": 2, "length_normalization": "average", "min_new_tokens": 2},
    "wu coverage": {"num_beams": 4, "length_normalization": "wu", "length_penalty": 0.8, "coverage_penalty": 0.4},
    "n-grams": {"num_beams": 5, "no_repeat_ngram_size": 1, "num_return_sequences": 3, "max_new_tokens": 9},
}


def single(chains: Chains, config: GenerationConfig) -> list[list[tuple[list[int], float, list[float]]]]:
    """Search with torch in single precision."""

    def step(tokens: torch.Tensor, state: ChainState) -> StepOutput[ChainState]:
        output = chains.step(tokens, state)
        return StepOutput(output.log_probs.float(), output.state, output.attention)

    found = search(
        step, chains.start(), batch_size=chains.batch_size, specials=SPECIALS, config=config, source_mask=chains.mask
    )
    return [[(h.tokens.tolist(), h.score, h.token_scores.tolist()) for h in row] for row in found]


def with_numpy(chains: Chains, options: Options) -> list[list[tuple[list[int], float, list[float]]]]:
    def step(tokens: Array, state: State) -> Step:
        read = torch.from_numpy(tokens)
        rows, before = torch.from_numpy(state["memory.rows"])[:, None], torch.from_numpy(state["before"])
        log_probs = chains.table[rows, before, read].float().numpy()
        return Step(log_probs, chains.attention[rows, read].numpy(), {**state, "before": tokens})

    state = {"memory.rows": np.arange(chains.batch_size), "before": np.zeros((chains.batch_size, 1), np.int64)}
    found = beam_search(step, state, chains.mask.numpy(), SPECIALS, options)
    return [[tuple(hypothesis) for hypothesis in row] for row in found]


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("name", CONFIGS)
def test_numpy_finds_the_hypotheses_of_torch(name: str, zeros: float) -> None:
    config = GenerationConfig(**{"max_new_tokens": 7, **CONFIGS[name]})
    values = {key: value for key, value in asdict(config).items() if key in Options.__dataclass_fields__}
    for seed in range(5):
        chains = Chains.random(6, seed, zeros)
        for expected, found in zip(single(chains, config), with_numpy(chains, Options(**values)), strict=True):
            assert [one[0] for one in found] == [one[0] for one in expected]
            for one, other in zip(found, expected, strict=True):
                assert one[1] == pytest.approx(other[1], rel=1e-5)
                assert one[2] == pytest.approx(other[2], rel=1e-5)


def test_a_coverage_penalty_needs_attention() -> None:
    def step(tokens: Array, state: State) -> Step:
        return Step(np.zeros((1, 1, 6), np.float32), None, state)

    with pytest.raises(UserError, match="coverage_penalty needs a model with attention: set it to 0"):
        beam_search(step, {}, np.ones((1, 1), bool), SPECIALS, Options(coverage_penalty=0.5))


def test_the_runtime_imports_neither_torch_nor_datasets() -> None:
    modules = ["copying", "records", "search", "text", "vectors", "audio", "images"]
    code = f"import sys\nfrom lit_seq2seq.runtime import {', '.join(modules)}\n"
    code += "print([name for name in ('torch', 'datasets', 'lightning', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
