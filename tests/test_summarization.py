"""Copying from raw text to raw text, ROUGE against the reference implementations, and documentation strings."""

import random
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from torchmetrics.functional.text.rouge import rouge_score as torchmetrics_rouge

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.builtin import DocstringSummaries
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.metrics import ROUGE1, ROUGE2, ROUGEL, ROUGELsum
from lit_seq2seq.nn import CopyOutput
from lit_seq2seq.types import CopySource, UserError
from tests.tiny import make_data, make_model, make_trainer

NAMES = [
    f"{first}{last}"
    for first in ("Ba", "Do", "Ki", "Lu", "Me", "Po", "Ra")
    for last in ("ran", "vex", "zul", "mit", "gor")
]


def greetings(count: int, seed: int, names: list[str]) -> datasets.Dataset:
    """Sentences whose summary is a name in them; most names are in no vocabulary."""
    rng = random.Random(seed)
    words = [rng.choice(names) for _ in range(count)]
    before = [rng.choice(["here comes", "this is", "please meet"]) for _ in range(count)]
    sources = [f"{start} {name} today" for start, name in zip(before, words, strict=True)]
    return datasets.Dataset.from_dict({"source": sources, "target": [f"hello {name}" for name in words]})


def unseen_names() -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {
            "train": greetings(200, 0, NAMES[:25]),
            "validation": greetings(20, 1, NAMES[25:30]),
            "test": greetings(20, 2, NAMES[30:]),
        }
    )


def test_names_that_no_vocabulary_has_are_copied_exactly_and_survive_saving(tmp_path: Path) -> None:
    tokenizer = Tokenizer("word", vocab_size=4 + 9)  # no room for names
    data = make_data(unseen_names(), source_tokenizer=tokenizer, shared_vocabulary=True, copy=True)
    model = make_model(output=CopyOutput, optimizer=partial(torch.optim.Adam, lr=0.02))
    trainer = make_trainer(tmp_path, max_epochs=4)
    trainer.fit(model, data)
    assert len(model.processor.target) == 13
    assert trainer.test(model, data, verbose=False)[0]["test_exact_match"] == 100
    model.save_pretrained(tmp_path / "model")
    loaded = LitSeq2Seq.from_pretrained(tmp_path / "model")
    texts = ["please meet Zyxwv today", "this is Porgy today"]
    for options in ({}, {"num_beams": 3}):
        outputs = [pipeline("summarization", m)(texts, **options) for m in (model.eval(), loaded)]
        assert outputs[0] == outputs[1] == [{"summary_text": "hello Zyxwv"}, {"summary_text": "hello Porgy"}]


def test_a_symbol_that_was_cut_off_its_source_is_unknown_in_the_target() -> None:
    rows = datasets.Dataset.from_dict({"source": ["a b Xyz c"] * 30, "target": ["Xyz b"] * 30})
    for limit, expected in ((None, [6, 5, 3]), (3, [1, 5, 3])):
        tokenizer = Tokenizer("word", vocab_size=6)
        tokenizer.train(["a b a b"])
        processor = Processor(tokenizer, tokenizer, copy=True)
        data = make_data(rows, processor=processor, max_source_length=limit, batch_size=2)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert isinstance(batch.source, CopySource)
        assert batch.target is not None
        assert batch.target.values[0].tolist() == expected
        assert batch.source.extra(0) == (("Xyz", "c") if limit is None else ())
        assert batch.source.ids[0].tolist() == ([4, 5, 6, 7, 3] if limit is None else [4, 5, 3])


def test_two_vocabularies_meet_by_how_symbols_are_written() -> None:
    source, target = Tokenizer("word"), Tokenizer("word")
    source.train(["noon meet at"])
    target.train(["meet noon <eos>"])
    processor = Processor(source, target, copy=True)
    found = processor.source(["meet at noon Ann at Ann"])
    assert isinstance(found, CopySource)
    names = target.tokens(found.ids[0].tolist(), found.extra(0))
    assert names == ["meet", "at", "noon", "Ann", "at", "Ann", "<eos>"]
    assert found.extra(0) == ("at", "Ann")
    assert target.decode(found.ids[0].tolist(), found.extra(0)) == "meet at noon Ann at Ann"


@pytest.mark.parametrize(("output", "copy"), [(CopyOutput, False), (None, True)])
def test_an_output_that_does_not_fit_the_data_is_explained(output: type | None, copy: bool) -> None:
    model = make_model(**({} if output is None else {"output": output}))
    message = rf"model's output (copies|does not copy), but .* set copy={not copy} on the Seq2SeqDataModule, or"
    with pytest.raises(UserError, match=message):
        model.attach(make_data(copy=copy).processor)


HYPOTHESES = ["the cats sat on a mat.\nit slept", "", "Running quickly, he fell", "a b c d e", "a b"]
REFERENCES = [
    ["a cat sat on the mats.\nit was sleeping", "the cats slept"],
    ["something"],
    ["he runs and falls quickly", "they walked"],
    ["e d c b a"],
    ["a b"],
]


@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("metric", [ROUGE1, ROUGE2, ROUGEL, ROUGELsum])
def test_rouge_is_the_mean_of_the_best_scores_of_rouge_score(metric: type[ROUGE1], stem: bool) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([metric.name], use_stemmer=stem)
    best = [
        scorer.score_multi(references, hypothesis)[metric.name].fmeasure
        for hypothesis, references in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    found = metric(stem)
    for start, end in ((0, 2), (2, 5)):
        found.update(HYPOTHESES[start:end], REFERENCES[start:end])
    assert found.compute().item() == pytest.approx(100 * sum(best) / len(best), abs=1e-4)
    assert f"stem:{'yes' if stem else 'no'}" in found.signature()


@pytest.mark.parametrize("metric", [ROUGE1, ROUGE2, ROUGEL])
def test_rouge_agrees_with_torchmetrics(metric: type[ROUGE1]) -> None:
    singles = [references[0] for references in REFERENCES]
    expected = torchmetrics_rouge(HYPOTHESES, singles, use_stemmer=True, rouge_keys=metric.name)
    found = metric()
    found.update(HYPOTHESES, [[text] for text in singles])
    assert found.compute().item() == pytest.approx(100 * expected[f"{metric.name}_fmeasure"].item(), abs=1e-3)


def test_rouge_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install -e \"\.\[summarization\]\""):
        ROUGE1()


def write_modules(folder: Path, count: int = 24) -> None:
    for number in range(count):
        functions = [
            f'def f{n}():\n    """Return the number {n} of thing{number}.\n\n    The number {n} of thing{number} is '
            f'read from the list of numbers and returned as it is.\n\n    Args:\n        x: nothing.\n    """\n'
            for n in range(6)
        ]
        (folder / f"thing{number}.py").write_text("\n".join(functions))
    (folder / "broken.py").write_text("def (:\n")
    (folder / "never.py").write_text('raise RuntimeError("imported")\n')


def test_documentation_strings_share_no_module_between_splits_and_are_the_same_each_time(tmp_path: Path) -> None:
    write_modules(tmp_path)
    options = {"train_size": 20, "validation_size": 6, "test_size": 8, "folders": [str(tmp_path)]}
    splits = DocstringSummaries(**options).load()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 20, "validation": 6, "test": 8}
    held = {name: set(rows["module"]) for name, rows in splits.items()}
    assert sum(map(len, held.values())) == len(set.union(*held.values()))
    texts = [text for rows in splits.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts)
    assert not any("Args" in text or "\n" in text for text in texts)
    again = DocstringSummaries(**options).load()
    assert {name: rows[:] for name, rows in again.items()} == {name: rows[:] for name, rows in splits.items()}


def test_too_few_documentation_strings_are_an_error(tmp_path: Path) -> None:
    write_modules(tmp_path, 2)
    data = DocstringSummaries(train_size=50, validation_size=1, test_size=1, folders=[str(tmp_path)])
    with pytest.raises(UserError, match=r"expected 50 fit documentation strings for train_size, but .* have 0: lower"):
        data.load()
    with pytest.raises(UserError, match="expected a folder of Python modules at nowhere"):
        DocstringSummaries(folders=["nowhere"])
