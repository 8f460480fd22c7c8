"""Reads inputs line by line and writes an output for each: `python -m runtime < texts`, in the exported folder.

With `--live true` outputs are written while their inputs come: text, frames as JSON a line, or, at a `--sampling_rate`,
raw samples of sound (mono, 16 bits, little-endian).
"""

import argparse
import io
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from lit_seq2seq.files.lines import json_line, one_line, read_lines
from lit_seq2seq.live.inputs import frames, samples, texts
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.search.config import GenerationConfig, search_options
from lit_seq2seq.types import UserError


def main(folder: Path) -> int:
    """Run the command for the model in a folder; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", nargs="+", default=[str(folder)], help="exported folder; several make an ensemble")
    parser.add_argument("--variant", default="fp32", help="fp32, fp16 or int8")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: as onnxruntime chooses")
    parser.add_argument("--live", type=_plain, default=False, help="write while the input is still coming")
    parser.add_argument("--sampling_rate", type=int, help="of raw samples of sound, in hertz")
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
        if arguments["live"]:
            _write_live(model, options, arguments["sampling_rate"])
            return 0
        details = GenerationConfig(details=options.get("details", model.network.config.details)).details
        for outputs in model(list(read_lines(sys.stdin.buffer, "standard input")), **options):
            if details:
                print(json_line([output.told(("score", *details)) for output in outputs]))
                continue
            print(*[one_line(output.text) for output in outputs], *[""] * (len(outputs) > 1), sep="\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _write_live(model: Model, options: dict[str, Any], rate: int | None) -> None:
    """Write while the input is still coming."""
    medium, live = model.processor.source_feature.medium, None
    if medium == "audio" and (rate is None or rate < 1):
        raise UserError("standard input has samples of sound, which do not tell their rate: set --sampling_rate")
    pieces = (
        samples(max(1, rate // 10)) if medium == "audio" and rate else (frames if medium == "frames" else texts)("-")
    )
    for piece in pieces:
        live = live or model.live(sampling_rate=rate, **options)
        if piece is None:
            print(live.finish(), flush=True)
            live = None
        else:
            live.feed(piece)
            print(live.read(), end="", flush=True)


def _plain(text: str) -> Any:
    """Read JSON, or a list of words without quotes, such as `[a, b]`; else it is a text."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except json.JSONDecodeError:
        words = re.fullmatch(r"""\[([^][{}"']+)\]""", text.strip())
        return [word.strip() for word in words[1].split(",")] if words else text
