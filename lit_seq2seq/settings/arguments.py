"""Arguments of what users call: compared with their annotations, so that a wrong one is a `UserError` that names it."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints

from lit_seq2seq.settings.spec import import_class
from lit_seq2seq.types import UserError

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class _MismatchError(Exception):
    pass


def checked(function: F, unchecked: Sequence[str] = ()) -> F:
    """Check the arguments of a function in each call, before it runs.

    A plain name is taken for a class where one is expected, such as `"dot"` for `DotAttention` or `"adam"` for
    `torch.optim.Adam`; capital letters do not matter. Arguments that are `unchecked` need only exist.

    Example:
        >>> @checked
        ... def scale(value: float, mode: Literal["up", "down"] = "up") -> str:
        ...     return f"{mode} {value}"
        >>> scale(2, "UP")
        'up 2'
        >>> try:
        ...     scale("2")
        ... except UserError as error:
        ...     print(error)
        scale: value: expected a number, got '2'
    """
    signature, constructs = inspect.signature(function), function.__name__ == "__init__"

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        title = type(args[0]).__name__ if constructs else function.__qualname__
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UserError(f"{title}: {error}{_meant(args, kwargs, signature, function)}") from None
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if name in unchecked or parameter.kind == parameter.VAR_POSITIONAL:
                continue
            hint = _hint(parameter.annotation, function)
            if parameter.kind == parameter.VAR_KEYWORD:
                _check_options(value, hint, title)
                continue
            try:
                bound.arguments[name] = _adapted(value, hint)
            except _MismatchError as mismatch:
                raise UserError(f"{title}: {name}: {mismatch}") from None
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def checked_fields(cls: C) -> C:
    """Check the arguments of the constructor of a class, such as a dataclass; see `checked`."""
    setattr(cls, "__init__", checked(vars(cls)["__init__"]))  # noqa: B010
    return cls


def renamed(names: Mapping[str, str]) -> Callable[[F], F]:
    """Let a constructor take settings by the names that they once had.

    Args:
        names: for each old name the argument and the field of it that the setting is now, such as `batches.size` for
            `batch_size`.
    """

    def rename(function: F) -> F:
        title = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            fields: dict[str, dict[str, Any]] = {}
            for old in names.keys() & kwargs.keys():
                argument, field = names[old].split(".")
                if argument in kwargs:
                    raise UserError(f"{title}: {old} is a field of {argument}, which is given too: set {field} there")
                fields.setdefault(argument, {})[field] = kwargs[old]
            return function(*args, **{name: value for name, value in kwargs.items() if name not in names}, **fields)

        return call  # type: ignore[return-value]

    return rename


def extends(base: type) -> Callable[[F], F]:
    """Give a constructor, which hands its further arguments to `base`, the signature of both, and check all.

    Arguments of its own come last; what `base` says of its arguments becomes part of the constructor's docstring.
    """
    theirs = inspect.signature(base).parameters
    hints = {name: _hint(one.annotation, vars(base)["__init__"]) for name, one in theirs.items()}

    def extend(function: F) -> F:
        mine = inspect.signature(function)
        own = [one for one in mine.parameters.values() if one.kind != one.VAR_KEYWORD]
        more = [one.replace(annotation=hints[name]) for name, one in theirs.items() if name not in mine.parameters]
        function.__doc__ = base.__doc__
        function.__signature__ = mine.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return checked(function)

    return extend


def _check_options(given: Mapping[str, Any], hint: Any, title: str) -> None:
    """Compare further arguments with the `TypedDict` that lists them, if there is one."""
    if get_origin(hint) is not Unpack:
        return
    hints = get_type_hints(get_args(hint)[0])
    for name, value in given.items():
        if name not in hints:
            raise UserError(f"{title}: there is no argument {name!r}{_close(name, hints)}")
        try:
            _adapted(value, hints[name])
        except _MismatchError as mismatch:
            raise UserError(f"{title}: {name}: {mismatch}") from None


def check_constructors(module: str) -> None:
    """Check the arguments of the constructors of all public classes of a module."""
    namespace = vars(sys.modules[module])
    for name in namespace["__all__"]:
        cls = namespace.get(name)  # some are imported when they are asked for
        if isinstance(cls, type) and "__init__" in vars(cls) and not issubclass(cls, tuple):
            checked_fields(cls)


def _meant(
    places: Sequence[Any], given: Mapping[str, Any], signature: inspect.Signature, function: Callable[..., Any]
) -> str:
    """Suggest what an argument was meant to be: by name, another name, or a field of what another argument takes."""
    wrong = next((name for name in given if name not in signature.parameters), None)
    if wrong is None:
        named = [name for name, one in signature.parameters.items() if one.kind == one.KEYWORD_ONLY]
        placed = [one for one in signature.parameters.values() if one.kind == one.POSITIONAL_OR_KEYWORD]
        return f": give {', '.join(named)} by name" if named and len(places) > len(placed) else ""
    for name, parameter in signature.parameters.items():
        hint = _hint(parameter.annotation, function)
        for kind in get_args(hint) or (hint,):
            if (
                isinstance(kind, type)
                and dataclasses.is_dataclass(kind)
                and wrong in inspect.signature(kind).parameters
            ):
                return f" - did you mean {name}={kind.__name__}({wrong}=...)?"
    return _close(wrong, signature.parameters)


def _close(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" - did you mean {close[0]}?" if close else ""


@functools.cache
def _evaluated(annotation: str, module: str) -> Any:
    try:
        return eval(annotation, dict(vars(sys.modules[module])))  # it is our own source
    except (NameError, TypeError):  # a name for type checkers only
        return Any


def _hint(annotation: Any, function: Callable[..., Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    return _evaluated(annotation, function.__module__) if isinstance(annotation, str) else annotation


def _adapted(value: Any, hint: Any) -> Any:
    """Return the value, with classes for their names.

    Raises:
        _MismatchError: it is not what `hint` says.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first(value, inner, hint)
    if origin is Literal:
        return _choice(value, inner, hint)
    if hint in (bool, int, float, str, None, type(None)):
        return _plain(value, hint)
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return _factory(value, inner[1] if inner else Any, hint)
    base = origin or hint
    if getattr(base, "_is_protocol", False):
        if all(hasattr(value, name) for name in vars(base) if not name.startswith("_")):
            return value
        raise _MismatchError(_expected(hint, value))
    if not isinstance(base, type):
        return value
    return _object(value, base, inner, hint)


def _first(value: Any, hints: Sequence[Any], hint: Any) -> Any:
    reasons = []
    for one in hints:
        try:
            return _adapted(value, one)
        except _MismatchError as mismatch:
            reasons.append(str(mismatch))
    telling = [reason for reason in reasons if not reason.startswith("expected")]
    raise _MismatchError(telling[0] if telling else _expected(hint, value))


def _choice(value: Any, choices: Sequence[Any], hint: Any) -> Any:
    alike = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    if isinstance(value, str) and value.lower() in alike:
        return value if value in choices else alike[value.lower()]
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return value
    raise _MismatchError(_expected(hint, value))


def _plain(value: Any, hint: Any) -> Any:
    if hint is str and isinstance(value, PurePath):
        return str(value)
    kinds: dict[Any, Any] = {bool: bool, int: Integral, float: Real, str: str}
    fits = value is None if hint in (None, type(None)) else isinstance(value, kinds[hint]) and value == value  # no NaN
    if fits and (hint is bool or not isinstance(value, bool)):
        return value
    raise _MismatchError(_expected(hint, value))


def _factory(value: Any, made: Any, hint: Any) -> Any:
    made = made if isinstance(made, type) else object
    if isinstance(value, str):
        return named(made, value)
    if isinstance(value, Mapping) and "class_path" in value:
        return value
    if isinstance(value, functools.partial) and isinstance(value.func, type):
        value = _with_classes(value)
    cls: Any = value.func if isinstance(value, functools.partial) else value
    wrong = isinstance(cls, type) and made is not object and not issubclass(cls, made)
    if not callable(value) or wrong or (made is not object and isinstance(value, made)):
        raise _MismatchError(_expected(hint, value))
    return value


def _with_classes(value: functools.partial[Any]) -> functools.partial[Any]:
    """Check the arguments that a partial holds, and replace names of classes by these."""
    parameters, made = inspect.signature(value.func).parameters, {}
    for name, item in value.keywords.items():
        if name not in parameters:
            raise _MismatchError(f"{value.func.__name__} has no argument {name}{_close(name, parameters)}")
        try:
            made[name] = _adapted(item, _hint(parameters[name].annotation, value.func))
        except _MismatchError as mismatch:
            raise _MismatchError(f"{value.func.__name__}: {name}: {mismatch}") from None
    return functools.partial(value.func, *value.args, **made)


def _object(value: Any, base: type, inner: Sequence[Any], hint: Any) -> Any:
    if dataclasses.is_dataclass(base) and isinstance(value, Mapping):
        return _made(base, value)
    if isinstance(value, str) and inspect.isabstract(base) and base.__module__.startswith("lit_seq2seq."):
        return named(base, value)()
    if base is Path and isinstance(value, str):
        return Path(value)
    if issubclass(base, Mapping) and isinstance(value, Mapping):
        return _entries(value, inner)
    several = issubclass(base, list | tuple | collections.abc.Sequence) or base is collections.abc.Iterable
    if several and not issubclass(base, str):
        if isinstance(value, list | tuple) or (
            isinstance(value, base) and not isinstance(value, str | bytes | Mapping)
        ):
            return _items(value, inner)
    elif isinstance(value, base):
        return value
    raise _MismatchError(_expected(hint, value))


def _made(base: Any, arguments: Mapping[str, Any]) -> Any:
    names = inspect.signature(base).parameters
    if unknown := [str(name) for name in arguments if name not in names]:
        raise _MismatchError(f"{base.__name__} has no argument {unknown[0]}{_close(unknown[0], names)}")
    return base(**arguments)


def _entries(value: Mapping[Any, Any], inner: Sequence[Any]) -> Any:
    if len(inner) != 2:
        return value
    made = {_adapted(key, inner[0]): _adapted(item, inner[1]) for key, item in value.items()}
    return value if all(made[key] is item for key, item in value.items()) else made


def _items(value: Any, inner: Sequence[Any]) -> Any:
    hints = [one for one in inner if one is not Ellipsis]
    if not hints or not isinstance(value, list | tuple):
        return value
    if len(hints) > 1 and len(hints) != len(value):
        raise _MismatchError(f"expected {len(hints)} values, got {len(value)}")
    made = [_adapted(item, hints[place] if len(hints) > 1 else hints[0]) for place, item in enumerate(value)]
    return value if all(one is other for one, other in zip(made, value, strict=True)) else type(value)(made)


def named(base: type, name: str) -> type:
    """Find a class by its own name, by its name without what the base is called, or by its path.

    Raises:
        _MismatchError: there is none.
    """
    if "." in name:
        try:
            return import_class(name)
        except UserError as error:
            raise _MismatchError(f"got {name!r}, but {error}") from None
    if home := getattr(base, "home", None):  # it may not have been imported yet
        import_module(home)
    wanted = name.lower().replace("_", "").replace("-", "")
    found = {cls.__name__.lower(): cls for cls in reversed(list(_concrete(base)))}
    for candidate in (wanted, wanted + base.__name__.lower()):
        if candidate in found:
            return found[candidate]
    names = sorted({cls.__name__ for cls in found.values()})
    choices = f"choose among {', '.join(names)}{_close(name, names)}"
    raise _MismatchError(f"there is no {base.__name__} called {name!r}: {choices}")


def _concrete(base: Any) -> Iterator[type]:
    for cls in base.__subclasses__():
        if not cls.__name__.startswith("_") and not inspect.isabstract(cls):
            yield cls
        yield from _concrete(cls)


def _expected(hint: Any, value: Any) -> str:
    return f"expected {_said(hint)}, got {shown(value)}"


def shown(value: object) -> str:
    """Show a value in one line, the beginning of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _said(hint: Any) -> str:
    """Say what a type hint asks for."""
    origin, inner = get_origin(hint), get_args(hint)
    words = {bool: "True or False", int: "an integer", float: "a number", str: "a text", type(None): "None", Any: "any"}
    if hint in words:
        return words[hint]
    if origin in (Union, types.UnionType):
        return " or ".join(map(_said, inner))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is collections.abc.Callable:
        made = getattr(inner[1], "__name__", "what it makes")
        return f"a class or functools.partial that makes {made}"
    if isinstance(origin, type) and issubclass(origin, list | tuple | collections.abc.Sequence):
        return "a list" if inner[:1] in ((), (Any,)) else f"a list, each item {_said(inner[0])}"
    name = getattr(origin or hint, "__name__", str(hint))
    return f"{name} of {_said(inner[-1])}" if inner and isinstance(origin, type) and inner[-1] is not Ellipsis else name
