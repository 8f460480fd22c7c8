"""The tree of everything a search has produced, and the reading of hypotheses from it."""

from __future__ import annotations

import torch
from torch import Tensor

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
        self._parents: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._token_scores: list[Tensor] = []
        self._attention_rows: list[Tensor] = []
        self._attentions: list[Tensor] = []
        self._nodes = 0
        self._rows = 0

    def append(
        self, parents: Tensor, tokens: Tensor, token_scores: Tensor, rows: Tensor, *, attention: Tensor | None
    ) -> Tensor:
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
        nodes = torch.arange(self._nodes, self._nodes + tokens.numel(), device=tokens.device)
        self._nodes += tokens.numel()
        self._parents.append(parents.flatten())
        self._tokens.append(tokens.flatten())
        self._token_scores.append(token_scores.flatten())
        if self._keep_attention and attention is not None:
            self._attention_rows.append(rows.flatten() + self._rows)
            self._attentions.append(attention)
            self._rows += attention.shape[0]
        return nodes.view_as(tokens)

    def hypotheses(self, nodes: Tensor, scores: Tensor, eos: int) -> list[list[Hypothesis]]:
        """Read hypotheses from their last nodes.

        Args:
            nodes: `(B, R)` last node of each hypothesis, `ROOT` where there is none.
            scores: `(B, R)` their scores.
            eos: id of EOS.

        Returns:
            For each of B sentences its hypotheses, best first, with their tensors on the CPU.
        """
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # (B, R)
        nodes = nodes.gather(1, order).cpu()
        found = nodes != self.ROOT
        trails, lengths = self._trails(nodes[found])  # (sum of lengths,), (M,)
        tokens = torch.cat(self._tokens).cpu()[trails].split_with_sizes(lengths)
        token_scores = torch.cat(self._token_scores).cpu()[trails].split_with_sizes(lengths)
        attention = self._attention(trails, lengths)
        results: list[list[Hypothesis]] = [[] for _ in range(nodes.shape[0])]
        for i, (sentence, score) in enumerate(
            zip(found.nonzero()[:, 0].tolist(), scores.cpu()[found].tolist(), strict=True)
        ):
            ended = int(tokens[i][-1]) == eos
            results[sentence].append(
                Hypothesis(
                    tokens=tokens[i][:-1] if ended else tokens[i],
                    score=score,
                    log_prob=token_scores[i].double().sum().item(),
                    token_scores=token_scores[i],
                    attention=None if attention is None else attention[i],
                )
            )
        return results

    def _trails(self, nodes: Tensor) -> tuple[Tensor, list[int]]:
        """Nodes from the root to each of `nodes (M,)`, one trail after the other, and the trails' lengths."""
        parents = torch.cat(self._parents).cpu()
        columns = []
        while (nodes != self.ROOT).any():
            columns.append(nodes)
            nodes = parents[nodes.clamp(min=0)].where(nodes != self.ROOT, self.ROOT)
        trails = torch.stack(columns[::-1], dim=1)  # (M, T), filled from the right
        on_trail = trails != self.ROOT
        return trails[on_trail], on_trail.sum(1).tolist()

    def _attention(self, trails: Tensor, lengths: list[int]) -> tuple[Tensor, ...] | None:
        if not self._attentions:
            return None
        attention = torch.cat(self._attentions)  # (rows, S)
        rows = torch.cat(self._attention_rows)[trails.to(attention.device)]
        return attention[rows].cpu().split_with_sizes(lengths)
