import pytest
from datasets import Dataset, Features, Translation, Value

from lit_seq2seq.data.rows import RowMapper, split_tags
from lit_seq2seq.types import UserError

ROWS = {
    "id": [1, 2],
    "text": ["eins", None],
    "translation": [{"de": "ein", "en": "a"}, {"de": None, "en": " "}],
    "captions": [["x", "", "y"], []],
    "caption_0": ["p", "q"],
    "caption_1": [None, "r"],
    "answers": [{"text": ["s"]}, {"text": []}],
}
FEATURES = Dataset.from_dict(ROWS).features


def resolved(source="text", target="caption_0", references=None, targets=True, features=FEATURES):
    return RowMapper(source, target, references).resolve(features, targets)


def test_missing_sources_are_none():
    assert resolved("text").sources(ROWS) == ["eins", None]
    assert resolved("translation.de").sources(ROWS) == ["ein", None]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("translation.en", [["a"], []]),
        ("captions", [["x", "y"], []]),
        ("answers.text", [["s"], []]),
        ("caption_*", [["p"], ["q", "r"]]),
        (["caption_1", "captions"], [["x", "y"], ["r"]]),
    ],
)
def test_targets_come_from_nested_columns_lists_and_patterns(target, expected):
    assert resolved(target=target).targets(ROWS) == expected


def test_references_are_targets_and_further_columns():
    mapper = resolved(target="caption_0", references=["captions", "translation.en"])
    assert mapper.all_references(ROWS) == [("p", "x", "y", "a"), ("q",)]
    assert resolved(target="captions").all_references(ROWS) == [("x", "y"), ("",)]


def test_translation_features_are_nested():
    features = Features({"translation": Translation(["de", "en"]), "id": Value("int64")})
    assert resolved("translation.de", "translation.en", features=features).columns == [
        "translation.de",
        "translation.en",
    ]


def test_a_dot_in_a_name_is_taken_as_it_is():
    rows = {"a.b": ["x"], "c": ["y"]}
    assert resolved("a.b", "c", features=Dataset.from_dict(rows).features).sources(rows) == ["x"]


def test_targets_may_be_absent_when_not_needed():
    mapper = resolved(target="nowhere", targets=False)
    assert mapper.columns == ["text"]
    assert mapper.targets(ROWS) == [[], []]


def test_tags_stand_before_the_source():
    rows = {"lemma": ["go", "x", ""], "language": ["en", None, "de"], "tags": [["V;PST", "3|SG"], [], ["N"]]}
    mapper = RowMapper("lemma", "lemma", tags=["language", "tags"]).resolve(Dataset.from_dict(rows).features, True)
    assert mapper.sources(rows) == ["⟨en⟩ ⟨V⟩ ⟨PST⟩ ⟨3⟩ ⟨SG⟩ go", "x", None]
    assert mapper.roots == ["lemma", "language", "tags"]
    assert mapper.targets(rows) == [["go"], ["x"], []]
    with pytest.raises(UserError, match=r"expected a column 'tag', but the columns are .*: set columns.tags"):
        RowMapper("lemma", "lemma", tags="tag").resolve(Dataset.from_dict(rows).features, True)


def test_mistakes_are_explained():
    with pytest.raises(UserError, match=r"expected a column 'src', but the columns are id, text, .*translation.de"):
        resolved("src")
    with pytest.raises(UserError, match=r"set columns.target"):
        resolved(target=["caption_0", "caption_9"])
    with pytest.raises(UserError, match=r"set columns.references"):
        resolved(references="refs_*")
    with pytest.raises(
        UserError, match=r"expected text in column 'id', but it holds int64: convert it or set columns.so"
    ):
        resolved("id")
    with pytest.raises(UserError, match="expected text in column 'captions', but it holds List"):
        resolved("captions")


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("N;ABL(PL;PSS(1,PL))", ["N", "ABL(PL;PSS(1,PL))"]),
        ("V;IND;NOM(1,SG);ACC(2, PL)", ["V", "IND", "NOM(1,SG)", "ACC(2,PL)"]),
        ("N [case=GEN|num=SG] {a;b} x", ["N", "[case=GEN|num=SG]", "{a;b}", "x"]),
        ("A(1) B(2;3)", ["A(1)", "B(2;3)"]),
        ("V|3;SG :( PL", ["V", "3", "SG", ":(", "PL"]),
        (") a;b (", [")", "a", "b", "("]),
        ("⟨V⟩;(⟨a⟩;b)", ["V", "(a;b)"]),
        ("", []),
        (" ; ", []),
        ("N(A;B); :(", ["N(A;B)", ":("]),
        (":) N(A;B)", [":)", "N(A;B)"]),
    ],
)
def test_tags_are_divided_but_not_within_brackets(text, tags):
    assert split_tags(text) == tags
