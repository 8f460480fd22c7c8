"""Captioning as a whole: images in a dataset, several captions each, one trainer, and the pipeline."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets import Image as ImageColumn
from lightning.pytorch import Trainer

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, pipeline
from lit_seq2seq.features import Image, Tokenizer
from lit_seq2seq.inference.pictures import attention_figure
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import BLEU1, CIDErD
from lit_seq2seq.nn import AdditiveAttention, ConvEncoder, MeanBridge, ParallelDecoder
from lit_seq2seq.types import Generated, Shared, UserError
from tests.tiny import SIZES, make_model, make_trainer

SIZE = 16
COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (250, 250, 250)}


def png(colour: str, width: int = 24) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, 20), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def captions(count: int, files: list[bytes] | None = None) -> Dataset:
    """Plain pictures with two captions each, in two columns as Flickr8k has them."""
    colours = [list(COLOURS)[number % 4] for number in range(count)]
    files = [png(colour) for colour in colours] if files is None else files
    columns = {
        "image": [{"bytes": file, "path": None} for file in files],
        "caption_0": [f"all {colour}" for colour in colours],
        "caption_1": [f"{colour} only" for colour in colours],
    }
    return Dataset.from_dict(columns).cast_column("image", ImageColumn())


def make_data(splits: DatasetDict | None = None, **options: object) -> Seq2SeqDataModule:
    splits = splits or DatasetDict(train=captions(8), validation=captions(4), test=captions(5))
    defaults = {"source_column": "image", "target_column": "caption_*", "target_tokenizer": Tokenizer("word")}
    return Seq2SeqDataModule(splits, **{"source_feature": Image(SIZE), "batch_size": 8, **defaults, **options})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LitSeq2Seq, Path, Trainer]:
    folder = tmp_path_factory.mktemp("captioning")
    decoder = partial(ParallelDecoder, **SIZES, attention=AdditiveAttention, bridge=MeanBridge)
    encoder = partial(ConvEncoder, hidden_size=12, widths=[16, 16], blocks=1)
    model = make_model(encoder=encoder, decoder=decoder, metrics=[BLEU1, CIDErD])
    trainer = make_trainer(folder, max_epochs=40)
    trainer.fit(model, datamodule=make_data())
    model.save_pretrained(folder / "model")
    return model.eval(), folder / "model", trainer


def test_every_caption_is_an_example_and_all_are_references() -> None:
    data = make_data()
    data.setup("fit")
    examples = data._examples["train"]
    assert len(examples) == 16
    (batch,) = data.val_dataloader()
    shown = dict(zip(batch.texts, batch.references, strict=True))
    assert shown["row 2: image of 24 x 20 pixels"] == ("all blue", "blue only")
    assert batch.source.values.shape == (4, SIZE, SIZE, 3)


@pytest.mark.parametrize("streaming", [False, True])
def test_captions_of_an_image_come_together_and_it_is_encoded_once(streaming: bool) -> None:
    options = {"streaming": streaming, "batch_size": 4, "keep_targets_together": True}
    data = make_data(DatasetDict(train=captions(9), validation=captions(4)), test_size=0, **options)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == sorted(2 * list(range(9)))
    for batch in batches:
        assert isinstance(batch.source, Shared)
        assert len(batch.source.distinct.values) == len(batch.rows.unique()) == len(batch) // 2
        assert torch.equal(batch.rows[:, None] == batch.rows, batch.source.index[:, None] == batch.source.index)


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_of_images_mix_short_and_long_captions(streaming: bool) -> None:
    rows = captions(40)
    texts = [f"{'all of it is ' * (row % 2)}{text}" for row, text in enumerate(rows["caption_0"])]
    rows = rows.remove_columns(["caption_0", "caption_1"]).add_column("caption_0", texts)
    data = make_data(DatasetDict(train=rows, validation=captions(4)), test_size=0, batch_size=20, streaming=streaming)
    data.setup("fit")
    for batch in data.train_dataloader():
        assert len(set(batch.target.lengths.tolist())) == 2


def test_augmentation_is_for_training_alone() -> None:
    feature = Image(SIZE, smallest_crop=0.2, flip=True)
    ramp = PIL.Image.linear_gradient("L")
    file = io.BytesIO()
    ramp.save(file, "PNG")
    splits = DatasetDict(train=captions(2, [file.getvalue()] * 2), validation=captions(2, [file.getvalue()] * 2))
    data = make_data(splits, source_feature=feature, test_size=0)
    data.setup("fit")
    for split, random in (("train", True), ("validation", False)):
        drawn = {data._examples[split][[0]].source.values.numpy().tobytes() for _ in range(4)}
        assert (len(drawn) > 1) == random


def test_the_trainer_learns_colours(trained: tuple[LitSeq2Seq, Path, Trainer]) -> None:
    model, folder, trainer = trained
    assert trainer.callback_metrics["val_bleu1"] == 100
    loaded = LitSeq2Seq.from_pretrained(folder)
    inputs = [png(colour) for colour in COLOURS]
    found = pipeline("image-to-text", loaded)(inputs)
    assert found == pipeline("image-to-text", model)(inputs)
    for colour, (caption,) in zip(COLOURS, found, strict=True):
        assert caption["generated_text"] in (f"all {colour}", f"{colour} only")


def test_the_pipeline_takes_images_in_any_form(trained: tuple[LitSeq2Seq, Path, Trainer], tmp_path: Path) -> None:
    captioner = pipeline("image-to-text", trained[1])
    path = tmp_path / "red.png"
    path.write_bytes(png("red"))
    expected = captioner(png("red"))
    assert list(expected[0]) == ["generated_text"]
    for raw in (path, str(path), PIL.Image.open(path), {"bytes": png("red"), "path": None}):
        assert captioner(raw) == expected
        assert captioner([raw, raw]) == [expected, expected]
    assert len(captioner(path, num_beams=2, num_return_sequences=2)) == 2


def test_attention_is_over_a_grid_and_the_picture_is_what_the_model_sees(
    trained: tuple[LitSeq2Seq, Path, Trainer],
) -> None:
    model = trained[0]
    ((output,),) = Predictor(model).stream([png("green")], return_attention=True)
    assert output.attention is not None
    assert output.attention.shape == (len(output.tokens), (SIZE // 4) ** 2)
    picture = model.processor.source_feature.picture(png("green"))
    assert picture is not None
    assert (picture == COLOURS["green"]).all()


def test_the_picture_of_a_run_shows_images_with_their_words(
    trained: tuple[LitSeq2Seq, Path, Trainer], tmp_path: Path
) -> None:
    model, sources = trained[0], [png("green"), png("red")]
    outputs = [best for best, *_ in Predictor(model).stream(sources, return_attention=True)]
    assert attention_figure(sources, outputs, model.model, tmp_path / "attention.png") is not None
    with PIL.Image.open(tmp_path / "attention.png") as picture:
        shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ("green", "red"):
        assert (shown == COLOURS[colour]).all(axis=1).sum() > 1000
    assert attention_figure([png("red")], [Generated("")], model.model, tmp_path / "none.png") is None


def test_images_that_cannot_be_read_are_named(trained: tuple[LitSeq2Seq, Path, Trainer]) -> None:
    captioner = pipeline("image-to-text", trained[0])
    with pytest.raises(UserError, match="input 1: expected an image, but the bytes cannot be read as one"):
        captioner([png("red"), b"no image"])
    with pytest.raises(UserError, match=r"input 0: expected an image at 'none\.png', but there is no such file"):
        captioner("none.png")
    with pytest.raises(UserError, match="the input is of type int, expected an image: a path, bytes, a Pillow image"):
        captioner(3)
    splits = DatasetDict(train=captions(3, [png("red"), png("red"), png("red")[:60]]), validation=captions(2))
    data = make_data(splits, test_size=0)
    data.setup("fit")
    with pytest.raises(UserError, match="row 2: the image is broken"):
        list(data.train_dataloader())


def test_a_column_without_images_is_explained() -> None:
    rows = Dataset.from_dict({"image": [1, 2], "caption_0": ["a", "b"]})
    with pytest.raises(UserError, match=r"expected images .* in column 'image', but it holds int64"):
        make_data(DatasetDict(train=rows, validation=rows)).setup("fit")
