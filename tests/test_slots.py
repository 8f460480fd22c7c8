import datasets
import pytest
from datasets import Dataset, DatasetDict

from lit_seq2seq.features import Records
from lit_seq2seq.features.slots import Slots
from lit_seq2seq.metrics import BLEU, SlotErrorRate
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, make_trainer

RECORD = "name[Blue Spice], eatType[pub], food[French], area[city centre]"
VALUES = {"food": ["French", "Thai"], "eatType": ["pub", "restaurant"]}


def rate(hypotheses, sources, batch=10, **options):
    metric = SlotErrorRate(**options)
    for start in range(0, len(hypotheses), batch):
        part = slice(start, start + batch)
        metric.update(hypotheses[part], [["unused"]] * len(hypotheses[part]), sources[part])
    return metric.compute().item()


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("Blue Spice is a French pub in the city centre.", {"values": VALUES}, 0),
        ("BLUE SPICE: a french pub, city centre", {"values": VALUES}, 0),
        ("Blue Spice is a pub.", {}, 100 * 2 / 4),
        ("Blue Spice is a Thai pub in the city centre.", {"values": VALUES}, 100 * 2 / 4),
        ("Blue Spice is a French and Thai restaurant in the city centre.", {"values": VALUES}, 100 * 3 / 4),
        ("Blue Spice is public.", {"slots": ["name", "eatType"], "values": VALUES}, 100 * 1 / 2),
        ("Blue Spice, Thai", {"slots": ["name"], "values": VALUES}, 0),
        ("", {}, 100),
    ],
)
def test_errors_by_hand(text, options, expected):
    assert rate([text], [RECORD], **options) == pytest.approx(expected)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_rate_is_of_the_corpus(batch):
    sources = [RECORD, "name[Cocum]", '[["Oslo", "capital of", "Norway"]]']
    texts = ["Blue Spice", "Cocum", "Oslo is in Norway."]
    assert rate(texts, sources, batch) == pytest.approx(100 * 3 / 6)


def test_a_value_within_a_value_of_the_record_is_not_added():
    values = {"food": ["Indian", "West Indian"]}
    assert rate(["West Indian food"], ["food[West Indian]"], values=values) == 0


PHRASES = {
    "kids": {"yes": ["family friendly", "kids are welcome"], "no": ["not family friendly", "no kids"]},
    "price": {"high": ["high price", "expensive"]},
    "rating": ["high", "low"],
}


@pytest.mark.parametrize(
    ("text", "record", "expected"),
    [
        ("It is family-friendly.", "kids[yes]", (0, 0, 1)),
        ("It is not family  friendly.", "kids[yes]", (1, 1, 1)),
        ("It is not family friendly.", "kids[no]", (0, 0, 1)),
        ("Yes", "kids[yes]", (1, 0, 1)),
        ("An expensive high-rated place at a high price.", "price[high], rating[high]", (0, 0, 2)),
        ("An expensive place.", "price[high], rating[high]", (1, 0, 2)),
        ("An expensive place, expensive.", "rating[high]", (1, 1, 1)),
        ("The High Road", "name[The High Road], rating[high]", (1, 0, 2)),
        ("A place near __near__ and __near__.", "kids[no]", (1, 2, 1)),
    ],
)
def test_phrases_that_say_values(text, record, expected):
    assert Slots(values=PHRASES).compare(text, record) == expected


def test_a_value_that_cannot_be_said_is_not_missed():
    assert Slots().compare("Bye.", "goodbye[], name[]") == (0, 0, 0)
    assert Slots(values={"goodbye": {"": ["bye"]}}).compare("Yes.", "goodbye[], name[]") == (1, 0, 1)


def test_another_slot_with_the_same_phrase_is_no_addition():
    values = {"price": ["high", "low"], "rating": ["high", "low"]}
    slots = Slots(values=values)
    assert slots.compare("a high price", "price[high]") == (0, 0, 1)
    assert slots.compare("low and low", "price[high]") == (1, 1, 1)
    assert Slots(slots=["rating"], values={"price": ["low"]}).compare("low", "rating[high]") == (1, 0, 1)


def test_absent_sources_and_other_texts_are_refused():
    with pytest.raises(UserError, match="expects a source for each of 1 hypotheses, but got none"):
        SlotErrorRate().update(["a"], [["a"]])
    with pytest.raises(UserError, match="expected a record such as"):
        SlotErrorRate().update(["a"], [["a"]], ["a sentence"])
    bleu = BLEU()
    bleu.update(["a b c d"], [["a b c d"]], ["any source"])
    assert bleu.compute() == 100


@pytest.mark.parametrize("form", ["text", "slots"])
def test_the_model_gives_it_the_sources(form, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = ["Cocum", "Zizzi", "Browns", "Wildwood"]
    sources = [f"name[{name}]" if form == "text" else {"name": name, "food": None} for name in names]
    rows = Dataset.from_dict({"source": sources, "target": names})
    data = make_data(
        DatasetDict(train=rows, validation=rows, test=rows), source_tokenizer=None, source_feature=Records()
    )
    model = make_model(metrics=[SlotErrorRate])
    trainer = make_trainer(tmp_path)
    trainer.fit(model, datamodule=data)
    (scores,) = trainer.test(model, datamodule=data, verbose=False)
    predicted = {
        found["row"]: found["hypotheses"][0]["text"] for batch in trainer.predict(model, data) for found in batch
    }
    missing = sum(name.lower() not in predicted[row].lower().split() for row, name in enumerate(names))
    assert scores["test_slot_error_rate"] == pytest.approx(100 * missing / 4)
