import copy
import json
import re
from pathlib import Path

import datasets
import numpy
import pandas
import pyarrow
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import SequentialSampler

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.settings.options import OptionParser
from lit_seq2seq.types import Batch, UserError

WHOLE = {"validation_size": 0, "test_size": 0}  # nothing is carved


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "lit_seq2seq"


def pairs(count=60, start=0):
    numbers = range(start, start + count)
    return {"source": [f"Zahl {'so ' * (i % 5)}{i}" for i in numbers], "target": [f"Number {i}" for i in numbers]}


def splits():
    return DatasetDict(
        train=Dataset.from_dict(pairs(60)),
        validation=Dataset.from_dict(pairs(10, 60)),
        test=Dataset.from_dict(pairs(9, 70)),
    )


def module(dataset=None, **options):
    options = {"source_tokenizer": Tokenizer("char"), "batch_size": 4, **options}
    return Seq2SeqDataModule(splits() if dataset is None else dataset, **options)


def loaded(data, stage="fit"):
    data.prepare_data()
    data.setup(stage)
    return data


def rows_of(loader):
    return sorted(row for batch in loader for row in batch.rows.tolist())


def test_training_batches_hold_what_the_rows_say():
    data = loaded(module())
    texts = pairs()
    seen = []
    for batch in data.train_dataloader():
        assert isinstance(batch, Batch)
        assert batch.references == ()
        assert batch.texts == ()
        for row, side, padded in zip(
            ["source"] * len(batch) + ["target"] * len(batch),
            [*range(len(batch))] * 2,
            [batch.source] * len(batch) + [batch.target] * len(batch),
            strict=True,
        ):
            tokenizer = data.processor.target if row == "target" else data.processor.source_feature
            ids = padded.values[side, : padded.lengths[side]].tolist()
            assert ids[-1] == tokenizer.specials.eos
            assert tokenizer.specials.bos not in ids
            assert (padded.values[side, padded.lengths[side] :] == tokenizer.specials.pad).all()
            assert tokenizer.decode(ids) == texts[row][batch.rows[side]]
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_batches_carry_texts_and_references(stage):
    data = loaded(module(source_tokenizer=Tokenizer("char", lowercase=True)), stage)
    loader = data.val_dataloader() if stage == "validate" else data.test_dataloader()
    raw = splits()["validation" if stage == "validate" else "test"]
    for batch in loader:
        assert batch.texts == tuple(raw[row]["source"] for row in batch.rows.tolist())
        assert batch.references == tuple((raw[row]["target"],) for row in batch.rows.tolist())
        assert batch.target.values.dtype == torch.int64
    assert rows_of(loader) == list(range(len(raw)))


def test_prediction_keeps_every_row_and_needs_no_target(tmp_path):
    (tmp_path / "in.txt").write_text("Zahl 1\n\nZahl so 2\n")
    data = loaded(module(predict_dataset=str(tmp_path / "in.txt")), "predict")
    batches = list(data.predict_dataloader())
    assert {row: text for b in batches for row, text in zip(b.rows.tolist(), b.texts, strict=True)} == {
        0: "Zahl 1",
        1: "",
        2: "Zahl so 2",
    }
    assert all(batch.target is None and batch.references == () for batch in batches)
    test_split = loaded(module(), "predict").predict_dataloader()
    assert rows_of(test_split) == list(range(9))


def test_carving_is_stable_disjoint_and_complete():
    def carved(seed):
        data = module(Dataset.from_dict(pairs(100)), validation_size=0.1, test_size=7, seed=seed)
        return {name: rows["target"][:] for name, rows in data._opened().items()}

    first = carved(0)
    assert first == carved(0)
    assert first != carved(1)
    assert {name: len(rows) for name, rows in first.items()} == {"train": 83, "validation": 10, "test": 7}
    assert len({row for rows in first.values() for row in rows}) == 100
    assert set(module(Dataset.from_dict(pairs(100)), validation_size=0)._opened()) == {"train", "test"}


def test_a_second_start_computes_nothing(cache, monkeypatch):
    loaded(module(shared_vocabulary=True))
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(before) == 8  # a tokenizer; sources and targets of two splits; keys of the sources of three
    for method in ("train", "encode_batch"):
        monkeypatch.setattr(Tokenizer, method, lambda *_, **__: pytest.fail("computed again"))
    data = loaded(module(shared_vocabulary=True))
    assert len(list(data.train_dataloader())) == 15 + 1
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [{"source_prefix": "de: "}, {"source_tokenizer": Tokenizer("byte")}, {"dataset": Dataset.from_dict(pairs(61))}],
)
def test_other_settings_or_data_are_computed_anew(cache, change):
    loaded(module())
    before = set(cache.iterdir())
    loaded(module(**change))
    assert set(cache.iterdir()) - before


def test_encoded_columns_stay_on_disk():
    data = loaded(module())
    examples = data._examples["train"]
    for columns in (examples.encoded.sources, examples.encoded.examples):
        assert [file["filename"] for file in columns.cache_files]
        assert type(columns.data).__name__ in ("MemoryMappedTable", "ConcatenationTable")


def test_several_processes_tokenise_and_load():
    plain = loaded(module())
    data = loaded(module(Dataset.from_dict(pairs(60)), num_proc=2, num_workers=2))
    loader = data.train_dataloader()
    total = len(data._examples["train"])
    assert rows_of(loader) == list(range(total))
    assert sum(len(batch) for batch in loader) == total
    assert len(plain.processor.target) == len(data.processor.target)


def test_alternative_targets_train_each_and_are_all_references():
    rows = Dataset.from_dict({"source": ["x", "y"] * 9, "c_0": ["p", "q"] * 9, "c_1": ["r", None] * 9})
    data = DatasetDict(train=rows, validation=rows)
    data = loaded(module(data, target_column="c_*", test_size=0))
    seen = [
        (row, data.processor.target.decode(ids))
        for batch in data.train_dataloader()
        for row, ids in zip(batch.rows.tolist(), batch.target.values.tolist(), strict=True)
    ]
    assert sorted(seen)[:3] == [(0, "p"), (0, "r"), (1, "q")]
    assert len(seen) == 27
    batches = list(data.val_dataloader())
    assert {tuple(refs) for batch in batches for refs in batch.references} == {("p", "r"), ("q",)}
    assert rows_of(batches) == list(range(18))


def test_prefix_shared_vocabulary_and_own_settings():
    data = loaded(module(shared_vocabulary=True, source_prefix="say: "))
    assert data.processor.shared
    batch = next(iter(data.train_dataloader()))
    assert data.processor.target.decode(batch.source.values[0].tolist()).startswith("say: Zahl")
    data = module(source_tokenizer=Tokenizer("word"), target_tokenizer=Tokenizer("char"))
    assert data.processor.source_feature.config["model"] == "word"
    assert data.processor.target.config["model"] == "char"
    assert module(source_tokenizer=Tokenizer("word")).processor.target.config["model"] == "word"


def test_feature_columns_are_symbols_before_the_source():
    rows = Dataset.from_dict({"source": ["go", "do"] * 9, "kind": ["V;PST", "V;PRS"] * 9, "target": ["went", "do"] * 9})
    data = loaded(module(rows, feature_columns="kind", **WHOLE))
    tokenizer = data.processor.source_feature
    assert {"⟨V⟩ ", "⟨PST⟩ ", "⟨PRS⟩ "} <= set(tokenizer.tokens(range(len(tokenizer))))
    found = {tokenizer.decode(ids) for batch in data.train_dataloader() for ids in batch.source.values.tolist()}
    assert found == {"⟨V⟩ ⟨PST⟩ go", "⟨V⟩ ⟨PRS⟩ do"}


def flawed():
    return {"source": ["a b c", "", None, "d"], "target": ["x", "y", "z", " "]}


def test_empty_rows_are_dropped_and_counted():
    data = module(Dataset.from_dict(flawed()), **WHOLE)
    data.setup("fit")
    assert data._examples["train"].report == "1 of 4 examples (2 without source, 1 without target)"
    assert rows_of(data.train_dataloader()) == [0]


def test_empty_rows_are_kept_as_a_lone_eos():
    data = module(Dataset.from_dict(flawed()), empty="keep", **WHOLE)
    data.setup("fit")
    lengths = {}
    for batch in data.train_dataloader():
        for row, source, target in zip(batch.rows.tolist(), batch.source.lengths, batch.target.lengths, strict=True):
            lengths[row] = (int(source), int(target))
    assert lengths == {0: (6, 2), 1: (1, 2), 2: (1, 2), 3: (2, 1)}


def test_overlong_rows_are_cut_or_dropped_in_training_and_cut_elsewhere():
    cut = loaded(module(max_source_length=8, max_target_length=5))
    assert "with source longer than 8" in cut._examples["train"].report
    for batch in cut.train_dataloader():
        assert batch.source.values.shape[1] <= 8
        last = batch.source.values.gather(1, batch.source.lengths[:, None] - 1)
        assert (last == cut.processor.source_feature.specials.eos).all()
        assert batch.target.values.shape[1] == 5
    dropped = loaded(module(max_source_length=8, overlong="drop"))
    texts = pairs()["source"]
    assert rows_of(dropped.train_dataloader()) == [row for row in range(60) if len(texts[row]) < 8]
    assert rows_of(dropped.val_dataloader()) == list(range(10))


def test_epochs_differ_and_repeat_by_seed():
    def epoch(seed, number):
        loader = loaded(module(seed=seed)).train_dataloader()
        loader.sampler.set_epoch(number)
        return [batch.rows.tolist() for batch in loader]

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_dropout_encodes_training_rows_anew_each_time():
    tokenizer = Tokenizer("bpe", vocab_size=60, dropout=0.5)
    data = loaded(module(source_tokenizer=tokenizer, batch_size=100, num_workers=1))
    loader = data.train_dataloader()
    first, second = next(iter(loader)), next(iter(loader))
    assert first.rows.tolist() == second.rows.tolist()
    assert first.source.values.tolist() != second.source.values.tolist()
    texts = pairs()["source"]
    for row, ids in zip(second.rows.tolist(), second.source.values.tolist(), strict=True):
        assert data.processor.source_feature.decode(ids) == texts[row]
    val = data.val_dataloader()
    assert next(iter(val)).source.values.tolist() == next(iter(val)).source.values.tolist()


def test_a_given_processor_is_used(tmp_path):
    first = loaded(module())
    first.processor.save(tmp_path / "model")
    for processor in (first.processor, str(tmp_path / "model")):
        data = loaded(Seq2SeqDataModule(Dataset.from_dict(pairs(30, 500)), processor=processor))
        assert data.processor.to_dict() == first.processor.to_dict()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_streaming_covers_the_rows_and_reshuffles(tmp_path, num_workers):
    Dataset.from_dict(pairs(60)).to_json(tmp_path / "rows.jsonl")
    data = module(str(tmp_path / "rows.jsonl"), streaming=True, validation_size=5, test_size=5, num_workers=num_workers)
    loaded(data)
    texts = pairs()["source"][10:]
    loader = data.train_dataloader()
    epochs = [[data.processor.source_feature.decode(i) for b in loader for i in b.source.values.tolist()] for _ in "ab"]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(texts)
    assert epochs[0] != epochs[1]
    assert rows_of(data.val_dataloader()) == list(range(5))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_share_a_stream_evenly(tmp_path, world_size):
    """Rows of all lengths, the last part smaller than the number of processes; each has as many batches."""
    Dataset.from_dict(pairs(60)).to_json(tmp_path / "rows.jsonl")
    data = module(str(tmp_path / "rows.jsonl"), streaming=True, validation_size=5, test_size=5)
    stream = loaded(data).train_dataloader().dataset
    total = sum(len(batch) for batch in stream)
    for buffer_size in (total - 1, 7, 100):
        shares = []
        for rank in range(world_size):
            mine = copy.copy(stream)
            mine.rank, mine.world_size, mine.buffer_size = rank, world_size, buffer_size
            shares.append([batch.rows.tolist() for batch in mine])
        assert len({len(share) for share in shares}) == 1
        assert sorted(row for share in shares for rows in share for row in rows) == list(range(total))


def test_a_stream_of_which_nothing_is_left_is_told(tmp_path):
    Dataset.from_dict(pairs(60)).to_json(tmp_path / "rows.jsonl")
    data = module(str(tmp_path / "rows.jsonl"), streaming=True, validation_size=5)
    with pytest.raises(
        UserError, match=r"expected rows in the stream .*: splits.validation_size and splits.test_size take"
    ):
        next(iter(loaded(data).train_dataloader()))


class Counter(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, _):
        self.seen["train"].append(batch.rows.tolist())
        return self.weight * batch.source.total

    def validation_step(self, batch, _):
        self.seen["val"] += batch.rows.tolist()

    def test_step(self, batch, index):
        self.seen["test"] += batch.rows.tolist()

    def predict_step(self, batch, _):
        return batch.rows

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_trainer_runs_every_stage(tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model, data = Counter(), module()
    trainer.fit(model, data)
    half = len(model.seen["train"]) // 2
    epochs = model.seen["train"][:half], model.seen["train"][half:]
    assert [sorted(row for batch in epoch for row in batch) for epoch in epochs] == [list(range(60))] * 2
    assert epochs[0] != epochs[1]
    assert sorted(model.seen["val"]) == sorted([*range(10)] * 2)
    trainer.test(model, data)
    assert sorted(model.seen["test"]) == list(range(9))
    predicted = trainer.predict(model, data)
    assert sorted(torch.cat(predicted).tolist()) == list(range(9))
    assert not isinstance(trainer.predict_dataloaders.sampler, SequentialSampler)


def parse(*arguments):
    parser = OptionParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Seq2SeqDataModule, "data")
    config = parser.parse_args(list(arguments))
    return parser.instantiate(config).data


def test_the_command_line_and_yaml_name_every_setting(tmp_path):
    (tmp_path / "data.yaml").write_text(
        """
        data:
          dataset: {class_path: lit_seq2seq.builtin.PhraseTranslation, init_args: {train_size: 100}}
          target_column: [en, fr]
          validation_size: 0.1
          source_tokenizer: {model: word, min_frequency: 2}
          target_tokenizer: {class_path: lit_seq2seq.features.Tokenizer, init_args: {vocab_size: 99}}
        """
    )
    data = parse("--config", str(tmp_path / "data.yaml"), "--data.max_tokens", "77")
    assert data.dataset.sizes["train"] == 100
    assert data.mapper.target == ["en", "fr"]
    assert data.source.config["min_frequency"] == 2
    assert data.target.config["vocab_size"] == 99
    assert data.batches.training == {"max_tokens": 77, "batch_size": None}
    data = parse("--config", str(tmp_path / "data.yaml"), "--data.dataset", "user/name", "--data.batch_size=8")
    assert data.dataset == "user/name"
    data = parse("--data.dataset", "x", "--data.source_tokenizer.vocab_size", "4000", "--data.test_size", "0.2")
    assert data.source.config["vocab_size"] == 4000
    assert data.split_settings.test_size == 0.2
    files = {"train": ["a.en", "a.de"], "validation": "v.csv"}
    assert parse("--data.dataset", json.dumps(files)).dataset == files
    assert parse("--data.dataset", '["a.en", "a.de"]').dataset == ["a.en", "a.de"]


VALUES = {
    "source_column": "a",
    "target_column": ["a", "b"],
    "reference_columns": ["c"],
    "feature_columns": ["d"],
    "speaker_column": "e",
    "group_references": True,
    "train_split": "a",
    "validation_split": "b",
    "test_split": "c",
    "validation_size": 0.5,
    "test_size": 3,
    "max_source_length": 5,
    "max_target_length": 6,
    "overlong": "drop",
    "empty": "keep",
    "max_tokens": 7,
    "batch_size": 8,
    "eval_max_tokens": 9,
    "eval_batch_size": 10,
    "keep_targets_together": True,
    "longest_first": True,
    "num_workers": 2,
}
"""A value for each setting that had another name in 0.1."""


def settings_of(data):
    return data.mapper, data.split_settings, data.limits, data.batches


def test_the_names_that_settings_once_had_are_read_everywhere(tmp_path):
    assert VALUES.keys() == Seq2SeqDataModule.renamed.keys()
    file = tmp_path / "old.yaml"
    file.write_text(json.dumps({"data": {"dataset": "x", **VALUES}}))
    written = [
        f"--data.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in VALUES.items()
    ]
    groups = {}
    for name, value in VALUES.items():
        group, field = Seq2SeqDataModule.renamed[name].split(".")
        groups.setdefault(group, {})[field] = value
    expected = settings_of(Seq2SeqDataModule("x", **groups))
    assert expected != settings_of(Seq2SeqDataModule("x"))
    assert settings_of(Seq2SeqDataModule("x", **VALUES)) == expected
    assert settings_of(parse("--config", str(file))) == expected
    assert settings_of(parse("--data.dataset=x", *written)) == expected


@pytest.mark.parametrize("old_first", [True, False])
def test_names_of_now_and_of_once_stand_side_by_side(tmp_path, old_first):
    file = tmp_path / "mixed.yaml"
    settings = [("source_column", "de"), ("columns", {"target": "en"})]
    file.write_text(yaml.safe_dump({"data": dict(settings if old_first else settings[::-1])}, sort_keys=False))
    data = parse("--data.dataset=x", "--config", str(file), "--data.target_column+=fr", "--data.columns.tags=[form]")
    assert (data.mapper.source, data.mapper.target, data.mapper.tags) == ("de", ["en", "fr"], ["form"])
    nested = parse("--data.dataset=x", "--data.source_column.text=de", "--data.source_column.image=file")
    assert nested.mapper.source == {"text": "de", "image": "file"}


def test_a_setting_by_both_its_names_is_refused(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text("data: {dataset: x, batch_size: 8, batches: {size: 9}}")
    with pytest.raises(UserError, match=r"^data.batch_size is what data.batches.size was called once, and both are"):
        parse("--config", str(file))
    with pytest.raises(UserError, match="batch_size is a field of batches, which is given too: set size there"):
        Seq2SeqDataModule("x", batch_size=8, batches={"eval_size": 9})


def test_mistakes_are_explained():
    with pytest.raises(UserError, match=r"expected a column 'src', but the columns are source, target: set columns.so"):
        module(source_column="src").setup("fit")
    with pytest.raises(
        UserError, match=r"expected a split 'valid', but the splits are train, validation, test: set splits.val"
    ):
        module(validation_split="valid").setup("fit")
    with pytest.raises(UserError, match="expected a test split, but the splits are train"):
        module(splits()["train"], **WHOLE).setup("test")
    with pytest.raises(UserError, match="expected a train split, but the splits are test"):
        module(DatasetDict(test=splits()["test"])).setup("fit")
    with pytest.raises(UserError, match="expected text in column 'source', but it holds int64"):
        module(Dataset.from_dict({"source": [1] * 30, "target": ["a"] * 30})).setup("fit")
    with pytest.raises(
        UserError,
        match=r"in every row, but 2 examples without source came, the first of them \{\"source\": .*\"target\": \"",
    ):
        module(DatasetDict(train=Dataset.from_dict(flawed())), empty="error", **WHOLE).setup("fit")
    with pytest.raises(UserError, match=r"expected examples to use, but there are 0 of 60 examples \(60 with source"):
        module(max_source_length=2, overlong="drop").setup("fit")
    with pytest.raises(UserError, match="expected max_source_length to be at least 1, but it is 0"):
        module(max_source_length=0)
    with pytest.raises(UserError, match=r"expected batches.max_tokens to be at least 1, but it is -1"):
        module(max_tokens=-1)
    with pytest.raises(UserError, match=r"expected splits.validation_size to be a number of rows, or a share below 1"):
        module(validation_size=-0.1).setup("fit")
    with pytest.raises(UserError, match="expected no target_tokenizer with shared_vocabulary"):
        module(shared_vocabulary=True, target_tokenizer=Tokenizer("char")).setup("fit")
    with pytest.raises(
        UserError, match=r"a processor \(init_from .*, or a source_tokenizer or source_feature, but both .* null \(and"
    ):
        module(processor=module().processor)
    with pytest.raises(UserError, match="expected one split or 'test' in predict_dataset, but it has a, b"):
        module(predict_dataset=DatasetDict(a=splits()["test"], b=splits()["test"])).setup("predict")
    with pytest.raises(UserError, match=r"expected splits.validation_size to be a number of rows when streaming"):
        module(Dataset.from_dict(pairs()), streaming=True, validation_size=0.1).setup("fit")


class Ran:
    """A trainer that evaluates a model, as far as the data module asks it."""

    world_size, global_rank = 1, 0

    def __init__(self, function, processor=None):
        self.state = type("State", (), {"fn": function})
        self.lightning_module = type("Model", (), {"attached": processor is not None, "processor": processor})


EVALUATED = {"validate": "validation", "test": "test", "predict": "test"}


@pytest.mark.parametrize("stage", EVALUATED)
def test_a_trained_model_is_evaluated_without_a_train_split_and_without_encoding_others(stage, tmp_path, monkeypatch):
    processor = module().processor
    path = tmp_path / "rows.csv"
    Dataset.from_dict(pairs(9, 70)).to_csv(path)
    for dataset in (
        {EVALUATED[stage]: str(path)},
        {EVALUATED[stage]: str(path), "train": str(tmp_path / "gone.csv")},
        {EVALUATED[stage]: Dataset.from_dict(pairs(9, 70)), "train": [("a", "b")]},
        DatasetDict({EVALUATED[stage]: Dataset.from_dict(pairs(9, 70))}),
    ):
        data = module(dataset)
        data.trainer = Ran(stage, processor)
        loaded(data, stage)
        data.load_state_dict({"seed": 3, "position": {}, "max_tokens": 1, "batch_size": 2, "examples": 60})
        loader = {"validate": data.val_dataloader, "test": data.test_dataloader, "predict": data.predict_dataloader}
        assert rows_of(loader[stage]()) == list(range(9))
        assert list(data._examples) == ["predict" if stage == "predict" else EVALUATED[stage]]
        assert data.processor is processor


def test_other_settings_than_those_of_the_evaluated_model_are_learned_from_the_train_split():
    processor = module().processor
    for options in ({"source_tokenizer": Tokenizer("word")}, {"source_prefix": "say: "}, {"processor": processor}):
        given = {"source_tokenizer": None, **options} if "processor" in options else options
        data = module(**given)
        data.trainer = Ran("test", module(source_tokenizer=Tokenizer("byte")).processor)
        assert data.processor is not data.trainer.lightning_module.processor


FORMS = {
    "list of pairs": lambda rows: list(zip(rows["source"], rows["target"], strict=True)),
    "list of lists": lambda rows: [list(pair) for pair in zip(rows["source"], rows["target"], strict=True)],
    "list of mappings": lambda rows: Dataset.from_dict(rows).to_list(),
    "mapping of lists": lambda rows: rows,
    "mapping of arrays": lambda rows: {name: numpy.array(values) for name, values in rows.items()},
    "DataFrame": pandas.DataFrame,
    "DataFrame with an index": lambda rows: pandas.DataFrame(rows).sample(frac=1, random_state=1).sort_values("source"),
    "table of Arrow": pyarrow.table,
    "numpy format": lambda rows: Dataset.from_dict(rows).with_format("numpy"),
    "torch format": lambda rows: Dataset.from_dict(rows).with_format("torch", columns=["source"]),
    "transform": lambda rows: Dataset.from_dict({"pair": [*zip(*rows.values(), strict=True)]}).with_transform(
        lambda batch: {name: [pair[side] for pair in batch["pair"]] for side, name in enumerate(rows)}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_memory_are_taken_in_any_usual_form(form):
    given = FORMS[form](pairs(60))
    for dataset in (given, {"train": given}):
        data = loaded(module(dataset, **WHOLE))
        found = sorted(
            data.processor.target.decode(ids)
            for batch in data.train_dataloader()
            for ids in batch.target.values.tolist()
        )
        assert found == sorted(pairs(60)["target"])
    data.predict_dataset = FORMS[form](pairs(5))
    data.setup("predict")
    assert rows_of(data.predict_dataloader()) == list(range(5))


def test_rows_to_predict_for_need_no_target():
    data = module()
    data.processor  # noqa: B018 - learned
    for given in ({"source": ["Zahl 1"]}, [{"source": "Zahl 1"}], pandas.DataFrame({"source": ["Zahl 1"]})):
        data = module(predict_dataset=given, processor=data.processor, source_tokenizer=None)
        data.setup("predict")
        assert [batch.texts for batch in data.predict_dataloader()] == [("Zahl 1",)]


def test_pairs_have_the_names_of_the_columns_and_mappings_may_lack_some():
    data = module([("eins", "one"), ("zwei", "two")] * 9, source_column="de", target_column="en", **WHOLE)
    assert data._opened()["train"][0] == {"de": "eins", "en": "one"}
    rows = [{"source": "eins", "target": ["one", "1"]}, {"source": "zwei", "note": "x"}]
    assert module(rows, **WHOLE)._opened()["train"][1] == {"source": "zwei", "target": None, "note": "x"}


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        ([("a", "b", "c")], r"a list of pairs \(source, target\) or of mappings.* a list with \('a', 'b', 'c'\)"),
        ([("a", "b"), "c"], r"list with 'c'"),
        ([("a", "b"), 3], r"list with 3"),
        ({"source": ["a"], "target": ["b", "c"]}, "the rows of the dataset do not fit together"),
        ([("a", "b"), ("c", 1)], "the rows of the dataset do not fit together"),
        (3, "but it is of type int: check the dataset setting"),
        ({"train": 3}, "but it is of type int"),
        ({"source": "a", "target": "b"}, "the rows of the dataset do not fit together"),
        ("", "expected a path or hub id as the dataset, but it is empty"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(dataset, match):
    with pytest.raises(UserError, match=match) as caught:
        module(dataset)._opened()
    assert "\n" not in str(caught.value)


def test_languages_that_vary_from_row_to_row():
    feature = datasets.TranslationVariableLanguages(languages=["de", "en"])
    rows = [{"translation": {"de": "ein Hund", "en": ["a dog", "one dog"]}}, {"translation": {"en": "no German"}}] * 9
    rows = Dataset.from_list([{"translation": feature.encode_example(row["translation"])} for row in rows])
    rows = rows.cast_column("translation", feature)
    data = module(rows, source_column="translation.de", target_column="translation.en", **WHOLE)
    data.setup("fit")
    assert data._examples["train"].report == "18 of 27 examples (9 without source)"
    assert {batch.source.values.shape[1] for batch in data.train_dataloader()} == {len("ein Hund") + 1}


def test_data_that_is_mostly_unknown_is_told(recwarn):
    russian = {"source": ["щука да лещ", "ёж"] * 9, "target": ["fish", "Number 7"] * 9}
    processor = module().processor
    loaded(module(Dataset.from_dict(russian), processor=processor, source_tokenizer=None, **WHOLE))
    told = [str(warning.message) for warning in recwarn if "unknown to the vocabulary" in str(warning.message)]
    assert len(told) == 1
    assert re.match(r"train: 8\d% of the source symbols are unknown to the vocabulary: check the columns, or", told[0])
    loaded(module(Dataset.from_dict(pairs(60)), processor=processor, source_tokenizer=None, **WHOLE))
    assert sum("unknown to the vocabulary" in str(warning.message) for warning in recwarn) == 1


def test_the_card_names_files_but_no_texts():
    texts = {"de": ["ein Hund"], "en": ["a dog"]}
    columns = {"source_column": "de", "target_column": "en"}
    for given in (texts, [("ein Hund", "a dog")], {"train": [("ein Hund", "a dog")]}, pandas.DataFrame(texts)):
        assert module(given, **columns).origin == (None, False)
    for given in (Path("here/a.csv"), "here/a.csv", ["here/a.csv"], {"train": Path("here/a.csv")}):
        assert module(given, **columns).origin == ("own files a.csv", False)
