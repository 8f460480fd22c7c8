"""Targets as streams of running text, in pieces."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from lit_seq2seq import Seq2SeqDataModule
from lit_seq2seq.data.running import RunningText
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.types import Batch, UserError

TEXTS = ["ab", "", "cabba", "a", "   ", "bacca", "cc"]


def module(texts: list[str] = TEXTS, **options: Any) -> Seq2SeqDataModule:
    rows = DatasetDict({name: Dataset.from_dict({"text": texts}) for name in ("train", "validation", "test")})
    columns = {"source": None, "target": "text"}
    settings = {"columns": columns, "target_tokenizer": Tokenizer("char"), "batches": {"size": 2, "bptt": 3}}
    return Seq2SeqDataModule(rows, **{**settings, **options})


def running(data: Seq2SeqDataModule, split: str, streams: int, length: int, **options: int) -> RunningText:
    return RunningText(data._encoded(split), streams, length, **options)


def symbols(text: RunningText) -> list[list[int]]:
    """Read each stream to its end."""
    streams: list[list[int]] = [[] for _ in text.spans]
    for number in range(len(text)):
        batch = text[number]
        assert batch.target is not None
        for stream, row, length in zip(
            streams, batch.target.values.tolist(), batch.target.lengths.tolist(), strict=True
        ):
            assert 1 <= length <= text.length + 1
            assert length == text.length or number == len(text) - 1
            stream += row[:length]
    return streams


def whole(data: Seq2SeqDataModule) -> list[int]:
    ids = data.processor.target.encode([text for text in TEXTS if text.strip()])
    return [index for row in ids for index in row.tolist()]


@pytest.mark.parametrize("streams", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 4, 100])
def test_every_symbol_is_in_one_piece_of_one_stream(streams: int, length: int) -> None:
    data = module()
    found = symbols(running(data, "validation", streams, length))
    assert [index for stream in found for index in stream] == whole(data)
    sizes = [len(stream) for stream in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("split", ["train", "validation"])
def test_processes_share_the_streams(split: str) -> None:
    data = module()
    together = symbols(running(data, split, 4, 3))
    apart = [symbols(running(data, split, 4, 3, rank=rank, world_size=2)) for rank in range(2)]
    assert apart[0] + apart[1] == together


@pytest.mark.parametrize(("streams", "length"), [(1, 100), (2, 3), (3, 2), (5, 1)])
def test_each_text_ends_once(streams: int, length: int) -> None:
    text = running(module(), "test", streams, length)
    ended = [[one for row in text[number].references for one in row] for number in range(len(text))]
    assert sorted(one for row in ended for one in row) == sorted(one for one in TEXTS if one.strip())


def test_what_a_batch_holds() -> None:
    text = running(module(), "validation", 2, 4)
    first, second = text[0], text[1]
    assert (first.piece, second.piece) == (0, 1)
    assert first.source.lengths.tolist() == [1, 1]
    assert first.rows.tolist() == [0, 3]  # the second stream begins with the end of "a"
    assert first.references == (("ab",), ("a",))
    assert running(module(), "train", 2, 4)[0].references == ()


def test_texts_are_read_across_chunks_of_the_table() -> None:
    texts = ["ab" * (number % 5 + 1) for number in range(2500)]
    data = module(texts)
    text = running(data, "validation", 3, 1000)
    assert len(text._chunks) > 1
    ids = np.concatenate(data.processor.target.encode(texts)).tolist()
    assert [index for stream in symbols(text) for index in stream] == ids


def loaded(data: Seq2SeqDataModule) -> list[Batch]:
    return list(data.train_dataloader())


def test_the_loader_gives_the_pieces_in_order_in_each_epoch() -> None:
    data = module()
    data.setup("fit")
    first, second = loaded(data), loaded(data)
    assert [batch.piece for batch in first] == [batch.piece for batch in second] == list(range(len(first)))
    assert data.batches_per_epoch == len(first) == 4


def test_evaluation_streams_do_not_depend_on_the_number_of_processes() -> None:
    data = module(batches={"size": 2, "eval_size": 3, "bptt": 5})
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert len(batch) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batches": {"bptt": 3}}, "expected batches.size beside batches.bptt"),
        ({"batches": {"bptt": 0, "size": 2}}, "expected batches.bptt to be at least 1"),
        ({"columns": {"source": "text", "target": "text"}}, "expected no columns.source beside batches.bptt"),
        ({"streaming": True}, "expected no streaming beside batches.bptt"),
        ({"limits": {"max_target_length": 9}}, "expected no limits.max_target_length beside"),
        ({"batches": {"size": 99, "bptt": 3}}, "at least as many symbols as streams, but there are 20 for 99"),
        ({"target_tokenizer": Tokenizer(dropout=0.1)}, "expected no dropout of the target tokenizer beside"),
    ],
)
def test_settings_that_do_not_go_with_running_text(options: dict[str, Any], told: str) -> None:
    def load() -> None:
        data = module(**options)
        data.setup("fit")
        data.train_dataloader()

    with pytest.raises(UserError, match=told):
        load()


def test_splits_of_running_text_are_carved_from_its_end() -> None:
    rows = {"text": [f"{'abc'[number % 3]} {number % 7}" for number in range(100)]}
    columns = {"source": None, "target": "text"}
    sizes = {"validation_size": 0.1, "test_size": 20}
    data = Seq2SeqDataModule(
        rows, columns=columns, splits=sizes, target_tokenizer="char", batches={"size": 2, "bptt": 4}
    )
    found = {name: list(data._split(name)["text"]) for name in ("train", "validation", "test")}
    assert found["train"] + found["validation"] + found["test"] == rows["text"]
    assert [len(found[name]) for name in ("validation", "test")] == [10, 10]


def test_blank_rows_are_no_text_to_carve() -> None:
    rows = {"text": ["a b", "", "b", "  ", "c a", "", "b c", "", "", "a c", "", None]}
    data = Seq2SeqDataModule(
        rows, columns={"source": None, "target": "text"}, target_tokenizer="char", batches={"size": 2, "bptt": 4}
    )
    found = [[text for text in data._split(name)["text"] if text and text.strip()] for name in data._opened()]
    assert found == [["a b", "b", "c a"], ["b c"], ["a c"]]


def test_a_short_evaluation_has_as_many_streams_as_symbols() -> None:
    data = module()
    assert len(running(data, "validation", 99, 3).spans) == len(whole(data)) == 20
    assert [len(running(data, "test", 99, 3, rank=rank, world_size=3).spans) for rank in range(3)] == [6, 6, 6]


def test_other_splits_keep_equal_texts_together() -> None:
    rows = {"text": [f"{number % 30}" for number in range(100)]}
    data = Seq2SeqDataModule(rows, columns={"source": None, "target": "text"}, target_tokenizer="char")
    found = {name: set(data._split(name)["text"]) for name in ("train", "validation", "test")}
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
