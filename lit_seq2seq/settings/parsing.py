"""The argument parser of recipes."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

from lit_seq2seq.settings.options import OptionParser


class Parser(OptionParser, LightningArgumentParser):
    """The parser of `lit-seq2seq fit`; for a `LightningCLI` of your own, its `parser_class`."""
