"""Batched beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, Unpack

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.constraints import ConstraintState
from lit_seq2seq.search.history import History
from lit_seq2seq.search.rules import Options, Rules, constraints_of
from lit_seq2seq.types import Hypothesis, S, StepFunction, StepOutput, Value


@arrays.quiet
def beam_search(
    step: StepFunction[S], state: S, *, return_attention: bool = False, **options: Unpack[Options]
) -> list[list[Hypothesis]]:
    """Search for the best outputs, keeping the `num_beams` most probable open hypotheses after each step.

    After each step the 2 * `num_beams` most probable continuations of a sentence are looked at: those among the first
    `num_beams` that end are finished and scored (Wu et al. 2016, eq. 14), the first `num_beams` that do not end stay
    open, so that a sentence never runs short of open hypotheses. Equal scores go by hypothesis, then by token id (which
    of several equal continuations are looked at, where not all can be, is left to `torch.topk`). A sentence leaves the
    batch as soon as `config.early_stopping` allows; finding out which do is the only wait for the device within a step.
    With one beam the first end is the result, which makes it greedy search.

    For the arguments see `search`.

    Returns:
        For each sentence up to `num_return_sequences` hypotheses, best first: at least one, and fewer than asked only
        where fewer outputs are possible.
    """
    rules = Rules.create(**options)
    xp, specials, history = rules.xp, rules.specials, History(return_attention)
    beam = _Beam.start(rules, constraints_of(**options))
    finished: list[_Beam] = []
    tokens = xp.full((options["batch_size"],), specials.bos)  # (B * K,)
    for time in range(rules.max_time):
        output = step(tokens, state)
        beam, parents = _advance(beam, output, history, time)
        done = xp.host(beam.done(time))  # (B,), the one wait for the device
        if done.any():
            finished.append(beam.kept(xp.nonzero(done)))
            remaining = xp.nonzero(~done)
            beam, parents = beam.kept(remaining), parents[remaining]
        if done.all():
            break
        state = output.state.select(parents)
        tokens = beam.last.flatten()
    order = xp.concat([part.sentences for part in finished]).argsort()  # (B,)
    nodes = xp.concat([part.ended_nodes for part in finished])[order]  # (B, num_beams)
    scores = xp.concat([part.ended_scores for part in finished])[order]
    count = rules.config.num_return_sequences
    return history.hypotheses(nodes[:, :count], scores[:, :count], specials.eos)


@dataclass(frozen=True)
class _Beam(Value):
    """Hypotheses of the sentences still searched: K open ones, most probable first, and the best ended ones.

    Attributes:
        rules: what holds for each sentence.
        sentences: `(B,)` place of each sentence in the whole batch.
        last: `(B, K)` last tokens of the open hypotheses.
        nodes: `(B, K)` their last nodes in the history.
        log_probs: `(B, K)` their log-probabilities, minus infinity where there is none.
        coverage: `(B, K, S)` their summed attention weights, if there is a coverage penalty.
        ended_nodes: `(B, num_beams)` last nodes of the best ended hypotheses.
        ended_scores: `(B, num_beams)` their scores, best first, minus infinity where there is none.
        constraints: where the B * K open hypotheses stand.
    """

    rules: Rules
    sentences: Array
    last: Array
    nodes: Array
    log_probs: Array
    coverage: Array | None
    ended_nodes: Array
    ended_scores: Array
    constraints: Sequence[ConstraintState]

    @classmethod
    def start(cls, rules: Rules, constraints: Sequence[ConstraintState]) -> Self:
        xp, batch_size = rules.xp, len(rules.prefix)
        shape = (batch_size, rules.config.num_beams)
        return cls(
            rules=rules,
            sentences=xp.arange(batch_size),
            last=xp.full((batch_size, 1), rules.specials.bos),
            nodes=xp.full((batch_size, 1), History.ROOT),
            log_probs=xp.full((batch_size, 1), 0.0),
            coverage=None,
            ended_nodes=xp.full(shape, History.ROOT),
            ended_scores=xp.full(shape, -np.inf),
            constraints=constraints,
        )

    def kept(self, rows: Array) -> Self:
        """Return those of some sentences, `(B',)`."""
        beams = self.last.shape[1]
        flat = (rows[:, None] * beams + self.rules.xp.arange(beams)).flatten()
        constraints = tuple(one.select(flat) for one in self.constraints)
        return replace(replace(self, constraints=()).select(rows), constraints=constraints)

    def end(self, nodes: Array, scores: Array) -> Self:
        """Add hypotheses `(B, C)` to the ended ones and keep the best `num_beams`; earlier ones win ties."""
        xp, count = self.rules.xp, self.ended_scores.shape[1]
        merged, order = xp.sort_down(xp.concat([self.ended_scores, scores], 1))
        merged_nodes = xp.gather(xp.concat([self.ended_nodes, nodes], 1), order)
        return replace(self, ended_scores=merged[:, :count], ended_nodes=merged_nodes[:, :count])

    def done(self, time: int) -> Array:
        """Tell which sentences need no further step, `(B,)`."""
        config, best_open = self.rules.config, self.log_probs[:, 0]
        if config.early_stopping is True or config.num_beams == 1:
            enough = self.ended_scores[:, -1] != -np.inf
        else:
            worst = self.ended_scores[:, config.num_return_sequences - 1]
            enough = self.rules.best_reachable(best_open, time) <= worst
        return enough | (best_open == -np.inf)


def _advance(beam: _Beam, output: StepOutput[S], history: History, time: int) -> tuple[_Beam, Array]:
    """Return the beam after one more token, and for each open hypothesis `(B, K')` the flat one it continues."""
    rules, width = beam.rules, beam.rules.config.num_beams
    xp, (batch, beams) = rules.xp, beam.log_probs.shape
    constrained = rules.constrain(output, beam.constraints, beams, time).reshape(batch, beams, -1)  # (B, K, V)
    # Candidates are compared relative to the best hypothesis: small numbers keep their precision in long outputs.
    best = beam.log_probs[:, :1]
    values, sources, tokens = xp.top(constrained, beam.log_probs - best, 2 * width)  # (B, C)
    log_probs = best + values
    sentences = xp.arange(batch)[:, None]
    rows = sources + beams * sentences  # (B, C), flat parents
    token_scores = constrained[sentences, sources, tokens]
    nodes = history.append(xp.gather(beam.nodes, sources), tokens, token_scores, rows, attention=output.attention)
    coverage = rules.add_coverage(beam.coverage, output.attention, beams)  # (B, K, S)
    coverage = None if coverage is None else coverage.reshape(batch * beams, -1)[rows]  # (B, C, S)

    ends = rules.ends(tokens, time)  # (B, C)
    none = (~ends | (log_probs == -np.inf))[:, :width]
    scores = xp.where(none, -np.inf, rules.score(log_probs, time, coverage)[:, :width])
    beam = beam.end(xp.where(none, History.ROOT, nodes[:, :width]), scores)

    log_probs, chosen = xp.sort_down(xp.where(ends, -np.inf, log_probs))
    chosen = chosen[:, :width]  # (B, K')
    rows, last = xp.gather(rows, chosen), xp.gather(tokens, chosen)
    flat = rows.flatten()
    beam = replace(
        beam,
        last=last,
        nodes=xp.gather(nodes, chosen),
        log_probs=log_probs[:, :width],
        coverage=None if coverage is None else xp.gather(coverage, chosen[:, :, None], 1),
        constraints=tuple(one.select(flat).update(last.flatten()) for one in beam.constraints),
    )
    return beam, rows
