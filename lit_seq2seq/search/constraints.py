"""Which tokens may come next: pure functions on log-probabilities, shared by all searches."""

from __future__ import annotations

import torch
from torch import Tensor


def block_repeated_ngrams(log_probs: Tensor, paths: Tensor, size: int, unused: int) -> Tensor:
    """Ban, in place, every token that would complete an n-gram already present in its hypothesis.

    Args:
        log_probs: `(N, V)` log-probabilities of the next token; changed.
        paths: `(N, T)` the tokens of each hypothesis so far.
        size: n, >= 1.
        unused: id of a token that may always be banned (padding).

    Returns:
        `log_probs`, with minus infinity at banned tokens.

    Example:
        >>> block_repeated_ngrams(torch.zeros(1, 6), torch.tensor([[4, 5, 4]]), size=2, unused=0)
        tensor([[-inf, 0., 0., 0., 0., -inf]])
    """
    length = paths.shape[1]
    if length < size:
        return log_probs
    ngrams = paths.unfold(1, size, 1)  # (N, W, size)
    context = paths[:, length - size + 1 :]  # (N, size - 1)
    repeated = (ngrams[:, :, :-1] == context[:, None]).all(-1)  # (N, W)
    return log_probs.scatter_(1, ngrams[:, :, -1].where(repeated, unused), -torch.inf)


def keep_top_k(log_probs: Tensor, k: int) -> Tensor:
    """Set all but the `k` largest values of each row to minus infinity.

    Args:
        log_probs: `(..., V)` log-probabilities or logits.
        k: how many to keep, >= 1; a `k` beyond V keeps all.

    Returns:
        `(..., V)` the filtered values.

    Example:
        >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), k=2)
        tensor([[-inf, 3., 2.]])
    """
    values, index = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)  # (..., k)
    return torch.full_like(log_probs, -torch.inf).scatter_(-1, index, values)


def keep_top_p(log_probs: Tensor, p: float) -> Tensor:
    """Keep the nucleus: the smallest set of most probable tokens whose probabilities sum to at least `p`.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", eq. 2.

    Args:
        log_probs: `(..., V)` log-probabilities or logits; they are normalised first.
        p: the mass to keep, in (0, 1]. The most probable token is always kept.

    Returns:
        `(..., V)` the given values, minus infinity outside the nucleus.

    Example:
        >>> keep_top_p(torch.tensor([[0.2, 0.7, 0.1]]).log(), p=0.8).exp()
        tensor([[0.2000, 0.7000, 0.0000]])
    """
    ordered, index = log_probs.softmax(-1).sort(dim=-1, descending=True, stable=True)  # (..., V)
    mass_before = ordered.cumsum(-1) - ordered
    outside = mass_before >= p
    outside[..., 0] = False  # single precision may not tell `p` from 0
    return log_probs.masked_fill(torch.zeros_like(outside).scatter_(-1, index, outside), -torch.inf)
