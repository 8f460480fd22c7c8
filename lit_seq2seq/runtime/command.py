"""Reads inputs line by line and writes an output for each: `python -m runtime < texts`, in the exported folder."""

import argparse
import io
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from lit_seq2seq.files.lines import json_line, one_line, read_lines
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.search.config import GenerationConfig, search_options
from lit_seq2seq.types import UserError


def main(folder: Path) -> int:
    """Run the command for the model in a folder; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", nargs="+", default=[str(folder)], help="exported folder; several make an ensemble")
    parser.add_argument("--variant", default="fp32", help="fp32, fp16 or int8")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: as onnxruntime chooses")
    parser.add_argument("--trust", nargs="+", default=(), help="modules of others that may be imported")
    names = [one.name for one in search_options()]
    for one in search_options():
        kind = str if one.kind is str else _plain
        parser.add_argument(f"--{one.name}", type=kind, default=argparse.SUPPRESS, help=one.about.replace("%", "%%"))
    arguments = vars(parser.parse_args())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    warnings.formatwarning = lambda message, *_args, **_options: f"warning: {message}\n"
    try:
        model = Model(arguments["model"], arguments["variant"], arguments["threads"], arguments["trust"])
        options = {name: arguments[name] for name in names if name in arguments}
        details = GenerationConfig(details=options.get("details", model.network.config.details)).details
        for outputs in model(list(read_lines(sys.stdin.buffer, "standard input")), **options):
            if details:
                print(json_line([output.told(("score", *details)) for output in outputs]))
                continue
            print(*[one_line(output.text) for output in outputs], *[""] * (len(outputs) > 1), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _plain(text: str) -> Any:
    """Read JSON, or a list of words without quotes, such as `[a, b]`; else it is a text."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except json.JSONDecodeError:
        words = re.fullmatch(r"""\[([^][{}"']+)\]""", text.strip())
        return [word.strip() for word in words[1].split(",")] if words else text
