"""The programs of an exported model: the encoder with the decoder's start, a step of the decoder, the output layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lit_seq2seq.nn import DecoderState, EncoderDecoder
from lit_seq2seq.nn.decoders.base import DecoderOutput
from lit_seq2seq.types import Padded, Sources, Value

Names = list[str]
_PER_SOURCE = ("memory", "summary")
_SOURCES, _HYPOTHESES, _POSITIONS = Dim("sources"), Dim("hypotheses"), Dim("positions")


class EncoderGraph(nn.Module):
    """Sources and lengths in; out the mask of the memory, the decoder's first state, one hypothesis a source, and CTC.

    Args:
        network: the model, in evaluation mode.
        template: any source, which shows what a source consists of.
    """

    def __init__(self, network: EncoderDecoder, template: Padded | Sources) -> None:
        super().__init__()
        self.network = network
        self.template = template

    def forward(self, *source: Tensor) -> dict[str, Tensor]:
        """Encode what `named` of a source gives, in its order; see `flatten` for the names."""
        tensors = iter(source)
        encoded = self.network.encode(self.template.map(lambda _: next(tensors)))
        found = {"mask": encoded.memory.mask, **flatten(self.network.start(encoded), 1)}
        frames = self.network.frames(encoded)
        found |= {} if frames is None else {"frames": frames.values}
        found |= {} if encoded.prefix is None else {"prefix": encoded.prefix.clone()}
        # a graph names each output once: keys that are the memory itself become a copy
        return {name: value.clone() if name.endswith("keys") else value for name, value in found.items()}


class DecoderGraph(nn.Module):
    """One step for K hypotheses of each of B sources.

    Args:
        network: the model, in evaluation mode.
        template: any state of its decoder, which shows what a state consists of.
    """

    def __init__(self, network: EncoderDecoder, template: DecoderState) -> None:
        super().__init__()
        self.network = network
        self.template = template

    def forward(self, tokens: Tensor, *state: Tensor) -> dict[str, Tensor]:
        """Read `tokens (B, K)`.

        Args:
            tokens: ids; those of copied symbols may lie beyond the vocabulary.
            *state: what `flatten` gives, in its order.

        Returns:
            What the output layer reads, `(B, K, ...)`, by the names of `DecoderOutput`; `next.*`: what has changed of
            the state.
        """
        network, hypotheses = self.network, tokens.shape[1]
        before = unflatten(self.template, iter(state))
        output, after = network.decoder.step(network.readable(tokens.flatten()), before)
        # copied: features may be the vector that is fed back, and a graph names each output once
        handed = {name: value.clone(memory_format=torch.contiguous_format) for name, value in _handed(output).items()}
        found = {name: _per_hypothesis(value, hypotheses) for name, value in handed.items()}
        changed = flatten(after, hypotheses).items()
        return found | {f"next.{name}": value for name, value in changed if name.split(".")[0] not in _PER_SOURCE}


class OutputGraph(nn.Module):
    """Scores of what a decoder hands over.

    Args:
        network: the model, in evaluation mode.
        names: of the parts of a `DecoderOutput` that there are.
    """

    def __init__(self, network: EncoderDecoder, names: Sequence[str]) -> None:
        super().__init__()
        self.output = network.output
        self.names = names

    def forward(self, *parts: Tensor) -> dict[str, Tensor]:
        """Score parts `(B, K, ...)`; see `Output.exported`."""
        given = dict(zip(self.names, parts, strict=True))
        return self.output.exported(DecoderOutput._make(given.get(name) for name in DecoderOutput._fields))


def _handed(output: DecoderOutput) -> dict[str, Tensor]:
    return {name: value for name, value in output._asdict().items() if value is not None}


def flatten(state: DecoderState, hypotheses: int) -> dict[str, Tensor]:
    """Name the tensors of a state: `memory.*` and `summary` as `(B, ...)`, all others as `(B, K, ...)`.

    Args:
        state: of N = B * K hypotheses.
        hypotheses: K.
    """
    found: dict[str, Tensor] = {}
    name_tensors(state, "", found)
    return {
        name: value if name.split(".")[0] in _PER_SOURCE else _per_hypothesis(value, hypotheses)
        for name, value in found.items()
    }


@torch.no_grad()
def blind(network: EncoderDecoder, source: Padded | Sources) -> dict[str, Any]:
    """Return the arrays of `EncoderDecoder.blind`."""
    state = network.blind(network.encode(source))
    return {name: tensor.numpy() for name, tensor in flatten(state, 1).items()}


def _per_hypothesis(value: Tensor, hypotheses: int) -> Tensor:
    """View `(B * K, ...)` as `(B, K, ...)`."""
    return value.view(-1, hypotheses, *value.shape[1:])


def unflatten(template: DecoderState, tensors: Iterator[Tensor]) -> DecoderState:
    """Make a state of the tensors that `flatten` gave, in its order."""
    names: dict[str, Tensor] = {}
    name_tensors(template, "", names)
    flat = (
        tensor if name.split(".")[0] in _PER_SOURCE else tensor.flatten(0, 1)
        for name, tensor in zip(names, tensors, strict=True)
    )
    return template.map(lambda _: next(flat))


def name_tensors(value: object, name: str, found: dict[str, Tensor]) -> None:
    """Put the tensors of a value into `found` by the places where they are, which begin with `name`."""
    if isinstance(value, Tensor):
        found[name] = value
    elif isinstance(value, Value):
        for field in dataclasses.fields(value):
            name_tensors(getattr(value, field.name), f"{name}.{field.name}".lstrip("."), found)
    elif isinstance(value, tuple):
        for place, part in enumerate(value):
            name_tensors(part, f"{name}.{place}", found)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            name_tensors(part, f"{name}.{key}", found)


@dataclasses.dataclass(frozen=True)
class Graph:
    """A traced program.

    Attributes:
        program: what `torch.export` has made.
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
    """

    program: ExportedProgram
    inputs: Names
    outputs: Names


@torch.no_grad()
def trace(network: EncoderDecoder, source: Padded | Sources) -> tuple[Graph, Graph, Graph]:
    """Trace encoder and decoder with any number of sources, positions and hypotheses.

    Args:
        network: the model, in evaluation mode.
        source: an example of at least two sources and two positions; those of images have one size.

    Returns:
        The graphs of the encoder, the decoder and the output layer.
    """
    source = source if isinstance(source, Sources) else Padded(source.values, source.lengths)
    alone = source.select(torch.tensor([0])) if network.encoder.alone else source
    inputs = alone.named()
    shapes = tuple(_dynamic_input(value, network.encoder.alone) for value in inputs.values())
    first = traced(EncoderGraph(network, alone), tuple(inputs.values()), (shapes,), list(inputs))

    state = network.start(network.encode(source))
    names = flatten(state, 1)
    twice = {
        name: value if name.split(".")[0] in _PER_SOURCE else value.repeat_interleave(3, dim=1)
        for name, value in names.items()
    }
    tokens = torch.full((len(source.lengths), 3), network.specials.bos)
    decoder = DecoderGraph(network, state)
    places = {0: _SOURCES, 1: _HYPOTHESES}
    others = tuple(_dynamic(name, value) for name, value in twice.items())
    second = traced(decoder, (tokens, *twice.values()), (places, others), ["tokens", *twice])
    handed = decoder(tokens, *twice.values())
    handed = {name: value for name, value in handed.items() if name in DecoderOutput._fields}
    places = {0: _SOURCES, 1: _HYPOTHESES}
    shapes = tuple(places | ({2: _POSITIONS} if name == "attention" else {}) for name in handed)
    third = traced(OutputGraph(network, list(handed)), tuple(handed.values()), (shapes,), list(handed))
    return first, second, third


def _dynamic_input(value: Tensor, alone: bool) -> dict[int, Any]:
    """Tell which sizes differ: sources, then positions, but not of lengths and images."""
    sources = {} if alone else {0: Dim.DYNAMIC}
    return sources if value.dim() in (1, 4) else {**sources, 1: Dim.DYNAMIC}


def _dynamic(name: str, value: Tensor) -> dict[int, Any]:
    """Tell which sizes differ: sources, then positions or hypotheses, and maybe those of what attention remembers."""
    if name.startswith("memory.parts."):
        return {0: _SOURCES, 1: Dim.DYNAMIC}
    if name.startswith(_PER_SOURCE):
        return {0: _SOURCES} | ({} if name == "summary" else {1: _POSITIONS})
    places = range(2, value.dim()) if name.startswith("attention.") else ()
    return {0: _SOURCES, 1: _HYPOTHESES} | dict.fromkeys(places, Dim.AUTO)


def traced(module: nn.Module, example: tuple[Tensor, ...], shapes: Any, inputs: Names) -> Graph:
    """Trace a module that gives tensors by name; `shapes` tell which sizes differ."""
    program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    return Graph(program, inputs, list(module(*example)))
