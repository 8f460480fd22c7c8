import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_seq2seq

PACKAGE = "lit_seq2seq"
ROOT = Path(lit_seq2seq.__file__).parent
LAYERS = [
    "arrays",
    "types",
    "files shortlist",
    "settings",
    "nn search features schedules",
    "metrics hub plots builtin",
    "data reranking",
    "live",
    "runtime",
    "inference",
    "training",
    "callbacks export",
    "serve",
    "cli",
    "__init__ __main__",
]
"""Units of the package, lowest layer first: each may import what stands above it in this list, not its neighbours."""

LEVELS = {unit: level for level, units in enumerate(LAYERS) for unit in units.split()}


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_modules(tree: ast.AST, module: list[str], is_package: bool) -> Iterator[str]:
    """Yield the full name of every module or member that is imported anywhere in the source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level + is_package] if node.level else []
            name = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*name, alias.name]) for alias in node.names)


def violations(source: str, path: Path) -> list[str]:
    """Name every import of `source`, the text of `path`, that does not point downward."""
    unit = unit_of(path)
    module = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    is_package = path.name == "__init__.py"
    found = []
    for name in imported_modules(ast.parse(source), module[:-1] if is_package else module, is_package):
        root, *rest = name.split(".")
        if root in ("recipes", "tests"):
            found.append(name)
        if root != PACKAGE:
            continue
        target = rest[0] if rest and rest[0] in LEVELS else "__init__"
        if target != unit and LEVELS[target] >= LEVELS[unit]:
            found.append(name)
    return found


def test_the_architecture_draws_these_layers() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.split("```text\n", 1)[1].split("```", 1)[0].splitlines()
    assert [" ".join(re.split(r" {4,}", line)[0].split()) for line in drawn] == LAYERS


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_layers_import_downward_only(path: Path) -> None:
    assert unit_of(path) in LEVELS, f"{unit_of(path)} is in no layer: add it to LAYERS"
    assert violations(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("types.py", "import lit_seq2seq.nn"),
        ("nn/recurrent.py", "from lit_seq2seq.search import beam_search"),
        ("nn/recurrent.py", "from lit_seq2seq import search"),
        ("nn/recurrent.py", "from lit_seq2seq import LitSeq2Seq"),
        ("nn/encoders/text.py", "from ...search import beam"),
        ("nn/__init__.py", "from .. import training"),
        (
            "search/beam.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lit_seq2seq.nn import Decoder",
        ),
        ("features/image.py", "def f():\n    from lit_seq2seq.metrics import BLEU"),
        ("metrics/base.py", "import lit_seq2seq.data.module as module"),
        ("hub/folder.py", "from lit_seq2seq.cli import main"),
        ("plots/curves.py", "from lit_seq2seq.metrics import BLEU"),
        ("training/module.py", "from recipes.translation import main"),
    ],
)
def test_an_upward_import_is_found(file: str, source: str) -> None:
    assert len(violations(source, ROOT / file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("nn/encoders/text.py", "from ..recurrent import RecurrentStack\nfrom ...types import Padded"),
        ("nn/__init__.py", "from .recurrent import RecurrentStack\nfrom lit_seq2seq.nn.ops import masked_mean"),
        ("search/beam.py", "import torch\nfrom lit_seq2seq import types"),
        ("training/module.py", "import lit_seq2seq.nn\nfrom lit_seq2seq.hub.folder import load_folder"),
        ("cli/__init__.py", "from lit_seq2seq.inference.pipelines import pipeline"),
        ("__init__.py", "from lit_seq2seq.training.module import LitSeq2Seq"),
    ],
)
def test_a_downward_import_passes(file: str, source: str) -> None:
    assert violations(source, ROOT / file) == []
