"""Forced alignments: the best of all paths, as enumeration finds it."""

from collections.abc import Iterator
from functools import partial
from itertools import combinations_with_replacement, product

import pytest
import torch
from torch import Tensor

from lit_seq2seq.nn import (
    CTC,
    EncoderDecoder,
    EncoderShape,
    GeneralAttention,
    HardMonotonicDecoder,
    ParallelDecoder,
    TextEncoder,
    TransducerDecoder,
)
from lit_seq2seq.nn.decoders import transducer
from lit_seq2seq.nn.kernels.packed import prepare
from lit_seq2seq.types import Padded, UserError
from tests.nn.cases import SIZES, SOURCE, SPECIALS, TARGET, disturb, row, widen

ENCODER = partial(TextEncoder, **SIZES)
DECODERS = {
    "transducer": TransducerDecoder,
    "hard": HardMonotonicDecoder,
    "hard, first order": partial(HardMonotonicDecoder, order=1, jumps=3),
}


def network(name: str, **options: object) -> EncoderDecoder:
    torch.manual_seed(1)
    return disturb(EncoderDecoder(9, 8, ENCODER, partial(DECODERS[name], **SIZES, **options)), 1.0).eval()


def paths(name: str, length: int, symbols: int) -> Iterator[tuple[int, ...]]:
    """Yield all positions of the symbols, the last of which is EOS."""
    if name == "transducer":
        return ((*places, length - 1) for places in combinations_with_replacement(range(length), symbols - 1))
    return combinations_with_replacement(range(length), symbols)


@torch.no_grad()
def log_prob(name: str, made: EncoderDecoder, source: Padded, target: Padded) -> dict[tuple[int, ...], float]:
    """Compute the log-probability of each path by the weights."""
    state, tokens = made.start(made.encode(source)), target.values[0].tolist()
    hidden, _ = made.decoder.stack(made.decoder.embed(made.shift(target)), state.cells)
    table = made.decoder.emit(hidden, state)[0].double()  # (T, S, V)
    moves = None if name == "transducer" else made.decoder.transitions(hidden, state)[0].double().log()
    found = {}
    for path in paths(name, table.shape[1], len(tokens)):
        total, before = 0.0, 0
        for t, (place, token) in enumerate(zip(path, tokens, strict=True)):
            if moves is None:
                total += float(table[t, before:place, SPECIALS.eos].sum())
            else:
                total += float(moves[t, before, place])
            total, before = total + float(table[t, place, token]), place
        found[path] = total
    return found


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("block", [1, 2**24])
def test_the_best_path_is_that_of_enumeration(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transducer, "BLOCK", block)
    made = network(name)
    places = made.forced_align(made.encode(SOURCE), TARGET)
    for index in range(len(SOURCE.lengths)):
        source, target = row(SOURCE, index), row(TARGET, index)
        scores = log_prob(name, made, source, target)
        found = tuple(places[index, : int(target.lengths)].tolist())
        assert found == max(scores, key=lambda path: scores[path])
        alone = made.forced_align(made.encode(source), target)
        assert tuple(alone[0].tolist()) == found
    wide = made.forced_align(made.encode(widen(SOURCE, 2, fill=5)), widen(TARGET, 3, fill=4))
    assert torch.equal(wide[:, : places.shape[1]][TARGET.mask], places[TARGET.mask])


def best_of_all(frames: Tensor, labels: list[int]) -> list[int]:
    """Find the first position of each label on the best path: of nothing but blanks and labels."""

    def joined(path: tuple[int, ...]) -> list[tuple[int, int]]:
        runs = [(symbol, place) for place, symbol in enumerate(path) if not place or symbol != path[place - 1]]
        return [run for run in runs if run[0]]

    scores = {
        path: float(sum(frames[place, symbol] for place, symbol in enumerate(path)))
        for path in product(sorted({0, *labels}), repeat=len(frames))
        if [symbol for symbol, _ in joined(path)] == labels
    }
    best = max(scores, key=lambda path: scores[path], default=None)
    return [-1] * len(labels) if best is None else [place for _, place in joined(best)]


def test_ctc_aligns_as_enumeration_does() -> None:
    torch.manual_seed(0)
    ctc = disturb(CTC(EncoderShape(3, 1, 3), vocab_size=8, blank=0), 2.0)
    memory = Padded(torch.randn(5, 7, 3), torch.tensor([7, 4, 6, 2, 2]))
    rows = [[4, 4, 6, 3, 0], [7, 6, 3, 0, 0], [3, 0, 0, 0, 0], [5, 6, 3, 0, 0], [5, 5, 3, 0, 0]]
    target = Padded(torch.tensor(rows), torch.tensor([4, 3, 1, 3, 3]))
    places, frames = ctc.forced_align(memory, target), ctc.frames(memory).values.detach()
    for index, (found, length) in enumerate(zip(places.tolist(), target.lengths.tolist(), strict=True)):
        size = int(memory.lengths[index])
        expected = best_of_all(frames[index, :size], rows[index][: length - 1])
        assert found[:length] == [*expected, -1 if -1 in expected else size - 1]
        alone = ctc.forced_align(row(memory, index), row(target, index))
        assert alone[0].tolist() == found[:length]


def test_ctc_aligns_for_a_decoder_that_cannot() -> None:
    decoder = partial(ParallelDecoder, **SIZES, attention=GeneralAttention)
    made = disturb(EncoderDecoder(9, 8, ENCODER, decoder, auxiliary=CTC)).eval()
    encoded, target = made.encode(SOURCE), row(TARGET, 1)
    target = Padded(target.values.expand(4, -1), target.lengths.expand(4))
    assert torch.equal(made.forced_align(encoded, target), made.auxiliary.forced_align(encoded.memory, target))
    made.auxiliary = None
    with pytest.raises(UserError, match="ParallelDecoder has no alignments: train a TransducerDecoder or"):
        made.forced_align(encoded, target)


@pytest.mark.parametrize("name", DECODERS)
def test_a_network_for_fast_decoding_aligns_alike(name: str) -> None:
    made = network(name)
    expected = made.forced_align(made.encode(SOURCE), TARGET)
    fast = prepare(made)
    assert torch.equal(fast.forced_align(fast.encode(SOURCE), TARGET), expected)
