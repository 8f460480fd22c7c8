"""The rules of a search for each sentence of a batch: forced prefix, limits, scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Required, Self, TypedDict, Unpack

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array, Arrays
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.constraints import (
    BadWords,
    Constraint,
    ConstraintState,
    ForceWords,
    NoRepeatedNGrams,
    RepetitionPenalty,
)
from lit_seq2seq.search.constraints.words import ids_of
from lit_seq2seq.search.policies import Policy
from lit_seq2seq.search.scorers import JointCTC, Scorer
from lit_seq2seq.search.scores import best_reachable, coverage_score, length_divisor, normalize
from lit_seq2seq.search.task import Host, OutputVocabulary, Task
from lit_seq2seq.types import Padded, S, SpecialIds, StepFunction, StepOutput, UserError, Value


class Options(TypedDict, total=False):
    """What a search needs to know.

    Attributes:
        batch_size: number of sentences B.
        specials: ids of the special symbols.
        config: the options.
        prefix: `(B, P)` tokens with which each output must begin, without BOS, padded at the end. They are returned as
            part of the hypothesis; being given, they have log-probability 0 and do not count in its length.
        source_mask: `(B, S)` true at real source positions; for the coverage penalty.
        candidates: `(B, C)` the ids whose places among them the step function takes and scores: padding, unknown, BOS
            and EOS first, with those of the prefix; `None` where it takes and scores all ids.
        frames: `(B, S, V)` log-probabilities that CTC gives symbols and the blank (padding) at each position, for
            `ctc_weight`.
        device: where the tensors of torch are, the CPU if it is left out; `None`: all arrays are NumPy's.
        vocabulary: of the outputs, for options that are texts.
        raw: the raw input of each sentence, for constraints and scorers that look at it.
        host: the model, for scorers that ask it for others.
    """

    batch_size: Required[int]
    specials: Required[SpecialIds]
    config: Required[GenerationConfig]
    prefix: Array | None
    source_mask: Array | None
    candidates: Padded | None
    device: Any
    vocabulary: OutputVocabulary | None
    raw: Sequence[Any]
    host: Host | None
    frames: Padded | None


@dataclass(frozen=True)
class Rules(Value):
    """The options of a search, spread over the sentences of the batch; shrinks with it by `select`.

    `time` below counts decoding steps from 0, the step that reads BOS, including those of the prefix.

    Attributes:
        prefix: `(B, P)` forced first tokens, padded at the end.
        prefix_lengths: `(B,)` their number.
        source_mask: `(B, S)` true at real source positions, or `None` if all are.
        config: the options.
        specials: ids of the special symbols.
        xp: functions of the arrays.
    """

    prefix: Array
    prefix_lengths: Array
    source_mask: Array | None
    config: GenerationConfig
    specials: SpecialIds
    xp: Arrays

    @classmethod
    def create(
        cls,
        batch_size: int,
        config: GenerationConfig,
        specials: SpecialIds,
        *,
        prefix: Array | None = None,
        source_mask: Array | None = None,
        device: Any = "cpu",
        **_: Any,
    ) -> Self:
        """Check the prefix and put everything on `device`."""
        xp = arrays.on(device)
        prefix = xp.full((batch_size, 0), 0) if prefix is None else prefix
        given = xp.array(check_prefix(prefix, batch_size, specials))
        mask = None if source_mask is None else xp.array(source_mask)
        return cls(xp.integers(prefix), given.sum(1), mask, config, specials, xp)

    @property
    def max_time(self) -> int:
        """Number of decoding steps after which every sentence is finished."""
        return int(self.prefix.shape[1]) + self.config.max_new_tokens

    def constrain(self, output: StepOutput[S], constraints: Sequence[ConstraintState], beams: int, time: int) -> Array:
        """Compute the log-probabilities under which the next token is chosen.

        Padding and BOS are banned, what the constraints do not allow, and a too early EOS; a forced token has
        log-probability 0 (it is given) and everything else is banned beside it. So is all but the best token while a
        policy still reads the source. The rest is not renormalised. A hypothesis that no token may follow ends there:
        it gets EOS with log-probability 0.

        Args:
            output: of the model, with log-probabilities `(N, V)`, N = B * K; not changed unless they are `fresh`.
            constraints: where the hypotheses stand.
            beams: hypotheses per sentence K.
            time: the decoding step.

        Returns:
            `(N, V)` in at least single precision, and `(N,)` which hypotheses nothing may follow.
        """
        config, specials, xp = self.config, self.specials, self.xp
        log_probs = xp.wide(output.log_probs, copy=not output.fresh)
        ending = xp.copy(log_probs[:, specials.eos])  # (N,); padding or BOS may be the same symbol
        log_probs[:, specials.pad] = -np.inf
        log_probs[:, specials.bos] = -np.inf
        if specials.eos in (specials.pad, specials.bos):
            log_probs[:, specials.eos] = ending
        for constraint in constraints:
            log_probs = constraint.allow(log_probs)
        if config.min_new_tokens:
            too_early = xp.repeat(time - self.prefix_lengths < config.min_new_tokens, beams)  # (N,)
            log_probs[:, specials.eos] = xp.where(too_early, -np.inf, log_probs[:, specials.eos])
        if time < self.prefix.shape[1]:
            forced = xp.repeat(self.prefix[:, time], beams)[:, None]  # (N, 1)
            certain = xp.put(xp.full_like(log_probs, -np.inf), forced, 0.0)  # (N, V)
            log_probs = xp.where(forced != specials.pad, certain, log_probs)
        if config.policy is not None and config.num_beams > 1:
            log_probs = self._final(config.policy, log_probs, output.attention, time)
        dead_end = xp.amax(log_probs, 1) == -np.inf  # (N,)
        log_probs[:, specials.eos] = xp.where(dead_end, 0.0, log_probs[:, specials.eos])
        return log_probs, dead_end

    def _final(self, policy: Policy, log_probs: Array, attention: Array | None, time: int) -> Array:
        """Leave only the best token, which is final, to hypotheses `(N, V)` whose source is still being read."""
        assert self.source_mask is not None, "a policy needs source_mask"
        xp, count = self.xp, len(log_probs)
        lengths = xp.repeat(self.source_mask.sum(1), count // len(self.source_mask))  # (N,)
        reading = policy.reach(xp.full((count,), time), attention) < lengths
        best = xp.first(log_probs == xp.amax(log_probs, keepdims=True))[:, None]  # (N, 1)
        alone = xp.put(xp.full_like(log_probs, -np.inf), best, xp.gather(log_probs, best))
        return xp.where(reading[:, None], alone, log_probs)

    def ends(self, tokens: Array, time: int) -> Array:
        """Tell which hypotheses end with the token produced at `time`: by EOS or by their length; `(B, K)` both."""
        at_limit = time + 1 - self.prefix_lengths >= self.config.max_new_tokens  # (B,)
        return (tokens == self.specials.eos) | at_limit[:, None]

    def score(self, log_probs: Array, time: int, coverage: Array | None) -> Array:
        """Rank hypotheses that end at `time`.

        Args:
            log_probs: `(B, K)` their log-probabilities.
            time: the step that produced their last token.
            coverage: `(B, K, S)` attention weights summed over their tokens; `None` without coverage penalty.

        Returns:
            `(B, K)` scores, higher is better.
        """
        config = self.config
        divisor = length_divisor(self._lengths(time), config.length_normalization, config.length_penalty)
        scores = normalize(log_probs, divisor[:, None])
        if coverage is None:
            return scores
        mask = None if self.source_mask is None else self.source_mask[:, None]  # (B, 1, S)
        return scores + coverage_score(coverage, mask, config.coverage_penalty)

    def best_reachable(self, log_probs: Array, time: int) -> Array:
        """Bound the score of any end after `time` of hypotheses with `log_probs`, `(B,)`.

        Where tokens may gain there is no bound: it is the score at the present length then.
        """
        config = self.config
        if not all(one.bounded for one in config.scorers):
            return self.score(log_probs[:, None], time, None)[:, 0]
        longest = self.xp.full_like(log_probs, config.max_new_tokens)
        lengths, kind = self._lengths(time + 1), config.length_normalization
        return best_reachable(log_probs, lengths, longest, kind, penalty=config.length_penalty)

    def add_coverage(self, coverage: Array | None, attention: Array | None, beams: int) -> Array | None:
        """Add one step's attention `(B * K, S)` to `coverage (B, K, S)`, if there is a coverage penalty."""
        if not self.config.coverage_penalty:
            return None
        if attention is None:
            value = self.config.coverage_penalty
            raise UserError(f"coverage_penalty={value}: needs a model with attention; set coverage_penalty to 0")
        attention = self.xp.wide(attention).reshape(-1, beams, attention.shape[1])  # (B, K, S)
        return attention if coverage is None else coverage + attention

    def _lengths(self, time: int) -> Array:
        """Number of generated tokens, prefix excluded, of hypotheses that end at `time`, `(B,)`."""
        return self.xp.single((time + 1 - self.prefix_lengths).clip(1))


def begin(
    step: StepFunction[Any], state: Any, **options: Unpack[Options]
) -> tuple[StepFunction[Any], Any, Rules, tuple[ConstraintState, ...]]:
    """Prepare a search: step function and state with policy and scorers, rules, and where empty outputs stand."""
    config = options["config"]
    task = Task(
        options["batch_size"],
        options["specials"],
        arrays.on(options.get("device", "cpu")),
        vocabulary=options.get("vocabulary"),
        raw=options.get("raw", ()),
        host=options.get("host"),
        frames=options.get("frames"),
    )
    if config.policy is not None:
        step, state = config.policy.join(step, state, task)
    scorers: list[Scorer] = [JointCTC(config.ctc_weight)] if config.ctc_weight else []
    for scorer in (*scorers, *config.scorers):
        step, state = scorer.join(step, state, task)
    return step, state, Rules.create(**options), constraints_of(config, task)


def constraints_of(config: GenerationConfig, task: Task) -> tuple[ConstraintState, ...]:
    """Return where empty outputs stand under the constraints that the options ask for."""
    wanted: list[Constraint] = [*config.constraints]
    if config.bad_words:
        wanted.append(BadWords(config.bad_words))
    if config.force_words:
        wanted.append(ForceWords(config.force_words))
    if config.no_repeat_ngram_size:
        wanted.append(NoRepeatedNGrams(config.no_repeat_ngram_size))
    if config.repetition_penalty != 1:
        wanted.append(RepetitionPenalty(config.repetition_penalty))
    return tuple(one.start(task) for one in wanted)


def prefix_of(
    config: GenerationConfig,
    prefix: Array | None,
    vocabulary: OutputVocabulary | None,
    batch_size: int,
    *,
    prompts: Array | None = None,
) -> Array | None:
    """Return the tokens with which outputs must begin, `(B, P)`: those given, or those of the option and of prompts."""
    if prefix is not None or not config.prefix:
        return prompts if prefix is None else prefix
    specials = SpecialIds() if vocabulary is None else vocabulary.specials
    [ids] = ids_of([config.prefix], Task(batch_size, specials, arrays.NUMPY, vocabulary), "prefix")
    found = np.array([ids] * batch_size)
    if prompts is None:
        return found
    xp = arrays.of(prompts)
    return xp.concat([xp.array(found), prompts], 1)


def check_prefix(prefix: Array, batch_size: int, specials: SpecialIds) -> Array:
    """Check the tokens with which outputs must begin; return which of them are not padding, `(B, P)`.

    Raises:
        UserError: there is not a row for each sentence, or it has padding before a token, BOS or EOS.
    """
    if prefix.ndim != 2 or prefix.shape[0] != batch_size:
        raise UserError(f"prefix has shape {tuple(prefix.shape)}: must be ({batch_size}, P), one row per sentence")
    if len(prefix.flatten()) and ("float" in str(prefix.dtype) or (prefix < 0).any()):
        raise UserError("prefix has numbers that are no ids: give whole numbers from 0")
    given: Array = prefix != specials.pad
    if (given[:, 1:] & ~given[:, :-1]).any():
        raise UserError("prefix has padding before a token: pad shorter prefixes at the end")
    if (given & ((prefix == specials.bos) | (prefix == specials.eos))).any():
        raise UserError("prefix has a BOS or EOS id: give only the tokens between them")
    return given
