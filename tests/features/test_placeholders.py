import datasets
import pytest
from datasets import Dataset, DatasetDict

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.features import Processor, Records, Tokenizer
from lit_seq2seq.features.placeholders import Delexicalized
from lit_seq2seq.features.slots import Slots
from lit_seq2seq.metrics import ExactMatch
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, make_trainer

RECORD = [("name", "Blue Spice"), ("food", "Thai"), ("near", "Café Rouge")]


def test_a_text_goes_there_and_back():
    record = Delexicalized(RECORD, ["name", "near"])
    text = "Near Café Rouge, Blue Spice's Thai food; (Blue Spice)."
    hidden = record.hide(text)
    assert hidden == "Near __near__, __name__'s Thai food; (__name__)."
    assert record.restore(hidden) == text
    assert record.pairs == [("name", "__name__"), ("food", "Thai"), ("near", "__near__")]


@pytest.mark.parametrize(
    ("parts", "text", "hidden"),
    [
        (RECORD, "A place for Thai food.", "A place for Thai food."),
        ([("name", "Cocum")], "Cocumber and Cocum", "Cocumber and __name__"),
        ([("name", "£20-25")], "for £20-25, not £20-250", "for __name__, not £20-250"),
        ([("name", "The Rice"), ("near", "The Rice Boat")], "The Rice by The Rice Boat", "__name__ by __near__"),
        ([("name", "Avalon"), ("near", "Avalon")], "Avalon by Avalon", "__name__ by __near__"),
        ([("name", "Avalon"), ("near", "avalon")], "Avalon by AVALON, Avalon", "__name__ by __near__, __name__"),
        ([("name", "a"), ("name", "b")], "a and b", "__name__ and __name_2__"),
        ([("name", "a"), ("name", "b"), ("name 2", "c")], "a, b, c", "__name__, __name_2__, __name_2_2__"),
        ([("Oslo", "capital of", "Norway")], "Oslo, Norway", "Oslo, __capital_of__"),
        ([("name", "")], "nothing", "nothing"),
    ],
)
def test_what_is_hidden(parts, text, hidden):
    record = Delexicalized(parts, ["name", "near", "name 2", "capital of"])
    assert record.hide(text) == hidden
    assert record.restore(hidden).lower() == text.lower()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("5 \u00b5m", "5 \u03bcm"),
        ("\u0130stanbul", "\u0130stanbul"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c3"),
    ],
    ids=["micro", "dotted i", "sigma"],
)
def test_letters_whose_case_is_hard_are_found(value, said):
    assert Delexicalized([("a", value)], ["a"]).hide(f"In {said}.") == "In __a__."
    assert Slots(values={"a": [value]}).compare(f"In {said}.", f"a[{value}]") == (0, 0, 1)
    assert Slots(values={"a": [value]}).compare(f"In {said}.", "b[x]") == (1, 1, 1)


def test_an_unknown_placeholder_stays():
    assert Delexicalized(RECORD, ["name"]).restore("__name__ near __near__") == "Blue Spice near __near__"


@pytest.mark.parametrize("values", ["words", "symbols"])
@pytest.mark.parametrize("raw", ["name[Blue Spice], food[Thai]", {"name": "Blue Spice", "food": "Thai"}])
def test_a_record_shows_placeholders_to_the_model(raw, values):
    records = Records(values=values, delexicalize=["name"])
    assert records.linearize(raw) == "⟨name⟩ __name__ ⟨food⟩ Thai"
    assert records.hide("blue spice is Thai", raw) == "__name__ is Thai"
    assert records.restore("__name__ is Thai", records.show(raw)) == "Blue Spice is Thai"


@pytest.mark.parametrize("raw", [None, "", {}])
def test_without_a_record_nothing_is_hidden(raw):
    records = Records(delexicalize=["name"])
    assert records.hide("Blue Spice", raw) == records.restore("Blue Spice", raw) == "Blue Spice"


def test_a_slot_that_no_record_has_is_refused():
    with pytest.raises(UserError, match=r"expected records with the slot nmae, but the slots are food, name: set del"):
        Records(delexicalize=["nmae"]).train([["name[Cocum], food[Thai]"]])


def test_a_placeholder_is_one_word_and_lower_case_does_not_touch_it():
    tokenizer = Tokenizer("word", lowercase=True)
    hidden = Delexicalized([("eat Type", "Pub")], ["eat Type"]).hide("A (Pub), Pub's")
    tokenizer.train([hidden])
    assert "__eat_type__" in tokenizer.words()
    assert tokenizer.decode(tokenizer.encode_batch([hidden])[0]) == "a (__eat_type__), __eat_type__'s"


def splits(form, names=("Cocum", "Blue Spice", "Zizzi", "Green Man")):
    """Two sentences of each of 8 restaurants; the validation and test splits have names of their own."""

    def rows(names):
        records = [(name, food) for name in names for food in ("Thai", "French")]
        source = [{"name": name, "food": food} for name, food in records]
        if form == "text":
            source = [", ".join(f"{slot}[{value}]" for slot, value in one.items()) for one in source]
        return Dataset.from_dict({"source": source, "target": [f"{name} has {food} food" for name, food in records]})

    return DatasetDict(train=rows(names * 8), validation=rows(["Aromi"]), test=rows(["The Vaults", "Strada"]))


@pytest.mark.parametrize("form", ["text", "slots"])
def test_names_never_seen_are_said(form, tmp_path, monkeypatch):
    """The names of the test split are in no vocabulary; every way of decoding puts them back."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = splits(form)
    settings = {"source_feature": Records(delexicalize=["name"]), "target_tokenizer": Tokenizer("word")}
    data = make_data(rows, source_tokenizer=None, **settings)
    model = make_model(metrics=[ExactMatch])
    trainer = make_trainer(tmp_path, max_epochs=12)
    trainer.fit(model, datamodule=data)
    assert sorted(model.processor.target.words()[4:]) == ["French", "Thai", "__name__", "food", "has"]
    assert trainer.validate(model, datamodule=data, verbose=False)[0]["val_exact_match"] == 100
    assert trainer.test(model, datamodule=data, verbose=False)[0]["test_exact_match"] == 100
    predicted = [found for batch in trainer.predict(model, data) for found in batch]
    texts = {found["row"]: found["hypotheses"][0]["text"] for found in predicted}
    assert [texts[row] for row in range(4)] == rows["test"]["target"]
    model.save_pretrained(tmp_path / "model")
    for found in (model, LitSeq2Seq.from_pretrained(tmp_path / "model")):
        results = pipeline("text2text-generation", found)(rows["test"]["source"])
        assert [one["generated_text"] for one in results] == rows["test"]["target"]


def test_a_stream_is_delexicalised_too(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = splits("slots")
    settings = {"source_feature": Records(delexicalize=["name"]), "target_tokenizer": Tokenizer("word")}
    data = make_data(
        {split: str(write(rows[split], tmp_path / split)) for split in rows},
        source_tokenizer=None,
        streaming=True,
        **settings,
    )
    data.setup("fit")
    target = data.processor.target
    texts = {text for batch in data.train_dataloader() for text in target.decode_batch(batch.target.values.tolist())}
    assert texts == {"__name__ has Thai food", "__name__ has French food"}


def write(rows, path):
    rows.to_json(path.with_suffix(".jsonl"))
    return path.with_suffix(".jsonl")


def test_settings_are_part_of_what_a_model_is():
    target = Tokenizer("word")
    target.train(["a"])
    processors = []
    for slots in ([], ["name"]):
        records = Records(delexicalize=slots)
        records.train([["name[Cocum]"]])
        processors.append(Processor(records, target))
    assert processors[0].identity() != processors[1].identity()
    assert Processor.from_dict(processors[1].to_dict()).identity() == processors[1].identity()
