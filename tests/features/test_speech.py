import json

import numpy as np
import pytest
import torch

from lit_seq2seq.features import Frames, LogMel, Processor, SpecAugment, Tokenizer
from lit_seq2seq.features.augmentation import hertz, mel, stretched, warping
from lit_seq2seq.features.frames import deltas
from lit_seq2seq.types import UserError

RNG = np.random.default_rng(0)
FRAMES = RNG.normal(3.0, 2.0, size=(11, 4)).astype(np.float32)


def encoded(raw=FRAMES, **options):
    return Frames(4, **options).encode([raw])[0]


def test_each_channel_of_an_utterance_is_brought_to_mean_zero_and_variance_one():
    array = encoded(deltas=2)
    np.testing.assert_allclose(array.mean(0), np.zeros(12), atol=1e-5)
    np.testing.assert_allclose(array.std(0), np.ones(12), atol=1e-4)
    assert encoded(np.ones((3, 4))).tolist() == np.zeros((3, 4)).tolist()  # a constant channel stays finite


def test_deltas_are_the_slope_of_the_regression_line():
    padded = np.pad(FRAMES, ((2, 2), (0, 0)), mode="edge")
    fitted = [np.polyfit(np.arange(-2, 3), padded[t : t + 5], 1)[0] for t in range(len(FRAMES))]
    np.testing.assert_allclose(deltas(FRAMES), fitted, atol=1e-5)
    array = encoded(normalize="none", deltas=2)
    np.testing.assert_array_equal(array[:, :4], FRAMES)
    np.testing.assert_allclose(array[:, 8:], deltas(deltas(FRAMES)), atol=1e-6)


def test_stacking_joins_neighbours_and_repeats_the_last_frame():
    array = encoded(normalize="none", stack=3)
    assert array.shape == (4, 12)
    np.testing.assert_array_equal(array.reshape(12, 4)[:11], FRAMES)
    np.testing.assert_array_equal(array[-1, 8:], FRAMES[-1])
    assert Frames(4, stack=3).measure([FRAMES, FRAMES[:3], FRAMES[:1]]) == [4, 1, 1]


def test_batch_mates_change_nothing():
    feature = Frames(4, deltas=1)
    padded = feature.collate(feature.encode([FRAMES, FRAMES[:5], FRAMES[:1]]))
    assert padded.lengths.tolist() == [11, 5, 1]
    assert not padded.values[~padded.mask].any()
    alone = feature.collate(feature.encode([FRAMES[:5]]))
    torch.testing.assert_close(padded.values[1:2, :5], alone.values)


def test_masks_are_blocks_of_the_mean_within_their_limits():
    mask = SpecAugment(time_masks=1, time_width=4, time_share=0.3, channel_masks=1, channel_width=2)
    array = encoded(RNG.normal(size=(20, 4)), deltas=1)
    for _ in range(50):
        masked = mask(array, 4)
        changed = masked != array
        columns = changed.all(axis=0)
        assert (columns[:4] == columns[4:]).all()  # derivatives go with their channel
        assert columns[:4].sum() <= 2
        rows = changed.all(axis=1).nonzero()[0]
        assert len(rows) <= 4
        assert len(rows) == 0 or rows[-1] - rows[0] == len(rows) - 1
        assert np.allclose(masked[changed], 0, atol=1e-5)  # normalised frames have mean 0
    assert not np.array_equal(mask(array, 4), mask(array, 4)) or not np.array_equal(mask(array, 4), array)


def test_stretching_changes_the_duration_and_keeps_the_course():
    line = np.arange(40, dtype=np.float32)[:, None] * np.ones((1, 4), dtype=np.float32)
    augment = SpecAugment(time_masks=0, channel_masks=0, stretch=0.2)
    lengths = set()
    for _ in range(60):
        array = augment(line, 4)
        lengths.add(len(array))
        np.testing.assert_allclose(array, np.linspace(line[0], line[-1], len(array)), atol=1e-5)
    assert min(lengths) >= 32
    assert max(lengths) <= 48
    assert len(lengths) > 8
    assert len(stretched(line[:1], 0.3)) == 1


def test_a_warped_spectrum_has_its_peak_at_another_frequency():
    band, count = (100.0, 8000.0), 200
    centres = hertz(np.linspace(*mel(band), count + 2)[1:-1])
    energies = np.exp(-(((centres - 2000) / 300) ** 2))
    for factor in (0.8, 1.0, 1.25):
        moved = warping(factor, count, band, cepstral=False) @ energies
        assert abs(centres[moved.argmax()] - 2000 / factor) < 30
        np.testing.assert_allclose(warping(factor, count, band, cepstral=False).sum(axis=1), 1)  # silence stays


def test_cepstra_are_warped_as_the_bands_they_stand_for():
    band, count = (100.0, 8000.0), 40
    smooth = np.cos(np.pi * np.arange(13)[:, None] * (np.arange(count) + 0.5) / count)  # (C, M)
    energies = RNG.normal(size=13) @ smooth  # no more than 13 cepstra tell
    cepstra = smooth @ energies / count
    np.testing.assert_allclose(warping(1.0, 13, band, cepstral=True) @ cepstra, cepstra, atol=1e-10)
    moved = smooth @ warping(0.9, count, band, cepstral=False) @ energies / count
    np.testing.assert_allclose(warping(0.9, 13, band, cepstral=True) @ cepstra, moved, atol=1e-10)


@pytest.mark.parametrize("normalize", ["none", "utterance", "speaker", "global"])
def test_warping_what_is_normalised_is_warping_first(normalize, monkeypatch):
    band, options = (100.0, 8000.0), {"deltas": 1, "normalize": normalize}
    augment = SpecAugment(time_masks=0, channel_masks=0, warp=0.2)
    feature = Frames(4, **options, stack=2, cepstra=band, spec_augment=augment)
    assert feature.is_trained == (normalize == "none")
    feature.train([FRAMES])
    adapted, plain = feature.adapted([FRAMES]), Frames(4, **options, stack=2).adapted([FRAMES])
    plain.train([FRAMES])
    [array], [same] = adapted.encode([FRAMES]), plain.encode([FRAMES])
    np.testing.assert_array_equal(array, same)
    monkeypatch.setattr("lit_seq2seq.features.augmentation.drawn", lambda: 0.75)
    matrix = warping(1.1, 4, band, cepstral=True)
    before = Frames(4, deltas=1, normalize="none").encode([FRAMES, FRAMES @ matrix.T.astype(np.float32)])
    mean, deviation = (0, 1) if normalize == "none" else (before[0].mean(0) @ np.kron(np.eye(2), matrix.T), None)
    deviation = before[0].std(0) if deviation is None else deviation
    expected = (np.concatenate([before[1], before[1][-1:]]) - mean) / deviation
    np.testing.assert_allclose(adapted.augment(array), expected.reshape(6, 16), atol=1e-4)
    saved = Frames.from_dict(json.loads(json.dumps(adapted.to_dict())))
    np.testing.assert_allclose(saved.augment(array), adapted.augment(array))


def test_masks_leave_the_array_alone_and_follow_the_seed():
    mask, before = SpecAugment(), FRAMES.copy()
    torch.manual_seed(3)
    first = [mask(FRAMES, 4) for _ in range(5)]
    torch.manual_seed(3)
    for one, other in zip(first, [mask(FRAMES, 4) for _ in range(5)], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(FRAMES, before)


def test_what_is_saved_loads_identically(tmp_path):
    tokenizer = Tokenizer("char")
    tokenizer.train(["abc"])
    feature = Frames(4, normalize="global", stack=2, spec_augment=SpecAugment(time_masks=1))
    feature.train([[FRAMES, FRAMES[:2]]])
    processor = Processor(feature, tokenizer)
    processor.save(tmp_path)
    for copy in (Processor.load(tmp_path), Processor.from_dict(json.loads(json.dumps(processor.to_dict())))):
        assert copy.to_dict() == processor.to_dict()
        assert copy.source_feature.spec_augment == feature.spec_augment
        torch.testing.assert_close(copy.source([FRAMES]).values, processor.source([FRAMES]).values, rtol=0, atol=0)


def test_masks_are_no_part_of_what_a_model_needs():
    augmented = Frames(4, cepstra=[0, 8000], spec_augment=SpecAugment(warp=0.1))
    augmented.train([FRAMES])
    assert augmented.statistics is not None
    assert augmented.identity() == Frames(4, store=False).identity()
    assert Frames(4, deltas=1).identity() != Frames(4).identity()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((3, 5)), r"expected frames \(T, 4\) with T >= 1, but got the shape \(3, 5\)"),
        (np.zeros((0, 4)), r"expected frames \(T, 4\) with T >= 1, but got the shape \(0, 4\)"),
        ([[1.0, 2.0], [1.0]], "cannot be read as numbers"),
        (np.full((2, 4), np.nan), "expected finite real numbers"),
        (np.full((2, 4), 1 + 1j), "expected finite real numbers"),
    ],
)
def test_frames_that_do_not_fit_are_explained(raw, message):
    with pytest.raises(UserError, match=message):
        Frames(4).encode([raw])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Frames(0), "channels must be at least 1, but is 0"),
        (lambda: Frames(4, deltas=3), "deltas must be 0, 1 or 2, but is 3"),
        (lambda: Frames(4, stack=0), "stack must be at least 1, but is 0"),
        (lambda: SpecAugment(time_masks=-1), "time_masks of spec_augment must be at least 0, but is -1"),
        (lambda: SpecAugment(stretch=1), "stretch of spec_augment must be at least 0 and below 1, but is 1"),
        (lambda: SpecAugment(warp=-0.1), "warp of spec_augment must be at least 0 and below 1, but is -0.1"),
        (lambda: Frames(4, cepstra=[300, 200]), "cepstra must be two frequencies, 0 <= lowest < highest"),
        (lambda: Frames(4, spec_augment=SpecAugment(warp=0.1)), "which Frames does not tell: leave it out, or set cep"),
        (lambda: LogMel(spec_augment=SpecAugment(warp=0.1)).augment(FRAMES), "this feature has no statistics yet"),
        (lambda: SpecAugment(time_share=0), "time_share of spec_augment must be above 0"),
        (lambda: Frames(4, normalize="global").encode([FRAMES]), "this feature has no statistics yet"),
        (lambda: Frames(4, normalize="global").train([]), "expected data to learn the normalisation from"),
    ],
)
def test_settings_out_of_range_are_explained(make, message):
    with pytest.raises(UserError, match=message):
        make()
