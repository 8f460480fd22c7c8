"""Batched beam search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, Unpack

import torch
from torch import Tensor

from lit_seq2seq.search.history import History
from lit_seq2seq.search.rules import Options, Rules
from lit_seq2seq.search.top import top
from lit_seq2seq.types import Hypothesis, S, StepFunction, StepOutput, Value


@torch.no_grad()
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
    batch_size, specials, device = options["batch_size"], rules.specials, rules.prefix.device
    history = History(return_attention)
    beam = _Beam.start(rules, batch_size, device)
    finished: list[_Beam] = []
    tokens = torch.full((batch_size,), specials.bos, device=device)  # (B * K,)
    for time in range(rules.max_time):
        output = step(tokens, state)
        beam, parents = _advance(beam, output, history, time)
        done = beam.done(time).cpu()  # (B,), the one wait for the device
        if done.any():
            finished.append(beam.select(done.nonzero()[:, 0].to(device)))
            remaining = (~done).nonzero()[:, 0].to(device)
            beam, parents = beam.select(remaining), parents[remaining]
        if done.all():
            break
        state = output.state.select(parents)
        tokens = beam.paths[:, :, -1].flatten()
    order = torch.cat([part.sentences for part in finished]).argsort()  # (B,)
    nodes = torch.cat([part.ended_nodes for part in finished])[order]  # (B, num_beams)
    scores = torch.cat([part.ended_scores for part in finished])[order]
    count = rules.config.num_return_sequences
    return history.hypotheses(nodes[:, :count], scores[:, :count], specials.eos)


@dataclass(frozen=True)
class _Beam(Value):
    """Hypotheses of the sentences still searched: K open ones, most probable first, and the best ended ones.

    Attributes:
        rules: what holds for each sentence.
        sentences: `(B,)` place of each sentence in the whole batch.
        paths: `(B, K, T)` tokens of the open hypotheses.
        nodes: `(B, K)` their last nodes in the history.
        log_probs: `(B, K)` their log-probabilities, minus infinity where there is none.
        coverage: `(B, K, S)` their summed attention weights, if there is a coverage penalty.
        ended_nodes: `(B, num_beams)` last nodes of the best ended hypotheses.
        ended_scores: `(B, num_beams)` their scores, best first, minus infinity where there is none.
    """

    rules: Rules
    sentences: Tensor
    paths: Tensor
    nodes: Tensor
    log_probs: Tensor
    coverage: Tensor | None
    ended_nodes: Tensor
    ended_scores: Tensor

    @classmethod
    def start(cls, rules: Rules, batch_size: int, device: torch.device | str) -> Self:
        shape = (batch_size, rules.config.num_beams)
        return cls(
            rules=rules,
            sentences=torch.arange(batch_size, device=device),
            paths=torch.zeros(batch_size, 1, 0, dtype=torch.long, device=device),
            nodes=torch.full((batch_size, 1), History.ROOT, device=device),
            log_probs=torch.zeros(batch_size, 1, device=device),
            coverage=None,
            ended_nodes=torch.full(shape, History.ROOT, device=device),
            ended_scores=torch.full(shape, -torch.inf, device=device),
        )

    def end(self, nodes: Tensor, scores: Tensor) -> Self:
        """Add hypotheses `(B, C)` to the ended ones and keep the best `num_beams`; earlier ones win ties."""
        count = self.ended_scores.shape[1]
        merged, order = torch.cat([self.ended_scores, scores], 1).sort(dim=1, descending=True, stable=True)
        merged_nodes = torch.cat([self.ended_nodes, nodes], 1).gather(1, order)
        return replace(self, ended_scores=merged[:, :count], ended_nodes=merged_nodes[:, :count])

    def done(self, time: int) -> Tensor:
        """Tell which sentences need no further step, `(B,)`."""
        config, best_open = self.rules.config, self.log_probs[:, 0]
        if config.early_stopping is True or config.num_beams == 1:
            enough = self.ended_scores[:, -1] != -torch.inf
        else:
            worst = self.ended_scores[:, config.num_return_sequences - 1]
            enough = self.rules.best_reachable(best_open, time) <= worst
        return enough | (best_open == -torch.inf)


def _advance(beam: _Beam, output: StepOutput[S], history: History, time: int) -> tuple[_Beam, Tensor]:
    """Return the beam after one more token, and for each open hypothesis `(B, K')` the flat one it continues."""
    rules, width = beam.rules, beam.rules.config.num_beams
    batch, beams = beam.log_probs.shape
    constrained = rules.constrain(output, beam.paths, time).view(batch, beams, -1)  # (B, K, V)
    # Candidates are compared relative to the best hypothesis: small numbers keep their precision in long outputs.
    best = beam.log_probs[:, :1]
    values, sources, tokens = top(constrained, beam.log_probs - best, 2 * width)  # (B, C)
    log_probs = best + values
    rows = sources + beams * torch.arange(batch, device=sources.device)[:, None]  # (B, C), flat parents
    token_scores = constrained[torch.arange(batch, device=sources.device)[:, None], sources, tokens]
    nodes = history.append(beam.nodes.gather(1, sources), tokens, token_scores, rows, attention=output.attention)
    coverage = rules.add_coverage(beam.coverage, output.attention, beams)  # (B, K, S)
    coverage = None if coverage is None else coverage.flatten(0, 1)[rows]  # (B, C, S)

    ends = rules.ends(tokens, time)  # (B, C)
    none = (~ends | (log_probs == -torch.inf))[:, :width]
    scores = rules.score(log_probs, time, coverage)[:, :width].masked_fill(none, -torch.inf)
    beam = beam.end(nodes[:, :width].masked_fill(none, History.ROOT), scores)

    log_probs, chosen = log_probs.masked_fill(ends, -torch.inf).sort(dim=1, descending=True, stable=True)
    chosen = chosen[:, :width]  # (B, K')
    rows = rows.gather(1, chosen)
    paths = torch.cat([beam.paths.flatten(0, 1)[rows], tokens.gather(1, chosen)[:, :, None]], dim=2)
    beam = replace(
        beam,
        paths=paths,
        nodes=nodes.gather(1, chosen),
        log_probs=log_probs[:, :width],
        coverage=None if coverage is None else coverage.take_along_dim(chosen[:, :, None], dim=1),
    )
    return beam, rows
