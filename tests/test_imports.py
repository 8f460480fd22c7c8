"""What is imported, and when: commands that only answer are quick, and a model needs no trainer."""

import subprocess
import sys

import pytest

from tests.tiny import Trained

HEAVY = {"lightning", "datasets", "pandas", "torchmetrics", "sacrebleu", "matplotlib", "transformers", "gradio"}
LAZY = {"torch._dynamo", "sympy", "jsonargparse", "fsspec", "huggingface_hub"}
"""What takes as long as torch, or is for commands and for the hub."""
LIST = "import sys; print(*sys.modules)"


def imported(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\n{LIST}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_a_translation_needs_neither_lightning_nor_datasets(trained: Trained) -> None:
    code = f"from lit_seq2seq import pipeline\npipeline('translation', {str(trained.model)!r})(['eins', 'zwei'])"
    assert not imported(code) & (HEAVY | LAZY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["genrate"]], ids=str)
def test_what_only_answers_needs_no_torch(arguments: list[str]) -> None:
    code = f"from lit_seq2seq.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert not imported(code) & {*HEAVY, "torch"}
