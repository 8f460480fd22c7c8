"""Sequences that come in pieces, of other lengths in each row: windows that are complete, and what waits for more."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_seq2seq.types import Padded


class Cut(NamedTuple):
    """What `Windows` cuts out of sequences.

    Attributes:
        values: `(B, W, size, ...)`, zero at padding within windows.
        lengths: `(B, W)` real positions in each window.
        own: `(B, W * stride, ...)` positions that belong to the windows of a row, beside those that they only see.
        windows: `(B,)` how many there are of a row.
    """

    values: Tensor
    lengths: Tensor
    own: Padded
    windows: Tensor


class Windows(NamedTuple):
    """Windows over time: each owns `stride` positions and also sees some `before` and `after` these.

    Example:
        >>> pairs, last = Windows(2, after=1), torch.tensor([False])
        >>> waiting = pairs.begin(torch.zeros(1))
        >>> for piece in ([1.0, 2.0], [3.0]):
        ...     cut, waiting = pairs.extend(waiting, Padded(torch.tensor([piece]), torch.tensor([len(piece)])), last)
        ...     print(cut.values[0, : cut.windows[0]].tolist())
        []
        [[1.0, 2.0, 3.0]]
    """

    stride: int
    before: int = 0
    after: int = 0

    @property
    def size(self) -> int:
        """Number of positions that a window sees."""
        return self.before + self.stride + self.after

    def reach(self, count: int) -> int:
        """Tell how many positions the windows see that own the first `count`."""
        return -(-count // self.stride) * self.stride + self.after

    def begin(self, zeros: Tensor) -> Padded:
        """Make what waits before the first piece: zeros before the sequence, of the shape of a position `(B, ...)`."""
        lengths = torch.full((len(zeros),), self.before, device=zeros.device)
        return Padded(zeros[:, None].repeat_interleave(self.size - 1, dim=1), lengths)

    def extend(self, waiting: Padded, piece: Padded, last: Tensor) -> tuple[Cut, Padded]:
        """Cut the windows that are complete with a piece; a sequence that ends has none that are not.

        Args:
            waiting: `(B, size - 1, ...)` from `begin` or the piece before.
            piece: `(B, P, ...)`.
            last: `(B,)` whether a sequence ends.
        """
        if self.size == 1:
            return Cut(piece.values[:, :, None], piece.mask.long(), piece, piece.lengths), waiting
        held = _follow(waiting, piece)
        new = (held.lengths - self.before).clamp(min=0)
        whole = (new - self.after).clamp(min=0) // self.stride * self.stride
        own = torch.where(last, new, whole)
        places = own[:, None] + torch.arange(self.size - 1, device=own.device)
        waiting = Padded(_taken(held.values, places), held.lengths - own)
        return self.cut(held, own, self._most(held, own)), waiting

    def _most(self, held: Padded, own: Tensor) -> int:
        """Count the windows of the longest row, or, for a graph of any lengths, those that there could be."""
        if torch.compiler.is_exporting():
            return (held.values.shape[1] - self.before + self.stride - 1) // self.stride
        return max(1, -(-int(own.max()) // self.stride))

    def cut(self, padded: Padded, own: Tensor, most: int) -> Cut:
        """Cut up to `most` windows out of `(B, before + S, ...)`, of which they own `own (B,)`."""
        blocks = -(-self.size // self.stride)
        values, total = cleared(padded).values, (most + blocks - 1) * self.stride
        values = F.pad(values, (0, 0) * (values.dim() - 2) + (0, total - values.shape[1]))
        owned = values[:, self.before : self.before + most * self.stride]
        begins = torch.arange(most, device=own.device) * self.stride  # (W,)
        if torch.compiler.is_exporting():  # views of sizes that are not known do not fit together
            values = values[:, begins[:, None] + torch.arange(self.size)]  # (B, W, size, ...)
        else:
            shape = values.shape[0], most, self.stride, *values.shape[2:]
            starts = [block * self.stride for block in range(blocks)]
            parts = [values[:, start : start + most * self.stride].reshape(shape) for start in starts]
            values = torch.cat(parts, dim=2)[:, :, : self.size]
        lengths = (padded.lengths[:, None] - begins).clamp(0, self.size) * (begins < own[:, None])  # (B, W)
        return Cut(values, lengths, Padded(owned, own), -(-own // self.stride))

    def follow(self, made: Tensor, count: int) -> Tensor:
        """Put what was made of `count` windows each, `(B * W, stride + after, H)`, end to end: `(B, W * stride, H)`."""
        if not torch.compiler.is_exporting():
            return made[:, : self.stride].reshape(-1, count * self.stride, made.shape[2])
        places = torch.arange(count * self.stride)
        rows = torch.arange(made.shape[0] // count)[:, None] * count + places // self.stride  # (B, W * stride)
        return made[rows, places % self.stride]


def cleared(padded: Padded) -> Padded:
    """Put zeros at padding."""
    mask = padded.mask.view(*padded.mask.shape, *[1] * (padded.values.dim() - 2))
    return Padded(padded.values.masked_fill(~mask, 0), padded.lengths)


def _follow(first: Padded, second: Padded) -> Padded:
    """Put the second sequence of each row right behind the first."""
    values = torch.cat([first.values, second.values], dim=1)
    places, ends = torch.arange(values.shape[1], device=values.device), first.lengths[:, None]
    index = torch.where(places < ends, places, places - ends + first.values.shape[1])
    return Padded(_taken(values, index), first.lengths + second.lengths)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Take the positions `index (B, N)` of `(B, T, ...)`, those beyond the last from anywhere."""
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    return values[rows, index.clamp(max=values.shape[1] - 1)]
