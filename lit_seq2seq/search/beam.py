"""Batched beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, Unpack

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array, Arrays
from lit_seq2seq.search.constraints import ConstraintState, all_met
from lit_seq2seq.search.history import History
from lit_seq2seq.search.rules import Options, Rules, begin
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
        where fewer outputs are possible, or where groups have found the same ones.
    """
    step, state, rules, constraints = begin(step, state, **options)
    xp, specials, history = rules.xp, rules.specials, History(return_attention)
    beam = _Beam.start(rules, constraints)
    finished: list[_Beam] = []
    tokens = beam.last.flatten()  # (B * K,)
    if rules.config.num_beam_groups > 1:
        state = state.select(xp.arange(len(rules.prefix))[:, None] + 0 * beam.last)
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
    nodes, scores, spare_nodes, spare_scores = (
        xp.concat([getattr(part, name) for part in finished])[order]
        for name in ("ended_nodes", "ended_scores", "spare_nodes", "spare_scores")
    )
    met = scores[:, :1] != -np.inf  # (B, 1)
    if not met.all():
        nodes = xp.concat([xp.where(met, nodes[:, :1], spare_nodes), nodes[:, 1:]], 1)
        scores = xp.concat([xp.where(met, scores[:, :1], spare_scores), scores[:, 1:]], 1)
    count = rules.config.num_return_sequences
    if rules.config.num_beam_groups == 1:
        return history.hypotheses(nodes[:, :count], scores[:, :count], specials.eos, met=met)
    return [_different(row)[:count] for row in history.hypotheses(nodes, scores, specials.eos, met=met)]


def _different(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """Leave out what another group has found, too, and with a better score."""
    first = {tuple(one.tokens.tolist()): one for one in reversed(hypotheses)}
    return sorted(first.values(), key=lambda one: -one.score)


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
        spare_nodes: `(B, 1)` last node of the best ended hypothesis that does not meet all constraints.
        spare_scores: `(B, 1)` its score, minus infinity where there is none.
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
    spare_nodes: Array
    spare_scores: Array
    constraints: Sequence[ConstraintState]

    @classmethod
    def start(cls, rules: Rules, constraints: Sequence[ConstraintState]) -> Self:
        xp, batch_size = rules.xp, len(rules.prefix)
        shape, first = (batch_size, rules.config.num_beams), (batch_size, rules.config.num_beam_groups)
        return cls(
            rules=rules,
            sentences=xp.arange(batch_size),
            last=xp.full(first, rules.specials.bos),
            nodes=xp.full(first, History.ROOT),
            log_probs=xp.full(first, 0.0),
            coverage=None,
            ended_nodes=xp.full(shape, History.ROOT),
            ended_scores=xp.full(shape, -np.inf),
            spare_nodes=xp.full((batch_size, 1), History.ROOT),
            spare_scores=xp.full((batch_size, 1), -np.inf),
            constraints=tuple(one.repeat(first[1]) for one in constraints),
        )

    def kept(self, rows: Array) -> Self:
        """Return those of some sentences, `(B',)`."""
        beams = self.last.shape[1]
        flat = (rows[:, None] * beams + self.rules.xp.arange(beams)).flatten()
        constraints = tuple(one.select(flat) for one in self.constraints)
        return replace(replace(self, constraints=()).select(rows), constraints=constraints)

    def end(self, nodes: Array, scores: Array) -> Self:
        """Add hypotheses `(B, C)` to the ended ones and keep the best `num_beams`; earlier ones win ties."""
        best = _best(self.rules.xp, (self.ended_nodes, self.ended_scores), (nodes, scores))
        return replace(self, ended_nodes=best[0], ended_scores=best[1])

    def keep_spare(self, nodes: Array, scores: Array) -> Self:
        """Keep the best of hypotheses `(B, C)` that do not meet all constraints, for want of others."""
        best = _best(self.rules.xp, (self.spare_nodes, self.spare_scores), (nodes, scores))
        return replace(self, spare_nodes=best[0], spare_scores=best[1])

    def done(self, time: int) -> Array:
        """Tell which sentences need no further step, `(B,)`."""
        config, best_open = self.rules.config, self.rules.xp.amax(self.log_probs, 1)
        if config.early_stopping is True or config.num_beams == 1:
            enough = self.ended_scores[:, -1] != -np.inf
        else:
            alone = config.num_beam_groups == 1  # several groups may have found the same
            worst = self.ended_scores[:, config.num_return_sequences - 1 if alone else -1]
            enough = self.rules.best_reachable(best_open, time) <= worst
        return enough | (best_open == -np.inf)


def _best(xp: Arrays, known: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the best of known nodes and scores `(B, M)` and new ones, M of them; known ones win ties."""
    scores, order = xp.sort_down(xp.concat([known[1], new[1]], 1))
    nodes = xp.gather(xp.concat([known[0], new[0]], 1), order)
    count = known[1].shape[1]
    return nodes[:, :count], scores[:, :count]


def _advance(beam: _Beam, output: StepOutput[S], history: History, time: int) -> tuple[_Beam, Array]:
    """Return the beam after one more token, and for each open hypothesis `(B, K')` the flat one it continues."""
    rules, xp, (batch, beams) = beam.rules, beam.rules.xp, beam.log_probs.shape
    allowed, dead_ends = rules.constrain(output, beam.constraints, beams, time)
    constrained = allowed.reshape(batch, beams, -1)  # (B, K, V)
    picked = _pick(beam, constrained, time)
    sources, tokens, log_probs = picked.sources, picked.tokens, picked.log_probs
    sentences = xp.arange(batch)[:, None]
    rows = sources + beams * sentences  # (B, C), flat parents
    token_scores = constrained[sentences, sources, tokens]
    nodes = history.append(xp.gather(beam.nodes, sources), tokens, token_scores, rows, attention=output.attention)
    coverage = rules.add_coverage(beam.coverage, output.attention, beams)  # (B, K, S)
    coverage = None if coverage is None else coverage.reshape(batch * beams, -1)[rows]  # (B, C, S)

    scores, none = rules.score(log_probs, time, coverage), ~picked.ends | (log_probs == -np.inf)  # (B, C)
    if all_met(beam.constraints) is not None:
        after = [one.select(rows.flatten()).update(tokens.flatten()) for one in beam.constraints]
        met = all_met(after).reshape(rows.shape) & ~dead_ends[rows]  # type: ignore[union-attr]
        unmet = rules.ends(tokens, time) & ~met & (log_probs != -np.inf)
        beam = beam.keep_spare(nodes, xp.where(unmet, scores, -np.inf))
        none = none | ~met
    beam = beam.end(xp.where(none, History.ROOT, nodes), xp.where(none, -np.inf, scores))

    chosen = picked.opens  # (B, K')
    rows, last = xp.gather(rows, chosen), xp.gather(tokens, chosen)
    flat = rows.flatten()
    beam = replace(
        beam,
        last=last,
        nodes=xp.gather(nodes, chosen),
        log_probs=picked.opened,
        coverage=None if coverage is None else xp.gather(coverage, chosen[:, :, None], 1),
        constraints=tuple(one.select(flat).update(last.flatten()) for one in beam.constraints),
    )
    return beam, rows


class _Picked(NamedTuple):
    """Continuations that are looked at, `(B, C)`, and what becomes of them.

    Attributes:
        log_probs: log-probabilities of the hypotheses that they make.
        sources: the hypotheses that they continue, from 0 to K - 1.
        tokens: their tokens.
        ends: which of them end, and count as ended.
        opens: `(B, K')` places of those that stay open.
        opened: `(B, K')` log-probabilities of these, minus infinity where there are fewer.
    """

    log_probs: Array
    sources: Array
    tokens: Array
    ends: Array
    opens: Array
    opened: Array


def _pick(beam: _Beam, constrained: Array, time: int) -> _Picked:
    """Choose continuations: in groups one after the other, each of which shuns the tokens of those before."""
    rules, xp, config = beam.rules, beam.rules.xp, beam.rules.config
    groups, (batch, beams, size) = config.num_beam_groups, constrained.shape
    width, each = config.num_beams // groups, beams // groups
    progress = None
    for one in beam.constraints:
        counts = one.progress(size)
        progress = counts if progress is None else progress if counts is None else progress + counts
    if progress is not None:
        return _pick_by_progress(beam, constrained, progress.reshape(constrained.shape), time)
    if groups == 1:
        return _pick_best(rules, constrained, beam.log_probs, width, time)
    used = xp.full((batch, size), 0.0)
    found = []
    for group in range(groups):
        own = slice(group * each, (group + 1) * each)
        shunned = constrained[:, own] - config.diversity_penalty * used[:, None]
        part = _pick_best(rules, constrained[:, own], beam.log_probs[:, own], width, time, shunned)
        used = used + xp.counts(xp.gather(part.tokens, part.opens), size)
        found.append(
            part._replace(sources=part.sources + group * each, opens=part.opens + group * part.tokens.shape[1])
        )
    return _Picked(*(xp.concat(list(arrays), 1) for arrays in zip(*found, strict=True)))


def _pick_best(
    rules: Rules, constrained: Array, known: Array, width: int, time: int, ranked: Array | None = None
) -> _Picked:
    """Look at the best 2 `width` continuations: the first `width` of them may end, the first that do not end go on.

    Args:
        rules: of the search.
        constrained: `(B, K, V)` log-probabilities of the next token.
        known: `(B, K)` those of the hypotheses, the best first.
        width: how many go on.
        time: the decoding step.
        ranked: what continuations are ranked by in place of `constrained`.
    """
    xp = rules.xp
    # Candidates are compared relative to the best hypothesis: small numbers keep their precision in long outputs.
    best = known[:, :1]
    values, sources, tokens = xp.top(constrained if ranked is None else ranked, known - best, 2 * width)  # (B, C)
    log_probs = best + values
    if ranked is not None:
        rows = xp.arange(len(sources))[:, None]
        log_probs = xp.gather(known, sources) + constrained[rows, sources, tokens]
    ends = rules.ends(tokens, time)  # (B, C)
    opened, opens = xp.sort_down(xp.where(ends, -np.inf, log_probs if ranked is None else values))
    opened, opens = opened[:, :width], opens[:, :width]  # (B, K')
    if ranked is not None:
        opened = xp.where(opened == -np.inf, -np.inf, xp.gather(log_probs, opens))
    return _Picked(log_probs, sources, tokens, ends & (xp.arange(ends.shape[1]) < width), opens, opened)


def _pick_by_progress(beam: _Beam, constrained: Array, progress: Array, time: int) -> _Picked:
    """Share the beam among hypotheses that have done more or less for the constraints (Post and Vilar 2018).

    Args:
        beam: the hypotheses.
        constrained: `(B, K, V)` log-probabilities of the next token.
        progress: `(B, K, V)` what has been done after each, from 0.
        time: the decoding step.
    """
    rules, xp, width = beam.rules, beam.rules.xp, beam.rules.config.num_beams
    found = []
    for count in range(int(progress.max()), -1, -1):
        own = xp.where(progress == count, constrained, -np.inf)
        found.append(_pick_best(rules, own, beam.log_probs, width, time))
    there = [(part.opened != -np.inf).sum(1) for part in found]  # (B,) each
    share = width // (1 + xp.amax(progress.reshape(len(progress), -1)))  # (B,), by what each sentence has to do
    shares = [xp.where(one < share, one, share) for one in there]
    left = width - sum(shares)
    for place, one in enumerate(there):  # what some do not need is for those that have done most
        more = xp.where(one - shares[place] < left, one - shares[place], left)
        shares[place], left = shares[place] + more, left - more
    opens, opened, before = [], [], 0
    for part, share in zip(found, shares, strict=True):
        opened.append(xp.where(xp.arange(part.opened.shape[1]) < share[:, None], part.opened, -np.inf))
        opens.append(part.opens + before)
        before += part.tokens.shape[1]
    best, order = xp.sort_down(xp.concat(opened, 1))
    opens = xp.gather(xp.concat(opens, 1), order)[:, :width]
    log_probs, sources, tokens, ends = (xp.concat([part[place] for part in found], 1) for place in range(4))
    return _Picked(log_probs, sources, tokens, ends, opens, best[:, :width])
