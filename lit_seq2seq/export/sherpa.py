"""Transducers in the layout of sherpa-onnx: `lit-seq2seq export --format sherpa-onnx`.

Its recogniser for transducers with a recurrent prediction network is the one for models of NeMo. It computes
`SherpaLogMel` by itself, hands over a fixed number of frames at a time, and keeps a few tensors between calls, whose
meaning is the model's. What is special of a model goes into its graphs: normalisation and stacking of frames, states
as one vector, an order of symbols in which the blank is last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lit_seq2seq.export.graphs import traced
from lit_seq2seq.export.onnx import quietly, to_onnx
from lit_seq2seq.export.pieces import named_state
from lit_seq2seq.features import Processor, SherpaLogMel, Tokenizer
from lit_seq2seq.features.frames import SMALLEST_DEVIATION
from lit_seq2seq.nn import EncoderDecoder, TransducerDecoder
from lit_seq2seq.types import Padded, UserError, Value

_BLANK, _NEVER = "<blk>", -1e4
_FRAMES, _MOST = 16, 1000  # read at a time, at least and at most


class Packed:
    """States as vectors: what differs from the first state, `(B, D)`, so that zeros are that state.

    Args:
        begin: makes the first state of some streams.
    """

    def __init__(self, begin: Callable[[int], Value]) -> None:
        self.first = begin(1)
        self.parts = list(named_state(self.first).values())
        self.size = sum(part.numel() for part in self.parts)

    def pack(self, state: Value) -> Tensor:
        """Turn a state into `(B, D)`."""
        pairs = zip(named_state(state).values(), self.parts, strict=True)
        return torch.cat([(now - first)[:, None].flatten(1).float() for now, first in pairs if first.numel()], dim=1)

    def unpack(self, vectors: Tensor) -> Any:
        """Turn `(B, D)` into a state."""
        streams, sizes = vectors.shape[0], [part.numel() for part in self.parts if part.numel()]
        values: Iterator[Tensor] = iter(torch.split(vectors, sizes, dim=1))

        def made(first: Tensor) -> Tensor:
            shape = streams, *first.shape[1:]
            return first + next(values).view(shape).to(first.dtype) if first.numel() else first.expand(shape)

        return self.first.map(made)


class SherpaEncoder(nn.Module):
    """Frames `(B, F, T)` and the state in; what the joiner reads of each position `(B, J + 1, R)` and the state out.

    The last value of a position tells whether there is one: layers that look ahead have fewer at first.

    Args:
        network: the model.
        feature: what it reads.
        frames: T, the number of frames.
        rows: R, the number of positions at most.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: EncoderDecoder, feature: SherpaLogMel, frames: int, rows: int) -> None:
        super().__init__()
        self.network, self.stack, self.rows = network, int(feature.config["stack"]), rows
        self.frames, self.channels = frames, feature.channels
        mean, deviation = feature.statistics or ([0.0], [1.0])
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation).clamp(min=SMALLEST_DEVIATION))
        self.state = Packed(network.encoder.begin)

    def example(self) -> dict[str, Tensor]:
        """Make inputs of two streams."""
        return {
            "audio_signal": torch.zeros(2, self.channels, self.frames),
            "length": torch.tensor([self.frames] * 2),
            "cache_last_channel": torch.zeros(2, 1, 1, self.state.size),
            "cache_last_time": torch.zeros(2, 1, 1, 1),
            "cache_last_channel_len": torch.tensor([0, 0]),
        }

    def forward(
        self, audio_signal: Tensor, length: Tensor, channel: Tensor, time: Tensor, channel_len: Tensor
    ) -> dict[str, Tensor]:
        """Read on; the state is `channel (B, 1, 1, D)`, the other two are not needed."""
        transducer = self.network.decoder.transducer
        assert transducer is not None
        frames = (audio_signal.transpose(1, 2) - self.mean) / self.deviation  # (B, T, F)
        frames = frames.reshape(frames.shape[0], -1, self.stack * frames.shape[2])
        piece = Padded(frames, torch.full_like(length, frames.shape[1]))
        state = self.state.unpack(channel[:, 0, 0])
        memory, after = self.network.encoder.extend(state, piece, torch.zeros_like(length, dtype=torch.bool))
        memory = transducer.frames(Padded(memory.values[:, : self.rows], memory.lengths))
        values = torch.cat([memory.values, memory.mask[..., None].float()], dim=2)  # (B, R, J + 1)
        return {
            "outputs": values.transpose(1, 2),
            "encoded_lengths": memory.lengths.clone(),
            "cache_last_channel_next": self.state.pack(after)[:, None, None],
            "cache_last_time_next": time + 0.0,
            "cache_last_channel_next_len": channel_len + length,
        }


class SherpaDecoder(nn.Module):
    """A symbol `(B, 1)` and the state, `(1, B, D)` twice, in; what the joiner reads and the next state out.

    Args:
        transducer: the model's decoder.
        order: ids of the symbols, that of the blank last, which stands for BOS here.
        bos: id of BOS.
    """

    ids: Tensor

    def __init__(self, transducer: TransducerDecoder, order: Tensor, bos: int) -> None:
        super().__init__()
        self.transducer = transducer
        self.register_buffer("ids", torch.cat([order[:-1], torch.tensor([bos])]))
        self.state = Packed(transducer.begin)
        self.width = -(-self.state.size // 2)

    def example(self) -> dict[str, Tensor]:
        """Make inputs of two outputs."""
        ones = torch.ones(2, dtype=torch.int32)
        states = torch.zeros(2, 1, 2, self.width)
        return {"targets": ones[:, None], "target_length": ones * 1, "states": states[0], "states_2": states[1]}

    def forward(self, targets: Tensor, target_length: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Read a symbol."""
        vectors = torch.cat([first, second], dim=2)[0, :, : self.state.size]
        queries, after = self.transducer.read(self.ids[targets[:, 0].long()], self.state.unpack(vectors))
        packed = nn.functional.pad(self.state.pack(after), (0, 2 * self.width - self.state.size))[None]
        return {
            "outputs": queries[..., None],
            "prednet_lengths": target_length + 0,
            "states_next": packed[:, :, : self.width].clone(),
            "states_next_2": packed[:, :, self.width :].clone(),
        }


class SherpaJoiner(nn.Module):
    """A position `(B, J + 1, 1)` and a query `(B, J, 1)` in; log-probabilities of symbols, of the blank last, out."""

    order: Tensor
    never: Tensor

    def __init__(self, transducer: TransducerDecoder, order: Tensor) -> None:
        super().__init__()
        self.transducer = transducer
        self.register_buffer("order", order)
        never = torch.full((len(order),), _NEVER)
        never[-1] = 0
        self.register_buffer("never", never)

    def example(self) -> dict[str, Tensor]:
        """Make inputs of two outputs."""
        size = self.transducer.query.out_features
        return {"encoder_outputs": torch.zeros(2, size + 1, 1), "decoder_outputs": torch.zeros(2, size, 1)}

    def forward(self, encoder_outputs: Tensor, decoder_outputs: Tensor) -> dict[str, Tensor]:
        """Join; where there is no position, only a blank."""
        frames, there = encoder_outputs[:, :-1, 0], encoder_outputs[:, -1:, 0]
        log_probs = self.transducer.join(frames, decoder_outputs[..., 0])[:, self.order]
        return {"outputs": log_probs + (1 - there) * self.never}


def symbols_of(target: Tokenizer) -> dict[int, str]:
    """Return what each id adds to a text.

    Raises:
        UserError: texts are not their symbols put end to end, as sherpa-onnx joins them.
    """
    specials = target.specials
    ids = [index for index in range(len(target)) if index not in (specials.pad, specials.bos, specials.eos)]
    found = {index: target.decode([index, index])[len(target.decode([index])) :] for index in ids}
    found[specials.unk] = "<unk>"
    draw, known = random.Random(1), [index for index in ids if index != specials.unk]
    for some in [draw.choices(known, k=8) for _ in range(200)]:
        if "".join(found[index] for index in some).strip() != target.decode(some).strip():
            raise UserError(
                "sherpa-onnx writes symbols end to end, which does not give the texts of this tokenizer: train with "
                "target_tokenizer char, bpe or unigram"
            )
    written = {index: text.replace(" ", "▁", 1) for index, text in found.items()}
    for index, text in written.items():
        if not text or text.split() != [text]:
            raise UserError(
                f"sherpa-onnx has no symbols with white space in them, but there is {found[index]!r:.40}: leave it out"
            )
    return written


def frames_at_once(network: EncoderDecoder, stack: int) -> tuple[int, int]:
    """Choose how many frames the recogniser reads at a time, and tell how many positions they become at most."""

    def made(positions: int) -> int:
        count = 0
        while (network.encoder.reach(count + 1) or 0) <= positions:
            count += 1
        return count

    for frames in range(-(-_FRAMES // stack) * stack, _MOST, stack):
        ends = [made(piece * frames // stack) for piece in range(12)]
        new = [after - before for before, after in pairwise(ends)]
        if new[-1] and new[6:] == [max(new)] * len(new[6:]):  # as many each time
            return frames, new[-1]
    raise UserError(
        f"the encoder needs more than {_MOST} frames at a time for sherpa-onnx: set a shorter backward_chunk"
    )


def write_sherpa(network: EncoderDecoder, processor: Processor, folder: Path) -> None:
    """Write `encoder.onnx`, `decoder.onnx`, `joiner.onnx` and `tokens.txt`.

    Args:
        network: a transducer that writes before its source has ended, in evaluation mode.
        processor: what it reads, `SherpaLogMel`, and its vocabulary.
        folder: made if needed.

    Raises:
        UserError: the model is of another kind.
    """
    transducer, feature, specials = network.decoder.transducer, processor.source_feature, network.specials
    if transducer is None:
        raise UserError("sherpa-onnx runs transducers: train a model with TransducerDecoder, or leave --format out")
    network.expect_early("sherpa-onnx")
    if not isinstance(feature, SherpaLogMel):
        raise UserError(
            "sherpa-onnx computes its own features: train with data.source_feature SherpaLogMel, which are the same, "
            f"not {type(feature).__name__}"
        )
    if feature.config["normalize"] not in ("none", "global"):
        raise UserError(f"normalize={feature.config['normalize']} is not for sherpa-onnx: set it to global, and train")
    texts = symbols_of(processor.target)
    order = torch.tensor([*texts, specials.eos])
    frames, rows = frames_at_once(network, int(feature.config["stack"]))
    encoder = SherpaEncoder(network, feature, frames, rows)
    decoder = SherpaDecoder(transducer, order, specials.bos)
    graphs: dict[str, SherpaEncoder | SherpaDecoder | SherpaJoiner]
    graphs = {"encoder": encoder, "decoder": decoder, "joiner": SherpaJoiner(transducer, order)}
    rowed = Dim("streams")
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph in graphs.items():
        example = graph.eval().example()
        shapes = tuple({1 if one.startswith("states") else 0: rowed} for one in example)
        with quietly(), torch.no_grad():
            program = traced(graph, tuple(example.values()), shapes, list(example))
        to_onnx(program, folder / f"{name}.onnx")
    _describe(
        folder / "encoder.onnx",
        vocab_size=len(order) - 1,
        window_size=frames,
        chunk_shift=frames,
        subsampling_factor=frames // rows,
        normalize_type="",
        pred_rnn_layers=1,
        pred_hidden=decoder.width,
        cache_last_channel_dim1=1,
        cache_last_channel_dim2=1,
        cache_last_channel_dim3=encoder.state.size,
        cache_last_time_dim1=1,
        cache_last_time_dim2=1,
        cache_last_time_dim3=1,
        model_type="lit_seq2seq",
        feat_dim=feature.channels,
    )
    lines = [f"{text} {place}\n" for place, text in enumerate([*texts.values(), _BLANK])]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")


def _describe(path: Path, **values: Any) -> None:
    """Put what sherpa-onnx wants to know of a graph beside it."""
    import onnx

    graph = onnx.load(path)
    for name, value in values.items():
        graph.metadata_props.add(key=name, value=str(value))
    onnx.save(graph, path)
