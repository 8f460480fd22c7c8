"""Reads inputs line by line and writes an output for each: `python -m runtime < texts`, in the exported folder."""

import argparse
import sys
from pathlib import Path

from .errors import UserError
from .model import Model


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    parser.add_argument("--model", default=str(Path(__file__).parent.parent), help="exported folder")
    parser.add_argument("--variant", default="fp32", help="fp32, fp16 or int8")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: as onnxruntime chooses")
    parser.add_argument("--num_beams", type=int, default=None, help="number of beams; the model's own if left out")
    arguments = parser.parse_args()
    try:
        model = Model(arguments.model, arguments.variant, arguments.threads)
        options = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
        for outputs in model([line.rstrip("\r\n") for line in sys.stdin], **options):
            print(outputs[0].text.replace("\n", " "))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
