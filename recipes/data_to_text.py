"""Train, evaluate and try out a data-to-text model: `python recipes/data_to_text.py [--config FILE] [--trainer.X]`."""

import sys
from pathlib import Path

from lit_seq2seq.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "data_to_text" / "builtin.yaml"))
