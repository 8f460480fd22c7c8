import io

import numpy as np
import pytest
from datasets import Audio, Dataset, DatasetDict

from lit_seq2seq.data import JoinedRecordings, Seq2SeqDataModule
from lit_seq2seq.features import LogMel, Tokenizer
from lit_seq2seq.types import UserError

RATE = 1000
WORDS = {"one": 1000, "two": 2000, "three": 3000}  # the sample that a word consists of


def recordings(speakers: str = "ab") -> Dataset:
    """One recording of each word by each speaker: constant samples, those of the second speaker negative."""
    rows = [
        {"audio": np.full(40, sample * (-1) ** index, np.int16), "text": word, "speaker": speaker}
        for index, speaker in enumerate(speakers)
        for word, sample in WORDS.items()
    ]
    return Dataset.from_list(rows)


def heard(samples: list[int]) -> tuple[list[str], list[int]]:
    """The words by their samples, and the lengths of the gaps."""
    array = np.array(samples)
    edges = np.flatnonzero(np.diff(array)) + 1
    runs = np.split(array, edges)
    names = {sample: word for word, sample in WORDS.items()}
    words = [name for run in runs if run[0] for name in [names[abs(int(run[0]))]] * (len(run) // 40)]
    return words, [len(run) for run in runs if not run[0]]


def test_utterances_are_the_recordings_of_one_speaker_with_gaps_between() -> None:
    made = JoinedRecordings(recordings(), sampling_rate=RATE, train_size=50, shortest=1, longest=4, gap=(0.005, 0.02))
    rows = made.load()["train"]
    assert len(rows) == 50
    counts = set()
    for row in rows:
        samples = row["audio"]["array"]
        words, gaps = heard(samples)
        assert " ".join(words) == row["text"]
        assert row["ends"] == np.cumsum([40 + gap for gap in [0, *gaps]]).tolist()
        assert row["audio"]["sampling_rate"] == RATE
        assert len(gaps) == len(words) - 1
        assert all(5 <= gap <= 20 for gap in gaps)
        assert len({np.sign(sample) for sample in samples if sample}) == 1, "two speakers in one utterance"
        counts.add(len(words))
    assert counts == {1, 2, 3, 4}
    assert len(set(rows["text"])) > 20


def test_without_a_speaker_column_any_recordings_are_joined() -> None:
    rows = JoinedRecordings(recordings(), speaker_column=None, sampling_rate=RATE, train_size=30).load()["train"]
    assert any(len({np.sign(sample) for sample in row["audio"]["array"] if sample}) == 2 for row in rows)


def test_the_seed_decides() -> None:
    texts = [
        JoinedRecordings(recordings(), sampling_rate=RATE, train_size=20, seed=seed).load()["train"]["text"][:]
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_each_split_is_made_of_its_own_recordings() -> None:
    splits = DatasetDict({"train": recordings("a"), "validation": recordings("ab").select([3]), "other": recordings()})
    made = JoinedRecordings(splits, sampling_rate=RATE, train_size=9, validation_size=3).load()
    assert {split: len(rows) for split, rows in made.items()} == {"train": 9, "validation": 3}
    assert set(" ".join(made["validation"]["text"]).split()) == {"one"}


def test_recordings_of_a_lone_training_split_are_set_aside() -> None:
    """Twelve takes of each word, told by their samples: none is heard in two splits, each word in all of them."""
    takes = [
        {"audio": np.full(40, sample + take, np.int16), "text": word, "speaker": "a"}
        for word, sample in WORDS.items()
        for take in range(12)
    ]
    sizes = {"train_size": 99, "validation_size": 9, "test_size": 9}
    made = JoinedRecordings(Dataset.from_list(takes), sampling_rate=RATE, **sizes).load()
    assert {split: len(rows) for split, rows in made.items()} == {"train": 99, "validation": 9, "test": 9}
    samples = {split: {s for row in rows for s in row["audio"]["array"] if s} for split, rows in made.items()}
    assert {split: len(found) for split, found in samples.items()} == {"train": 30, "validation": 3, "test": 3}
    assert len(set.union(*samples.values())) == 36


def test_ready_utterances_are_evaluated_as_they_are(tmp_path) -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, np.full(40, 0.5), RATE, format="WAV")
    row = {"audio": {"bytes": file.getvalue(), "path": None}, "text": "one", "speaker": "a"}
    for name in ("single", "ready"):
        for split in ("train", "validation"):
            rows = Dataset.from_list([row, row]).cast_column("audio", Audio())
            (tmp_path / name).mkdir(exist_ok=True)
            rows.to_parquet(tmp_path / name / f"{split}.parquet")
    configs = [
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - {{split: {split}, path: {name}/{split}.parquet}}\n" for split in ("train", "validation"))
        for name in ("single", "ready")
    ]
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    joined = JoinedRecordings(str(tmp_path), "single", "ready", sampling_rate=RATE, train_size=5)
    feature = LogMel(sampling_rate=RATE, n_mels=4)
    data = Seq2SeqDataModule(
        joined,
        source_column="audio",
        target_column="text",
        source_feature=feature,
        target_tokenizer=Tokenizer("word"),
        test_size=0,
    )
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch.references == (("one",), ("one",))
    assert len(data.train_dataloader().dataset) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortest": 0}, "expected 1 <= shortest <= longest, but they are 0 and 7"),
        ({"gap": (0.2, 0.1)}, r"expected gap to be two lengths, 0 <= shortest <= longest, but it is \[0\.2, 0\.1\]"),
        ({"train_size": 0}, "expected train_size from 1 to 10000000, but it is 0"),
        ({"sampling_rate": 0}, "expected sampling_rate of at least 1, but it is 0"),
    ],
)
def test_arguments_out_of_range_are_explained(options, message) -> None:
    with pytest.raises(UserError, match=message):
        JoinedRecordings(recordings(), **options)


def test_a_missing_column_is_explained() -> None:
    joined = JoinedRecordings(recordings(), text_column="words")
    with pytest.raises(UserError, match="expected a column 'words', but the columns are audio, text, speaker: set aud"):
        joined.load()
