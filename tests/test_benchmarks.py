"""The arena compares programs; that it counts right needs no model."""

import itertools
import json
import resource
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from benchmarks import arena, gpu, growth, lag, models, ours
from benchmarks.arena import Contender, alternate, compare
from benchmarks.corpus import SPECIALS, prepare
from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.metrics import BLEU
from lit_seq2seq.nn import GeneralAttention, ParallelDecoder, TextEncoder, ZeroBridge
from lit_seq2seq.search import GenerationConfig, WaitK
from lit_seq2seq.types import UserError
from tests.nn.cases import disturb
from tests.tiny import SIZES, make_data, make_model, make_trainer, rows

PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
from windows import Windows
windows = Windows(3)
print("what programs say does not disturb")
windows.start()
while True:
    done = time.process_time() + {seconds}
    while time.process_time() < done:
        pass
    windows.step(10)
"""


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(arena, "WORK", tmp_path)


def contender(name: str, seconds: float) -> Contender:
    program = PROGRAM.format(folder=str(arena.ROOT / "benchmarks"), seconds=seconds)
    return Contender(name, [sys.executable, "-c", program], threads=1)


def test_ratios_of_cpu_time():
    finished = alternate([contender("fast", 0.002), contender("slow", 0.01)], windows=3, warmup=1)
    rows = compare("burn", "tokens/s", finished)
    fast = next(row for row in rows if row["variant"] == "fast")
    assert fast["per_cpu_second"] == pytest.approx(10 / 0.002, rel=0.3)
    assert fast["baseline"] == "slow"
    assert fast["ratio"] == pytest.approx(5, rel=0.3)
    assert [len(one.windows) for one in finished] == [3, 3]


def test_programs_that_fail_are_left_out_with_their_last_words(capsys):
    broken = Contender("broken", [sys.executable, "-c", "raise SystemExit('no such peer')"], threads=1)
    assert alternate([broken], windows=1, warmup=0) == []
    assert "no such peer" in capsys.readouterr().err


def test_generated_data_is_line_aligned_and_its_vocabularies_cover_it(tmp_path):
    folder = prepare(tmp_path, "translation", None, rows=50)
    source, target = ((folder / f"train.{side}").read_text().splitlines() for side in ("src", "tgt"))
    assert len(source) == len(target) == 50
    vocabulary = (folder / "vocab.src").read_text().split()
    assert tuple(vocabulary[:4]) == SPECIALS
    seen = " ".join(source).split()
    assert set(vocabulary[4:]) == {word for word in seen if seen.count(word) > 1}


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*exists and is not empty")
def test_the_best_epoch_of_w3_is_kept_and_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.SIZES, "w3", {"embedding_dim": 4, "hidden_size": 8, "dropout": 0.5})
    folder = prepare(tmp_path, "g2p", None, rows=20)
    for side in ("src", "tgt"):
        path = folder / f"valid.{side}"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    options = ["--mode", "quality", "--workload", "w3", "--data", str(folder), "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["ours", *options, "--model", str(tmp_path / "model")])
    ours.main()
    said = capsys.readouterr().out
    assert said.count("val_sequence_error_rate") == 2
    assert LitSeq2Seq.from_pretrained(tmp_path / "model").net.decoder.hidden_size == 8


def test_the_programme_for_gpus_runs_small_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.SIZES, "gnmt", dict(gpu.SIZES["gnmt"]))
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=itertools.count().__next__))  # a second a look
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--output", str(output)])
    gpu.main()
    rows = json.loads(output.read_text())
    assert [row["what"] for row in rows] == [
        "training",
        "training",
        "share of recurrent kernels",
        "decoding, beams 1",
        "decoding, beams 5",
    ]
    assert 0 < rows[2]["share"] < 1
    rates = [row["tokens_per_second"] for row in rows if row["what"] != "share of recurrent kernels"]
    assert rates == [2 * 2 * 25, 2 * 4 * 25, 4 * 25, 4 * 25]  # symbols of both sides to train, of one to decode
    assert rows[1]["mfu"] == 2 * rows[0]["mfu"]


def test_growth_measures_training_and_streaming(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "WORK", tmp_path)
    sizes = {"hidden_size": 8, "num_layers": 1, "batch_size": 2, "source_length": 3, "vocabulary": 20}
    monkeypatch.setattr(growth, "time", SimpleNamespace(process_time=itertools.count().__next__))  # a second a look
    assert growth.rate(sizes, steps=1) == 2 * growth.TARGET_LENGTH
    folder = tmp_path / "data" / "translation_generated"
    folder.mkdir(parents=True)
    for name, lines in {"train.src": "a b\nc\n", "train.tgt": "A B\nC\n", "done": ""}.items():
        (folder / name).write_text(lines)
    growth.repeated(7)
    assert (tmp_path / "data/growth_7/train.src").read_text() == "a b\nc\n" * 3 + "a b\n"
    found = growth.load(7, batches=1)
    assert (found["start_s"], found["per_cpu_second"], found["padding"]) == (1, 6, 0)
    assert found["peak_mib"] == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, rel=0.01)


def test_the_pairs_of_the_curve_of_lag_come_from_a_file_too(tmp_path):
    (tmp_path / "pairs.csv").write_text("en,de\none,eins\n")
    place = str(tmp_path / "pairs.csv")
    assert lag.read(place, "test", ("en", "de")) == [("one", "eins")]
    with pytest.raises(UserError, match="no column 'german': choose with --target among en, de"):
        lag.read(place, "test", ("en", "german"))
    rows(train=4)["test"].to_json(tmp_path / "test.jsonl")
    with pytest.raises(UserError, match=r"no split 'validation': choose with --split among .*test"):
        lag.read(str(tmp_path), "validation", ("source", "target"))


def test_the_curve_of_lag_is_what_the_test_of_a_run_says(tmp_path):
    data = make_data()
    for place in ("one", "two"):
        model = make_model(
            encoder=partial(TextEncoder, **SIZES, bidirectional=False),
            decoder=partial(ParallelDecoder, **SIZES, attention=GeneralAttention, bridge=ZeroBridge),
            generation=GenerationConfig(num_beams=1, max_new_tokens=8, min_new_tokens=2, policy=WaitK(2)),
            metrics=[partial(BLEU, lowercase=True)],
        )
        model.attach(data.processor)
        disturb(model.net, scale=2.0)
        [scores] = make_trainer(tmp_path, max_epochs=0).test(model, data, verbose=False)
        model.save_pretrained(tmp_path / place)
    rows(train=4)["test"].to_json(tmp_path / "test.jsonl")
    models = [str(tmp_path / place) for place in ("one", "two")]
    columns = ["--data", str(tmp_path), "--source", "source", "--target", "target", "--k", "1", "2"]
    lag.main(["--model", *models, *columns, "--output", str(tmp_path / "lag.json")])
    found = json.loads((tmp_path / "lag.json").read_text())
    assert [point["k"] for point in found["points"]] == [1, 2, None]
    measured = next(row for row in found["models"] if row["k"] == 2 and row["model"] == models[1])
    for name in ("bleu", "al", "laal", "dal", "ap"):
        assert measured[name] == pytest.approx(scores[f"test_{name}"])
    assert found["points"][0]["al"] < found["points"][1]["al"] < found["points"][2]["al"]
    assert (tmp_path / "lag.png").stat().st_size > 5000
