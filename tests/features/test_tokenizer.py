import pickle
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_seq2seq.features import Tokenizer
from lit_seq2seq.types import SpecialIds, UserError

MODELS = ["word", "char", "byte", "bpe", "unigram"]
CORPUS = [
    "Ein Mann (im Hut) schläft.",
    "Don't say „ja“ — it's 3.14 €!",
    "a-b ... x/y [z]; e-mail: a_b@c.de",
    "two  spaces, one\ttab",
]
OPTIONS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def trained(model="bpe", texts=CORPUS, **options):
    tokenizer = Tokenizer(model=model, **{"vocab_size": 300, **options})
    tokenizer.train(list(texts))
    return tokenizer


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer.encode_batch([text])[0])


def nfc(text):
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("model", MODELS)
def test_decoding_restores_the_training_text(model):
    tokenizer = trained(model)
    for text in CORPUS[:3]:
        assert round_trip(tokenizer, text) == text
    ids = tokenizer.encode_batch(CORPUS)
    assert tokenizer.decode_batch(ids)[:3] == CORPUS[:3]
    assert all(index >= 4 for row in ids for index in row)


@pytest.mark.parametrize("model", ["char", "byte"])
@OPTIONS
@given(text=TEXT)
def test_characters_and_bytes_restore_any_text(model, text):
    tokenizer = trained(model, [text, "a"], vocab_size=10_000)
    assert round_trip(tokenizer, text) == nfc(text)


@pytest.mark.parametrize("model", ["bpe", "unigram"])
@OPTIONS
@given(words=st.lists(TEXT, min_size=1, max_size=4))
def test_subwords_restore_any_known_text(model, words):
    text = " ".join(words)
    tokenizer = trained(model, [text, "a b c d e f"], vocab_size=1000)
    assert round_trip(tokenizer, text) == nfc(text).replace("▁", " ")


@OPTIONS
@given(text=st.text(st.sampled_from("ab ä.,'-(_1\n€語"), max_size=20))
def test_words_restore_text_up_to_runs_of_white_space(text):
    assert round_trip(trained("word", [text, "a"]), text) == " ".join(text.split())


@OPTIONS
@given(text=TEXT)
def test_words_never_fail_and_keep_everything_but_white_space(text):
    found = round_trip(trained("word", [text, "a"]), text)
    kept = {c for c in nfc(text) if not c.isspace() and c != "￭" and unicodedata.category(c) != "Cc"}
    assert kept <= set(found)


@pytest.mark.parametrize("model", MODELS)
def test_pretokenized_text_is_split_at_white_space_only(model):
    text = "HH AH0 L , OW1 ( x"
    tokenizer = trained(model, [text], pretokenized=True)
    assert round_trip(tokenizer, f"  {text.replace(' ', '   ')} ") == text
    if model == "word":
        assert tokenizer.tokens(tokenizer.encode_batch([text])[0]) == text.split()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pretokenized", [False, True])
def test_special_names_in_text_never_become_special_ids(model, pretokenized):
    text = "a <eos> b<pad> <bos>"
    tokenizer = trained(model, [text, *CORPUS], pretokenized=pretokenized)
    assert tokenizer.specials == SpecialIds(pad=0, unk=1, bos=2, eos=3)
    assert not {0, 2, 3} & set(tokenizer.encode_batch([text])[0])


def test_lowercase_and_normal_forms():
    assert round_trip(trained("char", ["ab fi"], lowercase=True), "AB") == "ab"
    assert round_trip(trained("char", ["fi"], normalization="nfkc"), "ﬁ") == "fi"
    assert round_trip(trained("char", ["e\u0301"], normalization="none"), "e\u0301") == "e\u0301"
    assert round_trip(trained("char", ["\u00e9"]), "e\u0301") == "\u00e9"


@pytest.mark.parametrize("model", ["word", "char"])
def test_rare_units_are_unknown(model):
    tokenizer = trained(model, ["a a b"], min_frequency=2)
    assert tokenizer.specials.unk in tokenizer.encode_batch(["b"])[0]
    assert tokenizer.decode(tokenizer.encode_batch(["b"])[0]) == "<unk>"


def test_letters_and_hangul_are_taken_apart():
    tokenizer = trained("char", ["한국 é"], normalization="nfd")
    ids = tokenizer.encode_batch(["한국 é"])[0]
    assert tokenizer.tokens(ids) == [*"\u1112\u1161\u11ab\u1100\u116e\u11a8", " ", "e", "\u0301"]
    assert unicodedata.normalize("NFC", tokenizer.decode(ids)) == "한국 é"
    assert trained("char", ["ﬁ"], normalization="nfkd").tokens([4, 5]) == ["f", "i"]


def test_tags_stay_whole():
    tokenizer = trained("char", ["⟨past⟩ ⟨3sg⟩ go", "⟨ open"])
    ids = tokenizer.encode_batch(["⟨past⟩ ⟨3sg⟩ go"])[0]
    assert tokenizer.tokens(ids) == ["⟨past⟩ ", "⟨3sg⟩ ", "g", "o"]
    assert tokenizer.decode(ids) == "⟨past⟩ ⟨3sg⟩ go"
    assert tokenizer.tokens(tokenizer.encode_batch(["⟨ o"])[0]) == ["⟨", " ", "o"]


def test_phones_keep_their_code_points():
    phones = "a b ɑ̃ d ɔ̃ t͡ʃ"
    tokenizer = trained("word", [phones], pretokenized=True, normalization="none")
    ids = tokenizer.encode_batch([phones])[0]
    assert tokenizer.tokens(ids) == phones.split()
    assert tokenizer.decode(ids) == phones


def test_encode_ends_with_eos_and_collate_pads():
    tokenizer = trained("char", ["abc"])
    padded = tokenizer.collate(tokenizer.encode(["ab", ""]))
    assert padded.values.tolist() == [[4, 5, 3], [3, 0, 0]]
    assert padded.lengths.tolist() == [3, 1]
    assert tokenizer.truncate(tokenizer.encode(["abc"])[0], 2).tolist() == [4, 3]
    assert tokenizer.decode([2, 4, 5, 3, 0]) == "ab"


def test_dropout_splits_differently_but_decodes_to_the_same():
    tokenizer = trained("bpe", ["hello world " * 5], dropout=0.5)
    plain = tokenizer.encode_batch(["hello world"])[0]
    dropped = [tokenizer.encode_batch(["hello world"], dropout=True)[0] for _ in range(20)]
    assert any(ids != plain for ids in dropped)
    assert {tokenizer.decode(ids) for ids in dropped} == {"hello world"}
    assert tokenizer.encode_batch(["hello world"])[0] == plain


@pytest.mark.parametrize("model", MODELS)
def test_every_way_to_keep_a_tokenizer_keeps_it(model, tmp_path):
    tokenizer = trained(model)
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = [*CORPUS, "<eos> unseen"]
    for copy in (
        Tokenizer.load(tmp_path / "tokenizer.json"),
        Tokenizer.from_json(tokenizer.to_json(), **tokenizer.config),
        Tokenizer.from_dict(tokenizer.to_dict()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.encode_batch(texts) == tokenizer.encode_batch(texts)
        assert len(copy) == len(tokenizer)
        assert copy.specials == tokenizer.specials


def test_a_given_file_is_kept_when_training(tmp_path):
    tokenizer = trained()
    tokenizer.save(tmp_path / "tokenizer.json")
    given = Tokenizer(file=str(tmp_path / "tokenizer.json"))
    given.train(["other text"])
    assert given.to_json() == tokenizer.to_json()


def test_special_ids_are_found_by_other_names(tmp_path):
    text = trained().to_json()
    for ours, theirs in {"<pad>": "[PAD]", "<unk>": "[UNK]", "<bos>": "[CLS]", "<eos>": "[SEP]"}.items():
        text = text.replace(ours, theirs)
    (tmp_path / "tokenizer.json").write_text(text)
    assert Tokenizer.load(tmp_path / "tokenizer.json").specials == SpecialIds(0, 1, 2, 3)


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"no vocabulary yet: call train"):
        Tokenizer().encode_batch(["a"])
    with pytest.raises(UserError, match=r"expected a tokenizer.json at .*none.json, but there is no such file"):
        Tokenizer(file=str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"expected a tokenizer.json of the tokenizers library at .*bad.json"):
        Tokenizer(file=str(tmp_path / "bad.json"))
    (tmp_path / "bare.json").write_text(trained().to_json().replace("<eos>", "end"))
    with pytest.raises(UserError, match=r"expected a eos symbol in .*bare.json, <eos> or </s> or"):
        Tokenizer(file=str(tmp_path / "bare.json"))
    with pytest.raises(UserError, match=r"dropout of the tokenizer must be in \[0, 1\), but is 1.5"):
        Tokenizer(dropout=1.5)
    with pytest.raises(UserError, match="needs model=bpe, but the model is word"):
        Tokenizer("word", dropout=0.1)
    with pytest.raises(UserError, match="vocab_size of the tokenizer must be at least 5, but is 4"):
        Tokenizer(vocab_size=4)


@pytest.mark.parametrize("options", [{}, {"lowercase": True}])
def test_a_tag_is_known_with_and_without_the_space_behind_it(options):
    tokenizer = Tokenizer("char", **options)
    tokenizer.train(["⟨V⟩ ⟨PST⟩ go", "go ⟨N⟩", "x⟨P(1;2)⟩y"])
    expected = tokenizer.encode_batch(["⟨V⟩ ⟨PST⟩ go"])[0]
    assert tokenizer.specials.unk not in expected
    for text in ("⟨V⟩⟨PST⟩go", "⟨V⟩ ⟨PST⟩go", "⟨V⟩⟨PST⟩ go"):
        assert tokenizer.encode_batch([text])[0] == expected
        assert tokenizer.unknown(text) == []
    assert tokenizer.unknown("⟨N⟩ go ⟨P(1;2)⟩ go") == []
    assert tokenizer.unknown("⟨X⟩go") == ["⟨x⟩" if options else "⟨X⟩"]


@pytest.mark.parametrize("model", ["word", "char", "bpe", "unigram", "byte"])
def test_each_symbol_of_a_text_has_the_word_that_it_is_part_of(model: str) -> None:
    tokenizer = Tokenizer(model, vocab_size=40 if model != "byte" else 260, lowercase=model == "word")
    tokenizer.train(["ab abc dog", "a cab"])
    text = "Abab, é DOG"
    pieces = tokenizer.pieces(text)
    assert len(pieces) == len(tokenizer.encode([text])[0]) - 1
    if model in ("char", "byte"):
        assert "".join(pieces[:6]) == text[:6]
    else:
        assert list(dict.fromkeys(pieces)) == ["Abab", ",", "é", "DOG"]


@pytest.mark.parametrize("pretokenized", [False, True])
@pytest.mark.parametrize("model", MODELS)
@OPTIONS
@given(data=st.data())
def test_symbols_change_nothing_before_them(model, pretokenized, data):
    tokenizer = trained(model, pretokenized=pretokenized)
    assert tokenizer.settled
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=9))
    whole = tokenizer.decode(ids)
    for count in range(len(ids)):
        assert whole.startswith(tokenizer.decode(ids[:count]).rstrip("\ufffd"))


def test_a_tokenizer_of_others_may_change_what_stands_before(tmp_path):
    trained().backend.save(str(tmp_path / "tokenizer.json"))
    assert not Tokenizer(file=str(tmp_path / "tokenizer.json")).settled
