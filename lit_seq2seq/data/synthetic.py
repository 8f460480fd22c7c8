"""The data sets of `lit_seq2seq.builtin`, by the name that recipes of 0.1 have for them."""

from lit_seq2seq.builtin import *  # noqa: F403
