"""What every encoder keeps to that reads in pieces: they give what the whole does. For encoders of your own, too."""

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lit_seq2seq.nn import Encoder
from lit_seq2seq.types import CellState, Padded, UserError, Value
from tests.nn.cases import assert_close, tensors

Rows = list[Tensor]


def check_pieces(encoder: Encoder, source: Padded) -> None:
    """Check an encoder, in evaluation mode, by sources of several lengths; one that cannot stream says so."""
    if encoder.lookahead is None:
        with pytest.raises(UserError, match=r"\A.+: .+\Z"):  # what is wrong, and what to do
            encoder.begin(1)
        return
    encoded = encoder(source)
    whole = [memory[:length] for memory, length in zip(encoded.memory.values, encoded.memory.lengths, strict=True)]
    total = int(source.lengths.max())
    for ends in [*(steps(source, size) for size in (1, 2, 3, total)), *(ragged(source, seed) for seed in range(4))]:
        rows, state = read(encoder, source, ends)
        assert_close(rows, whole)
        assert_close(tensors(encoder.final_state(state)), tensors(encoded.final))
    check_promptness(encoder, source)
    check_streams(encoder, source, whole)


def steps(source: Padded, size: int) -> list[list[int]]:
    """Places up to which streams are read: all have come as far, or have ended."""
    total = int(source.lengths.max())
    return [[min(end, length) for length in source.lengths.tolist()] for end in (*range(0, total, size), total)]


def ragged(source: Padded, seed: int) -> list[list[int]]:
    """Places that differ between streams, among them some where nothing has come."""
    draw, lengths = random.Random(seed), source.lengths.tolist()
    cuts = [sorted(draw.choices(range(length + 1), k=4)) for length in lengths]
    return [[0] * len(lengths), *map(list, zip(*cuts, strict=True)), lengths]


def piece_of(source: Padded, begin: list[int], end: list[int]) -> Padded:
    """Cut a piece out of each source; what stands at padding is none of them."""
    lengths = [stop - start for start, stop in zip(begin, end, strict=True)]
    values = torch.full_like(source.values[:, : max(lengths)], 1)
    for row, (start, length) in enumerate(zip(begin, lengths, strict=True)):
        values[row, :length] = source.values[row, start : start + length]
    return Padded(values, torch.tensor(lengths))


def read(encoder: Encoder, source: Padded, ends: list[list[int]]) -> tuple[Rows, Value]:
    """Read sources up to each of the places: the memory of each, and the state after them."""
    state, made = encoder.begin(len(source.lengths)), []
    shapes = [tensor.shape for tensor in tensors(state)]
    for begin, end in pairwise(ends):
        piece, last = piece_of(source, begin, end), torch.tensor(end) == source.lengths
        memory, state = encoder.extend(state, piece, last)
        assert [tensor.shape for tensor in tensors(state)] == shapes  # of constant size
        assert not any(tensor.requires_grad for tensor in tensors(state))  # a graph would grow
        made.append(memory)
    return rows_of(made), state


def rows_of(made: list[Padded]) -> Rows:
    return [torch.cat([part.values[row, : part.lengths[row]] for part in made]) for row in range(len(made[0].lengths))]


def check_promptness(encoder: Encoder, source: Padded) -> None:
    """Memory vectors come as soon as `reach` says."""
    state, none = encoder.begin(1), torch.tensor([False])
    longest, count = source.select(source.lengths.argmax()[None]), 0
    for position in range(int(longest.lengths)):
        memory, state = encoder.extend(state, piece_of(longest, [position], [position + 1]), none)
        count += int(memory.lengths)
        needed, more = encoder.reach(count) if count else 0, encoder.reach(count + 1)
        assert needed is not None
        assert more is not None
        assert needed <= position + 1 < more


def check_streams(encoder: Encoder, source: Padded, whole: Rows) -> None:
    """Streams of several states are read together, each at a place of its own, and go apart again."""
    lengths = source.lengths.tolist()
    halves = [length // (2 + row) for row, length in enumerate(lengths)]
    states, made = [], []
    for row, half in enumerate(halves):
        memory, state = encoder.extend(
            encoder.begin(1), piece_of(source.select(torch.tensor([row])), [0], [half]), torch.tensor([False])
        )
        states.append(state)
        made.append(memory.values[0, : memory.lengths[0]])
    order = torch.arange(len(lengths)).flip(0)
    state = type(states[0]).joined(states).select(order)
    piece = piece_of(source, halves, lengths).select(order)
    memory, state = encoder.extend(state, piece, torch.ones(len(lengths), dtype=torch.bool))
    for place, row in enumerate(order.tolist()):
        assert_close(torch.cat([made[row], memory.values[place, : memory.lengths[place]]]), whole[row])
    final: CellState = encoder.final_state(state)
    assert_close(tensors(final), tensors(encoder(source).final.select(order)))
