"""Writing while reading: what search finds is what plain Python finds, in torch and in NumPy, and no token is early."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pytest
import torch
from search_cases import SPECIALS, VOCABULARY, Found, assert_equal, assert_same, tokens_of

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search import GenerationConfig, JointCTC, JointModels, Monotonic, Terminology, WaitK, search, stream
from lit_seq2seq.types import Hypothesis, Padded, StepOutput, UserError, Value

WIDE = 90  # more than all open hypotheses of four tokens


@dataclass(frozen=True)
class ReaderState(Value):
    """The rows of each source, how much is seen of them, and the tokens so far."""

    positions: Array  # (B, S, V, V)
    mask: Array
    tokens: Array  # (N, T)
    shown: Array | None = None

    def select(self, index: Array) -> Self:
        beams = len(self.tokens) // len(self.mask)
        kept = index[:, 0] // beams
        tokens = self.tokens[index.flatten()]
        return type(self)(self.positions[kept], self.mask[kept], tokens)  # a step sees nothing unless it is shown

    def narrowed(self, reach: Array) -> Self:
        return replace(self, shown=self.mask & (arrays.of(self.mask).arange(self.mask.shape[1]) < reach[:, None]))


@dataclass
class Readers:
    """Models whose next token depends on the last one and on all positions of the source that they see."""

    positions: Array  # (B, S, V, V)
    lengths: Array

    @classmethod
    def random(cls, seed: int, lengths: tuple[int, ...] = (3, 1, 4)) -> Self:
        torch.manual_seed(seed)
        positions = torch.randn(len(lengths), max(lengths), VOCABULARY, VOCABULARY, dtype=torch.float64)
        return cls(positions, torch.tensor(lengths))

    @property
    def mask(self) -> Array:
        return Padded(self.positions, self.lengths).mask

    def start(self) -> ReaderState:
        xp = arrays.of(self.positions)
        return ReaderState(self.positions, self.mask, xp.full((len(self.lengths), 0), 0))

    def step(self, tokens: Array, state: ReaderState) -> StepOutput[ReaderState]:
        xp, beams = arrays.of(tokens), len(tokens) // len(state.mask)
        shown = state.mask if state.shown is None else state.shown
        seen = xp.where(shown[:, :, None, None], state.positions, 0.0).sum(1)  # (B, V, V)
        logits = xp.repeat(seen, beams)[xp.arange(len(tokens)), tokens]
        at = (xp.concat([state.tokens, tokens[:, None]], 1) % 2).sum(1)  # (N,), from left to right
        attention = xp.single(xp.arange(state.mask.shape[1]) == at[:, None])
        after = replace(state, tokens=xp.concat([state.tokens, tokens[:, None]], 1), shown=None)
        return StepOutput(logits - xp.logsumexp(logits)[:, None], after, attention)


def run(model: Readers, **options: Any) -> list[list[Hypothesis]]:
    """Search with torch; NumPy must find the same."""
    found = []
    for device in ("cpu", None):
        own = model if device else Readers(model.positions.numpy(), model.lengths.numpy())
        config = GenerationConfig(**options)
        count = len(own.lengths)
        found.append(
            search(
                own.step,
                own.start(),
                batch_size=count,
                specials=SPECIALS,
                config=config,
                source_mask=own.mask,
                device=device,
            )
        )
    assert_equal(*found)
    for one, other in zip(*found, strict=True):
        assert [hypothesis.delays.tolist() for hypothesis in one] == [x.delays.tolist() for x in other]
    return found[0]


@dataclass
class Plain:
    """One sentence of `Readers` under wait-k, in plain Python."""

    model: Readers
    sentence: int
    config: GenerationConfig

    @property
    def length(self) -> int:
        return int(self.model.lengths[self.sentence])

    def reach(self, time: int) -> int:
        policy = self.config.policy
        assert isinstance(policy, WaitK)
        t = time + 1  # equation 8 of the paper counts from 1
        return min(policy.k + t - 1 - math.floor(policy.catchup * t), self.length)

    def next(self, tokens: tuple[int, ...]) -> dict[int, float]:
        last = (SPECIALS.bos, *tokens)[-1]
        seen = self.model.positions[self.sentence, : self.reach(len(tokens)), last].sum(0).log_softmax(0).tolist()
        return {token: seen[token] for token in range(VOCABULARY) if token not in (SPECIALS.pad, SPECIALS.bos)}

    def outputs(self, tokens: tuple[int, ...] = (), log_prob: float = 0.0) -> Iterator[Found]:
        """Every output that is possible when what is written while reading is written greedily."""
        if tokens and (tokens[-1] == SPECIALS.eos or len(tokens) == self.config.max_new_tokens):
            yield Found(tokens, log_prob, log_prob / len(tokens))
            return
        following = self.next(tokens)
        if self.reach(len(tokens)) < self.length or self.config.num_beams == 1:
            best = max(following, key=lambda token: following[token])
            following = {best: following[best]}
        for token, added in following.items():
            yield from self.outputs((*tokens, token), log_prob + added)


@pytest.mark.parametrize("beams", [1, WIDE])
@pytest.mark.parametrize("policy", [WaitK(1), WaitK(2), WaitK(3), WaitK(1, 0.5), WaitK(9)])
def test_search_under_a_policy_equals_exhaustive_search(policy: WaitK, beams: int) -> None:
    for seed in range(5):
        model = Readers.random(seed)
        options = {"num_beams": beams, "num_return_sequences": min(beams, 4), "max_new_tokens": 4}
        config = GenerationConfig(policy=policy, **options)
        for sentence, hypotheses in enumerate(run(model, policy=policy, **options)):
            plain = Plain(model, sentence, config)
            assert_same(hypotheses, sorted(plain.outputs(), key=lambda found: -found.score)[:4])
            for one in hypotheses:
                assert one.delays.tolist() == [plain.reach(time) for time in range(len(one.token_scores))]
        if policy.k == 9:
            assert_equal(search_all(model, GenerationConfig(**options)), run(model, policy=policy, **options))


def search_all(model: Readers, config: GenerationConfig) -> list[list[Hypothesis]]:
    return search(model.step, model.start(), batch_size=3, specials=SPECIALS, config=config, source_mask=model.mask)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_beam_groups": 2}])
def test_no_token_depends_on_what_comes_later(options: dict[str, int]) -> None:
    for seed in range(5):
        model = Readers.random(seed, (5, 4, 5))
        other = Readers(
            torch.cat([model.positions[:, :3], Readers.random(9, (5, 4, 5)).positions[:, 3:]], 1), model.lengths
        )
        whole, changed = (run(one, policy=WaitK(2), max_new_tokens=6, **options) for one in (model, other))
        early = [[tokens_of(row[0])[:2] for row in found] for found in (whole, changed)]  # at most three were read
        assert early[0] == early[1]


def test_a_stream_writes_what_search_does() -> None:
    model = Readers.random(0)
    config = GenerationConfig(policy=WaitK(1), max_new_tokens=6)
    for sentence, hypotheses in enumerate(run(model, policy=WaitK(1), max_new_tokens=6)):
        state = Readers(model.positions[[sentence]], model.lengths[[sentence]]).start()
        written = stream(model.step, state, specials=SPECIALS, config=config, batch_size=1, source_mask=state.mask)
        assert tuple(written) == tokens_of(hypotheses[0])


def test_sampling_reads_by_the_policy() -> None:
    found = run(Readers.random(0), policy=WaitK(2), do_sample=True, num_return_sequences=3, seed=1)
    reach = torch.arange(2, 200)
    for length, row in zip((3, 1, 4), found, strict=True):
        assert all(one.delays.tolist() == reach[: len(one.token_scores)].clip(max=length).tolist() for one in row)


@pytest.mark.parametrize("beams", [1, 4])
def test_monotonic_attention_has_read_where_it_looks(beams: int) -> None:
    model = Readers.random(3, (4, 4, 4))
    for row in run(model, policy=Monotonic(), num_beams=beams, max_new_tokens=5, num_return_sequences=1):
        delays = row[0].delays.tolist()
        assert delays == [1 + int(one.argmax()) if one.any() else 4 for one in row[0].attention]
        assert delays == sorted(delays)
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for attention in (weights, weights.numpy()):
        found = Monotonic().delayed(Hypothesis(attention[:, 0], 0.0, 0.0, attention[:, 0], attention), 3)
        assert found.delays.tolist() == [2, 2, 3]


def test_catching_up_is_exact() -> None:
    for catchup in (0.0, 0.1, 0.2, 0.29, 0.7):
        times = np.arange(1000)
        expected = [3 + t - int(round(catchup * 100) * (t + 1) // 100) for t in times]
        assert WaitK(3, catchup).reach(times).tolist() == expected
        assert WaitK(3, catchup).reach(torch.from_numpy(times)).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": 3}, "policy=3: must be a part of kind Policy"),
        ({"policy": WaitK(2), "ctc_weight": 0.5}, "must be None with ctc_weight, which looks at the whole source"),
        ({"policy": WaitK(2), "scorers": [JointCTC(0.3)]}, "must be None with JointCTC"),
        ({"policy": WaitK(2), "scorers": [JointModels(["one"])]}, "must be None with JointModels"),
        ({"policy": WaitK(2), "constraints": [Terminology("a.csv")], "num_beams": 2}, "must be None with Terminology"),
        ({"policy": WaitK(2), "shortlist": True}, "shortlist=True: must be False with policy"),
    ],
)
def test_policies_that_cannot_be_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationConfig(**options)


def test_a_policy_is_described_by_its_name() -> None:
    described = {"class_path": "WaitK", "init_args": {"k": 2, "catchup": 0.1}}
    assert GenerationConfig(policy=described).policy == WaitK(2, 0.1)
    for wrong in ({"k": 0}, {"k": 2.5}, {"k": 2, "catchup": 1.0}, {"k": 2, "catchup": -0.1}):
        with pytest.raises(UserError):
            WaitK(**wrong)
