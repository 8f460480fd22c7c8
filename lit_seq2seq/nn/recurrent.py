"""Recurrent layers and stacks: fused over whole sequences, or one step at a time, with the same weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lit_seq2seq.nn.cells import Cell, CellName, State
from lit_seq2seq.nn.cells.base import real_positions
from lit_seq2seq.nn.chunks import Chunks, holding, run_in_chunks
from lit_seq2seq.nn.kernels.gates import gru_step, lstm_step
from lit_seq2seq.nn.kernels.layers import run_layer
from lit_seq2seq.nn.operators import KERNELS, recurrent, scanned
from lit_seq2seq.nn.ops import dropout, dropout_mask
from lit_seq2seq.nn.pieces import Cut, Windows
from lit_seq2seq.types import CellState, Padded, UserError, Value

CellFactory = Callable[[int, int], Cell]
Scanned = tuple[Tensor, State]


class Layer(nn.Module, ABC):
    """What recurrent layers share, whose directions may run each by itself; arguments are those of `RecurrentLayer`."""

    def __init__(self, state_dropout: float, chunk_size: int | None, truncate: bool, windows: Windows | None) -> None:
        super().__init__()
        self.state_dropout = state_dropout
        self.chunks = _chunks(chunk_size, truncate)
        self.windows = windows

    @abstractmethod
    def starts(self, x: Tensor, state: State | None = None) -> list[State]:
        """Take a state apart into those of the directions; zeros for `None`."""

    @abstractmethod
    def run(self, direction: int, x: Tensor, start: State, *, lengths: Tensor | None, mask: Tensor | None) -> Scanned:
        """Run a direction, 1 being that from the end; `mask (B, H)` drops units of the state."""

    def run_all(self, x: Tensor, state: State | None, lengths: Tensor | None) -> Scanned:
        """Run every direction over whole sequences; see `RecurrentLayer.forward`."""
        if self.windows is not None:
            lengths = torch.full(x.shape[:1], x.shape[1], device=x.device) if lengths is None else lengths
            count = (x.shape[1] + self.windows.stride - 1) // self.windows.stride
            outputs, final = self.run_windows(self.windows.cut(Padded(x, lengths), lengths, count), state)
            return outputs[:, : x.shape[1]], final
        starts = self.starts(x, state)
        made = [
            self.run(direction, x, start, lengths=lengths, mask=mask)
            for direction, (start, mask) in enumerate(zip(starts, self._masks(starts), strict=True))
        ]
        return _joined_directions(made)

    def run_windows(self, cut: Cut, state: State | None) -> Scanned:
        """Run forward over what the windows own, and back over each of them from zero, all at once.

        Returns:
            Outputs `(B, W * stride, H * directions)` of what they own, and the state, that of the direction back being
            of the last window.
        """
        assert self.windows is not None
        count = cut.values.shape[1]
        own, windows = cut.own.values, cut.values.flatten(0, 1)  # (B, W c, D), (B W, c + r, D)
        starts = self.starts(own, state)
        masks = self._masks(starts)
        onward = self.run(0, own, starts[0], lengths=cut.own.lengths, mask=masks[0])
        mask = None if masks[1] is None else masks[1].repeat_interleave(count, dim=0)
        back, ends = self.run(1, windows, self.starts(windows)[1], lengths=cut.lengths.flatten(), mask=mask)
        back = self.windows.follow(back, count)  # (B, W c, H)
        newest = torch.arange(own.shape[0], device=own.device) * count + (cut.windows - 1).clamp(min=0)  # (B,)
        ends = tuple(part.index_select(0, newest) for part in ends)
        return _joined_directions([onward, (back, _where(cut.own.lengths[:, None] > 0, ends, starts[1]))])

    def _masks(self, starts: list[State]) -> list[Tensor | None]:
        """Draw what is dropped of the states over whole sequences."""
        if not (self.training and self.state_dropout > 0):
            return [None] * len(starts)
        h = torch.cat([start[0] for start in starts], dim=-1)
        return list(dropout_mask(h, h.shape, self.state_dropout).chunk(len(starts), dim=-1))


class RecurrentLayer(Layer):
    """One LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et al. 2014) or Elman layer, in one or both directions.

    It computes what `CellLayer` does with these cells, by the kernels of libraries.

    Input weights start Glorot-uniform (Glorot & Bengio 2010), recurrent weights orthogonal per gate (Saxe et al. 2014),
    biases at zero but for an LSTM's forget gate, which starts at 1 (Gers et al. 2000; Jozefowicz et al. 2015).

    Args:
        input_size: size of the input vectors.
        hidden_size: size of the state, per direction.
        cell: kind of cell.
        bidirectional: also run from the end to the start and concatenate the two (Schuster & Paliwal 1997).
        state_dropout: probability of dropping units of the recurrent state, with one mask per sequence
            (Gal & Ghahramani 2016). Above 0, training runs step by step, which is slower than the fused kernels.
        chunk_size: training keeps only the states between chunks of so many steps, and computes the rest again for the
            gradient: less memory, a third more time. `None` keeps all.
        truncate: no gradient crosses the edges of chunks (truncated backpropagation, Williams & Peng 1990).
        windows: over which the direction from the end runs, see `RecurrentStack`; `None`: over the whole.

    Raises:
        ValueError: a `chunk_size` below 1, or `truncate` without one.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        cell: CellName = "lstm",
        bidirectional: bool = False,
        *,
        state_dropout: float = 0.0,
        chunk_size: int | None = None,
        truncate: bool = False,
        windows: Windows | None = None,
    ) -> None:
        super().__init__(state_dropout, chunk_size, truncate, windows)
        self.hidden_size = hidden_size
        self.directions = 2 if bidirectional else 1
        self.cell = cell
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}[cell]
        options = {"nonlinearity": cell.removeprefix("rnn_")} if kind is nn.RNN else {}
        self.rnn: nn.RNNBase = kind(input_size, hidden_size, batch_first=True, bidirectional=bidirectional, **options)
        self.reset_parameters()

    def packed(self, dtype: torch.dtype) -> nn.Module:
        """Return what computes the same, faster on a CPU and without gradients."""
        from lit_seq2seq.nn.kernels.packed import PackedLayer

        return PackedLayer.of(self, dtype) if type(self) is RecurrentLayer else self

    def reset_parameters(self) -> None:
        """Draw fresh weights as the class describes."""
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("weight"):
                for gate in parameter.data.view(-1, self.hidden_size, parameter.shape[1]):
                    drawn = torch.empty_like(gate, dtype=torch.float32)  # 16 bits have no QR decomposition
                    gate.copy_((nn.init.xavier_uniform_ if "_ih_" in name else nn.init.orthogonal_)(drawn))
            else:
                nn.init.zeros_(parameter)
                if self.cell == "lstm" and "_ih_" in name:
                    parameter.data[self.hidden_size : 2 * self.hidden_size] = 1.0

    def forward(self, x: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over whole sequences.

        Args:
            x: `(B, T, D)` inputs.
            state: where to start; zeros if `None`.
            lengths: `(B,)` real lengths; `None` if nothing is padded.

        Returns:
            Outputs `(B, T, H * directions)`, zero at padding, and the state after each sequence's last real step.

        Raises:
            ValueError: inputs are of another size, which the kernels would not notice.
        """
        if x.shape[-1] != self.rnn.input_size:
            raise ValueError(f"expected inputs of {self.rnn.input_size} numbers each, got {x.shape[-1]}")
        if self.windows is not None or (self.training and (self.chunks is not None or self.state_dropout > 0)):
            return self.run_all(x, state, lengths)
        if torch.compiler.is_exporting() and lengths is not None:
            return self._exported(x, lengths, state, range(self.directions))
        if state is not None and x.shape[1] == 1 and not torch.is_grad_enabled():
            return self.forward_stepwise(x, state, lengths)  # kernels would pack their weights for a single step
        if lengths is not None and state is None and self.cell == "lstm" and x.device.type == "cpu":
            return self._forward_held(x, lengths)
        if state is None:
            state = self._zeros(x)
        alone = lengths is not None or (self.cell != "lstm" and not torch.compiler.is_compiling())
        if alone and torch.is_grad_enabled() and x.device.type == "cpu":
            # the gradient of packed input takes a time that grows with the square of its length
            lengths = torch.full((x.shape[0],), x.shape[1]) if lengths is None else lengths
            starts = enumerate(self._directions(state))
            return _joined_directions([self._fused(x, start, lengths, direction) for direction, start in starts])
        if lengths is None:
            outputs, final = self.rnn(x, self._split(state))
            return outputs, self._join(final)
        # cuDNN and CPU kernels skip padding when packed; an empty sequence reads one padding step, undone below.
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        packed_outputs, final = self.rnn(packed, self._split(state))
        outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=x.shape[1])
        real = (lengths > 0)[:, None]  # (B, 1)
        ends = tuple(torch.where(real, new, old) for new, old in zip(self._join(final), state, strict=True))
        return outputs * real[..., None].to(outputs.dtype), ends

    def _exported(self, x: Tensor, lengths: Tensor, state: State | None, directions: Sequence[int]) -> Scanned:
        """Run directions as one operator; sequences without a step are only for those that start somewhere."""
        weights = [weight for direction in directions for weight in self.weights(direction)]
        if state is None:
            outputs, h, c = recurrent(x, lengths, weights, self.cell)
            return outputs, (h, c) if self.cell == "lstm" else (h,)
        from_end = list(directions) == [1]
        outputs, h, c = recurrent(x, lengths.clamp(min=1), weights, self.cell, *state, reverse=from_end)
        real = lengths[:, None] > 0  # (B, 1)
        ends = _where(real, (h, c) if self.cell == "lstm" else (h,), state)
        return outputs * real[..., None].to(outputs.dtype), ends

    def _forward_held(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
        """Run an LSTM from zero over padded sequences in one fused call, which CPUs have for unpacked input alone.

        See `holding` for what happens at padding.
        """
        real = Padded(x, lengths).mask[..., None]  # (B, T, 1)
        weights = [held for direction in range(self.directions) for held in holding(self.weights(direction))]
        zeros = x.new_zeros(self.directions, x.shape[0], self.hidden_size)
        marked = torch.cat([x, (~real).to(x.dtype)], dim=-1)  # (B, T, D + 1)
        outputs, h, c = torch.lstm(
            marked, (zeros, zeros), weights, True, 1, 0.0, self.training, self.directions == 2, True
        )
        outputs = outputs * real.to(outputs.dtype)
        last = (lengths.clamp(min=1) - 1)[:, None, None].expand(-1, 1, self.hidden_size)
        h = torch.cat([outputs.gather(1, last).transpose(0, 1), h[1:]])  # before padding, forward
        return outputs, self._join((h, c))

    def starts(self, x: Tensor, state: State | None = None) -> list[State]:
        """Take a state apart; see `Layer.starts`."""
        return self._directions(self._zeros(x) if state is None else state)

    def run(self, direction: int, x: Tensor, start: State, *, lengths: Tensor | None, mask: Tensor | None) -> Scanned:
        """Run a direction; see `Layer.run`."""
        lengths = torch.full(x.shape[:1], x.shape[1], device=x.device) if lengths is None else lengths.to(x.device)
        if torch.compiler.is_exporting():
            return self._exported(x, lengths, start, [direction])

        def run(piece: Tensor, left: Tensor, now: State) -> Scanned:
            if mask is None:
                return self._fused(piece, now, left, direction)
            return self._loop(piece, now, left, direction, mask)

        if self.chunks is None or not (self.training and torch.is_grad_enabled()):
            return run(x, lengths, start)
        return run_in_chunks(run, x, start, lengths, chunks=self.chunks._replace(reverse=direction == 1))

    def _fused(self, x: Tensor, state: State, lengths: Tensor, direction: int) -> Scanned:
        """Run a direction by its kernel over unpacked sequences, turned within their lengths: padding comes last."""
        steps, lengths = torch.arange(x.shape[1], device=x.device), lengths.long()
        real = (steps < lengths[:, None])[..., None]  # (B, T, 1)
        turned = ((lengths[:, None] - 1 - steps) % max(1, x.shape[1]))[..., None]  # (B, T, 1)
        x, weights = x.take_along_dim(turned, 1) if direction else x, self.weights(direction)
        others: Sequence[Tensor] = ()
        if self.cell != "lstm" and x.device.type == "cpu":
            outputs = run_layer(x, state[0], weights, self.cell, real=real)
        else:
            start = tuple(part[None].contiguous() for part in state)  # (1, B, H)
            if self.cell == "lstm":
                x, weights = torch.cat([x, (~real).to(x.dtype)], dim=-1), holding(weights)
            begin = start if self.cell == "lstm" else start[0]
            outputs, _, *others = KERNELS[self.cell](x, begin, weights, True, 1, 0.0, self.training, False, True)
        h = outputs.take_along_dim((lengths.clamp(min=1) - 1)[:, None, None], 1)[:, 0]
        outputs = outputs * real.to(outputs.dtype)
        ends = _where(lengths[:, None] > 0, (h, *(part[0] for part in others)), state)
        return outputs.take_along_dim(turned, 1) if direction else outputs, ends

    def forward_stepwise(
        self, x: Tensor, state: State | None = None, lengths: Tensor | None = None, state_mask: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Do what `forward` does with a masked loop over time, optionally dropping state units by `state_mask`."""
        starts = self._directions(self._zeros(x) if state is None else state)
        masks = self._directions(() if state_mask is None else (state_mask,))
        made = [
            self._loop(x, start, lengths, to, *mask) for to, (start, mask) in enumerate(zip(starts, masks, strict=True))
        ]
        return _joined_directions(made)

    def _loop(
        self, x: Tensor, state: State, lengths: Tensor | None, direction: int, mask: Tensor | None = None
    ) -> Scanned:
        real = real_positions(x, lengths)
        hs: list[Tensor] = [state[0]] * x.shape[1]
        for t in range(x.shape[1]) if direction == 0 else range(x.shape[1] - 1, -1, -1):
            new = self._cell(x[:, t], state, direction, mask)
            keep = None if real is None else real[:, t, None]  # (B, 1)
            hs[t] = new[0] if keep is None else new[0] * keep
            state = new if keep is None else _where(keep, new, state)
        return torch.stack(hs, dim=1), state  # (B, T, H)

    def _directions(self, state: State) -> list[State]:
        """Take the parts `(B, directions * H)` of a state apart."""
        size = self.hidden_size
        return [tuple(part[:, d * size : (d + 1) * size] for part in state) for d in range(self.directions)]

    def step(self, x: Tensor, state: State, state_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Advance a one-directional layer by one input `(N, D)`; return its output `(N, H)` and state."""
        new = self._cell(x, state, 0, state_mask)
        return new[0].to(x.dtype), new

    def _zeros(self, x: Tensor) -> State:
        zeros = x.new_zeros(x.shape[0], self.hidden_size * self.directions)
        return (zeros, zeros) if self.cell == "lstm" else (zeros,)

    def weights(self, direction: int = 0) -> list[Tensor]:
        """Name the weights of a direction: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`, as in `torch.nn.LSTM`."""
        suffix = "_l0_reverse" if direction else "_l0"
        return [getattr(self.rnn, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def _cell(self, x: Tensor, state: State, direction: int, mask: Tensor | None) -> State:
        weights = self.weights(direction)
        h, *c = state
        dropped = h if mask is None else h * mask
        training = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        plain = not training  # where PyTorch's cells are fused
        if c:
            return torch.lstm_cell(x, (dropped, *c), *weights) if plain else lstm_step(x, dropped, c[0], weights)
        if self.cell == "gru" and not (plain and mask is None):
            return (gru_step(x, dropped, h, weights),)
        cells = {"gru": torch.gru_cell, "rnn_tanh": torch.rnn_tanh_cell, "rnn_relu": torch.rnn_relu_cell}
        return (cells[self.cell](x, dropped, *weights),)

    def _split(self, state: State) -> Tensor | State:
        def split(tensor: Tensor) -> Tensor:  # (B, directions * H) -> (directions, B, H)
            return tensor.view(tensor.shape[0], self.directions, self.hidden_size).transpose(0, 1).contiguous()

        return tuple(map(split, state)) if len(state) > 1 else split(state[0])

    def _join(self, final: Tensor | State) -> State:
        def join(tensor: Tensor) -> Tensor:  # (directions, B, H) -> (B, directions * H)
            return tensor.transpose(0, 1).reshape(tensor.shape[1], -1)

        return tuple(map(join, (final,) if isinstance(final, Tensor) else final))


def kernel_of(
    cell: CellName | CellFactory, input_size: int, hidden_size: int
) -> tuple[CellName | None, tuple[int, ...]]:
    """Return the fused kernel that there is for a cell, and the sizes of what its state holds beside the output."""
    if isinstance(cell, str):
        return cell, (hidden_size,) if cell == "lstm" else ()
    with torch.random.fork_rng(devices=[]):  # what is drawn here is drawn again for the layers
        made = cell(input_size, hidden_size)
    return made.kernel, made.others


class CellLayer(Layer):
    """One layer of any `Cell`, in one or both directions.

    Args:
        cells: one, or two of a kind, of which the second reads from the end to the start.
        state_dropout: see `RecurrentLayer`.
        chunk_size: see `RecurrentLayer`.
        truncate: see `RecurrentLayer`.
        windows: see `RecurrentLayer`.

    Raises:
        ValueError: as for `RecurrentLayer`; a `state_dropout` that these cells do not have.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        state_dropout: float = 0.0,
        chunk_size: int | None = None,
        truncate: bool = False,
        *,
        windows: Windows | None = None,
    ) -> None:
        super().__init__(state_dropout, chunk_size, truncate, windows)
        if state_dropout and not cells[0].reads_output:
            raise ValueError(
                f"state_dropout drops what the gates of a cell read of its output, and those of "
                f"{type(cells[0]).__name__} read nothing of it: leave it out"
            )
        self.cells: Sequence[Cell] = nn.ModuleList(cells)  # type: ignore[assignment]

    def forward(self, x: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over whole sequences; see `RecurrentLayer.forward`."""
        return self.run_all(x, state, lengths)

    def starts(self, x: Tensor, state: State | None = None) -> list[State]:
        """Take a state apart; see `Layer.starts`."""
        if state is None:
            return [cell.first(x) for cell in self.cells]
        return list(zip(*(part.chunk(len(self.cells), dim=-1) for part in state), strict=True))

    def run(self, direction: int, x: Tensor, start: State, *, lengths: Tensor | None, mask: Tensor | None) -> Scanned:
        """Run a direction; see `Layer.run`."""
        cell, reverse = self.cells[direction], direction == 1
        if torch.compiler.is_exporting():
            return scanned(cell, x, start, lengths, reverse=reverse)
        if self.chunks is None or not (self.training and torch.is_grad_enabled()):
            return cell.scan(x, start, lengths, reverse, mask=mask)
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)

        def run(piece: Tensor, left: Tensor, state: State) -> Scanned:
            return cell.scan(piece, state, left, reverse, mask=mask)

        return run_in_chunks(run, x, start, lengths.to(x.device), chunks=self.chunks._replace(reverse=reverse))

    def step(self, x: Tensor, state: State, state_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Advance a one-directional layer by one input `(N, D)`; return its output `(N, H)` and state."""
        new = self.cells[0].step(x, state, state_mask)
        return new[0].to(x.dtype), new


def _chunks(size: int | None, truncate: bool) -> Chunks | None:
    if size is None and truncate:
        raise ValueError("truncate stops gradients at the edges of chunks: set chunk_size")
    if size is not None and size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {size}: leave it out to keep all states")
    return None if size is None else Chunks(size, truncate)


def _windows(chunk: int | None, lookahead: int, bidirectional: bool) -> Windows:
    if chunk is None or not bidirectional:
        raise ValueError(
            "backward_chunk and backward_lookahead are for the direction from the end: set backward_chunk and "
            "bidirectional: true"
        )
    if chunk < 1 or lookahead < 0:
        raise ValueError(
            f"backward_chunk must be at least 1 and backward_lookahead at least 0, got {chunk} and {lookahead}"
        )
    return Windows(chunk, after=lookahead)


def _make_layer(
    input_size: int, hidden_size: int, cell: CellName | CellFactory, directions: int, **options: Any
) -> RecurrentLayer | CellLayer:
    if isinstance(cell, str):
        return RecurrentLayer(input_size, hidden_size, cell, directions == 2, **options)
    return CellLayer([cell(input_size, hidden_size) for _ in range(directions)], **options)


def _joined_directions(made: Sequence[Scanned]) -> Scanned:
    return torch.cat([outputs for outputs, _ in made], dim=-1), _joined([final for _, final in made])


def _joined(states: Sequence[State]) -> State:
    """Concatenate the states of the directions."""
    return states[0] if len(states) == 1 else tuple(torch.cat(parts, dim=-1) for parts in zip(*states, strict=True))


def _where(keep: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(keep, *pair) for pair in zip(new, old, strict=True))


@dataclass(frozen=True)
class StackMasks(Value):
    """Dropout masks held fixed over one sequence, so that stepping drops what a parallel pass would.

    Attributes:
        inputs: per layer `(N, D_l)`, or `None` where nothing is locked.
        states: per layer `(N, H)`, or `None`.
    """

    inputs: tuple[Tensor | None, ...]
    states: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class StackReading(Value):
    """Where a stack is in sequences that come in pieces.

    Attributes:
        cells: `(B, L, H)` state after what has been read.
        waiting: inputs `(B, chunk + lookahead - 1, D_l)` of each layer that has windows.
    """

    cells: CellState
    waiting: tuple[Padded, ...] = ()


class RecurrentStack(nn.Module):
    """Recurrent layers on top of each other, with optional residual connections, normalisation and dropout.

    Args:
        input_size: size of the input vectors.
        hidden_size: size of each layer's output; with `bidirectional`, half of it goes to either direction.
        num_layers: depth, 0 or more (0 passes its input through).
        cell: makes the cells from sizes of inputs and output: a class such as `SLSTM`, or the short name of one with
            fused kernels.
        bidirectional: both directions in every layer.
        residual: add each layer's input to its output where their sizes agree (He et al. 2016; Wu et al. 2016).
        layer_norm: normalise each layer's output (Ba et al. 2016).
        dropout: probability of dropping inputs of every layer but the first (Zaremba et al. 2014).
        locked_dropout: use one dropout mask for all steps of a sequence (Gal & Ghahramani 2016).
        state_dropout: see `RecurrentLayer`.
        context_size: size of a context vector concatenated to every layer's input; 0 for none (Wu et al. 2016).
        drop_input: drop inputs of the first layer too.
        chunk_size: see `RecurrentLayer`.
        truncate: see `RecurrentLayer`.
        backward_chunk: latency-controlled layers (Zhang et al. 2016, https://arxiv.org/abs/1510.08983), so that a
            bidirectional stack can read in pieces: in each layer the direction from the end runs over so many steps at
            a time, each time from zero. `None`: over the whole.
        backward_lookahead: number of steps after these at which it begins, for a better start. Each layer waits for the
            chunks beneath in which these steps are, so that waiting adds up, see `Encoder.lookahead`; without it, a
            stack waits no longer than a layer.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: CellName | CellFactory = "lstm",
        *,
        bidirectional: bool = False,
        residual: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        state_dropout: float = 0.0,
        context_size: int = 0,
        drop_input: bool = False,
        chunk_size: int | None = None,
        truncate: bool = False,
        backward_chunk: int | None = None,
        backward_lookahead: int = 0,
    ) -> None:
        super().__init__()
        self.bidirectional, self.windows = bidirectional, None
        if backward_chunk is not None or backward_lookahead:
            self.windows = _windows(backward_chunk, backward_lookahead, bidirectional)
        directions = 2 if bidirectional else 1
        if hidden_size % directions:
            raise ValueError(f"hidden_size must be even when bidirectional, got {hidden_size}")
        self.output_size = hidden_size if num_layers else input_size
        self.hidden_size = hidden_size
        self.residual = residual
        self.dropout = dropout
        self.locked_dropout = locked_dropout
        self.first_dropped = 0 if drop_input else 1
        self.input_sizes = [input_size] + [hidden_size] * (num_layers - 1) if num_layers else []
        size = hidden_size // directions
        kernel, others = kernel_of(cell, input_size, size)
        self.others = tuple(other * directions for other in others)
        options: dict[str, Any] = {"state_dropout": state_dropout, "chunk_size": chunk_size, "truncate": truncate}
        options["windows"] = self.windows
        self.layers = nn.ModuleList(
            _make_layer(inputs + context_size, size, kernel or cell, directions, **options)
            for inputs in self.input_sizes
        )
        norm = nn.LayerNorm if layer_norm else nn.Identity
        self.state_dropout = state_dropout
        self.norms = nn.ModuleList(norm(hidden_size) for _ in self.input_sizes)

    def forward(
        self, x: Tensor, state: CellState | None = None, lengths: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, CellState]:
        """Run over whole sequences.

        Args:
            x: `(B, T, D)` inputs.
            state: `(B, L, H)` where to start; zeros if `None`.
            lengths: `(B,)` real lengths, or `None`.
            context: `(B, T, C)` for every layer, when built with `context_size`.

        Returns:
            Outputs of the top layer `(B, T, H)` and the final state `(B, L, H)`.
        """
        finals = []
        for index, (layer, norm) in enumerate(zip(self.recurrent_layers(), self.norms, strict=True)):
            inputs = self._drop(x, index)
            joined = inputs if context is None else torch.cat([inputs, context], dim=-1)
            outputs, final = layer(joined, None if state is None else _layer(state, index), lengths)
            x = self._finish(norm(outputs), inputs)
            finals.append(final)
        return x, self._stack(finals, x)

    def step(
        self, x: Tensor, state: CellState, context: Tensor | None = None, masks: StackMasks | None = None
    ) -> tuple[Tensor, CellState]:
        """Advance by one input `(N, D)`: the same computation as `forward` over one time step."""
        finals = []
        for index, (layer, norm) in enumerate(zip(self.recurrent_layers(), self.norms, strict=True)):
            inputs = self._drop(x, index, masks)
            joined = inputs if context is None else torch.cat([inputs, context], dim=-1)
            outputs, final = layer.step(joined, _layer(state, index), None if masks is None else masks.states[index])
            x = self._finish(norm(outputs), inputs)
            finals.append(final)
        return x, self._stack(finals, x)

    def reach(self, count: int) -> int | None:
        """Tell how many inputs the first `count` outputs need; `None`: all."""
        if self.windows is None:
            return None if self.bidirectional else count
        for _ in self.layers:
            count = self.windows.reach(count)
        return count

    def begin(self, batch_size: int) -> StackReading:
        """Make the state before the first piece of sequences that come in pieces.

        Raises:
            UserError: a direction runs from the end of the whole.
        """
        if self.reach(1) is None:
            raise UserError(
                "layers that run from the end cannot read in pieces: set bidirectional: false or backward_chunk"
            )
        like, sizes = next(self.parameters()), (self.hidden_size, *self.others)
        cells = CellState.of(like.new_zeros(batch_size, len(self.layers), size) for size in sizes)
        if self.windows is None:
            return StackReading(cells)
        inputs = (like.new_zeros(batch_size, size) for size in self.input_sizes)
        return StackReading(cells, tuple(map(self.windows.begin, inputs)))

    @torch.no_grad()
    def extend(self, state: StackReading, piece: Padded, last: Tensor) -> tuple[Padded, StackReading]:
        """Read the next `piece (B, P, D)` of sequences: the same computation as `forward`; see `Encoder.extend`."""
        nothing = Padded(piece.values.new_zeros(last.shape[0], 0, self.output_size), torch.zeros_like(piece.lengths))
        if self.windows is None:
            if _nowhere(piece.lengths):
                return nothing, state
            full = piece.lengths == piece.values.shape[1]
            whole = not torch.compiler.is_exporting() and bool(full.all())
            outputs, cells = self(piece.values, state.cells, None if whole else piece.lengths)
            return Padded(outputs, piece.lengths), StackReading(cells)
        finals, waiting = [], []
        for index, (layer, norm) in enumerate(zip(self.recurrent_layers(), self.norms, strict=True)):
            cut, left = self.windows.extend(state.waiting[index], piece, last)
            final, piece = _layer(state.cells, index), nothing
            if not _nowhere(cut.own.lengths):
                outputs, final = layer.run_windows(cut, final)
                piece = Padded(self._finish(norm(outputs), cut.own.values), cut.own.lengths)
            finals.append(final)
            waiting.append(left)
        return piece, StackReading(self._stack(finals, piece.values), tuple(waiting))

    def sample_masks(self, like: Tensor) -> StackMasks | None:
        """Draw the masks that one pass of `step`s over sequences must share; `like` gives batch size and type."""
        locked = self.training and self.locked_dropout and self.dropout > 0
        batch = like.shape[0]
        inputs = [
            dropout_mask(like, (batch, size), self.dropout) if locked and index >= self.first_dropped else None
            for index, size in enumerate(self.input_sizes)
        ]
        states = [
            dropout_mask(like, (batch, self.hidden_size), self.state_dropout)
            if self.training and self.state_dropout > 0
            else None
            for _ in self.layers
        ]
        return StackMasks(tuple(inputs), tuple(states)) if any(m is not None for m in (*inputs, *states)) else None

    def recurrent_layers(self) -> list[RecurrentLayer | CellLayer]:
        """The layers, lowest first."""
        return cast("list[RecurrentLayer | CellLayer]", list(self.layers))

    def _drop(self, x: Tensor, index: int, masks: StackMasks | None = None) -> Tensor:
        if index < self.first_dropped or not self.training or self.dropout == 0:
            return x
        if not self.locked_dropout:
            return dropout(x, self.dropout)
        mask = masks.inputs[index] if masks is not None else None
        if mask is None:
            mask = dropout_mask(x, (x.shape[0], x.shape[-1]), self.dropout)
        return x * (mask if x.dim() == 2 else mask[:, None])

    def _finish(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        return outputs + inputs if self.residual and outputs.shape == inputs.shape else outputs

    def _stack(self, finals: list[State], like: Tensor) -> CellState:
        if not finals:
            return CellState.of(like.new_zeros(like.shape[0], 0, size) for size in (self.hidden_size, *self.others))
        if len(finals) == 1:
            return CellState.of(part[:, None] for part in finals[0])
        return CellState.of(torch.stack(parts, dim=1) for parts in zip(*finals, strict=True))


def _nowhere(lengths: Tensor) -> bool:
    """Tell whether no sequence goes on, which a graph, of any lengths, does not ask."""
    return not torch.compiler.is_exporting() and not bool(lengths.any())


def _layer(state: CellState, index: int) -> State:
    return tuple(part[:, index] for part in state.values)
