"""The command line. What answers `--help` and a mistake loads next to nothing."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from lit_seq2seq.types import UserError

USAGE = """usage: lit-seq2seq COMMAND [options]

train and evaluate (one YAML recipe for all; lit-seq2seq fit --help lists every setting):
  fit        train a model                      lit-seq2seq fit --config FILE [--data.dataset PATH_OR_HUB_ID ...]
  validate   score the validation split         lit-seq2seq validate --config FILE --ckpt_path FILE
  test       score the test split               lit-seq2seq test --config FILE --ckpt_path FILE
  predict    write outputs for a dataset        lit-seq2seq predict --config FILE --ckpt_path FILE
use a trained model:
  generate   texts or paths in, texts out       lit-seq2seq generate --model DIR_OR_HUB_ID [--input FILE] [...]
  stream     write while the input comes        lit-seq2seq stream --model DIR_OR_HUB_ID [--input FILE] [...]
  score      score given texts, rerank lists    lit-seq2seq score --model DIR_OR_HUB_ID --input pairs.tsv [...]
  average    average checkpoints of a run       lit-seq2seq average --checkpoints FILE FILE ... --output DIR
  shortlist  faster for large vocabularies      lit-seq2seq shortlist --model DIR --data.dataset PATH_OR_HUB_ID
  push       share a model on the hub           lit-seq2seq push --model DIR --repo_id USER/NAME
  demo       a page to play with a model        lit-seq2seq demo --model DIR_OR_HUB_ID [--port N]
  export     ONNX, to run without torch         lit-seq2seq export --model DIR_OR_HUB_ID --output DIR
  serve      answer requests over HTTP          lit-seq2seq serve --model DIR_OR_HUB_ID [--port N]
"""

COMMANDS = {
    "generate": "lit_seq2seq.cli.generate:generate",
    "stream": "lit_seq2seq.cli.stream:stream",
    "score": "lit_seq2seq.cli.score:score",
    "average": "lit_seq2seq.cli.commands:average",
    "push": "lit_seq2seq.cli.commands:push",
    "shortlist": "lit_seq2seq.cli.commands:shortlist",
    "demo": "lit_seq2seq.serve.page:command",
    "export": "lit_seq2seq.export:command",
    "serve": "lit_seq2seq.serve:command",
}
"""Where each command is, which is imported only when it is asked for."""
RECIPES = ("fit", "validate", "test", "predict")


def main(argv: list[str] | None = None) -> int:
    """Run the `lit-seq2seq` command; return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"lit_seq2seq {version('lit_seq2seq')}")
        return 0
    return guarded(partial(_run, *arguments))


def _run(name: str, *arguments: str) -> None:
    known = [*RECIPES, *COMMANDS]
    if name in COMMANDS:
        from lit_seq2seq.settings.options import OptionParser

        module, _, function = COMMANDS[name].partition(":")
        command = getattr(importlib.import_module(module), function)
        if any(argument.startswith("--trust") for argument in arguments):
            find_own_files([])
        command(OptionParser(prog=f"lit-seq2seq {name}", description=command.__doc__ or ""), list(arguments))
    elif name in RECIPES:
        from lit_seq2seq.cli.fit import Seq2SeqCLI, spare_log_files

        spare_log_files()
        Seq2SeqCLI([name, *arguments])
    else:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" - did you mean {close[0]}?" if close else ""
        raise UserError(f"there is no command {name!r}: choose among {', '.join(known)}{hint}")


def find_own_files(arguments: list[str]) -> None:
    """Let classes be named that are in files in the working folder or beside a recipe, as `python script.py` would."""
    recipes = [Path(text.split("=", 1)[-1]) for text in arguments if text.endswith((".yaml", ".yml"))]
    for folder in (Path.cwd(), *(path.resolve().parent for path in recipes)):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def guarded(function: Callable[[], object]) -> int:
    """Call `function`; turn a user's mistake into one line on standard error and a status, without a traceback.

    Set `LIT_SEQ2SEQ_DEBUG=1` to see the traceback all the same.
    """
    _quieten()
    try:
        function()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what reads our output has seen enough
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as stopped:
        if type(stopped) is SystemExit:
            raise
        return int(stopped.code or 143)  # Lightning's, of SIGTERM
    except Exception as error:
        if isinstance(error, UserError) and "torch" not in sys.modules:  # nothing has begun
            print(f"error: {error}", file=sys.stderr)
            return 1
        from lit_seq2seq.cli.failures import explain, is_reported

        message = explain(error)
        if message is None or os.environ.get("LIT_SEQ2SEQ_DEBUG"):
            raise
        if not is_reported(error):
            print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _quieten() -> None:
    """Hide hints of Lightning that do not apply here, and show other warnings in one line, without the code."""
    warnings.formatwarning = lambda message, *_args, **_options: f"warning: {message}\n"
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*AMP with fp16 is not supported on CPU.*",
        ".*The dirpath has changed from.*",
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        ".*is smaller than the logging interval.*",
        ".*is not supported by the model summary.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*Experiment logs directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: (
            not any(hint in record.getMessage() for hint in ("Tip:", "already configured with model summary"))
        )
    )
