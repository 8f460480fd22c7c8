"""Objects from plain mappings and back: the one description that recipes, checkpoints and model folders share.

A *factory* is a callable that lacks a few leading arguments (sizes, parameters), which its parent supplies: a class, or
a `functools.partial` of one. Its description is `{"class_path": ..., "init_args": {...}}`.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FunctionType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lit_seq2seq.types import Part, UserError

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]

TRUSTED: Mapping[str, tuple[str, ...]] = {
    "lit_seq2seq.nn": ("torch.nn.Module",),
    "lit_seq2seq.features": ("lit_seq2seq.features.Feature",),
    "lit_seq2seq.metrics": ("lit_seq2seq.metrics.TextMetric",),
    "lit_seq2seq.reranking": ("lit_seq2seq.reranking.Reranker",),
    "lit_seq2seq.search": ("lit_seq2seq.search.Constraint", "lit_seq2seq.search.Scorer", "lit_seq2seq.search.Policy"),
    "lit_seq2seq.training": ("lit_seq2seq.training.Objective",),
    "lit_seq2seq.schedules": ("torch.optim.lr_scheduler.LRScheduler",),
    "torch.nn": ("torch.nn.Module",),
    "torch.optim": ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
}
"""The classes that any description may name: in each package, those that are derived from one of these. Others are only
imported when the caller trusts them, and each has to be of the kind that its place asks for."""


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
        {'class_path': 'lit_seq2seq.nn.TextEncoder', 'init_args': {'hidden_size': 8}}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class_path": _path(type(value)), "init_args": plain} if isinstance(value, Part) else plain
    if isinstance(value, partial):
        # jsonargparse wraps the class in instantiators of its own and passes it as the last positional argument.
        cls = next((arg for arg in reversed(value.args) if isinstance(arg, type)), value.func)
        return {"class_path": _path(cls), "init_args": describe(value.keywords)}
    return {"class_path": _path(value), "init_args": {}}


def build(description: object, trust: tuple[str, ...] = (), hint: Any = Any, saved: bool = False) -> object:
    """Turn a description back into factories and plain values; what is not a description comes back unchanged.

    Args:
        description: made by `describe` or written by hand.
        trust: packages or classes, beyond those of `TRUSTED`, that may be imported.
        hint: type of the argument that it is for, such as `Callable[[], TextMetric]`: which classes it may name.
        saved: whether it comes from a saved model, which is built without asking the hub for anything.

    Returns:
        For each `class_path` a `functools.partial`, in place.

    Raises:
        UserError: a class that is not trusted, does not exist or is of another kind.
    """
    if isinstance(description, Mapping):
        if "class_path" in description:
            return _factory(description, trust, hint, saved)
        return {key: build(value, trust, _inside(hint), saved) for key, value in description.items()}
    if isinstance(description, list):
        return [build(item, trust, _inside(hint), saved) for item in description]
    if saved and isinstance(description, str) and _wants_classes(hint):
        raise UserError(
            f"expected a class with its arguments, but the description has {description!r:.80}: it is {DAMAGED}"
        )
    return description


def build_arguments(
    cls: type, arguments: Mapping[str, object], trust: tuple[str, ...] = (), saved: bool = False
) -> dict[str, Any]:
    """Build the arguments of a class, each of the kind that the class says; see `build`."""
    hints = _hints(cls)
    if saved and (strange := next((name for name in arguments if not name.isidentifier()), None)):
        raise UserError(f"the description of {cls.__name__} has the setting {strange!r:.80}: it is {DAMAGED}")
    if saved:
        check_values(cls, arguments)
    return {name: build(value, trust, hints.get(name, Any), saved) for name, value in arguments.items()}


def check_values(cls: type, arguments: Mapping[str, object]) -> None:
    """Refuse plain values that are no arguments of a class of this package.

    Raises:
        UserError: one is of another type than the class says.
    """
    hints = _hints(cls) if cls.__module__.startswith(_NEVER[0]) else {}
    for name, value in arguments.items():
        if not _fits(value, hints.get(name, Any)):
            expected = str(getattr(hints[name], "__name__", hints[name])).replace("typing.", "")
            raise UserError(f"{name} of {cls.__name__} is {value!r:.80}, expected {expected}: it is {DAMAGED}")


def _fits(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint in (bool, int, float, str, NoneType):
        kinds = (int, float) if hint is float else (hint,)
        return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, inner[-1]) for one in value.values())
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    return True


DAMAGED = "damaged or hostile"


def _factory(description: Mapping[str, Any], trust: tuple[str, ...], hint: Any, saved: bool) -> object:
    found, arguments = import_class(str(description["class_path"]), trust), description.get("init_args") or {}
    if not issubclass(found, kinds := _kinds(hint)):
        expected = " or ".join(kind.__name__ for kind in kinds) or "a plain value"
        named = f"{found.__module__}.{found.__qualname__}"
        raise UserError(f"expected {expected}, but the description names {named}: it is {DAMAGED}")
    if not isinstance(arguments, Mapping) or description.keys() - {"class_path", "init_args"}:
        raise UserError(f"the description of {found.__name__} has more than class_path and init_args: it is {DAMAGED}")
    for name in getattr(found, "resolves", ()) if saved else ():
        if arguments.get(name) is None:
            raise UserError(
                f"the description of {found.__name__} has no {name}, without which the hub would have to be asked: "
                f"save the model again, or it is {DAMAGED}"
            )
    return partial(found, **build_arguments(found, arguments, trust, saved))


def import_class(path: str, trust: tuple[str, ...] = ()) -> type:
    """Import `package.module.Name`, if it is trusted or one of those that `TRUSTED` lists.

    Folders and checkpoints of 0.1 name parts of this package by the files that they were in then; they are found by
    their public names.
    """
    trusted = any(f"{path}.".startswith(f"{name}.") for name in trust)
    bases = next((bases for package, bases in TRUSTED.items() if path.startswith(f"{package}.")), None)
    if bases is None and not trusted:
        package = path.split(".")[0]
        if package in _NEVER:
            raise UserError(f"the description names {path}, which is no part of a model: it is {DAMAGED}")
        raise UserError(
            f"the description names {path}, which is outside the trusted packages: if you trust its author, pass "
            f"trust=({package!r},), or --trust {package}"
        )
    try:
        found = _attribute(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"there is no class {path} ({error}): check the spelling, or put the version that has it on Python's path"
        ) from error
    if not isinstance(found, type):
        raise UserError(f"{path} is not a class, but {type(found).__name__}: class_path must name a class")
    if path != (home := f"{found.__module__}.{found.__qualname__}"):
        return import_class(home, trust)  # what a trusted package merely imports from elsewhere is not trusted
    if not trusted and not issubclass(found, tuple(map(_attribute, bases or ()))):
        raise UserError(f"the description names {path}, which is no part of a model: it is {DAMAGED}")
    return found


_NEVER = (__name__.split(".")[0], "torch")


def trust_of(description: object) -> tuple[str, ...]:
    """Name what a model of one's own is made of, for `trust` in a folder that it starts from.

    A package that has a part for this one is trusted as a whole; of other packages, only the classes that are named; of
    torch and of this package, nothing beyond `TRUSTED`.

    Example:
        >>> trust_of({"class_path": "lit_seq2seq.nn.TextEncoder"}), trust_of({"class_path": "collections.Counter"})
        ((), ('collections.Counter',))
    """
    if isinstance(description, list):
        return tuple(sorted({name for item in description for name in trust_of(item)}))
    if not isinstance(description, Mapping):
        return ()
    inner = trust_of(list(description.values()))
    path = str(description.get("class_path", _NEVER[0]))
    if (package := path.split(".")[0]) in _NEVER:
        return inner
    found = import_class(path, (package,))
    part = any(base.__module__.split(".")[0] == _NEVER[0] for base in found.__mro__)
    return tuple(sorted({package if part else f"{found.__module__}.{found.__qualname__}", *inner}))


def _attribute(path: str) -> Any:
    """Return what a path leads to; in this package the public part of that name, wherever its file is."""
    module, _, name = path.rpartition(".")
    package = ".".join(module.split(".")[:2])
    if package in TRUSTED and package.startswith(_NEVER[0]):
        public = importlib.import_module(package)
        if hasattr(public, name):
            return getattr(public, name)
    return getattr(importlib.import_module(module), name)


def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's arguments, those that it hands on to its bases included."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if isinstance(init := vars(base).get("__init__"), FunctionType):
            try:
                found |= get_type_hints(init)
            except (NameError, TypeError):  # names that are only there for a type checker
                found |= dict.fromkeys(init.__annotations__, Any)
    return found


def _kinds(hint: Any) -> tuple[type, ...]:
    """Return the classes of which a factory may make an instance here: `object` where any may be."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return tuple(kind for one in inner for kind in _kinds(one))
    if origin is Annotated:
        return _kinds(inner[0])
    if origin in (Callable, type):
        return _kinds(inner[-1])
    if origin is not None or hint in (NoneType, *_PLAIN):
        return ()
    unknown = hint is Any or hint is Callable or not isinstance(hint, type) or getattr(hint, "_is_protocol", False)
    return (object,) if unknown else (hint,)


def _inside(hint: Any) -> Any:
    """Return the type of what a list or mapping holds."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return Union[tuple(map(_inside, inner))]  # noqa: UP007 - of any number
    if origin is Annotated:
        return _inside(inner[0])
    if origin in (Callable, type, Literal) or hint in (NoneType, bool, int, float, str):
        return NoneType
    if isinstance(origin, type) and inner:
        return inner[-1] if issubclass(origin, Mapping) else Union[tuple(one for one in inner if one is not ...)]  # noqa: UP007
    return Any


def _wants_classes(hint: Any) -> bool:
    """Whether all that may stand here are factories of known kinds, or lists and mappings of them."""
    if hint is Any or str in (options := get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)):
        return False
    if any(get_origin(one) is Literal for one in options):
        return False
    kinds = _kinds(hint)
    return bool(kinds and object not in kinds) or (
        not kinds and _inside(hint) is not NoneType and _wants_classes(_inside(hint))
    )


_PLAIN = (bool, int, float, str, bytes, list, dict, tuple, set, frozenset)


def _path(value: object) -> str:
    if not isinstance(value, type) or "<" in value.__qualname__:
        raise UserError(
            f"expected a plain value, an importable class or a functools.partial of one, got {value!r:.80}: functions "
            "and objects cannot be saved with a model"
        )
    return public_name(value)


def public_name(cls: type) -> str:
    """Name a class by the outermost package that has it, so that saved names outlive the file that it is in.

    Example:
        >>> from lit_seq2seq.nn import TextEncoder
        >>> public_name(TextEncoder), public_name(dict)
        ('lit_seq2seq.nn.TextEncoder', 'builtins.dict')
    """
    parts = cls.__module__.split(".")
    packages = (sys.modules.get(".".join(parts[:depth])) for depth in range(1, len(parts) + 1))
    having = (one.__name__ for one in packages if one and vars(one).get(cls.__qualname__) is cls)
    return f"{next(having, cls.__module__)}.{cls.__qualname__}"
