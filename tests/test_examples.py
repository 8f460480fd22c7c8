"""Every public class and function shows its use; the examples themselves run as doctests."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import lit_seq2seq
from lit_seq2seq.types import Padded

WHOLE = ["types", "schedules", "reranking", "features.vectors"]
"""Modules without `__all__` whose classes and functions are all public."""

SINGLE = [
    "export.export_model",
    "inference.pipelines.Pipeline",
    "inference.pipelines.load_model",
    "plots.plot_attention",
    "plots.plot_curves",
    "inference.predictor.Output",
    "inference.predictor.Predictor",
]
"""Public names of other modules."""

HELPERS = {f"schedules.{name}" for name in ("check_factors", "on_plateau", "total_steps", "validates")}
"""What only the package itself calls."""


def modules() -> Iterator[ModuleType]:
    yield lit_seq2seq
    for found in pkgutil.walk_packages(lit_seq2seq.__path__, "lit_seq2seq."):
        if found.ispkg:
            yield importlib.import_module(found.name)


def public_names() -> Iterator[str]:
    for module in modules():
        for name in getattr(module, "__all__", ()):
            yield f"{module.__name__}.{name}"
    for module_name in WHOLE:
        module = importlib.import_module(f"lit_seq2seq.{module_name}")
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and not name.startswith("_") and f"{module_name}.{name}" not in HELPERS:
                yield f"{module.__name__}.{name}"
    yield from (f"lit_seq2seq.{name}" for name in SINGLE)


def examples(value: object) -> list[doctest.Example]:
    """Those of a class, with its methods, or of a function."""
    found = doctest.DocTestFinder(exclude_empty=True).find(value, "x", module=False)
    return [example for test in found for example in test.examples]


NAMES = sorted(set(public_names()))


@pytest.mark.parametrize("path", NAMES)
def test_a_public_name_has_an_example(path: str) -> None:
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert examples(value), f"{path} has no example in its docstring"


def test_examples_are_found() -> None:
    assert len(NAMES) > 150
    assert examples(Padded)
    assert not examples(examples)
