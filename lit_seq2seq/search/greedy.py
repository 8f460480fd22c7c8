"""Search along a single path per output: greedy search, and the loop that sampling shares with it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Self, Unpack

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.constraints import ConstraintState, all_met
from lit_seq2seq.search.history import History
from lit_seq2seq.search.rules import Options, Rules, begin
from lit_seq2seq.types import Hypothesis, S, StepFunction, StepOutput, Value

WORTH = 12
"""Copying the states of so many sentences costs about as much as the remaining steps of one that has ended."""

Choice = Callable[[Array, Array, Array], Array]
"""`choose(log_probs (B, K, V), sentences (B,), positions (B,)) -> tokens (B, K)`.

`sentences` are places in the whole batch, `positions` count generated tokens from 0 (below 0 within a prefix).
"""


@arrays.quiet
def greedy_search(
    step: StepFunction[S], state: S, *, return_attention: bool = False, **options: Unpack[Options]
) -> list[list[Hypothesis]]:
    """Take the most probable token at each step: `beam_search` with one beam, without its bookkeeping.

    For the arguments see `search`; `num_beams` and the options of sampling are not looked at.
    """
    step, state, rules, constraints = begin(step, state, **options)
    paths = Paths.start(rules, constraints, outputs=1)
    return follow(step, state, most_probable, paths, return_attention=return_attention)


def most_probable(log_probs: Array, sentences: Array, positions: Array) -> Array:
    """Choose the most probable tokens; see `Choice`."""
    xp = arrays.of(log_probs)
    flat = log_probs.reshape(-1, 1, log_probs.shape[-1])  # (B * K, 1, V)
    _, _, tokens = xp.top(flat, xp.full_like(flat[:, :, 0], 0), 1)
    return tokens.reshape(log_probs.shape[:2])


def follow(
    step: StepFunction[S], state: S, choose: Choice, paths: Paths, *, return_attention: bool
) -> list[list[Hypothesis]]:
    """Go all the steps of `follow_stepwise`; return the hypotheses."""
    steps = follow_stepwise(step, state, choose, paths, return_attention=return_attention)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: list[list[Hypothesis]] = end.value
            return found


def follow_stepwise(
    step: StepFunction[S], state: S, choose: Choice, paths: Paths, *, return_attention: bool = False
) -> Generator[Array, None, list[list[Hypothesis]]]:
    """Produce independent hypotheses for each sentence, token by token as `choose` says.

    Sentences whose hypotheses have all ended leave the batch when they are at least one in `WORTH`; finding out which
    do is the only wait for the device within a step.

    Args:
        step: advances every hypothesis by one token.
        state: state before BOS, one hypothesis per sentence.
        choose: picks the next tokens from the constrained log-probabilities.
        paths: the empty hypotheses.
        return_attention: whether hypotheses carry their attention weights.

    Yields:
        After each step the new tokens `(B', K)` of the sentences in the batch.

    Returns:
        For each sentence its hypotheses, best first.
    """
    rules, (batch_size, outputs) = paths.rules, paths.last.shape
    xp, history = rules.xp, History(return_attention)
    if outputs > 1:
        state = state.select(paths.sentences[:, None] + xp.full((batch_size, outputs), 0))
    finished: list[Paths] = []
    for time in range(rules.max_time):
        output = step(paths.last.flatten(), state)
        state, paths = output.state, _advance(paths, output, choose, history, time)
        yield paths.last
        done = xp.host(paths.ended.all(1))  # (B,), the one wait for the device
        if done.sum() * WORTH >= len(done):
            finished.append(paths.kept(xp.nonzero(done)))
            if done.all():
                break
            remaining = xp.nonzero(~done)
            paths = paths.kept(remaining)
            state = state.select(remaining[:, None] * outputs + xp.arange(outputs))
    order = xp.concat([part.sentences for part in finished]).argsort()  # (B,)
    nodes = xp.concat([part.nodes for part in finished])[order]  # (B, K)
    scores = xp.concat([part.scores for part in finished])[order]
    met = xp.concat([part.met for part in finished])[order]
    return history.hypotheses(nodes, scores, rules.specials.eos, met)


@dataclass(frozen=True)
class Paths(Value):
    """Hypotheses of the sentences not yet done.

    Attributes:
        rules: what holds for each sentence.
        sentences: `(B,)` place of each sentence in the whole batch.
        last: `(B, K)` the token to be read next.
        nodes: `(B, K)` last nodes in the history.
        log_probs: `(B, K)` log-probabilities.
        coverage: `(B, K, S)` summed attention weights, if there is a coverage penalty.
        scores: `(B, K)` scores of those that have ended.
        ended: `(B, K)` true where the hypothesis has ended; what is added to it afterwards does not count.
        met: `(B, K)` whether those that have ended meet all constraints.
        constraints: where the B * K hypotheses stand.
    """

    rules: Rules
    sentences: Array
    last: Array
    nodes: Array
    log_probs: Array
    coverage: Array | None
    scores: Array
    ended: Array
    met: Array
    constraints: Sequence[ConstraintState]

    @classmethod
    def start(cls, rules: Rules, constraints: Sequence[ConstraintState], outputs: int) -> Self:
        """Begin with `outputs` empty hypotheses for each sentence; the constraints have one."""
        xp = rules.xp
        shape = (len(rules.prefix), outputs)
        return cls(
            rules=rules,
            sentences=xp.arange(shape[0]),
            last=xp.full(shape, rules.specials.bos),
            nodes=xp.full(shape, History.ROOT),
            log_probs=xp.full(shape, 0.0),
            coverage=None,
            scores=xp.full(shape, 0.0),
            ended=xp.full(shape, False),
            met=xp.full(shape, True),
            constraints=tuple(one.repeat(outputs) for one in constraints),
        )

    def kept(self, rows: Array) -> Self:
        """Return those of some sentences, `(B',)`."""
        outputs = self.last.shape[1]
        flat = (rows[:, None] * outputs + self.rules.xp.arange(outputs)).flatten()
        constraints = tuple(one.select(flat) for one in self.constraints)
        return replace(replace(self, constraints=()).select(rows), constraints=constraints)


def _advance(paths: Paths, output: StepOutput[S], choose: Choice, history: History, time: int) -> Paths:
    rules, (batch, outputs) = paths.rules, paths.last.shape
    xp = rules.xp
    allowed, dead_ends = rules.constrain(output, paths.constraints, outputs, time)
    constrained = allowed.reshape(batch, outputs, -1)  # (B, K, V)
    tokens = choose(constrained, paths.sentences, time - rules.prefix_lengths)  # (B, K)
    token_scores = xp.gather(constrained, tokens[:, :, None])[:, :, 0]  # (B, K)
    rows = xp.arange(batch * outputs).reshape(batch, outputs)
    nodes = history.append(paths.nodes, tokens, token_scores, rows, attention=output.attention)
    log_probs = paths.log_probs + token_scores
    coverage = rules.add_coverage(paths.coverage, output.attention, outputs)
    constraints = tuple(one.update(tokens.flatten()) for one in paths.constraints)
    met = all_met(constraints)
    return replace(
        paths,
        last=tokens,
        nodes=xp.where(paths.ended, paths.nodes, nodes),
        log_probs=log_probs,
        coverage=coverage,
        scores=xp.where(paths.ended, paths.scores, rules.score(log_probs, time, coverage)),
        ended=paths.ended | rules.ends(tokens, time),
        met=paths.met if met is None else xp.where(paths.ended, paths.met, (met & ~dead_ends).reshape(batch, outputs)),
        constraints=constraints,
    )
