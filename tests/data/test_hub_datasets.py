"""Data sets of the hub over HTTP: the real clients against a hub on this machine."""

import io
import json
import re

import datasets
import huggingface_hub.constants
import pytest

from lit_seq2seq import Seq2SeqDataModule
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.types import UserError
from tests.loopback_hub import LoopbackHub
from tests.tiny import pairs

SIZES = {"train": 40, "validation": 12, "test": 10}
ROWS = {split: pairs(size, seed) for seed, (split, size) in enumerate(SIZES.items())}


def parquet(rows: dict[str, list[str]]) -> bytes:
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(rows).to_parquet(buffer)
    return buffer.getvalue()


def nested(rows: dict[str, list[str]]) -> bytes:
    lines = [{"translation": {"de": a, "en": b}} for a, b in zip(rows["source"], rows["target"], strict=True)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


PARQUET = {f"data/{split}-00000-of-00001.parquet": parquet(rows) for split, rows in ROWS.items()}
FORMS = {
    "parquet": (PARQUET, {}),
    "json": (
        {f"{split}.jsonl": nested(rows) for split, rows in ROWS.items()},
        {"source_column": "translation.de", "target_column": "translation.en"},
    ),
}


@pytest.fixture
def sets(hub: LoopbackHub) -> LoopbackHub:
    for form, (files, _) in FORMS.items():
        hub.add("datasets", f"alice/{form}", files)
    return hub


def open_set(dataset: str, **options: object) -> Seq2SeqDataModule:
    data = Seq2SeqDataModule(dataset, source_tokenizer=Tokenizer("word"), batch_size=8, **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_fetched_or_streamed(sets: LoopbackHub, form: str, streaming: bool) -> None:
    data = open_set(f"alice/{form}", streaming=streaming, **FORMS[form][1])
    assert data.splits == list(SIZES)
    texts = [
        data.processor.target.decode(ids) for batch in data.train_dataloader() for ids in batch.target.values.tolist()
    ]
    assert sorted(texts) == sorted(ROWS["train"]["target"])


def test_a_revision_is_read(sets: LoopbackHub) -> None:
    sets.repos["datasets", "alice/json"].commit(FORMS["parquet"][0], "columns")
    assert len(open_set("alice/json", revision="columns").splits) == 3


def test_offline_the_cache_serves(sets: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_set("alice/parquet")._split("train")[:]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    sets.log.clear()
    assert open_set("alice/parquet")._split("train")[:] == first
    assert sets.log == []
    with pytest.raises(UserError, match="dataset 'alice/json' is neither a path here nor can the hub be reached"):
        open_set("alice/json")


REFUSALS: dict[str, tuple[str, dict[str, str], str]] = {
    "missing": ("alice/none", {}, "the hub has no such thing as dataset 'alice/none', or it is private: check the id"),
    "private": ("alice/private", {}, "the hub has no such thing as dataset 'alice/private', or it is private"),
    "gated": ("alice/gated", {}, "dataset 'alice/gated' is gated: ask for access on its page"),
    "wrong token": ("alice/private", {}, "the hub does not know the token"),
    "revision": ("alice/parquet", {"revision": "v2"}, "dataset 'alice/parquet' has no revision v2: name a branch"),
    "name": (
        "alice/parquet",
        {"name": "v2"},
        "dataset 'alice/parquet' cannot be read: BuilderConfig 'v2' not found. Available: ",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_explained(sets: LoopbackHub, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.add("datasets", "alice/private", PARQUET, private=True)
    sets.add("datasets", "alice/gated", PARQUET, gated=True)
    name, options, match = REFUSALS[case]
    if case == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=re.escape(match)) as caught:
        open_set(name, **options)
    assert "\n" not in str(caught.value)


def test_who_has_a_token_reads_a_private_one(sets: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.add("datasets", "alice/private", PARQUET, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert open_set("alice/private").splits == list(SIZES)


def test_a_connection_that_drops_is_taken_up_where_it_broke(sets: LoopbackHub) -> None:
    sets.drops = 2
    assert open_set("alice/parquet")._split("train")[:] == ROWS["train"]
    assert sets.drops == 0
    assert sets.ranges


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_a_connection_that_keeps_dropping_is_explained(sets: LoopbackHub, streaming: bool) -> None:
    data = Seq2SeqDataModule(
        "alice/parquet", processor=open_set("alice/json", **FORMS["json"][1]).processor, streaming=streaming
    )
    if streaming:
        data._split("train")
    sets.drops = 1_000_000
    with pytest.raises(
        UserError, match=r"the connection for .* was lost or not made .*check network and HF_ENDPOINT"
    ) as caught:
        list(data.train_dataloader()) if streaming else data.setup("fit")
    assert "\n" not in str(caught.value)
