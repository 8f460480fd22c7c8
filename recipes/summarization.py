"""Train, evaluate and try out a model that summarizes: `python recipes/summarization.py [--config FILE] [...]`."""

import sys
from pathlib import Path

from lit_seq2seq.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "summarization" / "builtin.yaml"))
