"""Several sources as a whole: from columns through one trainer to the pipeline and the command line."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets import Image as ImageColumn

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, pipeline
from lit_seq2seq.cli import main
from lit_seq2seq.cli.summary import generate_command
from lit_seq2seq.export import export_model
from lit_seq2seq.features import Image, MultiSource, Tokenizer
from lit_seq2seq.inference.pictures import attention_figure
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import (
    AdditiveAttention,
    ConvEncoder,
    HierarchicalAttention,
    MultiSourceEncoder,
    ParallelDecoder,
    TextEncoder,
)
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.types import Sources, UserError
from tests.tiny import SIZES, make_model, make_trainer

SIZE = 16
COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "white": (250, 250, 250)}
NOUNS = {"car": "Auto", "dog": "Hund", "hat": "Hut"}


def png(colour: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (24, 20), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def rows(count: int) -> Dataset:
    """Nouns with their translation, before which stands the colour that the image beside shows."""
    pairs = [(list(NOUNS)[number % 3], list(COLOURS)[number // 3 % 4]) for number in range(count)]
    columns = {
        "english": [noun for noun, _ in pairs],
        "photo": [{"bytes": png(colour), "path": None} for _, colour in pairs],
        "german": [f"{colour} {NOUNS[noun]}" for noun, colour in pairs],
    }
    return Dataset.from_dict(columns).cast_column("photo", ImageColumn())


def feature() -> MultiSource:
    return MultiSource({"text": Tokenizer("word"), "image": Image(SIZE)})


def make_data(splits: DatasetDict | None = None, **options: Any) -> Seq2SeqDataModule:
    splits = splits or DatasetDict(train=rows(24), validation=rows(12), test=rows(5))
    columns = {"source_column": {"text": "english", "image": "photo"}, "target_column": "german"}
    defaults = {**columns, "source_feature": feature(), "target_tokenizer": Tokenizer("word"), "batch_size": 6}
    return Seq2SeqDataModule(splits, **{**defaults, **options})


HIERARCHICAL = partial(HierarchicalAttention, attentions={"text": AdditiveAttention, "image": AdditiveAttention})


def make_multi() -> LitSeq2Seq:
    text = partial(TextEncoder, **SIZES)
    image = partial(ConvEncoder, hidden_size=12, widths=[16, 16], blocks=1)
    return make_model(
        encoder=partial(MultiSourceEncoder, encoders={"text": text, "image": image}, hidden_size=12),
        decoder=partial(ParallelDecoder, **SIZES, attention=HIERARCHICAL),
        optimizer=partial(torch.optim.Adam, lr=0.02),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LitSeq2Seq, Path]:
    folder = tmp_path_factory.mktemp("multi_source")
    model = make_multi()
    trainer = make_trainer(folder, max_epochs=40, check_val_every_n_epoch=40)
    trainer.fit(model, datamodule=make_data())
    assert trainer.callback_metrics["val_exact_match"] == 100
    model.save_pretrained(folder / "model")
    return model.eval(), folder / "model"


INPUTS = [{"text": noun, "image": png(colour)} for noun in NOUNS for colour in COLOURS]


def test_it_learns_from_both_and_comes_back_from_a_folder(trained: tuple[LitSeq2Seq, Path]) -> None:
    model, folder = trained
    found = pipeline("translation", folder)(INPUTS, num_beams=3)
    assert [row["translation_text"] for row in found] == [f"{c} {NOUNS[n]}" for n in NOUNS for c in COLOURS]
    again = pipeline("translation", model)(INPUTS, num_beams=3)
    assert found == again
    assert pipeline("translation", folder)(INPUTS[0]) == [{"translation_text": "red Auto"}]


def test_generate_reads_json_lines(trained: tuple[LitSeq2Seq, Path], tmp_path: Path) -> None:
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    lines = [{"text": "dog", "image": str(tmp_path / "blue.png")}, {"text": "hat", "image": str(tmp_path / "red.png")}]
    given, written = tmp_path / "in.jsonl", tmp_path / "out.txt"
    given.write_text("\n".join(map(json.dumps, [lines[0], {}, lines[1]])) + "\n", encoding="utf-8")
    assert main(["generate", "--model", str(trained[1]), "--input", str(given), "--output", str(written)]) == 0
    first, _, last = written.read_text(encoding="utf-8").splitlines()
    assert (first, last) == ("blue Hund", "red Hut")


def test_generate_names_the_line_that_it_cannot_read(
    trained: tuple[LitSeq2Seq, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "in.jsonl"
    given.write_text('{"text": "dog"}\n{"text": "dog", "image": "none.png"}\n', encoding="utf-8")
    assert main(["generate", "--model", str(trained[1]), "--input", str(given)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: input 1: image: expected an image at 'none.png', but there is no such file")


def test_the_picture_of_a_run_shows_the_share_of_the_image(trained: tuple[LitSeq2Seq, Path], tmp_path: Path) -> None:
    model, _ = trained
    outputs = [best for best, *_ in Predictor(model).stream(INPUTS[:2], return_attention=True)]
    assert outputs[0].regions == {"text": 2, "image": (SIZE // 4) ** 2}
    assert outputs[0].attention is not None
    assert outputs[0].attention.shape == (len(outputs[0].tokens), 2 + (SIZE // 4) ** 2)
    assert attention_figure(INPUTS[:2], outputs, model.model, tmp_path / "attention.png")
    with PIL.Image.open(tmp_path / "attention.png") as picture:
        shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (shown == COLOURS["red"]).all(axis=1).sum() > 1000
    command = generate_command(INPUTS[0], model.processor.source_feature, model.model, tmp_path)
    assert command.startswith("""echo '{"text": "car", "image": "FILE"}' | """)
    assert "lit-seq2seq generate --model " in command


def test_a_checkpoint_is_resumed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, enable_checkpointing=True)
    trainer.fit(make_multi(), datamodule=make_data())
    path = str(tmp_path / "last.ckpt")
    trainer.save_checkpoint(path)
    make_trainer(tmp_path, max_epochs=2).fit(make_multi(), datamodule=make_data(), ckpt_path=path)
    loaded = LitSeq2Seq.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert isinstance(loaded.processor.source_feature, MultiSource)


def test_a_budget_counts_all_sources() -> None:
    data = make_data(batch_size=None, max_tokens=3 * (2 + 1 + 3))  # a word, an image of 16 x 16, three target ids
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert max(len(batch) for batch in batches) == 3
    assert all(isinstance(batch.source, Sources) for batch in batches)


def test_what_is_missing_is_kept_as_nothing_unless_all_is() -> None:
    columns = {"english": ["car", None, None], "photo": [None, png("red"), None], "german": ["x", "y", "z"]}
    splits = DatasetDict(train=rows(24), validation=Dataset.from_dict(columns), test=rows(2))
    data = make_data(splits)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert sorted(batch.rows.tolist()) == [0, 1]
    assert set(batch.texts) == {"row 0: text: car; image: no image", "row 1: text: ; image: image of 24 x 20 pixels"}


def test_equal_sources_are_one_example_with_several_references() -> None:
    columns = {name: list(rows(2)[name]) * 2 for name in ("english", "german")}
    test = Dataset.from_dict({**columns, "photo": [png("red")] * 4})
    data = make_data(DatasetDict(train=rows(24), validation=rows(2), test=test), group_references=True)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert [len(references) for references in batch.references] == [2, 2]


def test_a_stream_gives_the_same_examples() -> None:
    data = make_data(streaming=True)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sum(map(len, batches)) == 24
    assert batches[0].source.parts["image"].values.shape[1:] == (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_column": "english"}, "expected columns.source to be a mapping that names a column for each of text"),
        ({"source_column": {"text": "english"}}, "names a column for each of text, image, but it is {'text': 'engl"),
        ({"source_column": {"text": "x", "image": "photo"}}, "expected a column 'x', but the columns are english"),
        ({"source_column": {"text": "photo", "image": "photo"}}, "expected text in column 'photo'"),
        ({"source_feature": Image(SIZE)}, "expected one column for Image, but columns.source names text, image"),
        ({"source_prefix": "translate: "}, "expected no source_prefix with a source_feature that is not text"),
        ({"feature_columns": "english"}, "expected no columns.tags with a source_feature that is not text"),
    ],
)
def test_settings_that_do_not_fit_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_data(**options).setup("fit")


def test_text_and_tags_are_two_sources(tmp_path: Path) -> None:
    pairs = [(word, tag) for word in ("go", "see", "do") for tag in ("PST", "FUT")]
    columns = {"lemma": [w for w, _ in pairs] * 4, "tag": [t for _, t in pairs] * 4}
    columns["form"] = [f"{'will ' if tag == 'FUT' else 'did '}{word}" for word, tag in pairs] * 4
    splits = DatasetDict(dict.fromkeys(("train", "validation"), Dataset.from_dict(columns)))
    data = Seq2SeqDataModule(
        splits,
        source_column={"lemma": "lemma", "tags": "tag"},
        target_column="form",
        source_feature=MultiSource({"lemma": Tokenizer("char"), "tags": Tokenizer("word")}),
        target_tokenizer=Tokenizer("word"),
        batch_size=6,
        test_size=0,
    )
    encoder = partial(MultiSourceEncoder, encoders=dict.fromkeys(("lemma", "tags"), partial(TextEncoder, **SIZES)))
    model = make_model(
        encoder=partial(encoder, hidden_size=12),
        decoder=partial(ParallelDecoder, **SIZES, attention=AdditiveAttention),
        optimizer=partial(torch.optim.Adam, lr=0.02),
    )
    trainer = make_trainer(tmp_path, max_epochs=40, check_val_every_n_epoch=40)
    trainer.fit(model, datamodule=data)
    assert trainer.callback_metrics["val_exact_match"] == 100
    ((output,),) = Predictor(model).stream([{"lemma": "see", "tags": "FUT"}], return_attention=True)
    assert output.text == "will see"
    assert output.source_tokens == ("s", "e", "e", "<eos>", "FUT", "<eos>")


@pytest.mark.slow
def test_exported_it_looks_at_both_sources(trained: tuple[LitSeq2Seq, Path], tmp_path: Path) -> None:
    export_model(trained[0], tmp_path, ["fp32"])
    inputs: list[Any] = [
        {"text": "car", "image": png("red")},
        {"text": "car", "image": png("blue")},
        {},
        {"text": "hat"},
    ]
    expected = [row[0].text for row in Predictor(trained[0]).stream(inputs)]
    assert expected[:3] == ["red Auto", "blue Auto", ""]
    assert [row[0].text for row in Model(tmp_path)([*inputs[:3], '{"text": "hat"}'])] == expected
