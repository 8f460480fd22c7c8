"""The argument parser of every command: YAML of a reasonable size, and errors in one line."""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, cast

import jsonargparse
import yaml
from jsonargparse import Namespace, dict_to_namespace, get_loader, set_loader
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg

from lit_seq2seq.files.paths import Loading
from lit_seq2seq.settings import Dtype
from lit_seq2seq.types import UserError

_load_yaml = get_loader("yaml")
_MOST_VALUES = 100_000
_dumping: ContextVar[bool] = ContextVar("_dumping", default=False)


def load_yaml(text: str) -> Any:
    """Parse YAML, if it is of a reasonable size when its aliases are written out.

    Raises:
        UserError: it is not, as in "a billion laughs", where lists name lists that name lists; or it holds itself.
    """
    value = _load_yaml(text)
    if "*" in text and _values(value, {}) > _MOST_VALUES:
        raise UserError(f"a YAML text has more than {_MOST_VALUES:,} values, its aliases written out: use fewer")
    return value


def _values(value: object, known: dict[int, float]) -> float:
    """Count what `value` holds, each time it is there; infinitely much where it holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_values(item, known) for item in inner)
    return known[id(value)]


set_loader("yaml", load_yaml, (yaml.YAMLError,))


class _Setting(ActionTypeHint):
    """A setting whose list, where it replaces another, takes over no arguments of the classes in the same places."""

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        whole = not append and not isinstance(value, NestedArg) and isinstance(cfg and cfg.get(self.dest), list)
        return super()._check_type(value, append, None if whole else cfg, mode)  # type: ignore[no-untyped-call]


class OptionParser(jsonargparse.ArgumentParser):
    """The argument parser: names in full, files never read as settings, one-line errors that suggest what was meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.made: type | None = None
        self.renamed: dict[str, str] = {}
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        """Add the arguments of a class; the value of none is replaced by the contents of a file of that name."""
        if not args and "nested_key" not in kwargs:  # jsonargparse's parser of what a recipe names
            self.made = theclass
        key = args[0] if args else kwargs.get("nested_key")
        self.renamed |= {f"{key}.{old}": f"{key}.{new}" for old, new in getattr(theclass, "renamed", {}).items()}
        names: list[str] = super().add_class_arguments(theclass, *args, **{**kwargs, "sub_configs": False})
        for action in self._actions:
            if isinstance(action, ActionTypeHint):
                action.__class__ = _Setting
        return names

    def get_defaults(self, skip_validation: bool = False, **kwargs: Any) -> Namespace:
        """Return the defaults; of a class that is one, only what the signature says, since another has its own.

        Parsing fills in the arguments of the class that is named in the end (jsonargparse #460).
        """
        defaults: Namespace = super().get_defaults(skip_validation, **kwargs)
        if not _dumping.get():
            for action in self._actions:
                if isinstance(action.default, dict | Namespace) and "class_path" in action.default:
                    defaults[action.dest] = dict_to_namespace(action.default)
        return defaults

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Write settings; those that are left out as defaults are compared with all defaults."""
        token = _dumping.set(True)
        try:
            text: str = super().dump(*args, **kwargs)
        finally:
            _dumping.reset(token)
        return text

    def parse_args(self, args: Iterable[str] | None = None, *others: Any, **kwargs: Any) -> Any:
        """Parse arguments; an error in a file with a class that they name is the user's to mend."""
        args = sys.argv[1:] if args is None else args
        try:
            parsed = super().parse_args([_option_now(one, self.renamed) for one in args], *others, **kwargs)
        except Exception as error:
            if (reason := import_failure(error)) is None:
                raise
            raise UserError(reason) from error
        return parsed

    def instantiate_classes(self, cfg: Any, **kwargs: Any) -> Any:
        """Make what the settings name; a value that one of these classes refuses is the user's to mend."""
        try:
            return super().instantiate_classes(cfg, **kwargs)
        except ValueError as error:
            if (reason := reason_of(error)) is None:
                raise
            raise UserError(reason) from error

    def _apply_actions(self, cfg: Any, parent_key: str = "", *args: Any, **kwargs: Any) -> Namespace:
        """Take the settings of a file, some of which may have the names that they once had."""
        cfg = cfg if parent_key else _settings_now(cfg, _renamed(self))
        settings: Namespace = super()._apply_actions(cfg, parent_key, *args, **kwargs)
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the one line."""
        text = " ".join(str(message).split())
        if (reason := reason_of(ex)) is not None and (key := re.match(r"Parser key \"([\w.]+)\"", text)):
            raise UserError(key[1] + ("." if re.match(r"[\w.]+: ", reason) else ": ") + reason) from ex
        if "arguments are required" in text and text.endswith("data.dataset"):
            text = "no data is named: give a recipe with --config FILE, or --data.dataset PATH_OR_HUB_ID"
        if self.made is not None and (missing := re.fullmatch("the following arguments are required: (.*)", text)):
            text = f"{self.made.__module__}.{self.made.__qualname__} needs {missing[1]}: give it in init_args"
        for module, wrong in re.findall(r"module '([\w.]+)' has no attribute '(\w+)'", text):
            there = [name for name, value in vars(importlib.import_module(module)).items() if isinstance(value, type)]
            close = difflib.get_close_matches(wrong, there, n=1)
            text = f"there is no class {module}.{wrong}" + (f" - did you mean {module}.{close[0]}?" if close else "")
        if missing := re.fullmatch(r"argument \S*?(--\S+): expected (at least )?one argument", text):
            kinds = {option: getattr(one, "_typehint", None) for one in self._actions for option in one.option_strings}
            example = "true" if kinds.get(missing[1]) is bool else "VALUE"
            text = f"{missing[1]} needs a value, as in {missing[1]} {example}"
        text = re.sub(_AMBIGUOUS, r'Parser key "\1": several classes are called \2: give the path of one, \3', text)
        text = re.sub(
            _NO_CLASS, r'Parser key "\1": expected the path of a class, such as my_parts.MyClass, got \2', text
        )
        text = re.sub(
            _WRONG_KIND,
            r'Parser key "\1": expected a class of kind \3, or a function annotated to return one, got \2',
            text,
        )
        text = re.sub(_UNLIKE_ANY, r"- Expected a number >0", text)
        text = re.sub(_UNLIKE, r"expected a number >0, got \1\2", text)
        text = re.sub(_MISMATCH, _say_mismatch, text)
        text = re.sub(_UNEXPECTED, r"the file that --config names is no recipe in YAML: it begins with \1", text)
        text = re.sub(r"^Parser key \"([\w.]+)\": ", r"\1: ", text)
        known, renamed = _names(self), _renamed(self)
        for wrong in _unknown(text):
            close = difflib.get_close_matches(wrong, known | renamed.keys(), n=1, cutoff=0.6)
            last = difflib.get_close_matches(wrong.split(".")[-1], {name.split(".")[-1] for name in known}, n=1)
            if found := close or last:
                text += f" - did you mean {renamed.get(found[0], found[0])}?"
        raise UserError(text) from ex


def add_running(parser: jsonargparse.ArgumentParser) -> None:
    """Add the options that name a model, or several, and say how to run it."""
    about = "model folder or hub id; several make an ensemble"
    parser.add_argument("--model", type=str, nargs="+", required=True, help=about)
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", type=Dtype, default="float32", help="what to compute in; int8: on CPUs")
    add_loading(parser)


def add_loading(parser: jsonargparse.ArgumentParser) -> None:
    """Add the fields of `Loading` to the options of a command."""
    parser.add_argument("--revision", type=str | None, default=None, help="branch, tag or commit on the hub")
    parser.add_argument("--token", type=str | None, default=None, help="of the hub; better: hf auth login, or HF_TOKEN")
    parser.add_argument("--cache_dir", type=str | None, default=None, help="where what comes from the hub is kept")
    parser.add_argument("--local_files_only", type=bool, default=False, help="take what is kept there and ask nobody")
    parser.add_argument(
        "--trust", type=str, nargs="*", default=[], help="packages of others whose code the model may run"
    )


def loading_of(options: Namespace) -> Loading:
    """Return the options that `add_loading` added."""
    return cast(Loading, {name: options[name] for name in Loading.__annotations__})


def reason_of(error: BaseException | None) -> str | None:
    """Look into what jsonargparse wraps, once for each place that a value was tried for, for what is wrong inside."""
    while error is not None:
        if isinstance(error, UserError):  # of a class named in this place
            return str(error)
        if (failure := import_failure(error)) is not None:
            return failure
        if isinstance(error, ModuleNotFoundError):  # such as a logger's
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def import_failure(error: BaseException) -> str | None:
    """Say which module could not be imported, or where in it the reason is; `None` if it is another error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    calls = [frame.name for frame in frames]
    if "import_object" not in calls or not isinstance(error, Exception):  # jsonargparse's
        return None
    last = frames[-1]
    if isinstance(error, ModuleNotFoundError) and last.name == "import_object":
        return f"there is no module {error.name}: install it, or start in the folder that has {error.name}.py"
    if Path(last.filename).parent == Path(jsonargparse.__file__).parent and not isinstance(error, SyntaxError):
        return None
    where = "" if isinstance(error, SyntaxError) else f" ({Path(last.filename).name}, line {last.lineno})"
    return f"the class cannot be imported: {type(error).__name__}: {error}{where}"


_MISMATCH = (
    r"Parser key \"([\w.]+)\": (?:Does not validate against any of the Union subtypes (.*) Given value type: .*"
    r"|(Expected a .*? Got value: .*))"
)
_AMBIGUOUS = (
    r"Parser key \"([\w.]+)\": .*?Multiple subclasses with name (\w+)\. Give the full class path to avoid ambiguity: "
    r"([\w., ]+)\..*"
)
_NO_CLASS = r"Parser key \"([\w.]+)\": .*?Expected a (?:dot )?import path string: (\S+).*"
_WRONG_KIND = (
    r"Parser key \"([\w.]+)\": .*?Expected '([\w.]+)' to be a (?:subclass of|function that returns) (?:<class ')?"
    r"(?:[\w.]*\.)?(\w+)\b.*"
)
_UNLIKE = r"Not of type Positive\w+: (?:(\S+) does not conform to restriction v>0|.*: '(.*)')"
_UNLIKE_ANY = r"- Not of type Positive\w+: .*?(?= - )"
_UNEXPECTED = r"^Unexpected config: (.{0,60}).*"


def _say_mismatch(found: re.Match[str]) -> str:
    """Say what jsonargparse tells in several lines: the setting, what it may be, and what it is."""
    name, reasons = found[1], re.sub(r"Not a valid subclass of (\w+).*?(?= - )", r"Expected a \1", found[2] or found[3])
    keys = re.findall(r"(?:Parser key \"|- )([\w.]+)(?:\":|: expected)", reasons)
    expected = [
        re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>|typing\.Literal", r"\1", reason)
        .replace("NoneType", "null")
        .replace("tuple", "list")
        .strip("[]")
        for reason in re.findall(r"[Ee]xpected (?:a )?(.+?)(?=\.? Got value|, got | - |$)", reasons)
    ]
    given = re.search(r"(?:Got value: |, got )(\S+)|Given value: (?!NestedArg)(.*)", found[0])
    value = "" if given is None else given[1] or given[2]
    said = f"{'.'.join([name, *keys])}: expected {' or '.join(expected)}{value and f', got {value}'}"
    return said + _written({*expected} - {"null"}, value) if expected else found[0]


def _written(expected: set[str], value: str) -> str:
    """Say how a list is written in YAML, and a text that looks like something else."""
    if expected == {"list"}:
        return f": put it in brackets, '[{'{...}' if value.startswith('{') else value}]'"
    return """: put texts in quotes, as in '["15"]'""" if expected == {"str"} else ""


def _unknown(message: str) -> list[str]:
    pattern = (
        r"Option '([\w.]+)' is not accepted|[Uu]nrecognized arguments?: --([\w.]+)|does not accept option '([\w.]+)'"
    )
    return [next(group for group in found if group) for found in re.findall(pattern, message)]


def _option_now(argument: str, renamed: Mapping[str, str]) -> str:
    """Replace the name that an option once had, as in `--data.batch_size=8`, by the one that it has."""
    name = re.match(r"--([\w.]+)", argument)
    old = next((old for old in renamed if name and f"{name[1]}.".startswith(f"{old}.")), None)
    return argument if old is None else f"--{renamed[old]}{argument[2 + len(old) :]}"


def _settings_now(settings: Any, renamed: Mapping[str, str]) -> Any:
    """Return settings with those that have names of old in the places that they have now.

    Raises:
        UserError: one is there by both names.
    """
    for old, new in renamed.items():
        *path, last = old.split(".")
        group, field = new.split(".")[-2:]
        if not _holds(settings, path, last):
            continue
        settings = copy.deepcopy(settings)
        inner = functools.reduce(lambda outer, name: outer[name], path, settings)
        inner[group] = dict(inner.get(group) or {})
        if field in inner[group]:
            raise UserError(f"{old} is what {new} was called once, and both are set: unset one")
        inner[group][field] = inner.pop(last)
    return settings


def _holds(settings: Any, path: Sequence[str], last: str) -> bool:
    for name in path:
        settings = settings.get(name) if isinstance(settings, dict | Namespace) else None
    return isinstance(settings, dict | Namespace) and last in settings


def _renamed(parser: jsonargparse.ArgumentParser) -> dict[str, str]:
    """Return the settings that had other names once, those of subcommands included."""
    found = dict(getattr(parser, "renamed", {}))
    if parser._subcommands_action is not None:
        for name, child in parser._subcommands_action._name_parser_map.items():
            found |= {f"{name}.{old}": f"{name}.{new}" for old, new in _renamed(child).items()}
    return found


def _names(parser: jsonargparse.ArgumentParser) -> set[str]:
    names = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    names = {name for name in names if not name.endswith(".help")}
    if parser._subcommands_action is not None:
        for child in parser._subcommands_action._name_parser_map.values():
            names |= _names(child)
    return names
