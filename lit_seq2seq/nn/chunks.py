"""Recurrent layers over long sequences, a chunk of time at a time: less memory while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_seq2seq.nn.cells import State

Run = Callable[[Tensor, Tensor, State], tuple[Tensor, State]]
SHUT = 1e4  # adds to a gate what makes it exactly 0 or 1


class Chunks(NamedTuple):
    """Settings of `run_in_chunks`: steps in a chunk, whether gradients stop at its edges, and the direction."""

    size: int
    truncate: bool = False
    reverse: bool = False


def holding(weights: Sequence[Tensor]) -> list[Tensor]:
    """Make the weights of an LSTM read a further input that is 1 at padding, where it holds the cell vector.

    It shuts the input gate and opens the forget gate.

    Args:
        weights: `weight_ih (4 H, D)`, `weight_hh`, `bias_ih`, `bias_hh`, as in `torch.nn.LSTM`.

    Returns:
        The same with `weight_ih (4 H, D + 1)`.
    """
    w_x, *others = weights
    gates = torch.tensor((-SHUT, SHUT, 0.0, 0.0), dtype=w_x.dtype, device=w_x.device)
    return [torch.cat([w_x, gates.repeat_interleave(others[0].shape[1])[:, None]], dim=1), *others]


def run_in_chunks(run: Run, x: Tensor, state: State, lengths: Tensor, *, chunks: Chunks) -> tuple[Tensor, State]:
    """Run one direction over whole sequences, keeping for the backward pass only what enters each chunk.

    What happens inside a chunk is computed again when its gradient is due (Chen et al. 2016, "Training Deep Nets with
    Sublinear Memory Cost"). With `truncate` no gradient crosses the edges of chunks (Williams & Peng 1990).

    Args:
        run: makes of a piece `(B, t, D)`, its lengths and the values of a state the outputs `(B, t, H)` and the state.
        x: `(B, T, D)` inputs.
        state: where to start.
        lengths: `(B,)`.
        chunks: how long, in which direction, and whether gradients stop.

    Returns:
        Outputs `(B, T, H)` and the state after the last step.
    """
    begins = list(range(0, x.shape[1], chunks.size))
    outputs: list[Tensor] = []
    for begin in reversed(begins) if chunks.reverse else begins:
        piece = x[:, begin : begin + chunks.size]
        if chunks.truncate:
            state = tuple(part.detach() for part in state)
        left = (lengths - begin).clamp(0, piece.shape[1])
        made, state = checkpoint(run, piece, left, state, use_reentrant=False)
        outputs.insert(0 if chunks.reverse else len(outputs), made)
    return torch.cat(outputs, dim=1), state
