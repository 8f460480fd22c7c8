"""Recurrent layers over padded sequences as one operator each, which an exported program keeps whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops import scan
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lit_seq2seq.nn.cells import Cell, State
from lit_seq2seq.nn.cells.base import real_positions

KERNELS: dict[str, Any] = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}


@torch.library.custom_op("lit_seq2seq::recurrent", mutates_args=())
def recurrent(
    x: Tensor,
    lengths: Tensor,
    weights: Sequence[Tensor],
    cell: str,
    h: Tensor | None = None,
    c: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one recurrent layer over padded sequences.

    `torch.export` can trace neither packing nor a loop over a length that it does not know: it keeps this operator,
    which then becomes a node of the same name in ONNX. See `RecurrentLayer.forward`.

    Args:
        x: `(B, T, D)` inputs.
        lengths: `(B,)` real lengths, at least 1.
        weights: `weight_ih, weight_hh, bias_ih, bias_hh` of each direction, as in `torch.nn.LSTM`.
        cell: kind of cell; see `CellName`.
        h: `(B, H * directions)` where to start; zeros if `None`.
        c: the same of an LSTM's cell vectors.
        reverse: run a single direction from the end.

    Returns:
        Outputs `(B, T, H * directions)`, zero at padding; last h and, for LSTMs, last c, both `(B, H * directions)`;
        for other cells c is empty.
    """
    x = _turned(x, lengths) if reverse else x
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    both = len(weights) == 8
    zeros = x.new_zeros(x.shape[0], weights[1].shape[1] * (2 if both else 1))
    begin = [zeros if part is None else part for part in (h, c)][: 2 if cell == "lstm" else 1]
    order = packed.sorted_indices
    parts = [part[order].view(len(x), -1, weights[1].shape[1]).transpose(0, 1).contiguous() for part in begin]
    start = tuple(parts) if cell == "lstm" else parts[0]
    data, *final = KERNELS[cell](packed.data, packed.batch_sizes, start, weights, True, 1, 0.0, False, both)
    outputs, _ = pad_packed_sequence(packed._replace(data=data), batch_first=True, total_length=x.shape[1])
    found = [state[:, packed.unsorted_indices].transpose(0, 1).flatten(1) for state in final]
    outputs = _turned(outputs, lengths) if reverse else outputs
    return outputs, found[0], found[1] if cell == "lstm" else x.new_empty(0)


@recurrent.register_fake
def _shapes(
    x: Tensor,
    lengths: Tensor,
    weights: Sequence[Tensor],
    cell: str,
    h: Tensor | None = None,
    c: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    size = weights[1].shape[1] * len(weights) // 4
    last = x.new_empty(x.shape[0], size)
    return x.new_empty(x.shape[0], x.shape[1], size), last, torch.empty_like(last) if cell == "lstm" else x.new_empty(0)


def _turned(x: Tensor, lengths: Tensor) -> Tensor:
    """Turn each sequence `(B, T, D)` around within its length, which keeps the padding at the end."""
    steps = torch.arange(x.shape[1], device=x.device)
    return x.take_along_dim(((lengths[:, None] - 1 - steps) % x.shape[1])[..., None], 1)


def scanned(cell: Cell, x: Tensor, state: State, lengths: Tensor | None, *, reverse: bool) -> tuple[Tensor, State]:
    """Do what `cell.scan` does, as a scan over any number of steps, which becomes a node `Scan` in ONNX."""

    def read(state: State, now: tuple[Tensor, Tensor]) -> tuple[State, Tensor]:
        entered, keep = now  # (B, E), (B, 1)
        new = cell.advance(entered, state)
        held = tuple(torch.where(keep, *pair) for pair in zip(new, state, strict=True))
        return held, new[0] * keep

    real = real_positions(x, lengths)
    real = x.new_ones(x.shape[:2], dtype=torch.bool) if real is None else real
    over = cell.enter(x).transpose(0, 1), real.t()[..., None]  # (T, B, E), (T, B, 1)
    state = tuple(part.contiguous() for part in state)
    final, outputs = scan(read, state, tuple(part.flip(0) for part in over) if reverse else over)
    return (outputs.flip(0) if reverse else outputs).transpose(0, 1), final
