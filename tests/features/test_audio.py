import io
import tracemalloc
import wave

import datasets
import kaldi_native_fbank as knf
import numpy as np
import pytest
import soundfile
from datasets import Audio, Features, List, Value

from lit_seq2seq.features import LogMel, Waveform
from lit_seq2seq.features.recordings import read_audio
from lit_seq2seq.types import UserError

RATE = 8000
TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(4000) / RATE)).astype(np.float32)


def wav(samples=TONE, rate=RATE, channels=1):
    """Write 16-bit samples with the standard library, to be read back by soundfile."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.repeat(samples, channels) * 32767).astype("<i2").tobytes())
    return data.getvalue()


@pytest.mark.parametrize(("rate", "bands", "window", "fmax"), [(8000, 40, 0.025, None), (16000, 80, 0.02, 7600.0)])
def test_energies_equal_those_of_kaldi(rate, bands, window, fmax):
    samples = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.frame_length_ms, options.frame_opts.frame_shift_ms = 1000 * window, 10
    options.frame_opts.dither, options.frame_opts.preemph_coeff = 0, 0
    options.frame_opts.remove_dc_offset, options.frame_opts.window_type = False, "hanning"
    options.mel_opts.num_bins, options.mel_opts.low_freq, options.mel_opts.high_freq = bands, 20, fmax or rate / 2
    kaldi = knf.OnlineFbank(options)
    kaldi.accept_waveform(rate, samples.tolist())
    kaldi.input_finished()
    expected = np.stack([kaldi.get_frame(i) for i in range(kaldi.num_frames_ready)])
    feature = LogMel(rate, bands, window, fmax=fmax, normalize="none")
    np.testing.assert_allclose(feature.encode([samples])[0], expected, atol=2e-3)
    assert feature.measure([samples]) == [len(expected)]


def test_the_loudest_band_is_that_of_the_tone():
    energies = LogMel(RATE, 30, normalize="none").encode([TONE])[0]
    centre = 2595 * np.log10(1 + 440 / 700)
    top = 2595 * np.log10(1 + 4000 / 700)
    bottom = 2595 * np.log10(1 + 20 / 700)
    assert abs(energies.mean(0).argmax() - ((centre - bottom) / (top - bottom) * 31 - 1)) < 1


def test_every_form_of_a_recording_gives_the_same_frames(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav())
    whole = np.round(TONE * 32767).astype(np.int16)
    forms = [
        wav(),
        tmp_path / "a.wav",
        str(tmp_path / "a.wav"),
        {"bytes": wav(), "path": None},
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        {"array": TONE, "sampling_rate": RATE},
        {"raw": TONE, "sampling_rate": RATE},
        {"array": whole.tolist(), "sampling_rate": RATE},
        TONE,
        wav(channels=2),
    ]
    feature = LogMel(RATE, 20, normalize="none", log_floor=0.01)  # above what 16 bits leave of silence
    expected = feature.encode([TONE])[0]
    for form in forms:
        assert feature.accepts(form)
        np.testing.assert_allclose(feature.encode([form])[0], expected, atol=0.05)
        assert feature.measure([form]) == [len(expected)]
        assert feature.show(form).endswith("0.50 s")
    assert feature.show(tmp_path / "a.wav") == "a.wav, 0.50 s"


def test_another_sampling_rate_is_converted():
    fast = (0.4 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)).astype(np.float32)
    samples = read_audio({"array": fast, "sampling_rate": 16000}, RATE)
    assert len(samples) == 4000
    np.testing.assert_allclose(samples[200:-200], TONE[200:-200], atol=5e-3)


def hertz(samples):
    return np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)


@pytest.mark.parametrize(
    ("kind", "full", "zero"),
    [
        ("int8", 2**7, 0),
        ("uint8", 2**7, 2**7),
        ("int16", 2**15, 0),
        ("uint16", 2**15, 2**15),
        ("int32", 2**15, 0),
        ("int32", 2**23, 0),
        ("int32", 2**31, 0),
        ("uint32", 2**31, 2**31),
        ("int64", 2**15, 0),
        ("int64", 2**23, 0),
        ("int64", 2**31, 0),
        ("float16", 1, 0),
        ("float64", 1, 0),
    ],
)
@pytest.mark.parametrize("form", [lambda array: array, lambda array: {"array": array, "sampling_rate": RATE}])
def test_samples_of_every_type_are_the_same_tone(kind, full, zero, form):
    array = (TONE.astype(np.float64) * full + zero).astype(kind)
    found = read_audio(form(array), RATE)
    np.testing.assert_allclose(found, TONE, atol=1.1 / full if full < 2**15 and full > 1 else 1e-3)
    assert hertz(found) == pytest.approx(440, abs=2)
    if kind in ("int64", "int32"):
        np.testing.assert_array_equal(read_audio({"array": array.tolist(), "sampling_rate": RATE}, RATE), found)


def test_samples_that_are_no_numbers_of_at_most_32_bits_are_refused():
    for array in ([2**40, 0], np.zeros(9, np.uint64), [1 + 2j], [True], ["a"], [[1], [2, 3]], [None], [2**70]):
        with pytest.raises(UserError, match=r"expected (whole-number )?samples"):
            read_audio({"array": array, "sampling_rate": RATE}, RATE)


@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_files_of_every_width_are_the_same_tone(kind):
    data = io.BytesIO()
    soundfile.write(data, TONE, RATE, format="WAV", subtype=kind)
    np.testing.assert_allclose(read_audio(data.getvalue(), RATE), TONE, atol=0.02)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("shares", [(1, -1), (-1, 1), (1, -0.98), (0, 1, -1), (0.3, 0.7, -1)])
def test_opposed_channels_do_not_cancel_each_other_out(kind, shares):
    data = io.BytesIO()
    soundfile.write(data, TONE[:, None] * np.array(shares), RATE, format=kind)
    found = read_audio(data.getvalue(), RATE)
    assert hertz(found) == pytest.approx(440, abs=2)
    assert np.abs(found).max() == pytest.approx(0.4, abs=0.03)


def test_a_constant_offset_does_not_hide_that_channels_cancel_each_other_out():
    data = io.BytesIO()
    soundfile.write(data, TONE[:, None] * np.array([1, -1]) + 0.1, RATE, format="WAV")
    found = read_audio(data.getvalue(), RATE)
    assert np.ptp(found) == pytest.approx(0.8, abs=0.03)


def test_channels_that_differ_are_averaged():
    rng = np.random.default_rng(0)
    for channels in (1, 2, 8):
        both = rng.uniform(-0.5, 0.5, (4000, channels)).astype(np.float32)
        data = io.BytesIO()
        soundfile.write(data, both, RATE, format="WAV", subtype="FLOAT")
        np.testing.assert_allclose(read_audio(data.getvalue(), RATE), both.mean(axis=1), atol=1e-7)


def test_what_is_shorter_than_a_window_is_one_frame():
    assert LogMel(RATE, 10, normalize="none").encode([TONE[:50]])[0].shape == (1, 10)


def test_columns_of_recordings_are_told_from_others():
    columns = Features(
        {
            "audio": Audio(decode=False),
            "struct": {"array": List(Value("int16")), "sampling_rate": Value("int32")},
            "file": {"bytes": Value("binary"), "path": Value("string")},
            "path": Value("string"),
            "samples": List(Value("float32")),
            "bytes": List(Value("uint8")),
            "offset": {"array": List(Value("uint8")), "sampling_rate": Value("int32")},
            "number": Value("int64"),
            "texts": List(Value("string")),
        }
    )
    accepted = [name for name, column in columns.items() if LogMel().accepts_column(column)]
    assert accepted == ["audio", "struct", "file", "path", "samples"]


def test_a_flac_file_in_an_audio_column_is_read():
    data = io.BytesIO()
    soundfile.write(data, TONE, RATE, format="FLAC")
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": data.getvalue(), "path": "x.flac"}]})
    rows = rows.cast_column("audio", Audio(decode=False))
    feature = LogMel(RATE, 20, normalize="none", log_floor=0.01)
    np.testing.assert_allclose(feature.encode([rows[0]["audio"]])[0], feature.encode([TONE])[0], atol=0.05)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("nowhere.wav", "there is no recording 'nowhere.wav': check the path"),
        (b"abc", "3 bytes is not a recording that soundfile can read"),
        (np.zeros(0), "expected a recording, but the array has no samples"),
        (np.full(9, np.nan), "expected samples from -1 to 1, but some of the array are not finite"),
        (np.zeros((2, 3)), r"expected samples \(N,\), but got an array of shape \(2, 3\)"),
        ({"sampling_rate": 8000}, "it has none of them"),
        ({"array": [0.0], "sampling_rate": "fast"}, "expected a sampling rate in hertz, but it is 'fast'"),
        ({"array": [0.0], "sampling_rate": float("nan")}, "expected a sampling rate in hertz, but it is nan"),
        ({"array": [0.0], "sampling_rate": 0}, "a sampling rate of 0 Hz"),
        (
            {"array": [0.0], "rate": 8000},
            "expected the sampling_rate beside the samples, but there are only array, rate",
        ),
        (wav(np.zeros(0)), "expected a recording, but [0-9]+ bytes has no samples"),
        ({"array": [0.0], "sampling_rate": -8000}, "a sampling rate of -8000 Hz, too far from the model's 16000 Hz"),
    ],
)
def test_recordings_that_cannot_be_read_are_explained(raw, message):
    with pytest.raises(UserError, match=message) as error:
        LogMel().encode([raw])
    assert " at 0x" not in str(error.value)


def test_a_sampling_rate_that_is_none_is_told_before_a_recording_is_read():
    with pytest.raises(UserError, match="a sampling rate of 0 Hz"):
        Waveform().measure([{"array": [0.0], "sampling_rate": 0}])


def test_decimals_that_were_never_divided_are_told():
    with pytest.warns(UserWarning, match="samples far beyond -1 to 1: divide whole numbers, or"):
        LogMel(RATE, 20).encode([TONE * 32767])


def silence(seconds: int, kind: str, rate: int = 8000, channels: int = 1) -> bytes:
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", rate, channels, format=kind) as file:
        for _ in range(seconds):  # libsndfile crashes when much is written to Ogg at once
            file.write(np.zeros((rate, channels), np.float32))
    return data.getvalue()


def gigahertz() -> bytes:
    data = silence(1, "WAV")
    return data[:24] + (2 * 10**9).to_bytes(4, "little") + data[28:]


def flac_of(samples: int) -> bytes:
    """Return a file whose header says another number of samples than there are: 8,000."""
    data = bytearray(silence(1, "FLAC"))
    data[21] = data[21] & 0xF0 | samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


BOMBS = {
    "an hour at 1 Hz": (lambda: silence(4000, "WAV", 1), "a sampling rate of 1 Hz, too far from the model's 8000 Hz"),
    "a rate of gigahertz": (gigahertz, "a sampling rate of 2000000000 Hz, too far from the model's 8000 Hz"),
    "an hour at 90 Hz": (lambda: silence(3600, "WAV", 90), "lasts 3600 seconds, and at most 600 are allowed"),
    "samples of an hour": (lambda: {"array": np.zeros(3600 * 80), "sampling_rate": 80}, "lasts 3600 seconds"),
    "silence in FLAC": (lambda: silence(700, "FLAC"), "lasts 700 seconds, .*: cut it, or raise max_seconds"),
    "silence in Ogg": (lambda: silence(700, "OGG"), "lasts 700 seconds"),
    "silence in MP3": (lambda: (b"\xff\xe3\x18\xc4" + bytes(68)) * 9723, "lasts 700 seconds"),  # frames of 576 samples
    "a header of 2^36 samples": (lambda: flac_of(2**36 - 1), "lasts 8589935 seconds"),
    "a header of no samples": (lambda: flac_of(0), "at most 600 are allowed"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_recordings_that_would_fill_the_memory_are_refused_before_they_are_decoded(case):
    make, message = BOMBS[case]
    raw = make()
    tracemalloc.start()
    for feature in (LogMel(8000), Waveform(8000)):
        with pytest.raises(UserError, match=message):
            feature.encode([raw])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_mp3_is_read_from_memory_as_from_disk(tmp_path):
    data = (b"\xff\xe3\x18\xc4" + bytes(68)) * 20
    (tmp_path / "a.mp3").write_bytes(data)
    assert len(read_audio(data, RATE)) == len(read_audio(tmp_path / "a.mp3", RATE)) == 20 * 576


def test_longer_recordings_may_be_allowed_and_many_channels_are_averaged_block_by_block():
    assert len(Waveform(80, max_seconds=3600).encode([silence(3600, "FLAC", 80)])[0]) == 3600 * 80
    rng = np.random.default_rng(0)
    many = rng.uniform(-0.5, 0.5, (9000, 255)).astype(np.float32)  # more than one block
    data = io.BytesIO()
    soundfile.write(data, many, RATE, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(read_audio(data.getvalue(), RATE), many.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_mels": 0}, "n_mels must be at least 1, but is 0"),
        ({"hop": 0.0}, "window and hop must be at least one sample"),
        ({"fmax": 9000.0}, r"fmin and fmax must satisfy 0 <= fmin < fmax <= 8000\.0, but are 20\.0 and 9000\.0"),
        ({"log_floor": 0.0}, "log_floor must be above 0"),
        ({"max_seconds": 0}, "max_seconds must be above 0"),
    ],
)
def test_settings_out_of_range_are_explained(options, message):
    with pytest.raises(UserError, match=message):
        LogMel(**options)
