"""`python -m lit_seq2seq` is `lit-seq2seq`."""

import sys

from lit_seq2seq.cli import main

if __name__ == "__main__":
    sys.exit(main())
