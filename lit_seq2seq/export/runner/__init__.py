"""Runs the exported model in the folder above with NumPy, onnxruntime and tokenizers alone.

It uses the copy of lit_seq2seq beside it, unless the same version is installed.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE = Path(__file__).parent


def _is_installed() -> bool:
    try:
        return version("lit_seq2seq") == (_HERE / "VERSION").read_text(encoding="utf-8")
    except PackageNotFoundError:
        return False


if "lit_seq2seq" not in sys.modules and not _is_installed():
    sys.path.insert(0, str(_HERE))
    import_module("lit_seq2seq")
    sys.path.remove(str(_HERE))
