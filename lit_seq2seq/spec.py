"""Objects from plain mappings and back: the one description that recipes, checkpoints and model folders share.

A *factory* is a callable that lacks a few leading arguments (sizes, parameters), which its parent supplies: a class, or
a `functools.partial` of one. Its description is `{"class_path": ..., "init_args": {...}}`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from functools import partial

from lit_seq2seq.types import UserError

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]

TRUSTED = (
    "lit_seq2seq.nn",
    "lit_seq2seq.features",
    "lit_seq2seq.metrics",
    "lit_seq2seq.reranking",
    "lit_seq2seq.schedules",
    "torch.nn",
    "torch.optim",
)
"""Packages of parts, whose classes a description may name. Others only run when the caller says so: even the rest of
this package, such as its command line, whose arguments can name any class."""


def describe(value: object) -> Plain:
    """Turn a factory, dataclass, class or plain value into a plain, JSON-able description.

    Args:
        value: what to describe. `functools.partial` objects become `class_path` and `init_args`.

    Returns:
        Nested dictionaries, lists, strings, numbers, booleans and `None`.

    Raises:
        UserError: a value that has no plain description, such as a function or a module instance.

    Example:
        >>> from lit_seq2seq.nn import TextEncoder
        >>> describe(partial(TextEncoder, hidden_size=8))
        {'class_path': 'lit_seq2seq.nn.encoders.text.TextEncoder', 'init_args': {'hidden_size': 8}}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, partial):
        # jsonargparse wraps the class in instantiators of its own and passes it as the last positional argument.
        cls = next((arg for arg in reversed(value.args) if isinstance(arg, type)), value.func)
        return {"class_path": _path(cls), "init_args": describe(value.keywords)}
    return {"class_path": _path(value), "init_args": {}}


def build(description: object, trust: tuple[str, ...] = ()) -> object:
    """Turn a description back into factories and plain values; what is not a description comes back unchanged.

    Args:
        description: made by `describe` or written by hand.
        trust: packages, beyond `TRUSTED`, whose classes may be imported.

    Returns:
        For each `class_path` a `functools.partial`, in place.

    Raises:
        UserError: a class that is not trusted or does not exist.

    Example:
        >>> build({"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}})
        functools.partial(<class 'torch.optim.adam.Adam'>, lr=0.1)
    """
    if isinstance(description, Mapping):
        if "class_path" in description:
            arguments = description.get("init_args") or {}
            return partial(
                import_class(str(description["class_path"]), trust),
                **{key: build(value, trust) for key, value in arguments.items()},
            )
        return {key: build(value, trust) for key, value in description.items()}
    if isinstance(description, list):
        return [build(item, trust) for item in description]
    return description


def import_class(path: str, trust: tuple[str, ...] = ()) -> type:
    """Import `package.module.Name`, if its package is trusted."""
    if not any(path.startswith(package + ".") for package in (*TRUSTED, *trust)):
        package = path.split(".")[0]
        if package == __package__:
            raise UserError(f"the description names {path}, which is no part of a model: it is damaged or hostile")
        raise UserError(
            f"the description names {path}, which is outside the trusted packages: if you trust its author, pass "
            f"trust=({package!r},), or --trust {package}"
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"there is no class {path}: check the spelling or install the version that has it") from error
    if not isinstance(found, type):
        raise UserError(f"{path} is not a class, but {type(found).__name__}: class_path must name a class")
    if path != (home := f"{found.__module__}.{found.__qualname__}"):
        return import_class(home, trust)  # what a trusted package merely imports from elsewhere is not trusted
    return found


def packages_of(description: object) -> tuple[str, ...]:
    """Name the packages of the classes that a description names, for `trust` in what it is made of.

    Example:
        >>> packages_of({"encoder": {"class_path": "my_package.MyEncoder", "init_args": {"cell": None}}})
        ('my_package',)
    """
    if isinstance(description, list):
        return tuple(sorted({name for item in description for name in packages_of(item)}))
    if not isinstance(description, Mapping):
        return ()
    own = [str(description["class_path"]).split(".")[0]] if "class_path" in description else []
    return tuple(sorted({*own, *packages_of(list(description.values()))}))


def _path(value: object) -> str:
    if not isinstance(value, type) or "<" in value.__qualname__:
        raise UserError(
            f"expected a plain value, an importable class or a functools.partial of one, got {value!r:.80}: functions "
            "and objects cannot be saved with a model"
        )
    return f"{value.__module__}.{value.__qualname__}"
