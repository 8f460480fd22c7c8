"""Graphs of encoders that read in pieces give what the encoder makes of the whole."""

import errno
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_seq2seq.export import write_graphs
from lit_seq2seq.export.graphs import flatten
from lit_seq2seq.export.onnx import quietly, to_onnx
from lit_seq2seq.export.pieces import begins, named_state, trace_pieces
from lit_seq2seq.nn import (
    SRU,
    EncoderDecoder,
    LearnedBridge,
    LocationAwareAttention,
    MinGRU,
    ParallelDecoder,
    PyramidalEncoder,
    TextEncoder,
    TransducerDecoder,
)
from lit_seq2seq.runtime.network import Session
from lit_seq2seq.types import Encoded, Padded
from tests.nn.cases import DECODERS, SIZES, SOURCE, SOURCE_SIZE, TARGET_SIZE, disturb
from tests.nn.pieces import piece_of, ragged, steps

VECTORS = Padded(torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 4, 7]))
ONWARD = partial(TextEncoder, bidirectional=False, **SIZES)
CONTROLLED = partial(TextEncoder, num_layers=2, backward_chunk=2, backward_lookahead=1, **SIZES)
LISTENER = partial(PyramidalEncoder, hidden_size=6)
slow = pytest.mark.slow
CASES: list[Any] = [
    pytest.param(partial(ONWARD, num_layers=2), SOURCE, id="LSTM"),
    pytest.param(partial(CONTROLLED, cell="gru"), SOURCE, id="latency-controlled GRU"),
    pytest.param(partial(ONWARD, cell="gru"), SOURCE, id="GRU", marks=slow),
    pytest.param(partial(ONWARD, cell=SRU), SOURCE, id="SRU", marks=slow),
    pytest.param(CONTROLLED, SOURCE, id="latency-controlled LSTM", marks=slow),
    pytest.param(partial(CONTROLLED, cell=MinGRU), SOURCE, id="latency-controlled MinGRU", marks=slow),
    pytest.param(
        partial(LISTENER, factors=[2], convolutions=2, layer_norm=True, bidirectional=False), VECTORS, id="convolutions"
    ),
    pytest.param(partial(LISTENER, factors=[1, 2, 3], bidirectional=False), VECTORS, id="pyramid", marks=slow),
    pytest.param(
        partial(LISTENER, factors=[1, 2], convolutions=1, backward_chunk=4, backward_lookahead=3),
        VECTORS,
        id="latency-controlled pyramid",
        marks=slow,
    ),
]


def built(encoder: Any, source: Padded, decoder: str, **options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    size = SOURCE_SIZE if source.values.dim() == 2 else source.values.shape[2]
    return disturb(EncoderDecoder(size, TARGET_SIZE, encoder, partial(DECODERS[decoder], **options))).eval()


@pytest.mark.parametrize(("encoder", "source"), CASES)
def test_graphs_read_in_pieces_what_the_network_reads_as_a_whole(encoder: Any, source: Padded, tmp_path: Path) -> None:
    network = built(encoder, source, "transducer", bridge=LearnedBridge)
    with quietly():
        graphs = trace_pieces(network, source)
    assert list(graphs) == ["pieces", "prediction", "joiner"]
    for name, graph in graphs.items():
        to_onnx(graph, tmp_path / f"{name}.onnx")
    whole, lengths, transducer = network.encode(source).memory, source.lengths.numpy(), network.decoder.transducer
    assert transducer is not None
    expected = transducer.frames(whole).values.detach().numpy()
    read = Session(tmp_path / "pieces.onnx", 1)
    for ends in [*(steps(source, size) for size in (1, 3, 9)), *(ragged(source, seed) for seed in range(3))]:
        state = {name: value.numpy() for name, value in named_state(network.encoder.begin(len(lengths))).items()}
        rows: list[list[Any]] = [[] for _ in lengths]
        for begin, end in pairwise(ends):
            piece = piece_of(source, begin, end)
            values = piece.values.numpy() if max(piece.lengths) else source.values[:, :1].numpy()
            given = {"source": values, "lengths": piece.lengths.numpy(), "last": np.array(end) == lengths}
            found = read(given | state)
            state = {name: found[f"next.{name}"] for name in state}
            for row, memory, length in zip(rows, found["memory"], found["memory_lengths"], strict=True):
                row.append(memory[:length])
        for row, wanted, length in zip(rows, expected, whole.lengths, strict=True):
            np.testing.assert_allclose(np.concatenate(row), wanted[:length], atol=1e-5)
    check_transducer(transducer, expected, tmp_path, begins(network))


def check_transducer(transducer: Any, frames: Any, folder: Path, begin: dict[str, Any]) -> None:
    """Prediction network and joiner compute what they do in torch, for any number of outputs."""
    predict, join = (Session(folder / f"{part}.onnx", 1) for part in ("prediction", "joiner"))
    cells, tokens = transducer.begin(5), torch.tensor([1, 4, 5, 6, 7])
    start = {name.partition(".")[2]: value for name, value in begin.items() if name.startswith("prediction.")}
    state = {name: value.repeat(5, axis=0) for name, value in start.items()}
    for _ in range(2):
        queries, cells = transducer.read(tokens, cells)
        found = predict({"tokens": tokens.numpy(), **state})
        state = {name: found[f"next.{name}"] for name in state}
        np.testing.assert_allclose(found["queries"], queries.detach().numpy(), atol=1e-5)
    some = frames.reshape(-1, frames.shape[-1])[:5]
    expected = transducer.join(torch.tensor(some), queries).detach().numpy()
    np.testing.assert_allclose(join({"frames": some, "queries": found["queries"]})["log_probs"], expected, atol=1e-5)


@slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", SRU, MinGRU])
def test_layers_that_see_some_positions_ahead_have_a_graph_of_the_whole(cell: Any, tmp_path: Path) -> None:
    network = built(partial(CONTROLLED, cell=cell), SOURCE, "parallel general")
    assert write_graphs(network, SOURCE, tmp_path) == []  # the bridge reads the end
    found = Session(tmp_path / "encoder.fp32.onnx", 1)({name: value.numpy() for name, value in SOURCE.named().items()})
    memory = network.encode(SOURCE).memory
    np.testing.assert_allclose(found["memory.values"][memory.mask], memory.values[memory.mask].detach(), atol=1e-5)


@slow
def test_a_decoder_starts_over_what_has_been_read(tmp_path: Path) -> None:
    decoder = partial(ParallelDecoder, attention=LocationAwareAttention, bridge=LearnedBridge, **SIZES)
    network = disturb(EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, ONWARD, decoder)).eval()
    assert write_graphs(network, SOURCE, tmp_path) == ["pieces", "start"]
    memory = network.encode(SOURCE).memory
    state = flatten(network.start(Encoded(memory, network.encode(SOURCE).final)), 1)
    start = Session(tmp_path / "start.fp32.onnx", 1)
    for count in (1, 3):
        found = start({"memory": memory.values[:count].detach().numpy(), "lengths": memory.lengths[:count].numpy()})
        for name, value in state.items():
            np.testing.assert_allclose(found[name], value[:count].detach().numpy(), atol=1e-5)


def test_the_states_before_the_first_piece_are_known() -> None:
    network = built(partial(LISTENER, factors=[2], convolutions=1, bidirectional=False), VECTORS, "transducer")
    found = begins(network)
    assert {name.partition(".")[0] for name in found} == {"pieces", "prediction"}
    assert all(len(value) == 1 for value in found.values())


class Peeking(TextEncoder):
    """How it reads on depends on what it reads."""

    def extend(self, state: Any, piece: Padded, last: Tensor) -> tuple[Padded, Any]:
        return super().extend(state, piece if piece.values.sum() > -1 else piece.select(torch.tensor([0])), last)


@slow
def test_the_rest_is_exported_where_reading_in_pieces_cannot_be(tmp_path: Path) -> None:
    encoder = partial(Peeking, **SIZES, bidirectional=False)
    network = EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, encoder, partial(TransducerDecoder, **SIZES)).eval()
    with pytest.warns(UserWarning, match=r"cannot write while it reads with Peeking and TransducerDecoder \(.*\)$"):
        assert write_graphs(network, SOURCE, tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{part}.fp32.onnx" for part in ("encoder", "decoder", "output")
    }


@slow
def test_a_file_that_cannot_be_written_is_no_limit_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    network = EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, ONWARD, partial(TransducerDecoder, **SIZES)).eval()
    for function in ("numpy.savez", "lit_seq2seq.export.onnx.to_onnx"):
        monkeypatch.setattr(function, full)
        with pytest.raises(OSError, match="No space left"):
            write_graphs(network, SOURCE, tmp_path)
