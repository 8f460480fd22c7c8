"""Train, evaluate and try out a language model: `python recipes/language_model.py [--config FILE] [--trainer.X]`."""

import sys
from pathlib import Path

from lit_seq2seq.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "language_model" / "builtin.yaml"))
