"""The one table of parts that the contract tests run over: a new part joins all of them by one line here."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from lit_seq2seq.nn import (
    GRU,
    LSTM,
    RGLRU,
    SLSTM,
    SRU,
    AdditiveAttention,
    Attention,
    Bridge,
    Cell,
    ConditionalGRUDecoder,
    ConvEncoder,
    Decoder,
    DecoderState,
    DeepTransition,
    DenseBridge,
    DotAttention,
    Elman,
    Encoder,
    EncoderDecoder,
    EncoderShape,
    GeneralAttention,
    HardMonotonicDecoder,
    InputFeedingDecoder,
    LastState,
    LearnedBridge,
    LocationAwareAttention,
    MeanBridge,
    MinGRU,
    MinLSTM,
    MoChA,
    MonotonicAttention,
    MultiHeadAttention,
    ParallelDecoder,
    StateShape,
    TextEncoder,
    TransducerDecoder,
    ZeroBridge,
    Zoneout,
)
from lit_seq2seq.nn.cells import CellName
from lit_seq2seq.training import CrossEntropy
from lit_seq2seq.types import CopySource, Padded, SpecialIds, Value

Module = TypeVar("Module", bound=torch.nn.Module)

assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)

SOURCE_SIZE, TARGET_SIZE = 9, 8
SIZES = {"embedding_dim": 5, "hidden_size": 6}

FUSED: tuple[CellName, ...] = get_args(CellName)
CELLS: dict[str, Callable[[int, int], Cell]] = {
    "LSTM": LSTM,
    "GRU": GRU,
    "Elman": Elman,
    "rectified Elman": partial(Elman, activation="relu"),
    "normalised LSTM": partial(LSTM, layer_norm=True),
    "normalised GRU": partial(GRU, layer_norm=True),
    "normalised Elman": partial(Elman, layer_norm=True),
    "minGRU": MinGRU,
    "minLSTM": MinLSTM,
    "RG-LRU": RGLRU,
    "sLSTM": SLSTM,
    "SRU": SRU,
    "zoneout": partial(Zoneout, probability=0.3),
    "deep transition": partial(DeepTransition, depth=3),
}
KINDS_OF_CELLS: dict[str, CellName | Callable[[int, int], Cell]] = {
    **{name: name for name in FUSED},
    **{name: make for name, make in CELLS.items() if make(2, 2).kernel is None},
}

ATTENTIONS: dict[str, Callable[[int, int], Attention]] = {
    "dot": DotAttention,
    "scaled dot": partial(DotAttention, scaled=True),
    "general": GeneralAttention,
    "additive": AdditiveAttention,
    "additive coverage": partial(AdditiveAttention, attention_size=4, coverage=True),
    "multi-head": partial(MultiHeadAttention, num_heads=2),
    "location": partial(LocationAwareAttention, filters=2, kernel_size=3),
    "location cumulative": partial(LocationAwareAttention, filters=2, kernel_size=3, cumulative=True),
    "monotonic": partial(MonotonicAttention, offset=0.5, noise=0.0),
    "MoChA": partial(MoChA, chunk_size=2, offset=0.5, noise=0.0),
}
BRIDGES: dict[str, Callable[[EncoderShape, StateShape], Bridge]] = {
    "last": LastState,
    "dense": DenseBridge,
    "mean": MeanBridge,
    "zero": ZeroBridge,
    "learned": LearnedBridge,
}
ENCODERS: dict[str, Callable[[int], Encoder]] = {
    **{f"bidirectional {name}": partial(TextEncoder, cell=cell, **SIZES) for name, cell in KINDS_OF_CELLS.items()},
    **{
        f"forward {name}": partial(TextEncoder, cell=cell, bidirectional=False, **SIZES)
        for name, cell in KINDS_OF_CELLS.items()
    },
    "two layers": partial(TextEncoder, num_layers=2, **SIZES),
    "three layers": partial(TextEncoder, num_layers=3, cell="gru", **SIZES),
    "reverse": partial(TextEncoder, bidirectional=False, reverse=True, **SIZES),
    **{
        f"latency-controlled {name}": partial(TextEncoder, cell=cell, backward_chunk=2, backward_lookahead=1, **SIZES)
        for name, cell in KINDS_OF_CELLS.items()
    },
    "latency-controlled layers": partial(TextEncoder, num_layers=3, residual=True, backward_chunk=2, **SIZES),
    "latency-controlled far": partial(TextEncoder, num_layers=2, backward_chunk=1, backward_lookahead=3, **SIZES),
    "residual norm": partial(TextEncoder, num_layers=3, residual=True, layer_norm=True, **SIZES),
}
IMAGE_ENCODERS: dict[str, Callable[[int], Encoder]] = {
    "convolutions": partial(ConvEncoder, hidden_size=8, widths=[16, 32], blocks=1),
    "more blocks": partial(ConvEncoder, hidden_size=8, widths=[16, 16, 32], blocks=2),
}
KINDS: dict[str, Callable[..., Decoder]] = {
    "parallel": partial(ParallelDecoder, **SIZES),
    "parallel first": partial(ParallelDecoder, attention_after="first", **SIZES),
    "parallel summary": partial(ParallelDecoder, use_summary=True, **SIZES),
    "feeding": partial(InputFeedingDecoder, **SIZES),
    "conditional": partial(ConditionalGRUDecoder, **SIZES),
}


DECODERS: dict[str, Callable[[int, EncoderShape], Decoder]] = {
    "parallel no attention": KINDS["parallel"],
    "parallel summary no attention": KINDS["parallel summary"],
    "parallel summary additive": partial(KINDS["parallel summary"], attention=AdditiveAttention),
    "feeding default": KINDS["feeding"],
    "conditional default": KINDS["conditional"],
    "hard monotonic": partial(HardMonotonicDecoder, **SIZES),
    "hard monotonic, first order": partial(HardMonotonicDecoder, order=1, jumps=2, num_layers=2, cell="gru", **SIZES),
    "transducer": partial(TransducerDecoder, **SIZES),
    "transducer, two layers": partial(TransducerDecoder, num_layers=2, cell="gru", joint_size=4, **SIZES),
    **{
        f"{kind} {attention}": partial(KINDS[kind], attention=ATTENTIONS[attention], num_layers=2)
        for kind, attention in [
            ("parallel", "general"),
            ("parallel", "multi-head"),
            ("parallel", "location cumulative"),
            ("parallel first", "additive"),
            ("parallel first", "additive coverage"),
            ("feeding", "general"),
            ("feeding", "location"),
            ("feeding", "MoChA"),
            ("feeding", "additive coverage"),
            ("conditional", "additive coverage"),
        ]
    },
}
SETTINGS: dict[str, list[Any]] = {
    "kind": list(KINDS),
    "attention": ["none", *ATTENTIONS],
    "cell": list(KINDS_OF_CELLS),
    "num_layers": [1, 3],
    "combine": ["concat", "tanh", "deep"],
    "bridge": list(BRIDGES),
    "residual": [False, True],
    "layer_norm": [False, True],
}


def works(setting: dict[str, Any]) -> bool:
    """Whether a decoder has all of these settings, or those of them that are chosen so far."""
    kind, attention = setting.get("kind", ""), setting.get("attention")
    blind = kind not in ("", "parallel", "parallel summary") or setting.get("bridge") in ("zero", "learned")
    return not ((attention == "none" and blind) or (kind == "conditional" and setting.get("cell", "gru") != "gru"))


def decoder_of(setting: dict[str, Any]) -> Callable[[int, EncoderShape], Decoder]:
    """Make the factory that settings describe."""
    options = {**setting, "attention": ATTENTIONS.get(setting["attention"]), "bridge": BRIDGES[setting["bridge"]]}
    options["cell"] = KINDS_OF_CELLS[setting["cell"]]
    kind = options.pop("kind")
    return partial(
        KINDS[kind], **{name: value for name, value in options.items() if (kind, name) != ("conditional", "cell")}
    )


STRANGERS = [("cell", "attention"), ("cell", "combine"), ("cell", "bridge")]
STRANGERS += [("attention", name) for name in ("num_layers", "bridge", "residual", "layer_norm")]
"""Settings of which neither sees the other: any two of their values need not meet."""


def pairwise(settings: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Choose rows in which any two values of two settings that work together meet, each row for as many as it can.

    Cells need not meet kinds of the parallel decoder, whose recurrent layers are the same.
    """
    left = {
        ((a, x), (b, y)) for (a, xs), (b, ys) in combinations(settings.items(), 2) for x in xs for y in ys
        if works({a: x, b: y}) and not {(a, b), (b, a)} & {*STRANGERS}
        and not (b == "cell" and x in ("parallel first", "parallel summary"))
    }  # fmt: skip
    rows = []
    while left:
        row = dict(min(left, key=str))
        for name, values in settings.items():
            if name in row:
                continue
            fitting = [value for value in values if works({**row, name: value})]
            row[name] = max(fitting, key=lambda value: len(left & pairs({**row, name: value})))
        row = {name: row[name] for name in settings}
        left -= pairs(row)
        rows.append(row)
    return rows


def pairs(setting: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """List any two of the values, in the order of `SETTINGS`."""
    return set(combinations([(name, setting[name]) for name in SETTINGS if name in setting], 2))


DECODERS |= {" ".join(map(str, row.values())): decoder_of(row) for row in pairwise(SETTINGS)}
NETWORKS: dict[str, tuple[str, str]] = {
    **{decoder: ("bidirectional lstm", decoder) for decoder in DECODERS},
    **{
        f"{encoder} encoder": (encoder, "parallel summary additive")
        for encoder in ENCODERS
        if not encoder.startswith(("forward ", "latency-"))  # to a decoder, as those of the two directions
    },
}
MAIN = ["parallel no attention", "parallel summary no attention", "parallel general", "parallel first additive"]
MAIN += ["feeding general", "feeding location", "conditional additive coverage"]

SPECIALS = SpecialIds()
SOURCE = Padded(
    torch.tensor([[4, 5, 6, 7, 3], [8, 3, 0, 0, 0], [5, 5, 8, 3, 0], [3, 0, 0, 0, 0]]), torch.tensor([5, 2, 4, 1])
)
TARGET = Padded(
    torch.tensor([[4, 6, 7, 5, 5, 3], [7, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [6, 5, 4, 3, 0, 0]]),
    torch.tensor([6, 2, 1, 4]),
)
COPY_SOURCE = CopySource(
    SOURCE.values,
    SOURCE.lengths,
    torch.tensor([[4, 8, 9, 8, 3], [8, 3, 0, 0, 0], [5, 5, 7, 3, 0], [3, 0, 0, 0, 0]]),
    (("first", "second"), ("own",), (), ()),
)
COPY_TARGET = Padded(
    torch.tensor([[4, 8, 7, 9, 5, 3], [8, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [6, 5, 4, 3, 0, 0]]), TARGET.lengths
)
IMAGES = Padded(torch.randn(3, 16, 16, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([16, 16, 16]))


def network(name: str, **options: object) -> EncoderDecoder:
    """Build the case in evaluation mode, with no parameter left at a special value such as zero or one."""
    encoder, decoder = NETWORKS[name]
    made = EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, ENCODERS[encoder], partial(DECODERS[decoder], **options))
    return disturb(made).eval()


def disturb(module: Module, scale: float = 0.3) -> Module:
    """Add noise to every parameter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return module


def gradient_of(loss: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Put the gradients of all parameters in a row."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def tensors(value: Value) -> list[Tensor]:
    """List the tensors of a value, to be compared."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    value.map(note)
    return found


def row(padded: Padded, index: int) -> Padded:
    """Take one sequence alone, without padding."""
    length = int(padded.lengths[index])
    return Padded(padded.values[index : index + 1, :length], padded.lengths[index : index + 1])


def widen(padded: Padded, columns: int, fill: int) -> Padded:
    """Add padding columns and put `fill` wherever there is padding."""
    more = torch.cat([padded.values, padded.values.new_zeros(len(padded.values), columns)], dim=1)
    wide = Padded(more, padded.lengths)
    return Padded(wide.values.where(wide.mask, torch.tensor(fill)), padded.lengths)


def step_features(
    model: EncoderDecoder, tokens: Tensor, state: DecoderState
) -> tuple[Tensor, Tensor | None, DecoderState]:
    """Feed `tokens (N, T)` one by one: features `(N, T, F)`, attention `(N, T, S)` and the last state."""
    features, weights = [], []
    for column in tokens.unbind(dim=1):
        output, state = model.decoder.step(column, state)
        features.append(output.features)
        if output.attention is not None:
            weights.append(output.attention)
    return torch.stack(features, dim=1), torch.stack(weights, dim=1) if weights else None, state


def step_log_probs(model: EncoderDecoder, tokens: Tensor, state: DecoderState) -> Tensor:
    """Feed `tokens (N, T)` one by one: log-probabilities of the next `(N, T, V)`."""
    log_probs = []
    for column in tokens.unbind(dim=1):
        output = model.step(column, state)
        state = output.state
        log_probs.append(output.log_probs)
    return torch.stack(log_probs, dim=1)


def cross_entropy(
    network: EncoderDecoder, source: Any, target: Padded, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What training minimises by default, and the plain negative log-likelihood."""
    total, nll, _ = CrossEntropy(smoothing).of(network, source, target)
    return total, nll
