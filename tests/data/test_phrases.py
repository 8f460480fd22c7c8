import datetime
import itertools
import os
import re
import subprocess
import sys
import unicodedata
from pkgutil import resolve_name

import datasets
import pytest

from lit_seq2seq.builtin import BuiltinDataset, PhraseTranslation
from lit_seq2seq.builtin.phrase_kinds import KINDS, SENTENCES
from lit_seq2seq.builtin.phrases import generate
from lit_seq2seq.types import UserError

LANGUAGES = tuple(SENTENCES)
SPLITS = ("train", "validation", "test")
KIND = {kind.name: kind for kind in KINDS}

SMALL = {"train_size": 60, "validation_size": 20, "test_size": 20, "seed": 3}
PRINT_FINGERPRINTS = f"""
from lit_seq2seq.builtin import PhraseTranslation
splits = PhraseTranslation(**{SMALL}).load()
print([split._fingerprint for split in splits.values()], splits["train"][:5])
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


def slots(text):
    return set(re.findall(r"\{(\w+)\}", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_of_all_languages_have_the_same_keys_and_slots(language):
    assert {key: slots(text) for key, text in SENTENCES[language].items()} == {
        key: slots(text) for key, text in SENTENCES["en"].items()
    }


def test_every_sentence_belongs_to_exactly_one_kind():
    assert sorted(key for kind in KINDS for key in kind.sentences) == sorted(SENTENCES["en"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_splits_share_no_value_and_hold_every_value_once(kind):
    parts = [kind.split(split, seed=5) for split in SPLITS]
    together = list(itertools.chain(*parts))
    assert len(together) == len(set(together)) == len(set(kind.values))
    assert all(parts)


def test_rows_of_a_split_say_values_of_that_split_only():
    small = [kind for kind in KINDS if len(kind.values) < 800]
    train = {
        kind.say(*pair, "de") for kind in small for pair in itertools.product(kind.split("train", 2), kind.sentences)
    }
    said = {split: {row["de"] for row in generate(("de",), split, 300, 2)} for split in SPLITS}
    assert train & said["train"]
    assert train.isdisjoint(said["validation"] | said["test"])


@pytest.mark.parametrize("split", SPLITS)
def test_no_pair_comes_twice(split):
    rows = list(generate(("en", "de"), split, 800, 0))
    assert len({row["en"] for row in rows}) == len({row["de"] for row in rows}) == 800
    assert {row["kind"] for row in rows} == set(KIND)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_meanings_share_a_sentence_so_every_translation_is_unambiguous(language):
    meaning = {}
    for kind in KINDS:
        some = kind.values[:: 1 + len(kind.values) // 250]  # in one sentence; in the others the same words say a value
        few = some[:: 1 + len(some) // 40]
        first, *others = kind.sentences
        for value, sentence in [(value, first) for value in some] + list(itertools.product(few, others)):
            text = kind.say(value, sentence, language)
            assert meaning.setdefault(text, (kind.name, value, sentence)) == (kind.name, value, sentence)


@pytest.fixture(scope="module")
def rows():
    return list(generate(LANGUAGES, "train", 300, 0))


def test_all_languages_give_clean_text(rows):
    for text in (row[language] for row in rows for language in LANGUAGES):
        assert text == unicodedata.normalize("NFC", text).strip()
        assert not re.search(r"[{}\xa0\u202f’_]|  |duration-", text)
        assert text[-1] in ".?"


def test_no_translation_is_a_copy(rows):
    assert all(len({row[language] for language in LANGUAGES}) == len(LANGUAGES) for row in rows)


def test_the_same_value_is_said_in_every_language_pair():
    first = [row["en"] for row in generate(("en", "de"), "test", 50, 0)]
    assert first == [row["en"] for row in generate(("fr", "en"), "test", 50, 0)]
    assert first != [row["en"] for row in generate(("en", "de"), "test", 50, 1)]


@pytest.mark.parametrize(
    ("kind", "value", "sentence", "english", "german"),
    [
        (
            "date",
            datetime.date(1984, 3, 3),
            "born",
            "She was born on March 3, 1984.",
            "Sie wurde am 3. März 1984 geboren.",
        ),
        (
            "date",
            datetime.date(1984, 3, 3),
            "today",
            "Today is Saturday, March 3, 1984.",
            "Heute ist Samstag, der 3. März 1984.",
        ),
        ("time", datetime.time(14, 35), "train", "The train leaves at 2:35 PM.", "Der Zug fährt um 14:35 Uhr ab."),
        (
            "meeting",
            (2, datetime.time(0, 5)),
            "film",
            "The film starts on Wednesday at 12:05 AM.",
            "Der Film fängt am Mittwoch um 00:05 Uhr an.",
        ),
        (
            "clock",
            (0, 2, 30),
            "leave",
            "They want to leave on Monday at half past two.",
            "Sie wollen am Montag um halb drei losfahren.",
        ),
        (
            "clock",
            (4, 1, 0),
            "lesson",
            "The lesson ends on Friday at one o'clock.",
            "Der Unterricht endet am Freitag um ein Uhr.",
        ),
        (
            "clock",
            (4, 1, 5),
            "lesson",
            "The lesson ends on Friday at five past one.",
            "Der Unterricht endet am Freitag um fünf nach eins.",
        ),
        ("money", ("USD", 12.5), "book", "The book costs $12.50.", "Das Buch kostet 12,50 $."),
        (
            "money",
            ("GBP", 12.5),
            "repair",
            "The repair cost 12.50 British pounds.",
            "Die Reparatur hat 12,50 Britische Pfund gekostet.",
        ),
        ("sum", (1, "EUR"), "owe", "He owes me one euro.", "Er schuldet mir einen Euro."),
        ("sum", (21, "USD"), "win", "We won twenty-one US dollars.", "Wir haben einundzwanzig US-Dollar gewonnen."),
        (
            "length",
            ("length-mile", 1),
            "walk",
            "We walked 1 mile yesterday.",
            "Wir sind gestern 1 Meile gelaufen.",
        ),
        (
            "length",
            ("length-mile", 2.5),
            "walk",
            "We walked 2.5 miles yesterday.",
            "Wir sind gestern 2,5 Meilen gelaufen.",
        ),
        (
            "duration",
            (1, "day", 2, "hour"),
            "journey",
            "The journey takes 1 day and 2 hours.",
            "Die Reise dauert 1 Tag und 2 Stunden.",
        ),
        ("relative", (3, "day"), "phone", "He called 3 days ago.", "Er hat vor 3 Tagen angerufen."),
        ("relative", (1, "year"), "return", "I will come back in 1 year.", "Ich komme in 1 Jahr zurück."),
        (
            "number",
            4321,
            "count",
            "He counted to four thousand, three hundred and twenty-one.",
            "Er hat bis viertausenddreihunderteinundzwanzig gezählt.",
        ),
        (
            "ordinal",
            21,
            "attempt",
            "She succeeded on the twenty-first attempt.",
            "Sie hat es beim einundzwanzigsten Versuch geschafft.",
        ),
        ("ordinal", 3, "place", "He finished in 3rd place.", "Er hat den 3. Platz belegt."),
        ("percent", 936, "rise", "Prices rose by 93.6%.", "Die Preise sind um 93,6 % gestiegen."),
        (
            "count",
            86470,
            "town",
            "86,470 people live in this town.",
            "In dieser Stadt leben 86.470 Menschen.",
        ),
    ],
)
def test_english_and_german_agree_with_the_books(kind, value, sentence, english, german):
    assert value in KIND[kind].values
    assert KIND[kind].say(value, sentence, "en") == english
    assert KIND[kind].say(value, sentence, "de") == german


@pytest.mark.parametrize(
    ("kind", "value", "sentence", "language", "text"),
    [
        ("date", datetime.date(1984, 3, 1), "letter", "fr", "La lettre est datée du 1er mars 1984."),
        ("date", datetime.date(1984, 3, 1), "born", "it", "È nata il 1º marzo 1984."),
        ("date", datetime.date(1984, 3, 8), "born", "it", "È nata l'8 marzo 1984."),
        ("date", datetime.date(1984, 3, 18), "letter", "it", "La lettera è del 18 marzo 1984."),
        ("time", datetime.time(1, 35), "train", "es", "El tren sale a la 1:35."),
        ("clock", (0, 1, 30), "leave", "fr", "Ils veulent partir lundi à une heure et demie."),
        ("clock", (0, 1, 30), "leave", "es", "Quieren salir el lunes a la una y media."),
        ("clock", (0, 1, 30), "leave", "it", "Vogliono partire lunedì all'una e mezza."),
        ("clock", (0, 2, 40), "leave", "nl", "Ze willen op maandag om tien over half drie vertrekken."),
        ("sum", (21, "EUR"), "win", "es", "Ganamos veintiún euros."),
        ("sum", (31, "USD"), "win", "es", "Ganamos treinta y un dólares estadounidenses."),
        ("sum", (1, "CHF"), "win", "it", "Abbiamo vinto un franco svizzero."),
        ("sum", (80, "EUR"), "win", "fr", "Nous avons gagné quatre-vingts euros."),
        ("length", ("length-kilometer", 1.5), "walk", "fr", "Hier, nous avons marché 1,5 kilomètre."),
        ("number", 123, "answer", "it", "La risposta è centoventitré."),
        ("ordinal", 80, "chapter", "fr", "C'est le quatre-vingtième chapitre."),
        ("ordinal", 11, "chapter", "es", "Este es el capítulo undécimo."),
        ("ordinal", 800, "chapter", "es", "Este es el capítulo octingentésimo."),
        ("ordinal", 8, "attempt", "it", "Lei ce l'ha fatta all'ottavo tentativo."),
        ("ordinal", 21, "place", "fr", "Il a fini à la 21e place."),
        ("ordinal", 11, "place", "it", "Lui ha ottenuto l'11º posto."),
        ("percent", 110, "rise", "it", "I prezzi sono aumentati dell'11%."),
        ("percent", 115, "rise", "it", "I prezzi sono aumentati dell'11,5%."),
    ],
)
def test_agreement_and_elision_in_other_languages(kind, value, sentence, language, text):
    assert KIND[kind].say(value, sentence, language) == text


def test_load_gives_the_asked_rows_and_columns():
    splits = PhraseTranslation("fr", "nl", train_size=120, validation_size=30, test_size=40).load()
    assert issubclass(PhraseTranslation, BuiltinDataset)
    assert {name: split.num_rows for name, split in splits.items()} == {"train": 120, "validation": 30, "test": 40}
    assert splits["train"].column_names == ["fr", "nl", "kind"]
    assert str(splits["validation"].split) == "validation"


def test_another_process_gets_the_same_rows_and_fingerprints(tmp_path):
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "other"), "PYTHONHASHSEED": "random"}
    command = [sys.executable, "-c", PRINT_FINGERPRINTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    splits = PhraseTranslation(**SMALL).load()
    assert done.stdout == f"{[split._fingerprint for split in splits.values()]} {splits['train'][:5]}\n"
    assert "'kind'" in done.stdout


def test_a_larger_train_split_leaves_the_test_split_as_it_is():
    small = PhraseTranslation(train_size=20, validation_size=20, test_size=30).load()
    large = PhraseTranslation(train_size=200, validation_size=20, test_size=30).load()
    assert small["test"][:] == large["test"][:]


def test_every_pair_of_a_split_can_be_asked_for():
    most = sum(kind.capacity("test") for kind in KINDS)
    PhraseTranslation(test_size=most)
    with pytest.raises(UserError, match=f"test_size from 1 to {most}, but it is {most + 1}"):
        PhraseTranslation(test_size=most + 1)


def test_wrong_arguments_name_the_choices():
    with pytest.raises(UserError, match=r"language of en, de, fr, es, it, nl, but got 'tlh'"):
        PhraseTranslation("en", "tlh")
    with pytest.raises(UserError, match="two different languages, but got 'de' twice"):
        PhraseTranslation("de", "de")
    with pytest.raises(UserError, match=r"train_size from 1 to .* but it is 0"):
        PhraseTranslation(train_size=0)


def test_recipes_of_0_1_find_it_by_its_old_name() -> None:
    assert resolve_name("lit_seq2seq.data.synthetic.PhraseTranslation") is PhraseTranslation
