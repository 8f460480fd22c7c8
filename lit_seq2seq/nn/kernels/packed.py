"""A network for inference on a CPU: the same weights, arranged for its fastest kernels.

Matrix products go to oneDNN, with weights packed beforehand.
"""

from __future__ import annotations

import copy
from typing import Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lit_seq2seq.nn.cells import State
from lit_seq2seq.nn.decoders.base import Combination
from lit_seq2seq.nn.encoders.base import Encoder
from lit_seq2seq.nn.kernels.products import Linear
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.nn.recurrent import RecurrentLayer
from lit_seq2seq.types import Encoded, Padded, Source, Value

M = TypeVar("M", bound=nn.Module)


def prepare(network: M, dtype: torch.dtype = torch.float32) -> M:
    """Make a copy of a network that computes the same, faster, on a CPU, and only without gradients.

    It shares the embeddings and the encoder with the network, and has copies of the other weights, as they are now.
    Decoder and output layer compute matrix products in `dtype`, the rest in single precision; a part of them that has a
    method `packed(dtype)` is replaced by what that returns. The encoder runs in bfloat16 unless `dtype` is `float32`,
    if the processor has it.

    Args:
        network: an `EncoderDecoder` or an `Ensemble` of them, in evaluation mode.
        dtype: `torch.float32`, `torch.bfloat16`, or `torch.int8`: 8-bit integers with a scale for each row of the
            weights and, found anew at each product, for each input vector, so that no batch mate changes it.
    """
    return cast(M, _rebuilt(network, dtype))


def _rebuilt(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if type(module) in (nn.Linear, Linear):
        return Product(module.weight, module.bias, dtype)  # type: ignore[arg-type]
    if callable(packed := getattr(module, "packed", None)):
        return cast(nn.Module, packed(dtype))
    if isinstance(module, Encoder):
        return module if dtype == torch.float32 else HalfEncoder(module)
    if not module._modules:
        return module
    changed = copy.copy(module)
    changed._modules = {
        name: None if child is None else _rebuilt(child, dtype) for name, child in module._modules.items()
    }
    return changed


class Product(nn.Module):
    """`W x + b` for vectors in single precision, computed in another type.

    Args:
        weight: `(O, I)` the matrix W.
        bias: `(O,)` the vector b, or `None`.
        dtype: see `prepare`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        weight, self.bias = weight.detach().float(), None if bias is None else bias.detach().float()
        self.dtype = dtype
        self.given = weight, self.bias
        self.reordered = dtype != torch.int8 and _packs(dtype)
        if dtype == torch.int8:
            self.weight, scale = quantized(weight)
            self.scale = scale[:, 0]
        elif self.reordered:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), None)
        else:
            self.weight = weight.to(dtype)
        if dtype != torch.int8 and self.bias is not None:
            self.bias = self.bias.to(dtype)

    def rows(self, index: Tensor) -> Product:
        """Return what computes only some of the O numbers, those of `index`."""
        weight, bias = self.given
        bias = None if bias is None else bias[index]
        if self.dtype != torch.int8:
            return Product(weight[index], bias, self.dtype)
        fewer = copy.copy(self)
        fewer.weight, fewer.scale, fewer.bias = self.weight[index], self.scale[index], bias
        return fewer

    def forward(self, x: Tensor) -> Tensor:
        """Map `x (..., I)` to `(..., O)`, in single precision both."""
        if self.dtype == torch.int8:
            return self._in_integers(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        if self.reordered:
            made = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
            return cast(Tensor, made).float()
        return linear(x.to(self.dtype), self.weight, self.bias).float()

    def _in_integers(self, x: Tensor) -> Tensor:
        values, scale = quantized(x)  # (N, I), (N, 1)
        weight = self.weight.t()
        # of vectors of one unit `_int_mm` makes garbage on a CPU (PyTorch 2.13)
        products = values.int() * weight if values.shape[1] == 1 else torch._int_mm(values, weight)
        made = products.float().mul_(self.scale).mul_(scale)
        return made if self.bias is None else made.add_(self.bias)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of `x (N, I)` to 8-bit integers of its own scale: `(N, I)` integers and `(N, 1)` scales.

    Example:
        >>> quantized(torch.tensor([[1.27, -0.635]]))[0]
        tensor([[127, -64]], dtype=torch.int8)
    """
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * 127) / 127
    return (x / scale).round_().to(torch.int8), scale


def _packs(dtype: torch.dtype) -> bool:
    return torch.backends.mkldnn.is_available() and computes_in(dtype, "cpu")  # type: ignore[no-untyped-call]


class PackedLayer(RecurrentLayer):
    """A recurrent layer whose single steps take one matrix product, two for a GRU; whole sequences as before."""

    joined: Product
    inputs: Product
    hidden: Product

    @classmethod
    def of(cls, layer: RecurrentLayer, dtype: torch.dtype) -> Self:
        """Make it from a trained layer, whose weights it shares for whole sequences."""
        new = cls.__new__(cls)
        new.__dict__ = {**layer.__dict__, "_modules": dict(layer._modules)}
        w_x, w_h, b_x, b_h = layer.weights()
        if layer.cell == "gru":
            new.inputs, new.hidden = Product(w_x, b_x, dtype), Product(w_h, b_h, dtype)
        else:
            weight, bias = torch.cat([w_x, w_h], dim=1), b_x + b_h
            if layer.cell == "lstm":  # tanh x = 2 sigmoid(2 x) - 1, and PyTorch's sigmoid is five times as fast
                doubled = torch.ones(4, layer.hidden_size).index_fill_(0, torch.tensor(2), 2.0).flatten()
                weight, bias = weight * doubled[:, None], bias * doubled
            new.joined = Product(weight, bias, dtype)
        return new

    def _cell(self, x: Tensor, state: State, direction: int, mask: Tensor | None) -> State:
        if direction or mask is not None:
            return super()._cell(x, state, direction, mask)
        h, *c = state
        if self.cell == "gru":
            inputs, hidden = self.inputs(x), self.hidden(h)
            r, z = (inputs[:, : -h.shape[1]] + hidden[:, : -h.shape[1]]).sigmoid_().chunk(2, dim=1)
            n = torch.addcmul(inputs[:, -h.shape[1] :], r, hidden[:, -h.shape[1] :]).tanh_()
            return (torch.lerp(n, h, z),)
        gates = self.joined(torch.cat([x, h], dim=1))
        if not c:
            return (gates.tanh_() if self.cell == "rnn_tanh" else gates.relu_(),)
        i, f, g, o = gates.sigmoid_().chunk(4, dim=1)  # g is still to be doubled, less one
        new = (f * c[0]).sub_(i).addcmul_(i, g, value=2)
        return (2 * new).sigmoid_().mul_(2).sub_(1).mul_(o), new


class PackedCombination(Combination):
    """A `Combination` with the fast sigmoid in place of tanh; see `PackedLayer`."""

    @classmethod
    def of(cls, combination: Combination, dtype: torch.dtype) -> Self:
        """Make it from a trained one."""
        new = cls.__new__(cls)
        dense = combination.dense
        assert dense is not None
        new.__dict__ = {**combination.__dict__, "_modules": {}}
        new.dense = Product(2 * dense.weight, 2 * dense.bias, dtype)  # type: ignore[assignment]
        return new

    def activate(self, x: Tensor) -> Tensor:
        """Compute `tanh(x / 2)`."""
        return x.sigmoid_().mul_(2).sub_(1)


class HalfEncoder(nn.Module):
    """An encoder that computes in bfloat16 where the processor has it, and gives single precision.

    Args:
        encoder: the encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.shape = encoder, encoder.shape
        self.reach, self.span = encoder.reach, encoder.span
        self.begin, self.final_state = encoder.begin, encoder.final_state

    def forward(self, source: Source) -> Encoded:
        """Encode a batch."""
        with self._halves():
            return _single(self.encoder(source))

    def extend(self, state: Value, piece: Padded, last: Tensor) -> tuple[Padded, Value]:
        """Read on; see `Encoder.extend`."""
        with self._halves():
            memory, after = self.encoder.extend(state, piece, last)
        return _single(memory), _single(after)

    def _halves(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=computes_in(torch.bfloat16, "cpu"))


Values = TypeVar("Values", bound=Value)


def _single(value: Values) -> Values:
    """Give all numbers in single precision."""
    return value.map(lambda x: x.float() if x.is_floating_point() else x)
