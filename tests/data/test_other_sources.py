"""Sources that are not text: stored vectors, and pictures that are read anew for each batch."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Image

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.features import Frames, Processor, SpecAugment, Tokenizer
from lit_seq2seq.nn import AdditiveAttention, ParallelDecoder
from lit_seq2seq.types import Batch, Padded, Shared, UserError
from tests.pictures import SIDE, Pictures, PixelEncoder, picture, rows
from tests.tiny import SIZES, make_model, make_trainer

PICTURES = {"source_column": "image", "target_column": "caption", "target_tokenizer": Tokenizer("char")}


def pictures(feature: Pictures | None = None, dataset: DatasetDict | None = None, **options: object):
    feature = Pictures() if feature is None else feature
    data = rows() if dataset is None else dataset
    return Seq2SeqDataModule(data, source_feature=feature, **{"batch_size": 4, **PICTURES, **options})


def frames(lengths: list[int], seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    columns = {
        "frames": [rng.normal(size=(length, 2)).astype(np.float32).tolist() for length in lengths],
        "text": [[f"{length} long", "long"] for length in lengths],
    }
    return Dataset.from_dict(columns)


def spread(batch: Batch) -> Padded:
    """Give each example its source, where several share one."""
    source = batch.source
    return source.distinct.select(source.index) if isinstance(source, Shared) else source


def speech(dataset: DatasetDict | None = None, **options: object) -> Seq2SeqDataModule:
    splits = DatasetDict(train=frames([3, 1, 5, 2, 4, 4]), validation=frames([2, 6], 1), test=frames([1, 7, 2], 2))
    defaults = {"source_column": "frames", "target_column": "text", "target_tokenizer": Tokenizer("char")}
    defaults |= {"batch_size": 4, "source_feature": Frames(2, normalize="none")}
    return Seq2SeqDataModule(splits if dataset is None else dataset, **{**defaults, **options})


def test_stored_vectors_come_back_as_they_were() -> None:
    data = speech()
    data.setup("fit")
    raw = data._split("train")["frames"]
    seen = []
    for batch in data.train_dataloader():
        source = spread(batch)
        assert source.values.dtype == torch.float32
        assert not source.values[~source.mask].any()
        for row, values, length in zip(batch.rows.tolist(), source.values, source.lengths, strict=True):
            torch.testing.assert_close(values[:length], torch.tensor(raw[row]))
            seen.append(row)
    assert sorted(seen) == sorted(2 * list(range(6)))  # each alternative is an example
    assert len(data._examples["train"].encoded.sources) == 6  # and the source is stored once


def test_evaluation_shows_the_row_and_what_is_in_it() -> None:
    data = speech()
    data.setup("test")
    (batch,) = data.test_dataloader()
    shown = dict(zip(batch.rows.tolist(), batch.texts, strict=True))
    assert shown == {0: "row 0: 1 frames", 1: "row 1: 7 frames", 2: "row 2: 2 frames"}
    assert batch.references[batch.rows.tolist().index(1)] == ("7 long", "long")
    (source, reference), _ = data.first_rows("test", 2)
    assert (len(source), reference) == (1, "1 long")


def test_lengths_are_cut_and_dropped_in_positions() -> None:
    data = speech(source_feature=Frames(2, normalize="none", stack=2), max_source_length=2, overlong="drop")
    data.setup("fit")
    assert data._examples["train"].source_lengths.max() == 2
    assert len(data._examples["train"].kept) == 10  # only the row of five frames, three positions, is gone
    (batch,) = data.val_dataloader()
    assert sorted(batch.source.lengths.tolist()) == [1, 2]


def test_masks_differ_from_epoch_to_epoch_in_training_only() -> None:
    mask = SpecAugment(time_masks=1, time_width=3, time_share=1.0, channel_masks=1, channel_width=1)
    data = speech(source_feature=Frames(2, spec_augment=mask))
    data.setup("fit")
    for split, changes in (("train", True), ("validation", False)):
        examples = data._examples[split]
        drawn = {tuple(examples[[1]].source.values.flatten().tolist()) for _ in range(8)}
        assert (len(drawn) > 1) == changes


def test_statistics_are_learned_from_the_training_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = speech(source_feature=Frames(2, normalize="global", deltas=1))
    feature = data.processor.source_feature
    train = np.concatenate([np.array(row) for row in data._split("train")["frames"]])
    np.testing.assert_allclose(feature.statistics[0][:2], train.mean(0), atol=1e-5)
    np.testing.assert_allclose(feature.statistics[1][:2], train.std(0), atol=1e-5)
    monkeypatch.setattr(Frames, "train", lambda *_: pytest.fail("learned twice"))
    settings = Frames(2, normalize="global", deltas=1, spec_augment=SpecAugment())
    again = speech(source_feature=settings).processor.source_feature
    assert again.statistics == feature.statistics
    assert again.spec_augment == SpecAugment()


def test_pictures_are_read_when_a_batch_is_made_and_once_for_all_captions() -> None:
    data = pictures()
    data.setup("fit")
    assert data._examples["train"].encoded.sources.column_names == ["length"]
    Pictures.encoded.clear()
    batch = data._examples["train"][list(range(16))]
    assert Pictures.encoded == [8]
    assert batch.source.distinct.values.shape == (8, SIDE, SIDE, 1)
    assert spread(batch).mask.all()
    for row, values in zip(batch.rows.tolist(), spread(batch).values, strict=True):
        assert (values == row).all()


def test_a_budget_counts_the_positions_that_the_feature_says() -> None:
    data = pictures(batch_size=None, max_tokens=3 * (SIDE * SIDE + 6))
    data.setup("fit")
    assert max(len(batch) for batch in data.train_dataloader()) == 3


def test_a_missing_picture_is_dropped_or_kept_as_nothing() -> None:
    dataset = rows()
    dataset["validation"] = Dataset.from_dict({"image": [None, picture(1)], "caption": [["x"], ["y"]]})
    data = pictures(dataset=dataset)
    data.setup("validate")
    assert [row for batch in data.val_dataloader() for row in batch.rows.tolist()] == [1]
    data = pictures(dataset=dataset, predict_dataset=dataset["validation"])
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.source.values[batch.rows.tolist().index(0)].sum() == 0


@pytest.mark.parametrize("make", [speech, pictures])
def test_streaming_gives_the_same_examples(make) -> None:
    data = make(streaming=True, validation_size=0, test_size=0)
    data.setup("fit")
    batches = list(data.train_dataloader())
    stored = make()
    stored.setup("fit")
    assert sum(len(batch) for batch in batches) == len(stored._examples["train"])
    assert {spread(batch).values.dim() for batch in batches} == {3 if make is speech else 4}


def test_files_in_a_column_are_left_for_the_feature_to_decode() -> None:
    dataset = rows()
    decoded = dataset.cast_column("image", Image())
    data = pictures(dataset=decoded)
    with pytest.raises(UserError, match=r"expected pictures in column 'image', but it holds PIL\.Image"):
        data.setup("fit")
    assert data._split("train").features["image"].decode is False
    assert data._split("train")[0]["image"]["bytes"] == picture(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LitSeq2Seq, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    model = make_model(encoder=PixelEncoder, metrics=[])
    make_trainer(folder, max_epochs=1).fit(model, datamodule=pictures())
    model.save_pretrained(folder / "model")
    return model.eval(), folder / "model"


def test_the_trainer_fits_and_a_folder_names_the_feature(trained: tuple[LitSeq2Seq, Path]) -> None:
    model, folder = trained
    names = ["config.json", "processor.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.glob("*.json")) == names
    with pytest.raises(UserError, match="outside the trusted packages"):
        LitSeq2Seq.from_pretrained(folder)
    loaded = LitSeq2Seq.from_pretrained(folder, trust=("tests",))
    assert type(loaded.processor.source_feature) is Pictures
    inputs = [picture(7), picture(200)]
    assert pipeline("image-to-text", loaded)(inputs) == pipeline("image-to-text", model)(inputs)


def test_results_have_the_form_of_the_task(trained: tuple[LitSeq2Seq, Path]) -> None:
    model, _ = trained
    one, two = picture(1), picture(2)
    captions = pipeline("image-to-text", model)
    text = captions(one)[0]["generated_text"]
    assert captions(one) == [{"generated_text": text}]
    assert captions([one, two])[0] == [{"generated_text": text}]
    assert pipeline("automatic-speech-recognition", model)(one) == {"text": text}
    assert pipeline("automatic-speech-recognition", model)([one, two])[0] == {"text": text}
    assert len(captions(one, num_beams=2, num_return_sequences=2)) == 2


def test_attention_spans_the_memory_not_the_source(trained: tuple[LitSeq2Seq, Path]) -> None:
    decoder = partial(ParallelDecoder, **SIZES, attention=AdditiveAttention)
    model = make_model(encoder=PixelEncoder, metrics=[], decoder=decoder)
    model.attach(trained[0].processor)
    found = model.eval().generate(model.processor.source([picture(1)]), return_attention=True)
    assert found[0][0].attention.shape[1] == SIDE * SIDE


def test_inputs_that_cannot_be_read_are_named(trained: tuple[LitSeq2Seq, Path]) -> None:
    captions = pipeline("image-to-text", trained[0])
    with pytest.raises(UserError, match="input 1: expected 25 bytes, but got 3"):
        captions([picture(1), b"abc"])
    with pytest.raises(UserError, match="input 1 is of type int, expected the bytes of a picture"):
        captions([picture(1), 5])
    with pytest.raises(UserError, match="the input is of type int, expected the bytes of a picture, or a list"):
        captions(5)
    dataset = rows()
    dataset["train"] = Dataset.from_dict({"image": [picture(1), b"x"], "caption": [["x"], ["y"]]})
    data = pictures(dataset=dataset)
    data.setup("fit")
    with pytest.raises(UserError, match="row 1: expected 25 bytes, but got 1"):
        list(data.train_dataloader())


def test_settings_that_do_not_fit_are_explained() -> None:
    with pytest.raises(UserError, match="expected source_feature or source_tokenizer, but both are set"):
        speech(source_tokenizer=Tokenizer("char"))
    with pytest.raises(UserError, match="expected no shared_vocabulary with a source_feature that is not text"):
        speech(target_tokenizer=None, shared_vocabulary=True).setup("fit")
    with pytest.raises(UserError, match="expected no source_prefix with a source_feature that is not text"):
        speech(source_prefix="say: ").setup("fit")
    with pytest.raises(UserError, match="expected a list of frames, each a list of numbers, in column 'text'"):
        speech(source_column="text").setup("fit")


def test_a_class_that_is_no_feature_is_refused() -> None:
    tokenizer = Tokenizer("char")
    tokenizer.train(["abc"])
    values = Processor(Frames(2), tokenizer).to_dict()
    assert Processor.from_dict(values).to_dict() == values
    values["source"]["class_path"] = "lit_seq2seq.nn.TextEncoder"
    with pytest.raises(UserError, match=r"expected a feature as the source of the processor, but lit_seq2seq\.nn"):
        Processor.from_dict(values)


def speakers(normalize: str = "speaker", name: str | None = "who", **options) -> Seq2SeqDataModule:
    """Two speakers in either split, one row without, at levels far apart."""
    rng = np.random.default_rng(0)
    levels = {"a": (5.0, 1.0), "b": (-90.0, 7.0), None: (300.0, 2.0)}
    who = ["a", "b", "a", None, "b", "a"]
    rows = {
        "frames": [rng.normal(*levels[speaker], size=(4 + place, 2)).tolist() for place, speaker in enumerate(who)],
        "text": [f"text {place}" for place in range(len(who))],
        "who": who,
    }
    splits = DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(rows).select([0, 1, 4])})
    settings = {"source_feature": Frames(2, normalize=normalize, deltas=1, **options), "speaker_column": name}
    return Seq2SeqDataModule(
        splits,
        source_column="frames",
        target_column="text",
        target_tokenizer=Tokenizer("word"),
        batch_size=9,
        validation_size=0,
        **settings,
    )


@pytest.mark.parametrize("store", [True, False])
def test_utterances_of_a_speaker_are_normalised_together_in_each_split(store: bool) -> None:
    data = speakers(store=store)
    data.setup("fit")
    data.setup("test")
    alone = speakers("utterance", None)
    alone.setup("fit")
    for split, groups in (("train", {"a": [0, 2, 5], "b": [1, 4]}), ("test", {"a": [0], "b": [1, 2]})):
        examples = data._examples[split]
        for places in groups.values():
            source = examples[places].source
            together = source.values[source.mask].numpy()
            np.testing.assert_allclose(together.mean(0), np.zeros(4), atol=1e-4)
            np.testing.assert_allclose(together.std(0), np.ones(4), atol=1e-4)
    without = data._examples["train"][[3]].source.values
    torch.testing.assert_close(without, alone._examples["train"][[3]].source.values)  # by itself
    raw = data._split("train")["frames"][3]
    torch.testing.assert_close(data.processor.source([raw]).values, without)  # as when predicting
    assert data.processor.source_feature.statistics is None


def test_speakers_and_normalisation_go_together() -> None:
    with pytest.raises(UserError, match="but normalize of the source_feature is not"):
        speakers("utterance").setup("fit")
    with pytest.raises(UserError, match=r"normalize: speaker, but columns.speaker is not set"):
        speakers(name=None).setup("fit")
    with pytest.raises(UserError, match=r"expected a column 'whom', but the columns are .*: set columns.speaker"):
        speakers(name="whom").setup("fit")


def test_a_row_that_cannot_be_read_is_named_with_speakers_too() -> None:
    data = speakers()
    data.dataset["train"] = Dataset.from_list([*data.dataset["train"], {"frames": [[1.0]], "text": "x", "who": "b"}])
    with pytest.raises(UserError, match=r"row 6: expected frames \(T, 2\)"):
        data.setup("fit")
