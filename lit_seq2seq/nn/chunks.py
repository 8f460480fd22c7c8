"""Recurrent layers over long sequences, a chunk of time at a time: less memory while training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SHUT = 1e4  # adds to a gate what makes it exactly 0 or 1
_HELD = {"lstm": (-SHUT, SHUT, 0.0, 0.0), "gru": (0.0, SHUT, 0.0)}


def holding(weights: Sequence[Tensor], cell: str) -> list[Tensor]:
    """Make the weights of one direction read a further input that is 1 at padding, where it holds the state.

    It shuts an LSTM's input gate and opens its forget gate, or opens a GRU's update gate: the cell vector, or the
    GRU's state, ends as the last real step left it, and stays at its start before a reversed sequence begins.

    Args:
        weights: `weight_ih (G H, D)`, `weight_hh`, `bias_ih`, `bias_hh`, as in `torch.nn.LSTM`.
        cell: `lstm` or `gru`.

    Returns:
        The same with `weight_ih (G H, D + 1)`.
    """
    w_x, *others = weights
    gates = torch.tensor(_HELD[cell], dtype=w_x.dtype, device=w_x.device)
    return [torch.cat([w_x, gates.repeat_interleave(others[0].shape[1])[:, None]], dim=1), *others]


def run_in_chunks(
    marked: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor], cell: str, size: int, truncate: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one direction over whole sequences, keeping for the backward pass only what enters each chunk.

    What happens inside a chunk is computed again when its gradient is due (Chen et al. 2016, "Training Deep Nets with
    Sublinear Memory Cost"). With `truncate` no gradient crosses the edges of chunks (Williams & Peng 1990).

    Args:
        marked: `(B, T, D + 1)` inputs whose last unit is 1 at padding.
        state: h and, for LSTMs, c, `(B, H)` each.
        weights: from `holding`.
        cell: `lstm` or `gru`.
        size: steps in a chunk.
        truncate: whether gradients stop at the edges.

    Returns:
        Outputs `(B, T, H)` and the state after the last step.
    """

    def run(piece: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        held = holding(weights, cell)
        shared = (True, 1, 0.0, True, False, True)  # biases, layers, dropout, training, both directions, batch first
        start = tuple(part[None] for part in state)  # (1, B, H)
        if cell == "lstm":
            return torch.lstm(piece, start, held, *shared)
        return torch.gru(piece, start[0], held, *shared)

    outputs = []
    for begin in range(0, marked.shape[1], size):
        piece = marked[:, begin : begin + size]
        if truncate:
            state = tuple(part.detach() for part in state)
        made, *final = checkpoint(run, piece, *state, use_reentrant=False)
        outputs.append(made)
        state = tuple(part[0] for part in final)
    return torch.cat(outputs, dim=1), state
