"""Search along a single path per output: greedy search, and the loop that sampling shares with it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Self, Unpack

import torch
from torch import Tensor

from lit_seq2seq.search.history import History
from lit_seq2seq.search.rules import Options, Rules
from lit_seq2seq.search.top import top
from lit_seq2seq.types import Hypothesis, S, StepFunction, StepOutput, Value

WORTH = 12
"""Copying the states of so many sentences costs about as much as the remaining steps of one that has ended."""

Choice = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`choose(log_probs (B, K, V), sentences (B,), positions (B,)) -> tokens (B, K)`.

`sentences` are places in the whole batch, `positions` count generated tokens from 0 (below 0 within a prefix).
"""


@torch.no_grad()
def greedy_search(
    step: StepFunction[S], state: S, *, return_attention: bool = False, **options: Unpack[Options]
) -> list[list[Hypothesis]]:
    """Take the most probable token at each step: `beam_search` with one beam, without its bookkeeping.

    For the arguments see `search`; `num_beams` and the options of sampling are not looked at.
    """
    return follow(step, state, most_probable, Rules.create(**options), outputs=1, return_attention=return_attention)


def most_probable(log_probs: Tensor, sentences: Tensor, positions: Tensor) -> Tensor:
    """Choose the most probable tokens; see `Choice`."""
    flat = log_probs.flatten(0, 1)[:, None]  # (B * K, 1, V)
    _, _, tokens = top(flat, torch.zeros_like(flat[:, :, 0]), 1)
    return tokens.view(log_probs.shape[:2])


def follow(
    step: StepFunction[S], state: S, choose: Choice, rules: Rules, *, outputs: int, return_attention: bool
) -> list[list[Hypothesis]]:
    """Go all the steps of `follow_stepwise`; return the hypotheses."""
    steps = follow_stepwise(step, state, choose, rules, outputs=outputs, return_attention=return_attention)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: list[list[Hypothesis]] = end.value
            return found


def follow_stepwise(
    step: StepFunction[S], state: S, choose: Choice, rules: Rules, *, outputs: int, return_attention: bool = False
) -> Generator[Tensor, None, list[list[Hypothesis]]]:
    """Produce `outputs` independent hypotheses per sentence, token by token as `choose` says.

    Sentences whose hypotheses have all ended leave the batch when they are at least one in `WORTH`; finding out which
    do is the only wait for the device within a step.

    Args:
        step: advances every hypothesis by one token.
        state: state before BOS, one hypothesis per sentence.
        choose: picks the next tokens from the constrained log-probabilities.
        rules: what holds for each sentence.
        outputs: hypotheses per sentence K.
        return_attention: whether hypotheses carry their attention weights.

    Yields:
        After each step the new tokens `(B', K)` of the sentences in the batch.

    Returns:
        For each sentence its hypotheses, best first.
    """
    device = rules.prefix.device
    batch_size = rules.prefix.shape[0]
    history = History(return_attention)
    paths = _Paths.start(rules, batch_size, outputs)
    if outputs > 1:
        state = state.select(paths.sentences[:, None].expand(batch_size, outputs))
    finished: list[_Paths] = []
    for time in range(rules.max_time):
        output = step(paths.last.flatten(), state)
        state, paths = output.state, _advance(paths, output, choose, history, time)
        yield paths.last
        done = paths.ended.all(1).cpu()  # (B,), the one wait for the device
        if done.sum() * WORTH >= len(done):
            finished.append(paths.select(done.nonzero()[:, 0].to(device)))
            if done.all():
                break
            remaining = (~done).nonzero()[:, 0].to(device)
            paths = paths.select(remaining)
            state = state.select(remaining[:, None] * outputs + torch.arange(outputs, device=device))
    order = torch.cat([part.sentences for part in finished]).argsort()  # (B,)
    nodes = torch.cat([part.nodes for part in finished])[order]  # (B, K)
    scores = torch.cat([part.scores for part in finished])[order]
    return history.hypotheses(nodes, scores, rules.specials.eos)


@dataclass(frozen=True)
class _Paths(Value):
    """Hypotheses of the sentences not yet done.

    Attributes:
        rules: what holds for each sentence.
        sentences: `(B,)` place of each sentence in the whole batch.
        tokens: `(B, K, T)` tokens so far.
        last: `(B, K)` the token to be read next.
        nodes: `(B, K)` last nodes in the history.
        log_probs: `(B, K)` log-probabilities.
        coverage: `(B, K, S)` summed attention weights, if there is a coverage penalty.
        scores: `(B, K)` scores of those that have ended.
        ended: `(B, K)` true where the hypothesis has ended; what is added to it afterwards does not count.
    """

    rules: Rules
    sentences: Tensor
    tokens: Tensor
    last: Tensor
    nodes: Tensor
    log_probs: Tensor
    coverage: Tensor | None
    scores: Tensor
    ended: Tensor

    @classmethod
    def start(cls, rules: Rules, batch_size: int, outputs: int) -> Self:
        device, shape = rules.prefix.device, (batch_size, outputs)
        return cls(
            rules=rules,
            sentences=torch.arange(batch_size, device=device),
            tokens=torch.zeros(*shape, 0, dtype=torch.long, device=device),
            last=torch.full(shape, rules.specials.bos, device=device),
            nodes=torch.full(shape, History.ROOT, device=device),
            log_probs=torch.zeros(shape, device=device),
            coverage=None,
            scores=torch.zeros(shape, device=device),
            ended=torch.zeros(shape, dtype=torch.bool, device=device),
        )


def _advance(paths: _Paths, output: StepOutput[S], choose: Choice, history: History, time: int) -> _Paths:
    rules, (batch, outputs) = paths.rules, paths.last.shape
    constrained = rules.constrain(output, paths.tokens, time).view(batch, outputs, -1)  # (B, K, V)
    tokens = choose(constrained, paths.sentences, time - rules.prefix_lengths)  # (B, K)
    token_scores = constrained.gather(2, tokens[:, :, None])[:, :, 0]  # (B, K)
    rows = torch.arange(batch * outputs, device=tokens.device).view(batch, outputs)
    nodes = history.append(paths.nodes, tokens, token_scores, rows, attention=output.attention)
    log_probs = paths.log_probs + token_scores
    coverage = rules.add_coverage(paths.coverage, output.attention, outputs)
    return replace(
        paths,
        tokens=torch.cat([paths.tokens, tokens[:, :, None]], dim=2),
        last=tokens,
        nodes=paths.nodes.where(paths.ended, nodes),
        log_probs=log_probs,
        coverage=coverage,
        scores=paths.scores.where(paths.ended, rules.score(log_probs, time, coverage)),
        ended=paths.ended | rules.ends(tokens, time),
    )
