"""Traced programs to ONNX files, and smaller variants of them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_seq2seq.export.graphs import Graph
from lit_seq2seq.files.weights import check_finite

_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
"""Where ONNX's gates stand in torch: input, output, forget, cell of `i f g o`; update, reset, new of `r z n`."""
_ANY = 1 << 62


def to_onnx(graph: Graph, path: Path) -> None:
    """Write a traced program as an ONNX file, with recurrent layers as single LSTM, GRU or RNN nodes.

    Args:
        graph: from `trace`.
        path: the file.
    """
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    table: Any = {torch.ops.lit_seq2seq.recurrent.default: _recurrent}
    with quietly():
        program = torch.onnx.export(
            graph.program,
            dynamo=True,
            custom_translation_table=table,
            input_names=graph.inputs,
            output_names=graph.outputs,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    optimizer.optimize_ir(program.model, input_size_limit=_ANY, output_size_limit=_ANY)
    ClearMetadataAndDocStringPass()(program.model)
    onnx_ir.save(program.model, path)


def halve(full: Path, path: Path) -> None:
    """Write a variant whose weights are kept in 16 bits; onnxruntime computes with them in 32, as CPUs do best.

    Args:
        full: the ONNX file.
        path: of the variant.
    """
    import onnx

    model = onnx.load(full)
    graph, casts = model.graph, []
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1:
            values, name = onnx.numpy_helper.to_array(weight), weight.name
            check_finite({name: torch.tensor(values)}, "the model", torch.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype("float16"), f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
    onnx.save(model, path)


def quantize(full: Path, path: Path) -> None:
    """Write a variant whose matrices are kept and multiplied in 8 bits, with scales measured on the fly.

    Embeddings, matrix products and LSTMs become 8-bit; GRUs and simple recurrent layers of an encoder stay as they are.

    Args:
        full: the ONNX file.
        path: of the variant.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quietly():
        quantize_dynamic(full, path, weight_type=QuantType.QInt8, per_channel=True)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hide the notes of exporters on missing packages and skipped steps."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _recurrent(
    x: Any, lengths: Any, weights: Any, cell: str, h: Any = None, c: Any = None, reverse: bool = False
) -> Any:
    """Translate `lit_seq2seq::recurrent`; what is done to the weights is computed when the graph is optimised."""
    from onnxscript import opset18

    op: Any = opset18
    size = int(weights[1].shape[1])
    kinds = [
        op.Concat(*(op.Unsqueeze(_reordered(op, weight, size, cell), [0]) for weight in weights[place::4]), axis=0)
        for place in range(4)
    ]
    direction = "bidirectional" if len(weights) == 8 else "reverse" if reverse else "forward"
    options: dict[str, Any] = {"direction": direction, "hidden_size": size}
    if cell == "gru":
        options["linear_before_reset"] = 1
    if cell == "rnn_relu":
        options["activations"] = ["Relu"] * (len(weights) // 4)
    start = [op.Transpose(op.Reshape(part, [0, -1, size]), perm=[1, 0, 2]) for part in (h, c) if part is not None]
    inputs = (op.Transpose(x, perm=[1, 0, 2]), *kinds[:2], op.Concat(*kinds[2:], axis=1), op.Cast(lengths, to=6))
    node = {"lstm": op.LSTM, "gru": op.GRU}.get(cell, op.RNN)
    outputs, *final = node(*inputs, *start, **options)
    # outputs (T, directions, B, H), final (directions, B, H)
    joined = op.Reshape(op.Transpose(outputs, perm=[2, 0, 1, 3]), [0, 0, -1])
    found = [op.Reshape(op.Transpose(state, perm=[1, 0, 2]), [0, -1]) for state in final]
    return joined, found[0], found[1] if cell == "lstm" else op.ConstantOfShape([0])


def _reordered(op: Any, weight: Any, size: int, cell: str) -> Any:
    gates = [op.Slice(weight, [gate * size], [(gate + 1) * size], [0]) for gate in _GATES[cell]]
    return op.Concat(*gates, axis=0)
