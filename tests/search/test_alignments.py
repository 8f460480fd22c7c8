"""Search of transducers frame by frame: equal to exhaustive search, whatever pieces the frames come in."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from search_cases import SPECIALS, Chains
from test_constraints import LETTERS
from test_scorers import Host

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.nn import (
    DenseBridge,
    EncoderDecoder,
    NoSource,
    ParallelDecoder,
    TextEncoder,
    TransducerDecoder,
    ZeroBridge,
)
from lit_seq2seq.search import AlignmentSearch, GenerationConfig, LanguageModel, search
from lit_seq2seq.search.alignments import Alignments
from lit_seq2seq.search.scorers import Scorer
from lit_seq2seq.types import Hypothesis, Padded, StepOutput, UserError, Value
from tests.nn.cases import SIZES, disturb

VOCABULARY, LABELS = 6, [4, 5]
LENGTHS = torch.tensor([4, 0, 1, 3])


@dataclass(frozen=True)
class Last(Value):
    """The two last tokens of each output."""

    tokens: Array


@dataclass(frozen=True)
class Table:
    """A transducer that is a table: `(frames, V, V, V)` by the frame, the last token but one, the last, the next."""

    values: Array

    @classmethod
    def random(cls, seed: int, sharpness: float = 1.5) -> "Table":
        generator = torch.Generator().manual_seed(seed)
        logits = sharpness * torch.randn(9, VOCABULARY, VOCABULARY, VOCABULARY, generator=generator).double()
        logits[..., SPECIALS.eos] += 1
        logits[..., SPECIALS.unk] = -math.inf  # two tokens may be written
        return cls(logits.log_softmax(-1))

    def begin(self, count: int) -> Last:
        return Last(arrays.of(self.values).full((count, 2), 0))

    def read(self, tokens: Array, state: Last) -> tuple[Array, Last]:
        xp = arrays.of(tokens)
        known = xp.concat([state.tokens[:, 1:], tokens[:, None]], 1)
        return xp.single(known), Last(known)

    def join(self, frames: Array, queries: Array) -> Array:
        xp = arrays.of(frames)
        places, known = xp.integers(frames[:, 0]), xp.integers(queries)
        return self.values[places, known[:, 0], known[:, 1]]


@dataclass(frozen=True)
class Read(Value):
    """The stream of each output, and its two last tokens."""

    streams: Array
    tokens: Array

    def select(self, index: Array) -> "Read":
        return Value.select(self, index.flatten())


@dataclass(frozen=True)
class Judge:
    """A language model that is a table: `(streams, V, V, V)` by the last token but one, the last, the next."""

    table: Array

    def start(self) -> Read:
        xp = arrays.of(self.table)
        return Read(xp.arange(len(self.table)), xp.full((len(self.table), 2), 0))

    def step(self, tokens: Array, state: Read) -> StepOutput[Read]:
        known = arrays.of(tokens).concat([state.tokens[:, 1:], tokens[:, None]], 1)
        return StepOutput(self.table[state.streams, known[:, 0], tokens], Read(state.streams, known))


def frames_of(seed: int) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    return Padded(torch.randint(0, 9, (len(LENGTHS), 4, 1), generator=generator).float(), LENGTHS)


def exhaustive(table: Table, frames: list[int], longest: int = 6) -> dict[tuple[int, ...], float]:
    """The probability of each output, summed over all alignments."""
    found = {}
    for length in range(longest + 1):
        for tokens in product(LABELS, repeat=length):
            path = (SPECIALS.pad, SPECIALS.bos, *tokens)
            rows = [
                [table.values[frame, path[u], path[u + 1]].exp().tolist() for u in range(length + 1)]
                for frame in frames
            ]
            before = [1.0] + [0.0] * length  # having come to the frame after u tokens
            for row in rows:
                for u in range(length):
                    before[u + 1] += before[u] * row[u][tokens[u]]
                before = [value * row[u][SPECIALS.eos] for u, value in enumerate(before)]
            found[tokens] = before[-1]
    return found


def whole(search: AlignmentSearch, frames: Padded) -> Alignments:
    streams = search.begin(len(frames.lengths))
    return search.advance(streams, frames, frames.lengths >= 0)


def told(written: list[list[Hypothesis]]) -> list[list[tuple[list[int], list[int], float]]]:
    return [[(one.tokens.tolist(), one.delays.tolist(), round(one.score, 5)) for one in row] for row in written]


def config_of(beams: int, **options: Any) -> GenerationConfig:
    return GenerationConfig(
        **{"num_beams": beams, "num_return_sequences": beams, "length_normalization": "none"} | options
    )


def in_numpy(value: Any) -> Any:
    return value.map(lambda tensor: tensor.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_has_the_exact_probability_of_every_output(seed: int) -> None:
    table, frames = Table.random(seed), frames_of(seed)
    search = AlignmentSearch(table, config_of(300, num_return_sequences=7), SPECIALS)
    found = search.outputs(whole(search, frames))
    for index, row in enumerate(found):
        ids = frames.values[index, : LENGTHS[index], 0].long().tolist()
        scores = exhaustive(table, ids)
        best = sorted(scores, key=lambda tokens: -scores[tokens])[: len(row)]
        assert [tuple(one.tokens.tolist()) for one in row] == best
        assert len(row) == (7 if ids else 1)
        assert [one.score for one in row] == pytest.approx([math.log(scores[tokens]) for tokens in best], abs=1e-7)
        for one in row:
            assert one.delays is not None
            assert one.delays.tolist() == sorted(one.delays.tolist())
            assert one.delays[-1] == LENGTHS[index]
            assert float(one.token_scores.sum()) == pytest.approx(one.log_prob, abs=1e-4)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_numpy_finds_the_same(beams: int) -> None:
    table, frames = Table.random(7), frames_of(7)
    config = config_of(beams, length_normalization="average")
    one = AlignmentSearch(table, config, SPECIALS)
    other = AlignmentSearch(Table(table.values.numpy()), config, SPECIALS, device=None)
    assert told(one.outputs(whole(one, frames))) == told(other.outputs(whole(other, in_numpy(frames))))


def test_one_beam_is_greedy_search() -> None:
    for seed in range(5):
        table, frames = Table.random(seed), frames_of(seed)
        search = AlignmentSearch(table, config_of(1), SPECIALS, most=3)
        for index, [found] in enumerate(search.outputs(whole(search, frames))):
            tokens, times, here, place, total = [0, 2], [], 0, 0, 0.0
            while place < LENGTHS[index]:
                row = table.values[int(frames.values[index, place, 0]), tokens[-2], tokens[-1]].tolist()
                allowed = [SPECIALS.eos, *(LABELS if here < 3 else [])]
                token = max(allowed, key=row.__getitem__)
                total += row[token]
                place, here = (place + 1, 0) if token == SPECIALS.eos else (place, here + 1)
                if token != SPECIALS.eos:
                    tokens.append(token)
                    times.append(place + 1)
            assert (found.tokens.tolist(), found.delays.tolist()) == (tokens[2:], [*times, place])
            assert found.score == pytest.approx(total)


def piecewise(search: AlignmentSearch, frames: Padded, seed: int) -> tuple[list[list[Hypothesis]], list[list[int]]]:
    """Feed pieces of any size, different from stream to stream, and read what is certain after each."""
    generator = torch.Generator().manual_seed(seed)
    count = len(frames.lengths)
    streams, done, ended = (
        search.begin(count),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, dtype=torch.bool),
    )
    written: list[list[int]] = [[] for _ in range(count)]
    while not ended.all():
        sizes = torch.minimum(torch.randint(0, 3, (count,), generator=generator), frames.lengths - done)
        width = int(sizes.max())
        places = (done[:, None] + torch.arange(width)).clip(0, frames.values.shape[1] - 1)
        piece = Padded(frames.values.take_along_dim(places[..., None], 1), sizes)
        last = (done + sizes == frames.lengths) & (torch.rand(count, generator=generator) < 0.5) & ~ended
        streams = search.advance(streams, piece, last)
        done, ended = done + sizes, ended | last
        best = [row[0].tokens.tolist() for row in search.outputs(streams)]
        certain = streams.certain.tolist()
        taken, streams = search.take(streams)
        for row, one, tokens, sure in zip(written, taken, best, certain, strict=True):
            assert one == tokens[:sure]
            row += one
    assert bool(streams.finished.all())
    return search.outputs(streams), written


@pytest.mark.parametrize("beams", [1, 3, 8])
def test_pieces_of_any_size_give_what_the_whole_does(beams: int) -> None:
    for seed in range(6):
        table, frames = Table.random(seed, sharpness=3.0), frames_of(seed)
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.tensor([9, 0, 5, 7])
        frames = Padded(torch.randint(0, 9, (4, 9, 1), generator=generator).float(), lengths)
        search = AlignmentSearch(table, config_of(beams), SPECIALS, most=4)
        streams = whole(search, frames)
        expected = search.outputs(streams)
        for pieces in range(3):
            outputs, written = piecewise(search, frames, pieces)
            assert [row[0].score for row in outputs] == pytest.approx([row[0].score for row in expected], abs=1e-9)
            assert written == [row[0].tokens.tolist() for row in expected]


def test_streams_do_not_touch_each_other_and_can_be_selected() -> None:
    table, frames = Table.random(3), frames_of(3)
    search = AlignmentSearch(table, config_of(3), SPECIALS)
    together = told(search.outputs(whole(search, frames)))
    half = search.advance(search.begin(4), Padded(frames.values[:, :2], LENGTHS.clamp(max=2)), LENGTHS <= 2)
    for index in range(4):
        length = int(LENGTHS[index])
        alone = Padded(frames.values[[index], :length], LENGTHS[[index]])
        assert told(search.outputs(whole(search, alone))) == [together[index]]
        rest = Padded(frames.values[[index], 2:length], (LENGTHS[[index]] - 2).clamp(min=0))
        streams = search.advance(half.select(torch.tensor([index])), rest, torch.tensor([True]))
        assert told(search.outputs(streams)) == [together[index]]


@pytest.mark.parametrize("weight", [0.4, 1.5])
def test_a_language_model_judges_tokens_and_the_end(weight: float) -> None:
    judge = Judge(Chains.random(4, 50).table)
    for seed in range(2):
        table, frames = Table.random(seed), frames_of(seed)
        config = config_of(300, num_return_sequences=3, scorers=[LanguageModel("lm", weight)])
        made = partial(AlignmentSearch, config=config, specials=SPECIALS, vocabulary=LETTERS)
        search = made(table, host=Host({"lm": judge}))
        other = made(Table(table.values.numpy()), host=Host({"lm": Judge(judge.table.numpy())}), device=None)
        found = search.outputs(whole(search, frames))
        assert told(found) == told(other.outputs(whole(other, in_numpy(frames))))
        for index, row in enumerate(found):
            ids = frames.values[index, : LENGTHS[index], 0].long().tolist()
            scores = {}
            for tokens, probability in exhaustive(table, ids).items():
                path = (SPECIALS.pad, SPECIALS.bos, *tokens, SPECIALS.eos)
                steps = zip(path, path[1:], path[2:], strict=False)
                judged = sum(float(judge.table[index, before, last, new]) for before, last, new in steps)
                scores[tokens] = math.log(probability) + weight * judged if probability else -math.inf
            best = sorted(scores, key=lambda tokens: -scores[tokens])[: len(row)]
            assert [tuple(one.tokens.tolist()) for one in row] == best
            assert [one.score for one in row] == pytest.approx([scores[tokens] for tokens in best], abs=1e-5)


@torch.no_grad()
def test_a_transducer_is_searched_frame_by_frame_as_by_symbols() -> None:
    torch.manual_seed(0)
    decoder = partial(TransducerDecoder, joint_size=4, **SIZES)
    made = disturb(
        EncoderDecoder(9, VOCABULARY, partial(TextEncoder, bidirectional=False, **SIZES), decoder), 0.6
    ).eval()
    source = Padded(torch.tensor([[4, 5, 6], [8, 3, 0]]), torch.tensor([3, 2]))
    memory = made.encode(source).memory
    search = AlignmentSearch(made.decoder, config_of(200, num_return_sequences=4), SPECIALS, most=5)
    frames = Padded(made.decoder.value(memory.values), memory.lengths)
    for index, row in enumerate(search.outputs(whole(search, frames))):
        for one in row:
            target = Padded(torch.tensor([[*one.tokens.tolist(), SPECIALS.eos]]), torch.tensor([len(one.tokens) + 1]))
            alone = Padded(source.values[[index], : source.lengths[index]], source.lengths[[index]])
            assert one.score == pytest.approx(float(made.score(alone, target).sum()), abs=1e-3)
            assert one.score <= float(made.score(alone, target).sum()) + 1e-5


@torch.no_grad()
def test_a_language_model_of_layers_judges_as_in_the_search_by_symbols() -> None:
    torch.manual_seed(1)
    layers = partial(ParallelDecoder, bridge=ZeroBridge, num_layers=2, **SIZES)
    model = disturb(EncoderDecoder(0, VOCABULARY, NoSource, layers), 0.6).eval()
    made = disturb(EncoderDecoder(9, VOCABULARY, partial(TextEncoder, **SIZES), partial(TransducerDecoder, **SIZES)))
    prompts = Padded(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    judge = SimpleNamespace(step=model.step, start=lambda: model.start(model.encode(prompts)))
    given = {"specials": SPECIALS, "vocabulary": LETTERS, "host": Host({"lm": judge})}  # type: ignore[dict-item]
    config = config_of(150, num_return_sequences=3, max_new_tokens=9, scorers=[LanguageModel("lm", 0.7)])
    encoded = made.eval().encode(Padded(torch.tensor([[4, 5, 6], [8, 3, 0]]), torch.tensor([3, 2])))
    expected = search(made.step, made.start(encoded), batch_size=2, config=config, **given)
    frames = Padded(made.decoder.value(encoded.memory.values), encoded.memory.lengths)
    searching = AlignmentSearch(made.decoder, config, **given)
    for row, other in zip(searching.outputs(whole(searching, frames)), expected, strict=True):
        assert [one.tokens.tolist() for one in row] == [one.tokens.tolist() for one in other]
        assert [one.score for one in row] == pytest.approx([one.score for one in other], abs=1e-3)


def test_space_does_not_grow_with_time() -> None:
    table = Table.random(1, sharpness=6.0)
    search = AlignmentSearch(table, config_of(4), SPECIALS, most=2)
    streams, generator = search.begin(2), torch.Generator().manual_seed(0)
    sizes = set()
    for _ in range(60):
        piece = Padded(torch.randint(0, 9, (2, 3, 1), generator=generator).float(), torch.tensor([3, 2]))
        streams = search.advance(streams, piece, torch.tensor([False, False]))
        _, streams = search.take(streams)
        sizes.add((streams.frames.shape[1], streams.open.path.shape[2]))
    assert int(streams.taken.min()) > 30
    assert max(frames for frames, _ in sizes) < 30
    assert max(tokens for _, tokens in sizes) < 40


@pytest.mark.parametrize("beams", [1, 3])
def test_a_frame_takes_a_bounded_number_of_tokens(beams: int) -> None:
    logits = torch.full((9, VOCABULARY, VOCABULARY, VOCABULARY), -50.0).double()
    logits[..., LABELS[0]] = 0.0  # and never a blank
    search = AlignmentSearch(Table(logits.log_softmax(-1)), config_of(beams, num_return_sequences=1), SPECIALS)
    frames = Padded(torch.zeros(1, 3, 1), torch.tensor([3]))
    [[found]] = search.outputs(whole(search, frames))
    assert found.tokens.tolist() == [LABELS[0]] * 3 * 16
    assert found.delays is not None
    assert found.delays.tolist() == [*([1] * 16), *([2] * 16), *([3] * 16), 3]
    streams, written = search.begin(1), []
    for place in range(3):
        streams = search.advance(streams, Padded(frames.values[:, :1], torch.tensor([1])), torch.tensor([place == 2]))
        [taken], streams = search.take(streams)
        written.append(len(taken))
    assert sum(written) == 48
    assert max(written) <= 32


class Loose(Scorer):
    """A scorer whose state is no value."""

    def join(self, step: Any, state: Any, task: Any) -> tuple[Any, Any]:
        return step, {"state": state}


def test_states_of_scorers_have_to_be_values() -> None:
    with pytest.raises(
        UserError, match=r"^Loose: streams join and part, so that the state of a scorer has to be a lit_"
    ):
        AlignmentSearch(Table.random(0), config_of(1, scorers=[Loose()]), SPECIALS, vocabulary=LETTERS).begin(1)


@pytest.mark.parametrize("options", [{"bad_words": ["x"]}, {"min_new_tokens": 2}, {"do_sample": True}])
def test_options_that_it_does_not_have_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))}: a search frame by frame does not have it"):
        AlignmentSearch(Table.random(0), GenerationConfig(**options), SPECIALS)


def test_a_bridge_that_reads_the_end_is_told() -> None:
    decoder = TransducerDecoder(8, TextEncoder(9, **SIZES).shape, bridge=DenseBridge, **SIZES)
    with pytest.raises(UserError, match="but the DenseBridge bridge reads the end: set the decoder's bridge to"):
        AlignmentSearch(decoder, GenerationConfig(), SPECIALS).begin(1)
