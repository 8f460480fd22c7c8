"""Reads inputs line by line and writes an output for each: `python -m runtime < texts`, in the exported folder."""

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

from .config import GenerationConfig
from .errors import UserError
from .model import Model


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    here = str(Path(__file__).parent.parent)
    parser.add_argument("--model", nargs="+", default=[here], help="exported folder; several make an ensemble")
    parser.add_argument("--variant", default="fp32", help="fp32, fp16 or int8")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: as onnxruntime chooses")
    names = [field.name for field in dataclasses.fields(GenerationConfig)]
    for name in names:
        parser.add_argument(f"--{name}", type=_plain, default=argparse.SUPPRESS, help="the model's own if left out")
    arguments = vars(parser.parse_args())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        model = Model(arguments["model"], arguments["variant"], arguments["threads"])
        options = {name: arguments[name] for name in names if name in arguments}
        for outputs in model(_lines(), **options):
            for output in outputs:
                print(output.text.replace("\n", " "))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _lines() -> list[str]:
    try:
        return [line.decode("utf-8").rstrip("\r\n") for line in sys.stdin.buffer]
    except UnicodeDecodeError as error:
        raise UserError("standard input is not UTF-8: convert it, e.g. with iconv") from error


def _plain(text: str) -> Any:
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    sys.exit(main())
