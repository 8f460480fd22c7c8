"""Weights that others may have written, for a network no larger than these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_seq2seq.files.untrusted import checked
from lit_seq2seq.types import UserError


def _numbers(description: object) -> Iterator[int]:
    if isinstance(description, int):
        yield description
    elif isinstance(description, Mapping | list):
        for item in description.values() if isinstance(description, Mapping) else description:
            yield from _numbers(item)


_FLOATS = ("F64", "F32", "F16", "BF16")


class Weights:
    """A safetensors file, of which only the header has been read.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = checked(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                self.shapes = {name: tuple(item.get_shape()) for name, item in slices.items()}
                self.metadata: dict[str, str] = file.metadata() or {}
                self.types = {name: str(item.get_dtype()) for name, item in slices.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): copy or save the model again") from error

    def bound(self, description: object) -> Bounded:
        """Return a context in which no network can be built that is much larger than these weights.

        Args:
            description: of the network; it may have no number that is larger than all weights.
        """
        bound = Bounded(sum(map(math.prod, self.shapes.values())), len(self.shapes), self.path)
        bound.check(max(_numbers(description), default=0))
        return bound

    def load(self, network: nn.Module) -> None:
        """Read the weights into a network that has exactly these.

        Raises:
            UserError: names, shapes or kinds of numbers differ, or a number is not finite.
        """
        state = network.state_dict(keep_vars=True)
        self._compare(state)
        # what is missing shares its tensor with what is there
        network.load_state_dict(safetensors.torch.load_file(self.path), strict=False)
        check_finite(network.state_dict(), self.path)

    def _compare(self, state: Mapping[str, Tensor]) -> None:
        present = {id(state[name]) for name in self.shapes if name in state}
        for name in sorted(self.shapes.keys() | state.keys()):
            if name not in self.shapes and id(state[name]) in present:
                continue
            mine = f"{tuple(state[name].shape)}" if name in state else "not there"
            theirs = f"{self.shapes[name]}" if name in self.shapes else "not there"
            if mine == theirs and (self.types[name] in _FLOATS) != state[name].is_floating_point():
                mine, theirs = str(state[name].dtype), self.types[name]
            elif mine == theirs:
                continue
            raise UserError(
                f"{self.path} does not fit the model that config.json describes: {name} is {theirs} in the file, and "
                f"{mine} in the model"
            )


def check_finite(weights: Mapping[str, Tensor], owner: object, dtype: torch.dtype | None = None) -> None:
    """Refuse weights with a NaN or an infinite number, also what is too large for the `dtype` to compute in."""
    for name, weight in weights.items():
        tensor = weight.to(dtype) if dtype is not None and weight.is_floating_point() else weight
        if not torch.isfinite(tensor).all():
            kind = "" if tensor.dtype == torch.float32 else f", as {tensor.dtype}".replace("torch.", "")
            raise UserError(f"{owner} has values that are not finite in {name}{kind}: use an earlier checkpoint")


class Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to make tensors that are many more, or together much larger, than the weights in a file."""

    def __init__(self, elements: int, tensors: int, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.tensors, self.path = 4 * elements + 2**20, 4 * tensors + 100, path

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing here is compiled: torch would import its compiler, which takes as long as all the rest."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what is made from a size, and go on."""
        if args and isinstance(args[0], list | tuple) and all(isinstance(size, int) for size in args[0]):
            self.elements -= math.prod(args[0])
            self.tensors -= 1
        self.check()
        return func(*args, **(kwargs or {}))

    def check(self, more: int = 0) -> None:
        """Raise an error if too much was made, or `more` elements would be."""
        if self.elements < more or self.tensors < 0:
            raise UserError(
                f"the model that config.json describes is much larger than its weights in {self.path}: the folder is "
                "damaged or hostile"
            )
