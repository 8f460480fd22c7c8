"""Train, evaluate and try out a text generator: `python recipes/text_generation.py [--config FILE] [--trainer.X]`."""

import sys
from pathlib import Path

from lit_seq2seq.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "text_generation" / "builtin.yaml"))
