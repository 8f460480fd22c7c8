"""Train, evaluate and try out a model of character transduction: `python recipes/transduction.py [--config FILE]`."""

import sys
from pathlib import Path

from lit_seq2seq.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "transduction" / "builtin.yaml"))
