"""Long recordings made of short ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.builtin.base import GeneratedDataset
from lit_seq2seq.data.sources import Files, Split, Splits, open_dataset
from lit_seq2seq.data.splits import columns_of, on_disk, undecoded
from lit_seq2seq.features.recordings import read_audio
from lit_seq2seq.types import UserError


def join(
    rows: Dataset,
    columns: tuple[str, str, str | None],
    *,
    split: str,
    size: int,
    rate: int,
    lengths: tuple[int, int],
    gap: tuple[float, float],
    seed: int,
    version: str,
) -> Iterator[dict[str, Any]]:
    """Yield `size` utterances; `split` and `version` change nothing but the key under which `datasets` caches them."""
    audio, text, speaker = columns
    samples = [np.round(np.clip(read_audio(row, rate), -1, 1) * 32767).astype(np.int16) for row in rows[audio]]
    speakers = [None] * len(samples) if speaker is None else list(rows[speaker])
    words, groups = list(rows[text]), defaultdict(list)
    for index, name in enumerate(speakers):
        groups[name].append(index)
    rng = np.random.default_rng(seed)
    for _ in range(size):
        group = groups[speakers[int(rng.integers(len(samples)))]]
        chosen = [group[place] for place in rng.integers(len(group), size=rng.integers(lengths[0], lengths[1] + 1))]
        parts = [samples[chosen[0]]]
        for index in chosen[1:]:
            parts += [np.zeros(round(rng.uniform(*gap) * rate), dtype=np.int16), samples[index]]
        yield {
            "audio": {"array": np.concatenate(parts), "sampling_rate": rate},
            "text": " ".join(words[index] for index in chosen),
            "ends": np.cumsum([len(part) for part in parts])[::2] * 1000 / rate,
        }


class JoinedRecordings(GeneratedDataset):
    """Recordings of single words joined at random into utterances of several, with silence between them.

    Columns: `audio`, a mapping of `array` (16-bit samples) and `sampling_rate`, `text`, the words of an utterance with
    spaces between them, and `ends`, when the recording of each ends, in milliseconds. A split is made of the recordings
    of the same split only. Where there is no validation or test split, a tenth of the recordings of each word and
    speaker, of which there are three or more, is set aside for it.

    Args:
        dataset: where the recordings are, named as `data.dataset` is.
        name: its configuration that holds the recordings to join.
        evaluate: its configuration whose validation and test splits are taken as they are; if `None`, theirs are made
            by joining too.
        audio_column: column of the recordings.
        text_column: column of their words.
        speaker_column: column of a name; an utterance joins recordings of one and the same. `None` joins any.
        sampling_rate: of the result, in hertz.
        train_size: utterances of the train split.
        validation_size: utterances of the validation split, where it is made.
        test_size: utterances of the test split, where it is made.
        shortest: smallest number of recordings of an utterance.
        longest: greatest number of recordings of an utterance.
        gap: shortest and longest silence between two of them, in seconds.
        seed: draws the utterances.

    Raises:
        UserError: an argument is out of its range, or the recordings cannot be read.
    """

    generate = staticmethod(join)
    edition = 2
    features = Features(
        {
            "audio": {"array": List(Value("int16")), "sampling_rate": Value("int32")},
            "text": Value("string"),
            "ends": List(Value("float32")),
        }
    )

    def __init__(
        self,
        dataset: Files | Dataset | DatasetDict,
        name: str | None = None,
        evaluate: str | None = None,
        *,
        audio_column: str = "audio",
        text_column: str = "text",
        speaker_column: str | None = "speaker",
        sampling_rate: int = 16_000,
        train_size: int = 5000,
        validation_size: int = 200,
        test_size: int = 200,
        shortest: int = 2,
        longest: int = 7,
        gap: Sequence[float] = (0.02, 0.12),
        seed: int = 0,
    ) -> None:
        if not 1 <= shortest <= longest:
            raise UserError(f"expected 1 <= shortest <= longest, but they are {shortest} and {longest}: change them")
        if len(gap) != 2 or not 0 <= gap[0] <= gap[1]:
            raise UserError(f"expected gap to be two lengths, 0 <= shortest <= longest, but it is {list(gap)}")
        if sampling_rate < 1:
            raise UserError(f"expected sampling_rate of at least 1, but it is {sampling_rate}")
        self.columns = (audio_column, text_column, speaker_column)
        options: dict[str, Any] = {"rate": sampling_rate, "lengths": (shortest, longest), "gap": tuple(gap)}
        super().__init__(train_size, validation_size, test_size, seed, columns=self.columns, **options)
        self.dataset, self.name, self.evaluate = dataset, name, evaluate

    def load(self) -> DatasetDict:
        """Return the splits, made at the first call and read from the cache of `datasets` afterwards."""
        single = open_dataset(self.dataset, self.name)
        if self.evaluate is None:
            single = self._set_aside(single)
        found = {split: self._join(split, rows) for split, rows in single.items() if split in self.sizes}
        if self.evaluate is not None:
            ready = open_dataset(self.dataset, self.evaluate)
            found |= {split: on_disk(rows) for split, rows in ready.items() if split in ("validation", "test")}
        return DatasetDict(found)

    def _set_aside(self, single: Splits) -> Splits:
        """Take recordings out of the training split for the splits that are absent, so that none is in two."""
        absent = [split for split in ("validation", "test") if split not in single]
        if "train" not in single or not absent:
            return single
        self._check(single["train"])
        train, (_, *labels) = on_disk(single["train"]), self.columns
        named = [train[label] for label in labels if label is not None]
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for place in np.random.default_rng(self.seed).permutation(len(train)).tolist():
            groups[tuple(str(column[place]) for column in named)].append(place)
        taken: dict[str, list[int]] = {split: [] for split in absent}
        for places in groups.values():
            for split in absent if len(places) > len(absent) else ():
                count = max(len(places) // 10, 1)
                taken[split] += places[:count]
                del places[:count]
        taken["train"] = [place for places in groups.values() for place in places]
        rank_zero_info(f"recordings by split: {', '.join(f'{len(rows)} {split}' for split, rows in taken.items())}")
        return {**single, **{split: train.select(sorted(places)) for split, places in taken.items() if places}}

    def _join(self, split: str, rows: Split) -> Dataset:
        if self.evaluate is not None and split != "train":
            return on_disk(rows)
        names = self._check(rows)
        return self._load(split, rows=on_disk(undecoded(rows, [names[0]])).select_columns(names))

    def _check(self, rows: Split) -> list[str]:
        """Return the names of the columns, which must be there."""
        names = [name for name in self.columns if name is not None]
        known = columns_of(rows)
        for name in names:
            if name not in known:
                raise UserError(
                    f"expected a column '{name}', but the columns are {', '.join(known)}: set audio_column, "
                    "text_column or speaker_column of JoinedRecordings"
                )
        return names
