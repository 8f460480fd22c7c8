"""`python -m runtime < texts` in the exported folder."""

import sys
from pathlib import Path

from lit_seq2seq.runtime.command import main

sys.exit(main(Path(__file__).parent.parent))
