"""The tree of everything a search has produced, and the reading of hypotheses from it."""

from __future__ import annotations

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.types import Hypothesis


class History:
    """Tree of tokens with back-pointers: a hypothesis is a node, its tokens are those on the way from the root.

    Nothing is copied when hypotheses branch, and nothing leaves the device before `hypotheses` is called.

    Args:
        keep_attention: whether to store the attention weights of every step.
    """

    ROOT = -1

    def __init__(self, keep_attention: bool = False) -> None:
        self._keep_attention = keep_attention
        self._parents: list[Array] = []
        self._tokens: list[Array] = []
        self._token_scores: list[Array] = []
        self._attention_rows: list[Array] = []
        self._attentions: list[Array] = []
        self._nodes = 0
        self._rows = 0

    def append(
        self, parents: Array, tokens: Array, token_scores: Array, rows: Array, *, attention: Array | None
    ) -> Array:
        """Add the tokens of one step.

        Args:
            parents: node that each token follows, any shape.
            tokens: ids, in the shape of `parents`.
            token_scores: their log-probabilities.
            rows: the row of `attention` that belongs to each.
            attention: `(N, S)` the step's attention weights, or `None`.

        Returns:
            The new nodes, in the shape of `parents`.
        """
        flat = tokens.flatten()
        nodes = self._nodes + arrays.of(tokens).arange(len(flat))
        self._nodes += len(flat)
        self._parents.append(parents.flatten())
        self._tokens.append(flat)
        self._token_scores.append(token_scores.flatten())
        if self._keep_attention and attention is not None:
            self._attention_rows.append(rows.flatten() + self._rows)
            self._attentions.append(attention)
            self._rows += attention.shape[0]
        return nodes.reshape(tokens.shape)

    def hypotheses(self, nodes: Array, scores: Array, eos: int, met: Array | None = None) -> list[list[Hypothesis]]:
        """Read hypotheses from their last nodes.

        Args:
            nodes: `(B, R)` last node of each hypothesis, `ROOT` where there is none.
            scores: `(B, R)` their scores.
            eos: id of EOS.
            met: `(B, R)` or `(B, 1)` which of them meet the constraints; `None`: all do.

        Returns:
            For each of B sentences its hypotheses, best first, with their tensors on the CPU.
        """
        xp = arrays.of(scores)
        scores, order = xp.sort_down(scores)  # (B, R)
        nodes = np.asarray(xp.host(xp.gather(nodes, order)))
        found = nodes != self.ROOT
        good = np.ones(found.shape, bool)
        if met is not None:
            good[:] = np.asarray(xp.host(met if met.shape[1] == 1 else xp.gather(met, order)))
        trails, ends = self._trails(nodes[found])  # (sum of lengths,), (M,)
        trail = xp.array(trails)
        tokens = xp.host(xp.concat(self._tokens)[trail])
        token_scores = xp.host(xp.concat(self._token_scores)[trail])
        attention = self._attention(trail)
        results: list[list[Hypothesis]] = [[] for _ in nodes]
        start = 0
        numbers = np.asarray(xp.host(scores))[found].tolist()
        for sentence, score, end, fits in zip(np.nonzero(found)[0].tolist(), numbers, ends, good[found], strict=True):
            ended = int(tokens[end - 1]) == eos
            results[sentence].append(
                Hypothesis(
                    tokens=tokens[start : end - ended],
                    score=score,
                    log_prob=float(np.asarray(token_scores[start:end], np.float64).sum()),
                    token_scores=token_scores[start:end],
                    attention=None if attention is None else attention[start:end],
                    met=bool(fits),
                )
            )
            start = end
        return results

    def _trails(self, nodes: Array) -> tuple[Array, list[int]]:
        """Nodes from the root to each of `nodes (M,)`, one trail after the other, and where each trail ends."""
        xp = arrays.of(self._parents[0])
        parents = np.asarray(xp.host(xp.concat(self._parents)))
        columns = []
        while (nodes != self.ROOT).any():
            columns.append(nodes)
            nodes = np.where(nodes == self.ROOT, self.ROOT, parents[nodes.clip(0)])
        trails = np.stack(columns[::-1], axis=1)  # (M, T), filled from the right
        on_trail = trails != self.ROOT
        return trails[on_trail], on_trail.sum(1).cumsum().tolist()

    def _attention(self, trail: Array) -> Array | None:
        if not self._attentions:
            return None
        xp = arrays.of(trail)
        rows = xp.concat(self._attention_rows)[trail]
        return xp.host(xp.concat(self._attentions)[rows])
