"""A model that is a table, and searches of it in plain Python to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
import torch

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search import GenerationConfig, search
from lit_seq2seq.types import Hypothesis, SpecialIds, StepOutput, Value

SPECIALS = SpecialIds(pad=0, unk=1, bos=2, eos=3)
COMPARED = [("cpu", torch.float64), ("cpu", torch.float32), ("cpu", torch.float16)]
VOCABULARY = 6  # three tokens that may be produced: 1, 4, 5


@dataclass(frozen=True)
class ChainState:
    """Sentence and last token but one of every hypothesis, and the number of steps taken."""

    sentences: Array
    previous: Array
    seen: list[list[int]]
    beams: int = 1
    time: int = 0

    def select(self, index: Array) -> ChainState:
        assert index.ndim == 2
        sentences = index // self.beams
        assert (sentences == sentences[:, :1]).all(), "a row mixes sentences"
        assert (sentences[1:, 0] > sentences[:-1, 0]).all(), "sentences changed their order"
        flat = index.flatten()
        return ChainState(self.sentences[flat], self.previous[flat], self.seen, index.shape[1], self.time)


@dataclass
class Chains:
    """Second-order Markov chains, one per sentence; attention depends on the token read.

    Log-probabilities may grow by a share `drift` with each step, so that no two orders of the same transitions tie.
    """

    table: Array  # (B, V, V, V): sentence, last token but one, last token, next token
    attention: Array  # (B, V, S)
    mask: Array  # (B, S)
    drift: float = 0.0
    seen: list[list[int]] = field(default_factory=list)  # the sentence of each row, step by step

    @classmethod
    def random(cls, batch: int, seed: int, zeros: float = 0.0, sharpness: float = 1.5, drift: float = 0.0) -> Chains:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, VOCABULARY, VOCABULARY, VOCABULARY)
        logits = sharpness * torch.randn(shape, generator=generator, dtype=torch.float64)
        log_probs = logits.log_softmax(-1).masked_fill(torch.rand(shape, generator=generator) < zeros, -math.inf)
        attention = torch.randn(batch, VOCABULARY, 3, generator=generator).softmax(-1)
        mask = torch.arange(3) < torch.randint(1, 4, (batch, 1), generator=generator)
        return cls(log_probs, attention, mask, drift)

    @property
    def batch_size(self) -> int:
        return self.table.shape[0]

    def rows(self, index: list[int]) -> Chains:
        return Chains(self.table[index], self.attention[index], self.mask[index], self.drift)

    def start(self) -> ChainState:
        self.seen.clear()
        sentences = arrays.of(self.table).arange(self.batch_size)
        return ChainState(sentences, 0 * sentences, self.seen)

    def in_numpy(self) -> Chains:
        return Chains(self.table.numpy(), self.attention.numpy(), self.mask.numpy(), self.drift)

    def step(self, tokens: Array, state: ChainState) -> StepOutput[ChainState]:
        state.seen.append(state.sentences.tolist())
        log_probs = self.table[state.sentences, state.previous, tokens] * (1 + self.drift * state.time)
        attention = self.attention[state.sentences, tokens]
        state = ChainState(state.sentences, tokens, state.seen, state.beams, state.time + 1)
        return StepOutput(log_probs, state, attention)


def run(chains: Chains, config: GenerationConfig, method: Any = search, **options: Any) -> list[list[Hypothesis]]:
    """Search with torch; NumPy must find the same."""

    def of(model: Chains, device: Any, **given: Any) -> list[list[Hypothesis]]:
        return method(
            model.step,
            model.start(),
            batch_size=model.batch_size,
            specials=SPECIALS,
            config=config,
            source_mask=model.mask,
            device=device,
            **given,
        )

    hosts = options.pop("hosts", (None, None))  # of torch, of NumPy
    given = options if hosts[0] is None else {**options, "host": hosts[0]}
    found = of(chains, chains.table.device, **given)
    if (chains.table.device.type, chains.table.dtype) in COMPARED and (config.seed is not None or not config.do_sample):
        given = {name: in_numpy(value) for name, value in options.items()}
        given |= {} if hosts[1] is None else {"host": hosts[1]}
        assert_equal(of(chains.in_numpy(), None, **given), found)
    return found


def in_numpy(value: Any) -> Any:
    if isinstance(value, Value):
        return value.map(lambda tensor: tensor.numpy())
    return value.numpy() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class Found:
    """A hypothesis of the plain searches; `tokens` end with EOS where it was produced."""

    tokens: tuple[int, ...]
    log_prob: float
    score: float = math.nan


@dataclass(frozen=True)
class PlainModel:
    """One sentence of `Chains` under the options, in plain Python."""

    chains: Chains
    sentence: int
    config: GenerationConfig
    prefix: tuple[int, ...] = ()

    def next(self, tokens: tuple[int, ...]) -> dict[int, float]:
        """Log-probabilities of the tokens that may follow."""
        if len(tokens) < len(self.prefix):
            return {self.prefix[len(tokens)]: 0.0}
        before = (SPECIALS.pad, SPECIALS.bos, *tokens)
        row = self.chains.table[self.sentence, before[-2], before[-1]].tolist()
        size = self.config.no_repeat_ngram_size
        ngrams = {tokens[i : i + size] for i in range(len(tokens) - size + 1)} if size else set()
        allowed = {}
        for token, log_prob in enumerate(row):
            repeats = size > 0 and len(tokens) >= size - 1 and (*tokens, token)[-size:] in ngrams
            too_early = token == SPECIALS.eos and len(tokens) - len(self.prefix) < self.config.min_new_tokens
            banned = token in (SPECIALS.pad, SPECIALS.bos) or repeats or too_early
            if not banned and log_prob > -math.inf:
                allowed[token] = log_prob * (1 + self.chains.drift * len(tokens))
        return allowed or {SPECIALS.eos: 0.0}

    def ends(self, tokens: tuple[int, ...]) -> bool:
        return tokens[-1] == SPECIALS.eos or len(tokens) - len(self.prefix) >= self.config.max_new_tokens

    def score(self, found: Found) -> Found:
        config, length = self.config, len(found.tokens) - len(self.prefix)
        divisor = {
            "none": 1.0,
            "average": length,
            "power": length**config.length_penalty,
            "wu": ((5 + length) / 6) ** config.length_penalty,
        }[config.length_normalization]
        read = (SPECIALS.bos, *found.tokens[:-1])
        coverage = 0.0
        for position in range(int(self.chains.mask[self.sentence].sum())):
            total = sum(float(self.chains.attention[self.sentence, token, position]) for token in read)
            coverage += math.log(min(total, 1.0))
        return Found(found.tokens, found.log_prob, found.log_prob / divisor + config.coverage_penalty * coverage)

    def outputs(self, tokens: tuple[int, ...] = (), log_prob: float = 0.0) -> Iterator[Found]:
        """Every possible output."""
        if tokens and self.ends(tokens):
            yield self.score(Found(tokens, log_prob))
            return
        for token, added in self.next(tokens).items():
            yield from self.outputs((*tokens, token), log_prob + added)

    def beam_search(self) -> list[Found]:
        """Textbook beam search that stops early only as `early_stopping=True` demands."""
        width = self.config.num_beams
        beam, ended = [Found((), 0.0)], []
        while beam:
            candidates = [
                Found((*found.tokens, token), found.log_prob + added)
                for found in beam
                for token, added in self.next(found.tokens).items()
            ]
            candidates = sorted(candidates, key=lambda found: -found.log_prob)[: 2 * width]
            ended += [self.score(found) for found in candidates[:width] if self.ends(found.tokens)]
            beam = [found for found in candidates if not self.ends(found.tokens)][:width]
            if (self.config.early_stopping is True or width == 1) and len(ended) >= width:
                break
        return sorted(ended, key=lambda found: -found.score)[: self.config.num_return_sequences]


def assert_same(hypotheses: list[Hypothesis], expected: list[Found]) -> None:
    assert [tokens_of(hypothesis) for hypothesis in hypotheses] == [without_eos(found) for found in expected]
    for hypothesis, found in zip(hypotheses, expected, strict=True):
        assert math.isclose(hypothesis.score, found.score, rel_tol=1e-5, abs_tol=1e-5)
        assert math.isclose(hypothesis.log_prob, found.log_prob, rel_tol=1e-5, abs_tol=1e-5)
        assert len(hypothesis.token_scores) == len(found.tokens)


def assert_equal(first: list[list[Hypothesis]], second: list[list[Hypothesis]]) -> None:
    assert [[tokens_of(h) for h in hypotheses] for hypotheses in first] == [
        [tokens_of(h) for h in hypotheses] for hypotheses in second
    ]
    for one, other in zip(chain(*first), chain(*second), strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-6, abs=1e-6, nan_ok=True)
        scores = torch.as_tensor(one.token_scores), torch.as_tensor(other.token_scores)
        torch.testing.assert_close(*scores, equal_nan=True)
        assert (one.attention is None) == (other.attention is None)
        if one.attention is not None:
            torch.testing.assert_close(torch.as_tensor(one.attention), torch.as_tensor(other.attention))


def tokens_of(hypothesis: Hypothesis) -> tuple[int, ...]:
    return tuple(hypothesis.tokens.tolist())


def without_eos(found: Found) -> tuple[int, ...]:
    return found.tokens[:-1] if found.tokens[-1] == SPECIALS.eos else found.tokens
