"""No public callable takes more than four arguments by their places, and no two public classes share a name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import lit_seq2seq

ROOT = Path(lit_seq2seq.__file__).parent
DICTATED = {
    "on_train_batch_end": "Lightning",
    "on_validation_batch_end": "Lightning",
    "on_test_batch_end": "Lightning",
    "on_predict_batch_end": "Lightning",
    "RunTrainer.fit": "Lightning",
    "SherpaEncoder.forward": "sherpa-onnx",
    "recurrent": "torch.library, which takes no tensors by name",
}
"""Callables whose arguments another package gives by their places."""
TWINS = {"Ensemble", "Generated", "Hypothesis", "Network", "WaitK"}
"""What a model and an exported one each have, with and without torch; what search does and training prepares for."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, int]]:
    """Yield the public callables and how many arguments they take by their places."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node.body, f"{node.name}.")
        if isinstance(node, Function) and (node.name == "__init__" or not node.name.startswith("_")):
            static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
            given = len(node.args.posonlyargs) + len(node.args.args)
            yield f"{owner}{node.name}", given - (1 if owner and not static else 0)


def too_many(source: str) -> list[str]:
    found = [(name, count) for name, count in functions(ast.parse(source).body) if count > 4]
    return [name for name, _ in found if name not in DICTATED and name.split(".")[-1] not in DICTATED]


def test_the_check_sees_what_it_is_for() -> None:
    assert too_many("def f(a, b, c, d, e): ...") == ["f"]
    assert too_many("class A:\n    def __init__(self, a, b, c, d, e): ...") == ["A.__init__"]
    assert too_many("class A:\n    def f(self, a, b, c, d, *, e): ...\ndef _g(a, b, c, d, e): ...") == []


def test_at_most_four_arguments_are_given_by_their_places() -> None:
    assert [f"{path.name}: {name}" for path in ROOT.rglob("*.py") for name in too_many(path.read_text("utf-8"))] == []


def test_each_name_of_a_class_has_one_meaning() -> None:
    places = defaultdict(list)
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.name)
    assert {name: paths for name, paths in places.items() if len(paths) > 1 and name not in TWINS} == {}
