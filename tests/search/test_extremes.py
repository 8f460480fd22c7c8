"""Every search function at the ends of what the options allow, and with symbols that play several roles."""

import math
import warnings

import numpy as np
import pytest
import torch
from search_cases import SPECIALS, VOCABULARY, Chains, in_numpy, run, tokens_of

from lit_seq2seq.search import GenerationConfig, beam_search, greedy_search, sample_search, search, stream
from lit_seq2seq.search.scores import length_divisor, normalize
from lit_seq2seq.types import Padded, SpecialIds, StepOutput, UserError, Value

LENGTHS = torch.tensor([5, 1, 4, 3])


def random_frames(seed: int, favoured: tuple[int, ...] = ()) -> Padded:
    logits = 2 * torch.randn(4, 5, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    logits[..., list(favoured)] += 3
    return Padded(logits.log_softmax(-1), LENGTHS)


CASES = {
    "plain": {},
    "one token": {"max_new_tokens": 1},
    "all tokens": {"min_new_tokens": 9},
    "each token once": {"no_repeat_ngram_size": 1},
    "huge n-grams": {"no_repeat_ngram_size": 2**31 - 1},
    "hardly CTC": {"ctc_weight": 1e-300},
    "half CTC": {"ctc_weight": 0.5},
    "nearly all CTC": {"ctc_weight": 1 - 1e-16},
    "CTC alone": {"ctc_weight": 1.0},
    "CTC alone, cut": {"ctc_weight": 1.0, "max_new_tokens": 2},
    "CTC alone, limited": {"ctc_weight": 1, "min_new_tokens": 1},
    "CTC alone, each token once": {"ctc_weight": 1, "no_repeat_ngram_size": 1},
    "CTC alone, drawn": {"ctc_weight": 1.0, "do_sample": True, "seed": 3},
    "drawn": {"do_sample": True, "seed": 3, "top_k": 2},
}


@pytest.mark.parametrize("forced", [None, [4, 5]])
@pytest.mark.parametrize("name", CASES)
def test_tokens_that_are_streamed_are_those_of_search(name: str, forced: list[int] | None) -> None:
    config = GenerationConfig(**{"max_new_tokens": 9, **CASES[name]})
    for seed in range(8):
        chains, frames = Chains.random(1, seed, 0.2), random_frames(seed, (SPECIALS.pad,)).select(torch.tensor([0]))
        options = {
            "specials": SPECIALS,
            "config": config,
            "prefix": None if forced is None else torch.tensor([forced]),
            "frames": frames if config.ctc_weight else None,
        }
        del options["specials"], options["config"]
        [[found]] = run(chains, config, **options)
        for model, device in ((chains, "cpu"), (chains.in_numpy(), None)):
            given = {name: value if device else in_numpy(value) for name, value in options.items()}
            streamed = stream(model.step, model.start(), specials=SPECIALS, config=config, device=device, **given)
            assert tuple(streamed) == tokens_of(found)


@pytest.mark.parametrize("name", [name for name in CASES if "CTC" not in name and "drawn" not in name])
def test_a_single_beam_is_greedy_search_and_so_is_sampling_at_its_ends(name: str) -> None:
    options = {"max_new_tokens": 9, **CASES[name]}
    ends = [{"top_k": 1}, {"top_p": 1e-46}, {"top_p": 5e-324}, {"temperature": 1e-300}, {"temperature": 1e-46}]
    for seed in range(4):
        chains = Chains.random(5, seed, 0.2)

        def best(method, chains: Chains = chains, **more):
            config = GenerationConfig(**options, **more)
            found = run(chains, config, method, prefix=torch.tensor([[4], [5], [0], [0], [1]]))
            return [tokens_of(best) for best, *_ in found]

        greedy = best(greedy_search)
        assert best(beam_search) == greedy
        for end in ends:
            assert best(sample_search, do_sample=True, seed=1, **end) == greedy


@pytest.mark.parametrize("temperature", [1e39, 1e300])
def test_the_highest_temperatures_draw_evenly_from_what_is_allowed(temperature: float) -> None:
    config = GenerationConfig(
        do_sample=True, temperature=temperature, max_new_tokens=1, min_new_tokens=1, num_return_sequences=900, seed=1
    )
    chains = Chains.random(1, 0)
    tokens = [int(one.tokens) for one in run(chains, config)[0]]
    assert {token: 250 < tokens.count(token) < 350 for token in set(tokens)} == dict.fromkeys([1, 4, 5], True)


def test_a_huge_limit_on_tokens_costs_nothing_when_outputs_are_drawn() -> None:
    config = GenerationConfig(do_sample=True, max_new_tokens=2**31 - 1, num_return_sequences=3, seed=1)
    short = GenerationConfig(do_sample=True, max_new_tokens=128, num_return_sequences=3, seed=1)
    chains = Chains.random(2, 0)
    found, cut = (run(chains, one) for one in (config, short))
    assert [[tokens_of(one) for one in row] for row in found] == [[tokens_of(one) for one in row] for row in cut]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 10**400}, "temperature=1000.*: must be a number above 0"),
        ({"temperature": -math.inf}, "temperature=-inf: must be a number above 0"),
        ({"top_p": math.nan}, "top_p=nan: must be a number above 0 and at most 1"),
        ({"coverage_penalty": 1e30}, r"coverage_penalty=1e\+30: must be a number from 0 to 1000"),
        ({"coverage_penalty": math.inf}, "coverage_penalty=inf: must be"),
        ({"length_penalty": 10**400}, "length_penalty=1000.*: must be a finite number"),
        ({"length_penalty": 15}, "length_penalty=15: must be from -14.4 to 14.4 with max_new_tokens=128"),
        ({"length_penalty": -1e308, "length_normalization": "wu"}, r"length_penalty=-1e\+308: must be from -14.4 to"),
        ({"ctc_weight": -1e-300}, "ctc_weight=-1e-300: must be a number from 0 to 1"),
        ({"num_beams": 10**400}, "num_beams=1000.*: must be below 2"),
        ({"num_beams": 10**6}, "num_beams=1000000: must be at most 10,000"),
        ({"num_return_sequences": 10**6, "do_sample": True}, "num_return_sequences=1000000: must be at most 10,000"),
        ({"max_new_tokens": None}, "max_new_tokens=None: must be an integer"),
        ({"num_beams": math.nan}, "num_beams=nan: must be an integer"),
    ],
)
def test_what_cannot_be_computed_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        GenerationConfig(**options)
    assert len(str(caught.value)) < 200


def test_numbers_of_numpy_are_numbers() -> None:
    config = GenerationConfig(num_beams=np.int64(3), length_penalty=np.float32(0.5), top_k=np.uint8(4))
    assert [type(value) for value in (config.num_beams, config.length_penalty, config.top_k)] == [int, float, int]


@pytest.mark.parametrize("limit", [1, 2, 17, 128, 10_000, 2**31 - 1])
@pytest.mark.parametrize("kind", ["power", "wu"])
def test_scores_at_the_greatest_length_penalties_tell_hypotheses_apart(kind: str, limit: int) -> None:
    largest = 69.9 / math.log(max(limit, 2))
    for penalty in (largest, -largest):
        config = GenerationConfig(length_penalty=penalty, max_new_tokens=limit, length_normalization=kind, num_beams=2)
        for length in (1, limit):
            divisor = length_divisor(torch.tensor(float(length)), kind, config.length_penalty)
            better, worse = (normalize(torch.tensor(value), divisor) for value in (-1000.0, -1001.0))
            assert better > worse
            assert math.isfinite(worse)


def test_the_best_path_has_neither_bos_nor_eos() -> None:
    frames = random_frames(0, (SPECIALS.bos, SPECIALS.eos))
    chains, config = Chains.random(4, 0), GenerationConfig(ctc_weight=1)
    found = run(chains, config, frames=frames)
    allowed = frames.values[..., [0, 1, 4, 5]]
    for row, [one], real in zip(allowed, found, LENGTHS.tolist(), strict=True):
        path = [[0, 1, 4, 5][place] for place in row[:real].argmax(-1)]
        expected = [label for place, label in enumerate(path) if label and (place == 0 or label != path[place - 1])]
        assert one.tokens.tolist() == expected
        assert one.log_prob == pytest.approx(row[:real].amax(-1).sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    "roles", [SpecialIds(3, 1, 3, 3), SpecialIds(3, 1, 2, 3), SpecialIds(0, 1, 3, 3), SpecialIds(0, 0, 0, 3)]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 3},
        {"no_repeat_ngram_size": 1, "num_beams": 2},
        {"min_new_tokens": 3, "num_beams": 2},
        {"do_sample": True, "seed": 1},
        {"ctc_weight": 0.4},
        {"ctc_weight": 1.0},
    ],
)
def test_one_symbol_may_play_several_roles(roles: SpecialIds, options: dict) -> None:
    """As in vocabularies of GPT-2 and T5: nothing changes but the names."""
    config = GenerationConfig(max_new_tokens=6, **options)
    generator = torch.Generator().manual_seed(1)
    table = (2 * torch.randn(4, VOCABULARY, VOCABULARY, generator=generator)).log_softmax(-1)
    table[..., [0, 2]] = -math.inf  # symbols of roles that one case or the other does not use
    table[:, 3] = table[:, 2] = table[:, 0]  # whatever is BOS, the same follows
    frames = random_frames(1)
    frames.values[..., [0, 2, 3]] = -math.inf
    frames.values[:, ::2, :] = -50.0

    class Row(Value):
        def __init__(self, rows: torch.Tensor, beams: int = 1) -> None:
            self.rows, self.beams = rows, beams

        def select(self, index: torch.Tensor) -> "Row":
            return Row(self.rows[index.flatten()], index.shape[1])

    def step(tokens: torch.Tensor, state: Row) -> StepOutput:
        return StepOutput(table[state.rows, tokens], state)

    def run(specials: SpecialIds) -> list:
        given = frames.values.clone()
        given[:, ::2, specials.pad] = 0
        found = search(
            step,
            Row(torch.arange(4)),
            batch_size=4,
            specials=specials,
            config=config,
            prefix=None if config.ctc_weight else torch.tensor([[4], [5], [specials.pad], [specials.pad]]),
            frames=Padded(given, LENGTHS) if config.ctc_weight else None,
        )
        return [[(tokens_of(one), pytest.approx(one.score, rel=1e-5)) for one in row] for row in found]

    assert run(roles) == run(SPECIALS)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"length_normalization": "none"}, "length_normalization=none"),
        ({"length_penalty": 0}, "length_penalty=0"),
        ({"length_penalty": -2.0, "length_normalization": "wu"}, r"length_penalty=-2\.0"),
    ],
)
def test_a_beam_that_ends_at_once_because_of_its_options_says_so(options: dict, setting: str) -> None:
    table = torch.full((VOCABULARY, VOCABULARY), 0.01)
    table[:, 3], table[:, 4] = 0.4, 0.6
    numbers = (table / table.sum(-1, keepdim=True)).log()

    class Nothing(Value):
        pass

    def step(tokens: torch.Tensor, state: Nothing) -> StepOutput:
        return StepOutput(numbers[tokens], state)

    def best(config: GenerationConfig) -> list[int]:
        [[best]] = search(step, Nothing(), batch_size=1, specials=SPECIALS, config=config)
        return best.tokens.tolist()

    beam = GenerationConfig(num_beams=4, max_new_tokens=8, **options)
    with pytest.warns(UserWarning, match=f"some outputs are empty, as a beam with {setting} favours short ones"):
        assert best(beam) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert best(GenerationConfig(num_beams=4, max_new_tokens=8))
        assert best(GenerationConfig(max_new_tokens=8, **options))
        assert best(GenerationConfig(num_beams=4, max_new_tokens=8, min_new_tokens=1, **options))
