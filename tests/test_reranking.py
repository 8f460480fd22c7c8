import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.features import Records, Tokenizer
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import SlotErrorRate
from lit_seq2seq.reranking import Reranker, SlotCoverage
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Hypothesis
from tests.tiny import make_data, make_model, make_trainer

BEAM = GenerationConfig(num_beams=4, num_return_sequences=4, max_new_tokens=3)
FOODS = ["Thai", "French", "Lao", "Greek"]


def hypothesis(text, score):
    return Hypothesis(torch.tensor([4]), score, score, torch.zeros(1), text=text)


@pytest.mark.parametrize(
    ("weight", "best"), [(0, "a pub"), (0.5, "a pub"), (2, "a French pub"), (100, "French food in Cocum, a pub")]
)
def test_the_weight_trades_coverage_for_probability(weight, best):
    texts = {"a pub": -1.0, "a French pub": -2.0, "French food in Cocum, a pub": -9.0}
    found = [hypothesis(text, score) for text, score in texts.items()]
    ranked = SlotCoverage(weight)(found, "name[Cocum], food[French], type[pub]")
    assert ranked[0].text == best
    missing = {"a pub": 2, "a French pub": 1, "French food in Cocum, a pub": 0}
    assert {one.text: one.score for one in ranked} == {
        text: score - weight * missing[text] for text, score in texts.items()
    }


def test_what_is_added_counts_and_ties_keep_their_order():
    coverage = SlotCoverage(values={"food": FOODS})
    found = [hypothesis("Lao", -1), hypothesis("first Thai", -2), hypothesis("Thai", -2), hypothesis("Thai Lao", 0)]
    assert [one.text for one in coverage(found, {"food": "Thai"})] == ["first Thai", "Thai", "Thai Lao", "Lao"]


class Shortest(Reranker):
    """Orders texts by their length."""

    def judge(self, text, source):
        return -1e3 * len(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learned nothing but the length of its outputs, so that beams hold the right words anywhere."""
    folder = tmp_path_factory.mktemp("reranked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        rows = Dataset.from_dict({"source": [f"food[{food}]" for food in FOODS] * 4, "target": FOODS * 4})
        splits = DatasetDict(train=rows, validation=rows.select(range(4)), test=rows.select(range(4)))
        settings = {"source_feature": Records(), "target_tokenizer": Tokenizer("word")}
        data = make_data(splits, source_tokenizer=None, **settings)
        model = make_model(generation=BEAM, metrics=[SlotErrorRate], reranker=SlotCoverage)
        trainer = make_trainer(folder, max_steps=1)
        trainer.fit(model, datamodule=data)
        yield model, data, trainer, splits


def plain(model, inputs):
    """Return the hypotheses of each input without any reranker."""
    reranker, model.model.reranker = model.model.reranker, None
    found = list(Predictor(model).stream(inputs))
    model.model.reranker = reranker
    return found


def test_every_way_of_decoding_reranks(trained, tmp_path):
    model, data, trainer, splits = trained
    inputs = splits["test"]["source"][:]
    before = plain(model, inputs)
    expected = []
    for source, outputs in zip(inputs, before, strict=True):
        errors = [SlotCoverage(1).judge(one.text, source) for one in outputs]
        order = sorted(range(len(outputs)), key=lambda place: -(outputs[place].score + 100 * errors[place]))
        expected.append([outputs[place].text for place in order])
    assert [row[0] for row in expected] != [outputs[0].text for outputs in before]  # something changes
    assert [[one.text for one in row] for row in Predictor(model).stream(inputs)] == expected
    best = [row[0] for row in expected]
    missing = sum(source[5:-1] not in text for source, text in zip(inputs, best, strict=True))
    for scores in (trainer.validate(model, data, verbose=False)[0], trainer.test(model, data, verbose=False)[0]):
        assert [score for name, score in scores.items() if name.endswith("rate")] == [pytest.approx(25 * missing)]
    predicted = {one["row"]: one["hypotheses"] for batch in trainer.predict(model, data) for one in batch}
    assert [[one["text"] for one in predicted[row]] for row in range(4)] == expected
    model.save_pretrained(tmp_path)
    loaded = pipeline("text2text-generation", LitSeq2Seq.from_pretrained(tmp_path))
    assert [one["generated_text"] for one in loaded(inputs, num_return_sequences=1)] == best


def test_the_whole_beam_is_looked_at_and_greedy_search_left_alone(trained):
    model, _, _, splits = trained
    inputs = splits["test"]["source"][:]
    before = plain(model, inputs)
    model.model.reranker = Shortest()
    first = [row[0].text for row in Predictor(model).stream(inputs, GenerationConfig(num_beams=4, max_new_tokens=3))]
    assert first == [min(outputs, key=lambda one: (len(one.text), -one.score)).text for outputs in before]
    greedy = GenerationConfig(max_new_tokens=3)
    scores = [row[0].score for row in Predictor(model).stream(inputs, greedy)]
    model.model.reranker = None
    assert scores == [row[0].score for row in Predictor(model).stream(inputs, greedy)]
