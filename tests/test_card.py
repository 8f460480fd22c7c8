"""The model card, read back by the hub's own client; the vocabulary, by transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.hub.card import Provenance, model_card, published
from tests.loopback_hub import LoopbackHub
from tests.tiny import Trained, make_data, make_model

SIGNATURES = {"bleu": "nrefs:1|tok:13a", "exact_match": "strip:yes"}
SCORES = {"test_bleu": 41.4, "test_exact_match": 7.0, "test_loss": 1.5}
FULL = Provenance(
    data="alice/digits-set",
    on_hub=True,
    command="lit-seq2seq fit --config digits.yaml",
    scores=SCORES,
    rows={"test": 1000, "val": 20},
    license="mit",
    languages=["de", "en"],
)


def test_the_head_is_in_the_form_of_the_hub() -> None:
    card = ModelCard(published(model_card("translation", FULL, SIGNATURES, 1234), "alice/digits"))
    data = card.data.to_dict()
    assert data["library_name"] == "lit_seq2seq"
    assert data["pipeline_tag"] == "translation"
    assert data["license"] == "mit"
    assert data["language"] == ["de", "en"]
    assert data["datasets"] == ["alice/digits-set"]
    assert data["metrics"] == ["bleu", "exact_match"]
    first, second = card.data.eval_results
    assert (first.dataset_type, first.dataset_split) == ("alice/digits-set", "test")
    assert (first.metric_type, first.metric_value, first.metric_args) == (
        "bleu",
        41.4,
        {"signature": "nrefs:1|tok:13a"},
    )
    assert second.metric_type == "exact_match"
    assert [model["name"] for model in data["model-index"]] == ["alice/digits"]


def test_the_text_tells_data_command_use_and_scores() -> None:
    text = published(model_card("translation", FULL, SIGNATURES, 1234), "alice/digits")
    assert 'pipeline("translation", model="alice/digits")' in text
    assert "lit-seq2seq fit --config digits.yaml" in text
    assert "[alice/digits-set](https://huggingface.co/datasets/alice/digits-set)" in text
    assert "| test_bleu | 41.40 | nrefs:1\\|tok:13a |" in text
    assert "1,234 parameters" in text
    assert "Measured on the test split, 1,000 rows.\n" in text


def test_a_card_of_which_nothing_is_known_is_valid() -> None:
    card = ModelCard(model_card("translation", Provenance(), {}, 1))
    assert "model-index" not in card.data.to_dict()
    assert "None recorded." in card.text
    assert "Data: not recorded." in card.text


def test_a_run_writes_where_the_model_comes_from(trained: Trained) -> None:
    known = LitSeq2Seq.from_pretrained(trained.model).model.provenance
    assert known.data == "own files train.csv, validation.csv, test.csv"
    assert known.command == f"lit-seq2seq fit --config {trained.recipe}"
    assert list(known.scores) == ["val_bleu"]
    card = ModelCard.load(trained.model / "README.md")
    assert card.data.eval_results[0].dataset_split == "validation"
    assert "Measured on the validation split, 12 rows." in card.text


@pytest.mark.parametrize(
    ("dataset", "origin"),
    [
        ("user/set", ("user/set", True)),
        ("set", ("set", True)),
        ("folder/none.csv", ("own files none.csv", False)),
        ("./user/set", ("own files set", False)),
    ],
)
def test_the_data_are_named_without_folders(dataset: str, origin: tuple[str, bool]) -> None:
    assert make_data(dataset).origin == origin


def test_what_is_known_stays_with_the_model(tmp_path: Path, hub: LoopbackHub) -> None:
    model = make_model()
    model.attach(make_data().processor)
    model.model.provenance = replace(FULL, license=None, languages=())
    model.push_to_hub("alice/digits", token="hf_alice", license="mit", languages=["de"])
    pushed = LitSeq2Seq.from_pretrained("alice/digits", token="hf_alice")
    assert pushed.model.provenance == replace(FULL, license=None, languages=[])
    text = hub.repos["models", "alice/digits"].commits[hub.repos["models", "alice/digits"].branches["main"]][
        "README.md"
    ]
    card = ModelCard(text.decode())
    assert (card.data.license, card.data.language) == ("mit", ["de"])
    pushed.save_pretrained(tmp_path / "again", {"test_bleu": 42.0})
    assert LitSeq2Seq.from_pretrained(tmp_path / "again").model.provenance.scores == {"test_bleu": 42.0}


def test_a_card_that_was_edited_stays_so() -> None:
    edited = "---\nlicense: mit\nmine: 1\n---\n\n# My own words\n"
    card = published(edited, "alice/digits", languages=["de"])
    assert ModelCard(card).data.to_dict() == {"license": "mit", "language": ["de"], "mine": 1}
    assert ModelCard(card).text.strip() == "# My own words"


TEXTS = ["ein Mann, ein Hund.", "zwei  Hunde <eos> über alle", "xyz <unk>"]


@pytest.mark.parametrize("model", ["word", "char", "byte", "bpe", "unigram"])
def test_transformers_reads_a_shared_vocabulary(model: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    mine = Tokenizer(model, vocab_size=100)
    mine.train(["ein Mann, ein Hund.", "zwei Hunde laufen über die Straße"])
    Processor(mine, mine).save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXTS)["input_ids"] == mine.encode_batch(TEXTS)
    assert [theirs.decode(ids) for ids in mine.encode_batch(TEXTS)] == [
        mine.decode(i) for i in mine.encode_batch(TEXTS)
    ]
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (
        mine.specials.pad,
        mine.specials.bos,
        mine.specials.eos,
        mine.specials.unk,
    )


def test_transformers_reads_each_of_two_vocabularies(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sides = {side: Tokenizer("word") for side in ("source", "target")}
    for side, tokenizer in sides.items():
        tokenizer.train([f"{side} ein Hund"])
    Processor(*sides.values()).save(tmp_path)
    for side, tokenizer in sides.items():
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / f"{side}_tokenizer.json"))
        assert theirs("ein Hund")["input_ids"] == tokenizer.encode_batch(["ein Hund"])[0]


def test_scores_measured_elsewhere_come_without_a_number_of_rows(trained: Trained, tmp_path: Path) -> None:
    model = LitSeq2Seq.from_pretrained(trained.model)
    model.save_pretrained(tmp_path / "known")
    model.save_pretrained(tmp_path / "given", {"val_bleu": 41.4})
    known, given = ((tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("known", "given"))
    assert ("split, 12 rows" in known, " rows." in given, "41.40" in given) == (True, False, True)
