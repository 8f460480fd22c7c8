"""Reads files that a stranger may have written: JSON, and tensors of a known network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_seq2seq.types import UserError

JSON_LIMIT = 2**26
"""Bytes of the largest JSON file that is read: a tokenizer of a million symbols has about half of it."""
DEPTH_LIMIT = 100
"""Greatest depth of JSON; a description of a model has about ten."""

GREATEST: Mapping[str, float] = {
    "num_beams": 1000,
    "num_return_sequences": 1000,
    "max_new_tokens": 100_000,
    "coverage_penalty": 1000,
    "size": 4096,
    "max_pixels": 10**9,
    "sampling_rate": 10**6,
    "max_seconds": 10**5,
    "n_mels": 4096,
    "window": 60,
    "stack": 1000,
    "channels": 10**6,
}
"""What options of generation and settings of a source feature may be at most."""


def check_settings(settings: object, path: object) -> None:
    """Refuse settings with which one input could take hours or all memory.

    Args:
        settings: plain values, however deeply nested.
        path: where they come from, for the message.

    Raises:
        UserError: a number is greater than in `GREATEST`, or none.
    """
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if isinstance(value, int | float) and not value <= GREATEST.get(name, math.inf):
                raise UserError(
                    f"{path} sets {name} to {value!s:.20}, more than the {GREATEST[name]:,} that are allowed: it is "
                    "damaged or hostile"
                )
            check_settings(value, path)


def checked(path: Path) -> Path:
    """Return a path if it is a file that lies where it seems to lie.

    Args:
        path: of a file. It may be a link within its folder or, in the cache of the hub, within the cache.

    Raises:
        UserError: there is no such file, or it is a link that leads away.
    """
    if not path.is_file():
        raise UserError(f"expected the file {path}, but there is none: name a folder that a model was saved to")
    if re.search("[\ud800-\udfff]", str(path)):
        raise UserError(
            f"the name of the folder {str(path.parent)!a} is not UTF-8: rename or copy it to load what is in it"
        )
    folder, real = path.parent.resolve(), path.resolve()
    cached = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    if not real.is_relative_to(folder.parents[2] if cached else folder):
        raise UserError(f"{path} is a link that leads out of its folder, to {real}: put the file itself there")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file of bounded size and depth.

    Raises:
        UserError: it is missing, damaged, too large or too deep.
    """
    size = checked(path).stat().st_size
    if size > JSON_LIMIT:
        raise UserError(
            f"{path} has {size:,} bytes, more than the {JSON_LIMIT:,} that are read: it is damaged or hostile"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        value = _nested(DEPTH_LIMIT + 1)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy or save the model again") from error
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return value
    raise UserError(f"{path} nests deeper than {DEPTH_LIMIT} levels: it is damaged or hostile")


def _nested(depth: int) -> object:
    return [] if depth == 0 else [_nested(depth - 1)]


def _numbers(description: object) -> Iterator[int]:
    if isinstance(description, int):
        yield description
    elif isinstance(description, Mapping | list):
        for item in description.values() if isinstance(description, Mapping) else description:
            yield from _numbers(item)


def _items(value: object) -> list[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


class Weights:
    """A safetensors file, of which only the header has been read.

    Args:
        path: the file.

    Raises:
        UserError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = checked(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                self.shapes = {name: tuple(item.get_shape()) for name, item in slices.items()}
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
            if mine == theirs and self.types[name].startswith(("F", "BF")) != state[name].is_floating_point():
                mine, theirs = str(state[name].dtype), self.types[name]
            elif mine == theirs:
                continue
            raise UserError(
                f"{self.path} does not fit the model that config.json describes: {name} is {theirs} in the file, and "
                f"{mine} in the model"
            )


def check_finite(weights: Mapping[str, Tensor], owner: object, dtype: torch.dtype | None = None) -> None:
    """Refuse weights with a NaN or an infinite number, which is also what one too large for its type becomes.

    Args:
        weights: tensors by their names.
        owner: where they come from, for the message.
        dtype: what they will be computed in; as they are if `None`.

    Raises:
        UserError: a number is not finite.
    """
    for name, weight in weights.items():
        tensor = weight.to(dtype) if dtype is not None and weight.is_floating_point() else weight
        if not torch.isfinite(tensor).all():
            kind = "" if tensor.dtype == torch.float32 else f", as {tensor.dtype}".replace("torch.", "")
            raise UserError(f"{owner} has values that are not finite in {name}{kind}: use an earlier checkpoint")


class Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to make tensors that together are much larger than some weights.

    Args:
        elements: number of elements of the weights.
        tensors: number of tensors of the weights.
        path: their file, for the message.

    Raises:
        UserError: as soon as a tensor is asked for that is too much.
    """

    def __init__(self, elements: int, tensors: int, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.tensors, self.path = 4 * elements + 2**20, 4 * tensors + 100, path

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
