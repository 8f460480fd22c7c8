"""Train a model on a task with a simple rule: `python recipes/sanity.py [--config recipes/sanity/sort.yaml]`."""

import sys
from pathlib import Path

from lit_seq2seq.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "sanity" / "copy.yaml"))
