"""When outputs are written, how transducers spend their frames, and how late symbols are."""

import json
from functools import partial
from itertools import accumulate
from math import isnan, nan
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.features import LogMel, Processor, Waveform
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import EmissionLag, Emissions, Scores
from lit_seq2seq.metrics.emission import emission_lags
from lit_seq2seq.nn import CTC, HardMonotonicDecoder, PyramidalEncoder, TextEncoder, TransducerDecoder
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import AlignmentSearch, GenerationConfig
from lit_seq2seq.search.alignments import emission
from lit_seq2seq.types import Padded, UserError
from tests.nn.cases import disturb
from tests.tiny import SIZES, make_data, make_model, make_trainer, pairs

FORWARD = partial(TextEncoder, **SIZES, bidirectional=False)
RNG = np.random.default_rng(0)


def transducer(decoder: Any = TransducerDecoder, encoder: Any = FORWARD, **options: Any) -> LitSeq2Seq:
    return make_model(encoder=encoder, decoder=partial(decoder, **SIZES), **options)


@pytest.mark.parametrize(
    ("places", "frames", "blank", "longest", "most"),
    [([], 4, 4, 4, 0), ([0, 1, 2], 3, 0, 0, 1), ([3, 3, 3], 4, 3, 3, 3), ([0, 4, 4, 9], 12, 9, 4, 2), ([], 0, 0, 0, 0)],
)
def test_frames_are_counted(places: list[int], frames: int, blank: int, longest: int, most: int) -> None:
    expected = {"frames": frames, "symbols": len(places), "blank_frames": blank}
    assert emission(places, frames) == {**expected, "longest_blank": longest, "most_per_frame": most}


def test_symbols_that_are_right_have_a_lag() -> None:
    assert emission_lags([4, 5, 6], [10, 20, 30], [4, 5, 6], [8, 21, 25]) == [2, -1, 5]
    one_lacks = emission_lags([4, 6], [10, 30], [4, 5, 6], [8, nan, 25])
    assert one_lacks == [2, 5]
    assert [isnan(lag) for lag in emission_lags([7, 6], [10, 30], [4, 5, 6], [8, 9, 25])] == [True, True, False]
    assert emission_lags([4], [3], [4, 5], [nan, nan]) == []


def test_a_corpus_has_the_same_numbers_however_it_is_cut() -> None:
    rows = [RNG.normal(100, 50, RNG.integers(0, 9)).round(1).tolist() for _ in range(50)]
    rows[3][:1], rows[4][-1:] = [nan], [nan]
    whole, parts = EmissionLag(), [EmissionLag(), EmissionLag()]
    whole.update(rows)
    for place, row in enumerate(rows):
        parts[place % 2].update([row])
    for name in ("every", "first", "last"):
        getattr(parts[0], name).extend(getattr(parts[1], name))
    found = {name: value.item() for name, value in whole.compute().items()}
    assert found == pytest.approx({name: value.item() for name, value in parts[0].compute().items()}, rel=1e-5)
    every = [lag for row in rows for lag in row if not isnan(lag)]
    expected = [np.mean(every), *np.quantile(every, [0.5, 0.9])]
    expected += [np.nanmean([row[0] for row in rows if row]), np.nanmean([row[-1] for row in rows if row])]
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)
    assert tuple(found) == EmissionLag.names
    assert EmissionLag().compute() == Emissions().compute() == {}


def with_ends(count: int, seed: int, as_text: bool = False) -> datasets.Dataset:
    """Say that each word of a target ends with its word of the source, but of the second row nothing."""
    columns: dict[str, Any] = pairs(count, seed)
    columns["ends"] = [[1.0 + place for place in range(len(text.split()))] for text in columns["source"]]
    columns["ends"][1] = []
    if as_text:
        columns["ends"] = [" ".join(map(str, row)) for row in columns["ends"]]
    return datasets.Dataset.from_dict(columns)


@pytest.mark.filterwarnings("error:You called")
@pytest.mark.parametrize("decoder", [TransducerDecoder, HardMonotonicDecoder])
def test_validation_measures_how_late_symbols_are(decoder: Any, tmp_path: Path) -> None:
    rows = datasets.DatasetDict({"train": with_ends(40, 0).remove_columns("ends"), "validation": with_ends(12, 1)})
    data = make_data(rows, columns={"ends": "ends"})
    made = transducer(decoder, metrics=[])
    trainer = make_trainer(tmp_path, max_epochs=12)
    trainer.fit(made, datamodule=data)
    assert not any("emission" in name or "blank" in name for name in trainer.callback_metrics)
    (scores,) = trainer.validate(made, datamodule=data, verbose=False)
    config = GenerationConfig(max_new_tokens=6, details=["times", "emission"])
    lags, counts = EmissionLag(), Emissions()
    for source, target, ends in zip(*(rows["validation"][name] for name in ("source", "target", "ends")), strict=True):
        [[one]] = made.generate([source], config)
        assert one.written is not None
        ids = made.processor.target.encode([target])[0].tolist()[:-1]
        lags.update([emission_lags(one.tokens.tolist(), one.written.tolist(), ids, ends)] if ends else [])
        counts.update([one.emission] if one.emission else [])
    expected = {name: value.item() for name, value in {**lags.compute(), **counts.compute()}.items()}
    assert {*expected} == {*EmissionLag.names, *(Emissions.names if decoder is TransducerDecoder else ())}
    assert {name: scores[f"val_{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("as_text", [False, True])
def test_ends_of_words_are_those_of_their_last_symbols(as_text: bool) -> None:
    rows = datasets.DatasetDict({"train": with_ends(20, 0), "validation": with_ends(6, 1, as_text)})
    data = make_data(rows, columns={"ends": "ends"}, source_tokenizer=None, target_tokenizer="char")
    data.prepare_data()
    data.setup("fit")
    for batch in data.val_dataloader():
        for text, ends, row in zip(batch.references, batch.ends, batch.rows.tolist(), strict=True):
            words = text[0].split()
            assert len(ends) == len(text[0])
            last = [one - 1 + place for place, one in enumerate(accumulate(map(len, words)))]
            known = {place: time for place, time in enumerate(ends) if not isnan(time)}
            assert known == ({} if row == 1 else {place: 1.0 + word for word, place in enumerate(last)})
    assert next(iter(data.train_dataloader())).ends == ()


def test_ends_that_fit_no_target_are_refused(tmp_path: Path) -> None:
    wrong = with_ends(6, 1).map(
        lambda row, place: {"ends": [1.0] * 7 if place == 2 else row["ends"]}, with_indices=True
    )
    rows = datasets.DatasetDict({"train": with_ends(20, 0), "validation": wrong})
    data = make_data(rows, columns={"ends": "ends"})
    made = transducer()
    made.attach(data.processor)
    trainer = make_trainer(tmp_path)
    with pytest.raises(
        UserError, match=r"row 2: expected in columns.ends a number for each of \d words? or \d symbols?"
    ):
        trainer.validate(made, datamodule=data, verbose=False)
    with pytest.raises(UserError, match="expected a column 'end'"):
        trainer.validate(made, datamodule=make_data(rows, columns={"ends": "end"}), verbose=False)
    plain = make_model()
    plain.attach(data.processor)
    rows["validation"] = with_ends(6, 1)
    with pytest.raises(UserError, match="ParallelDecoder has no alignments"):
        trainer.validate(plain, datamodule=make_data(rows, columns={"ends": "ends"}), verbose=False)


@pytest.mark.parametrize("backward", [None, 2])
def test_details_tell_when_symbols_are_written(backward: int | None, tmp_path: Path) -> None:
    encoder = FORWARD if backward is None else partial(TextEncoder, **SIZES, backward_chunk=backward)
    made = transducer(encoder=encoder)
    made.attach(make_data().processor)
    disturb(made.net, 1.0)
    made.save_pretrained(tmp_path)
    pipe = pipeline("translation", str(tmp_path))
    text, answer, details = "eins zwei drei", "one two two three", ["times", "emission"]

    def aligned(tokens: list[int]) -> tuple[list[int], dict[str, int]]:
        target = Padded(torch.tensor([[*tokens, 3]]), torch.tensor([len(tokens) + 1]))
        places = made.net.forced_align(made.encode([text]), target)[0].tolist()[:-1]
        return [min(made.net.needed(place + 1), 4) for place in places], emission(places, 4)

    [[best]] = made.generate([text], GenerationConfig(num_beams=3, max_new_tokens=6))
    [found] = pipe(text, num_beams=3, details=details)
    assert (found["times"], found["emission"]) == aligned(best.tokens.tolist())
    [scored] = pipe.score([(text, answer)], details=details)
    assert (scored["times"], scored["emission"]) == aligned(made.processor.target.encode([answer])[0].tolist()[:-1])
    assert json.loads(json.dumps(scored)) == scored


@torch.no_grad()
def test_a_model_that_is_sure_is_aligned_where_it_writes_live() -> None:
    made = transducer()
    made.attach(make_data().processor)
    disturb(made.net, 1.0).eval()
    decoder = made.net.decoder
    assert isinstance(decoder, TransducerDecoder)
    decoder.symbols.weight.mul_(20)
    decoder.symbols.bias[made.net.specials.eos] += 10  # the blank
    search = AlignmentSearch(decoder, GenerationConfig(), made.net.specials)
    written = 0
    for text in pairs(30, seed=5)["source"]:
        encoded = made.encode([text])
        [[one]] = search.outputs(search.advance(search.begin(1), decoder.frames(encoded.memory), torch.tensor([True])))
        if one.log_prob > -0.3:  # one path has most of the probability, so it is the best
            assert one.delays is not None
            target = Padded(torch.tensor([[*one.tokens.tolist(), 3]]), torch.tensor([len(one.tokens) + 1]))
            assert (made.net.forced_align(encoded, target)[0] + 1).tolist() == one.delays.tolist()
            written += len(one.tokens)
    assert written > 5


def test_times_of_sound_are_milliseconds() -> None:
    feature = LogMel(sampling_rate=8000, n_mels=4, window=0.02, hop=0.01, fmin=0, stack=2)
    assert Waveform(16_000).time(8, 20) == 0.5
    encoder = partial(PyramidalEncoder, hidden_size=12, factors=[2, 2])  # both directions
    made = transducer(encoder=encoder, auxiliary=CTC)
    made.attach(Processor(feature, make_data().processor.target))
    disturb(made.net, 1.0)
    made.eval()
    sound = RNG.normal(size=8000).astype(np.float32) / 4
    found = pipeline("automatic-speech-recognition", made)(sound, details=["times", "emission"])
    assert found["emission"]["frames"] == 13  # of 50 stacks of frames
    assert found["times"]
    assert {*found["times"]} <= {10.0 + min(80 * (place + 1), 1000) for place in range(13)}
    assert found["times"] == sorted(found["times"])
    for dtype in (torch.bfloat16, torch.int8):
        if computes_in(dtype, "cpu"):
            [[half]] = Predictor(made, dtype=dtype).stream([sound], GenerationConfig(details="times", max_new_tokens=6))
            assert {*half.times} <= {10.0 + min(80 * (place + 1), 1000) for place in range(13)}


@pytest.mark.parametrize(("deltas", "stack"), [(0, 1), (0, 3), (2, 1), (1, 2)])
def test_the_time_of_a_position_is_when_it_has_come(deltas: int, stack: int) -> None:
    options: dict[str, Any] = {"deltas": deltas, "stack": stack, "normalize": "none"}
    feature = LogMel(sampling_rate=8000, n_mels=4, window=0.025, hop=0.01, fmin=0, **options)
    samples = RNG.normal(size=8000).astype(np.float32) / 4
    length = len(feature.encode([samples])[0])
    for count in (1, 2, 7):
        needed = feature.time(count, length) * 8
        assert needed == int(needed)
        for size, come in ((int(needed) - 1, count - 1), (int(needed), count)):
            assert len(feature.in_pieces().feed(samples[:size])) == come


def test_what_has_no_path_by_ctc_has_no_times() -> None:
    made = make_model(auxiliary=CTC)
    made.attach(make_data().processor)
    made.eval()
    pipe = pipeline("translation", made)
    found = pipe.score([("eins", "one two three"), ("eins zwei drei", "one two")], details="times")
    assert [len(one["times"]) for one in found] == [0, 2]


def test_scores_have_their_names() -> None:
    assert {*EmissionLag.names} <= {*Scores().modes}
    assert torch.equal(Emissions().totals, torch.zeros(3, dtype=torch.long))
