"""What scores beside a model: the best outputs are those of the sum, in torch and in NumPy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from search_cases import SPECIALS, Chains, Found, assert_same, run
from test_constraints import LETTERS, Letters

from lit_seq2seq.search import GenerationConfig, JointModels, LanguageModel
from lit_seq2seq.search.scorers.language_model import matched
from lit_seq2seq.types import UserError

WIDE = {"num_beams": 90, "num_return_sequences": 8, "max_new_tokens": 4, "length_normalization": "none"}


@dataclass
class Other:
    """A table beside another one, whose chains are those of one source."""

    chains: Chains
    vocabulary: Letters
    reads_sources: bool = False

    def begin(self, raw: Sequence[Any]) -> tuple[Any, Any]:
        return self.chains.step, self.chains.start()


@dataclass
class Host:
    """Models by name."""

    models: dict[str, Chains]
    own: Chains | None = None
    vocabulary: Letters = LETTERS

    def other(self, name: str) -> Other:
        return Other(self.models[name], self.vocabulary)

    def blind(self) -> tuple[Any, Any]:
        assert self.own is not None
        return self.own.step, self.own.start()


def searched(chains: Chains, config: GenerationConfig, host: Host) -> list:
    """Search with torch; NumPy must find the same."""
    other = Host(
        {name: one.in_numpy() for name, one in host.models.items()},
        None if host.own is None else host.own.in_numpy(),
        host.vocabulary,
    )

    return run(chains, config, vocabulary=LETTERS, hosts=(host, other), raw=[""] * chains.batch_size)


def path_score(chains: Chains, sentence: int, tokens: Sequence[int]) -> list[float]:
    before = (SPECIALS.pad, SPECIALS.bos, *tokens)
    return [
        float(chains.table[sentence, before[place], before[place + 1], before[place + 2]])
        for place in range(len(tokens))
    ]


def outputs(longest: int) -> list[tuple[int, ...]]:
    """All outputs, with EOS where they end before they must."""
    found = []
    for length in range(longest + 1):
        ends = () if length == longest else (SPECIALS.eos,)
        found += [(*tokens, *ends) for tokens in product([1, 4, 5], repeat=length)]
    return found


def expected(score: Any, count: int = 8) -> list[Found]:
    scored = [Found(tokens, score(tokens), score(tokens)) for tokens in outputs(4)]
    return sorted(scored, key=lambda found: -found.score)[:count]


@pytest.mark.parametrize("weight", [0.0, 0.4, 2.0])
def test_a_language_model_adds_its_weighted_score(weight: float) -> None:
    config = GenerationConfig(scorers=[LanguageModel("lm", weight)], **WIDE)
    for seed in range(4):
        chains, other = Chains.random(3, seed), Chains.random(3, seed + 50)
        for sentence, hypotheses in enumerate(searched(chains, config, Host({"lm": other}))):

            def score(
                tokens: Sequence[int], sentence: int = sentence, chains: Chains = chains, lm: Chains = other
            ) -> float:
                return sum(path_score(chains, sentence, tokens)) + weight * sum(path_score(lm, sentence, tokens))

            assert_same(hypotheses, expected(score))


def test_the_internal_language_model_is_subtracted() -> None:
    config = GenerationConfig(scorers=[LanguageModel("lm", 0.5, internal_weight=0.3)], **WIDE)
    for seed in range(4):
        chains, other, own = (Chains.random(3, seed + shift) for shift in (0, 50, 90))
        for sentence, hypotheses in enumerate(searched(chains, config, Host({"lm": other}, own))):
            parts = [(1.0, chains), (0.5, other), (-0.3, own)]

            def score(tokens: Sequence[int], sentence: int = sentence, parts: Any = parts) -> float:
                return sum(weight * sum(path_score(one, sentence, tokens)) for weight, one in parts)

            best = expected(score)
            found = [tuple(one.tokens.tolist()) for one in hypotheses]
            assert found[0] == tuple(token for token in best[0].tokens if token != SPECIALS.eos)
            assert hypotheses[0].score == pytest.approx(best[0].score, abs=1e-5)


def test_a_model_that_reads_sources_is_no_language_model() -> None:
    class Translators(Host):
        def other(self, name: str) -> Other:
            return replace(super().other(name), reads_sources=True)

    config, chains = GenerationConfig(scorers=[LanguageModel("one")], **WIDE), Chains.random(1, 0)
    with pytest.raises(UserError, match="one is no language model, as it reads sources: JointModels joins such models"):
        run(chains, config, vocabulary=LETTERS, hosts=[Translators({"one": chains})] * 2)


@pytest.mark.parametrize("count", [1, 2])
def test_models_average_their_probabilities(count: int) -> None:
    names = [f"model {place}" for place in range(count)]
    config = GenerationConfig(scorers=[JointModels(names)], **WIDE)
    for seed in range(4):
        chains = Chains.random(3, seed)
        others = {name: Chains.random(3, seed + 10 * place) for place, name in enumerate(names, start=1)}
        for sentence, hypotheses in enumerate(searched(chains, config, Host(others))):
            members = [chains, *others.values()]

            def score(tokens: Sequence[int], sentence: int = sentence, members: Any = members) -> float:
                steps = zip(*(path_score(one, sentence, tokens) for one in members), strict=True)
                return sum(math.log(sum(map(math.exp, step)) / len(members)) for step in steps)

            assert_same(hypotheses, expected(score))


def test_greedy_search_and_sampling_score_jointly_too() -> None:
    chains, other = Chains.random(4, 0), Chains.random(4, 9)
    sure = Chains(other.table * 1e3, other.attention, other.mask)  # a model that decides alone
    for options in ({}, {"do_sample": True, "seed": 1}):
        config = GenerationConfig(scorers=[LanguageModel("lm", 10.0)], max_new_tokens=6, **options)
        plain = GenerationConfig(max_new_tokens=6)
        found = searched(chains, config, Host({"lm": sure}))
        alone = run(sure, plain)
        assert [one[0].tokens.tolist() for one in found] == [one[0].tokens.tolist() for one in alone]


class Shuffled(Letters):
    """The same symbols by other ids, but for one."""

    @property
    def symbols(self) -> list[str]:
        return ["<pad>", "<unk>", "<bos>", "<eos>", "y", "z"]


def test_symbols_are_matched_by_name() -> None:
    with pytest.warns(UserWarning, match="the language model lm does not know 1 symbol of the model"):
        assert matched(LETTERS, Shuffled(), "lm").tolist() == [0, 1, 2, 3, 1, 4]
    ids = torch.tensor([0, 1, 2, 3, 1, 4])
    chains, other = Chains.random(2, 0), Chains.random(2, 5)
    config = GenerationConfig(scorers=[LanguageModel("lm", 0.7)], **WIDE)
    renamed = Chains(other.table[:, ids][:, :, ids][..., ids], other.attention, other.mask)
    found = searched(chains, config, Host({"lm": other}, vocabulary=Shuffled()))
    plain = searched(chains, config, Host({"lm": renamed}))
    assert [[one.tokens.tolist() for one in row] for row in found] == [
        [one.tokens.tolist() for one in row] for row in plain
    ]


def test_wrong_scorers_are_explained() -> None:
    chains = Chains.random(1, 0)
    with pytest.raises(UserError, match="needs a model to search with: use its generate"):
        run(chains, GenerationConfig(scorers=[LanguageModel("lm")]), vocabulary=LETTERS)
    with pytest.raises(UserError, match="has other symbols for outputs than the model"):
        searched(chains, GenerationConfig(scorers=[JointModels(["one"])]), Host({"one": chains}, vocabulary=Shuffled()))
    with pytest.raises(UserError, match=r"LanguageModel: weight=-1: must be a number from 0"):
        LanguageModel("lm", -1)
