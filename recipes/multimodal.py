"""Train, evaluate and try out a multimodal model: `python recipes/multimodal.py [--config FILE] [--trainer.X]`."""

import sys
from pathlib import Path

from lit_seq2seq.cli.recipe import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent / "multimodal" / "builtin.yaml"))
