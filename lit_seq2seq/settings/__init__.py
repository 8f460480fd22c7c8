"""Plain descriptions to objects and back, what users give compared with annotations, the parsers of commands."""

from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16", "int8"]
"""What a model can compute in, by the names of torch."""
