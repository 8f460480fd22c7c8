"""Search under constraints: a wide beam finds what is best of all outputs that meet them, in torch and in NumPy."""

import os
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from search_cases import SPECIALS, Chains, Found, PlainModel, assert_same, run, tokens_of

from lit_seq2seq import arrays
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.search import (
    BadWords,
    Constraint,
    ForceWords,
    GenerationConfig,
    JointCTC,
    Lexicon,
    NoRepeatedNGrams,
    Pattern,
    RepetitionPenalty,
    Terminology,
    search,
)
from lit_seq2seq.search.constraints.automaton import Automaton, trie
from lit_seq2seq.search.constraints.terms import read_terms
from lit_seq2seq.search.constraints.words import forced
from lit_seq2seq.search.rules import constraints_of
from lit_seq2seq.search.task import Task
from lit_seq2seq.types import SpecialIds, StepOutput, UserError, Value

WIDE = {"num_beams": 90, "num_return_sequences": 8, "max_new_tokens": 4}
NAMES = {1: "?", 4: "x", 5: "y"}


class Letters:
    """A vocabulary of letters."""

    specials = SPECIALS

    def __len__(self) -> int:
        return 6

    @property
    def symbols(self) -> list[str]:
        return ["<pad>", "<unk>", "<bos>", "<eos>", "x", "y"]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids = {"x": 4, "y": 5}
        return [[ids.get(letter, SPECIALS.unk) for letter in text] for text in texts]

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(NAMES.get(index, "") for index in ids) for ids in batch]


LETTERS = Letters()


def text_of(tokens: Sequence[int]) -> str:
    return LETTERS.decode_batch([[int(token) for token in tokens]])[0]


def best(chains: Chains, sentence: int, config: GenerationConfig, fits: Callable[[str, bool], bool]) -> list[Found]:
    """The best of all outputs that fit: a function of the text, and of whether it ended by itself."""
    outputs = PlainModel(chains, sentence, config).outputs()
    kept = [one for one in outputs if fits(text_of(one.tokens), one.tokens[-1] == SPECIALS.eos)]
    return sorted(kept, key=lambda found: -found.score)[: config.num_return_sequences]


def compare(config: GenerationConfig, fits: Callable[[str, bool], bool], raw: Sequence[str] = ("", "", "")) -> None:
    for seed in range(4):
        chains = Chains.random(3, seed, drift=0.01)
        results = run(chains, config, vocabulary=LETTERS, raw=raw)
        for sentence, hypotheses in enumerate(results):
            expected = best(chains, sentence, config, fits)
            assert expected
            assert_same(hypotheses, expected)
            assert all(one.met for one in hypotheses)


@pytest.mark.parametrize("words", [["z"], ["x"], ["xy", "xz"], ["xx", "y"], ["xyx", "yy", "x?x"[:1] + "x"], ["xyxy"]])
def test_bad_words_do_not_occur(words: list[str]) -> None:
    compare(GenerationConfig(bad_words=words, **WIDE), lambda text, _: not any(word in text for word in words))


@pytest.mark.parametrize("words", [["x"], ["xy"], ["x", "y"], ["xy", "yx"], ["xyx"], ["xx", "y"], ["yy", "yy"]])
def test_forced_words_all_occur(words: list[str]) -> None:
    compare(GenerationConfig(force_words=words, **WIDE), lambda text, _: all(word in text for word in words))


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_a_narrow_beam_finds_outputs_with_all_forced_words(beams: int) -> None:
    config = GenerationConfig(force_words=["xy", "yyx"], num_beams=beams, max_new_tokens=12)
    for seed in range(10):
        for [one] in run(Chains.random(4, seed), config, vocabulary=LETTERS):
            text = text_of(one.tokens)
            assert "xy" in text
            assert "yyx" in text


def test_several_constraints_hold_together() -> None:
    config = GenerationConfig(
        force_words=["x"], bad_words=["yy"], constraints=[Pattern("[xy]*")], no_repeat_ngram_size=2, **WIDE
    )

    def fits(text: str, ended: bool) -> bool:
        pairs = [text[i : i + 2] for i in range(len(text) - 1)]
        return "x" in text and "yy" not in text and "?" not in text and len(pairs) == len(set(pairs))

    chains = Chains.random(3, 1)
    for sentence, hypotheses in enumerate(run(chains, config, vocabulary=LETTERS)):
        assert_same(hypotheses, best(chains, sentence, config, fits))


@pytest.mark.parametrize(
    "expression",
    [
        "x|y",
        "x*",
        "(xy)+",
        "x?y{1,2}",
        "[^x]+",
        "[x-y]{2}",
        "(x|yy)*y?",
        "(?:x|)y",
        "..",
        "x{2,}|y",
        r"\\w+",
        "",
        "x+?y",
    ],
)
def test_outputs_match_a_pattern(expression: str) -> None:
    expression = expression.replace("\\\\", "\\")
    whole = re.compile(expression)
    config = GenerationConfig(constraints=[Pattern(expression)], **WIDE)
    compare(config, lambda text, _: whole.fullmatch(text) is not None and "?" not in text)  # which is no text


@pytest.mark.parametrize("entries", [["xy"], ["x", "xy", "yy"], ["xyx", "xyy", "y"], ["x", "xx", "yxy"]])
def test_outputs_stay_in_a_lexicon(entries: list[str], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(entries), encoding="utf-8")
    file = str(tmp_path / "words.txt")
    whole = re.compile("|".join(entries))
    config = GenerationConfig(constraints=[Lexicon(file)], **WIDE)
    compare(config, lambda text, _: whole.fullmatch(text) is not None)
    with pytest.raises(UserError, match="set several to false"):  # these letters have no space
        run(Chains.random(1, 0), GenerationConfig(constraints=[Lexicon(file, several=True)]), vocabulary=LETTERS)


@pytest.mark.parametrize("between", [[], [1], [1, 5]])
@pytest.mark.parametrize("entries", [[[4, 5]], [[4], [4, 5], [5, 5]], [[4], [4, 1], [5, 4, 5]], [[4, 1, 4], [5]]])
def test_entries_may_follow_each_other(entries: list[list[int]], between: list[int]) -> None:
    found, single = trie(entries, between), trie(entries)
    several = "|".join("".join(map(str, one)) for one in entries)
    whole = re.compile(f"(?:{several})(?:{''.join(map(str, between))}(?:{several}))*")
    for ids in (ids for length in range(1, 6) for ids in product([1, 4, 5], repeat=length)):
        assert accepts(found, ids) == (whole.fullmatch("".join(map(str, ids))) is not None)
        assert accepts(single, ids) == (list(ids) in entries)


def accepts(automaton: Automaton, ids: Sequence[int]) -> bool:
    state = 0
    for index in ids:
        edges = range(automaton.starts[state], automaton.starts[state + 1])
        state = next((int(automaton.targets[edge]) for edge in edges if automaton.ids[edge] == index), -1)
        if state < 0:
            return False
    return bool(automaton.final[state])


def test_the_terms_of_each_source_have_to_be_translated(tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text("dog,xy\nhot dog,yy\ncat,x\n", encoding="utf-8")
    config = GenerationConfig(constraints=[Terminology(str(tmp_path / "terms.csv"))], **WIDE)
    raw, wanted = ["A Dog!", "a hot dog, a cat", "nothing"], [["xy"], ["yy", "x"], []]
    chains = Chains.random(3, 0)
    for sentence, hypotheses in enumerate(run(chains, config, vocabulary=LETTERS, raw=raw)):
        assert_same(
            hypotheses,
            best(chains, sentence, config, lambda text, _, own=wanted[sentence]: all(word in text for word in own)),
        )


PARTS = [BadWords(["xy"]), Pattern("(x|yx)+"), Pattern("y[xy?]*")]


@pytest.mark.parametrize("constraint", PARTS, ids=str)
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 1, "num_return_sequences": 3}, {"num_beams": 2}])
def test_every_search_keeps_to_them(constraint: Constraint, options: dict) -> None:
    config = GenerationConfig(constraints=[constraint], max_new_tokens=9, **options)
    for seed in range(5):
        for hypotheses in run(Chains.random(4, seed), config, vocabulary=LETTERS):
            for one in hypotheses:
                text = text_of(one.tokens)
                if isinstance(constraint, Pattern):
                    assert one.met == (re.fullmatch(constraint.expression, text) is not None)
                else:
                    assert "xy" not in text


@pytest.mark.parametrize("beams", [3, 4, 7])
def test_batch_mates_change_nothing(beams: int, tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text("dog,xyy\ncat,yx\n", encoding="utf-8")
    raw = ["a dog", "a cat and a dog", "", "a cat", ""]
    parts = [[Pattern("[xy]+"), ForceWords(["xy"])], [Terminology(str(tmp_path / "terms.csv"))]]
    for constraints in parts:
        config = GenerationConfig(constraints=constraints, num_beams=beams, max_new_tokens=8)
        chains = Chains.random(5, 3)
        together = run(chains, config, vocabulary=LETTERS, raw=raw)
        for row, hypotheses in enumerate(together):
            [alone] = run(chains.rows([row]), config, vocabulary=LETTERS, raw=raw[row : row + 1])
            assert [tokens_of(one) for one in alone] == [tokens_of(one) for one in hypotheses]


def test_what_cannot_be_met_is_given_with_a_warning() -> None:
    config = GenerationConfig(force_words=["xyx"], num_beams=3, max_new_tokens=2)
    with pytest.warns(UserWarning, match="2 outputs not as the constraints ask: the search has found none that is"):
        results = run(Chains.random(2, 0), config, vocabulary=LETTERS)
    assert [row[0].met for row in results] == [False, False]


def test_a_prefix_is_part_of_what_constraints_see() -> None:
    config = GenerationConfig(constraints=[Pattern("x[xy]*")], force_words=["xy"], num_beams=4, max_new_tokens=6)
    for [one] in run(Chains.random(3, 0), config, vocabulary=LETTERS, prefix=torch.tensor([[4, 5]] * 3)):
        assert re.fullmatch("xy[xy]*", text_of(one.tokens))


def plain_groups(model: PlainModel) -> list[Found]:
    """Diverse beam search in plain Python (Vijayakumar et al. 2018), each group by its own scores."""
    config = model.config
    width = config.num_beams // config.num_beam_groups
    beams, ended = [[Found((), 0.0)] for _ in range(config.num_beam_groups)], []
    while any(beams):
        used: list[int] = []
        for group, beam in enumerate(beams):
            candidates = []
            for found in beam:
                for token, added in model.next(found.tokens).items():
                    ranked = found.log_prob + added - config.diversity_penalty * used.count(token)
                    candidates.append((ranked, Found((*found.tokens, token), found.log_prob + added)))
            looked = [one for _, one in sorted(candidates, key=lambda pair: -pair[0])[: 2 * width]]
            ended += [model.score(one) for one in looked[:width] if model.ends(one.tokens)]
            beams[group] = [one for one in looked if not model.ends(one.tokens)][:width]
            used += [one.tokens[-1] for one in beams[group]]
    return sorted(dict.fromkeys(ended), key=lambda found: -found.score)[: config.num_return_sequences]


@pytest.mark.parametrize(("beams", "groups"), [(2, 2), (4, 2), (6, 3)])
@pytest.mark.parametrize("penalty", [0.0, 0.4, 5.0])
def test_groups_of_beams_shun_each_others_tokens(beams: int, groups: int, penalty: float) -> None:
    config = GenerationConfig(
        num_beams=beams,
        num_beam_groups=groups,
        diversity_penalty=penalty,
        num_return_sequences=beams // groups,
        max_new_tokens=4,
        length_normalization="none",
    )
    for seed in range(5):
        chains = Chains.random(3, seed, drift=0.01)
        for sentence, hypotheses in enumerate(run(chains, config)):
            assert_same(hypotheses, plain_groups(PlainModel(chains, sentence, config)))


def test_a_repetition_penalty_multiplies_what_has_been_said() -> None:
    class Penalised(PlainModel):
        def next(self, tokens: tuple[int, ...]) -> dict[int, float]:
            return {token: value * (1.5 if token in tokens else 1) for token, value in super().next(tokens).items()}

    config = GenerationConfig(repetition_penalty=1.5, **WIDE)
    chains = Chains.random(3, 0, drift=0.01)
    for sentence, hypotheses in enumerate(run(chains, config)):
        outputs = Penalised(chains, sentence, config).outputs()
        assert_same(hypotheses, sorted(outputs, key=lambda found: -found.score)[:8])


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Pattern("("), "expected a regular expression, but '\\(' is none"),
        (Pattern("^x"), "has what no automaton can tell"),
        (Pattern(r"(x)\\1".replace("\\\\", "\\")), "has what no automaton can tell"),
        (Pattern("(?i)x"), "has what no automaton can tell"),
        (Pattern("(?s)x"), "has what no automaton can tell"),
        (Pattern(r"(?a)\w"), "has what no automaton can tell"),
        (ForceWords(["x" * 101]), "is 101 symbols long: at most 100 are possible"),
        (Pattern("x{999}y{999}"), "is too large: repeat less"),
        (Pattern("[xy]*x[xy]{13}"), "a pattern reaches more than 5,000 states"),
        (Pattern("z+"), "no output of this model can match 'z\\+'"),
        (Lexicon("no.txt"), "there is no lexicon no.txt"),
        (Terminology("no.csv"), "the terms in no.csv cannot be read"),
        (ForceWords(["xz"]), "the model's outputs have no symbols for 'xz'"),
    ],
)
def test_wrong_constraints_are_explained(constraint: Constraint, message: str) -> None:
    config = GenerationConfig(constraints=[constraint], num_beams=2)
    with pytest.raises(UserError, match=message.replace("\\\\", "\\")):
        run(Chains.random(1, 0), config, vocabulary=LETTERS, raw=[""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"force_words": ["x"]}, "num_beams=1: must be above 1 with force_words"),
        ({"force_words": "x"}, "force_words='x': must be a list of texts"),
        ({"bad_words": [1]}, r"bad_words=\[1\]: must be a list of texts"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups=3: must be a divisor of num_beams=4"),
        ({"shortlist": True, "bad_words": ["x"]}, "shortlist=True: must be False with bad_words"),
        ({"constraints": [3]}, "constraints=.*: must be a list of parts of kind Constraint"),
        ({"repetition_penalty": 0}, "repetition_penalty=0: must be a number above 0 and at most 1000"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationConfig(**options)


def test_all_texts_of_three_letters_are_told_apart() -> None:
    from lit_seq2seq.search.constraints.patterns import Expression

    for expression in ["(x|y)*xx", "x(yx)*|y+", "(x?y?){2}", "[^y]x*?y"]:
        read = Expression(expression)
        for letters in product("xy?", repeat=4):
            state = read.start
            for letter in letters:
                state = read.move(state, letter)
            assert read.matches(state) == (re.fullmatch(expression, "".join(letters)) is not None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BadWords([]), "BadWords: words=\\[\\]: must be a list of texts"),
        (lambda: ForceWords("x"), "ForceWords: words: expected a list, each item a text, got 'x'"),
        (lambda: NoRepeatedNGrams(0), "NoRepeatedNGrams: size=0: must be an integer of at least 1"),
        (lambda: RepetitionPenalty(-1.0), "RepetitionPenalty: penalty=-1.0: must be a number above 0"),
        (lambda: JointCTC(5.0), "JointCTC: weight=5.0: must be a number above 0 and at most 1"),
    ],
)
def test_parts_check_their_numbers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("phrase", ["xyxyx", "xxxx", "xyyxxy", "x", "xyxxyxy"])
def test_what_is_written_of_a_phrase_is_found_after_any_text(phrase: str) -> None:
    state = forced([[LETTERS.encode_batch([phrase])]], SPECIALS.eos, arrays.NUMPY)
    for letters in product("xy?", repeat=6):
        now, text = state, ""
        for letter in letters:
            text += letter
            now = now.update(np.array([{"x": 4, "y": 5, "?": 1}[letter]]))
            sizes = [size for size in range(len(phrase) + 1) if text.endswith(phrase[:size])]
            assert now.written[0, 0, 0] == max(sizes)
            assert now.met[0] == (phrase in text)


def test_an_output_that_leaves_the_automaton_with_its_prefix_does_not_meet_it() -> None:
    config = GenerationConfig(constraints=[Pattern("x[xy]*")], max_new_tokens=5)
    for options in ({}, {"num_beams": 3}):
        with pytest.warns(UserWarning, match="2 outputs not as the constraints ask"):
            rows = run(
                Chains.random(2, 0), replace(config, **options), vocabulary=LETTERS, prefix=torch.tensor([[5], [5]])
            )
        assert [row[0].met for row in rows] == [False, False]


def test_the_option_prefix_is_heeded_by_search_itself() -> None:
    chains = Chains.random(2, 0)
    config = GenerationConfig(prefix="yx", max_new_tokens=3)
    rows = run(chains, config, vocabulary=LETTERS)
    assert [tokens_of(row[0]) for row in rows] == [
        tokens_of(row[0]) for row in run(chains, GenerationConfig(max_new_tokens=3), prefix=torch.tensor([[5, 4]] * 2))
    ]
    with pytest.raises(UserError, match="options that are texts need a vocabulary"):
        run(chains, config)


def test_a_lexicon_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    for number, entry in enumerate(["xy", "yx"]):
        file.write_text(entry, encoding="utf-8")
        os.utime(file, ns=(number, number))
        [[one]] = run(Chains.random(1, 0), GenerationConfig(constraints=[Lexicon(str(file))]), vocabulary=LETTERS)
        assert text_of(one.tokens) == entry


def test_lines_of_a_lexicon_that_cannot_be_written_are_told_once(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("xy\nzoo\nyx\nz\n", encoding="utf-8")
    config = GenerationConfig(constraints=[Lexicon(str(tmp_path / "words.txt"))])
    with pytest.warns(UserWarning, match=r"words.txt has 2 lines for which the model has no symbols, such as 'zoo': "):
        run(Chains.random(1, 0), config, vocabulary=LETTERS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Chains.random(1, 0), config, vocabulary=LETTERS)


def test_groups_and_words_that_must_occur_are_refused_together() -> None:
    with pytest.raises(UserError, match="num_beam_groups=2: must be 1 with ForceWords"):
        GenerationConfig(num_beams=4, num_beam_groups=2, constraints=[ForceWords(["x"])])


def test_a_dead_end_does_not_beat_what_meets_all() -> None:
    config = GenerationConfig(constraints=[Pattern("xy|y{6}")], min_new_tokens=4, num_beams=4, max_new_tokens=8)
    for [one] in run(Chains.random(4, 0), config, vocabulary=LETTERS):
        assert (text_of(one.tokens), one.met) == ("yyyyyy", True)
    short = replace(config, constraints=[Pattern("xy")])
    with pytest.warns(UserWarning, match="4 outputs not as the constraints ask"):
        assert not any(one.met for [one] in run(Chains.random(4, 0), short, vocabulary=LETTERS))


def test_words_can_be_banned_where_padding_is_eos() -> None:
    class Same(Letters):
        specials = SpecialIds(3, 1, 3, 3)

    chains, vocabulary = Chains.random(8, 1), Same()
    for word in ("xy", "x"):
        options = {"batch_size": 8, "specials": Same.specials, "vocabulary": vocabulary}
        config = GenerationConfig(bad_words=[word], max_new_tokens=40)
        found = search(chains.step, chains.start(), config=config, **options)
        [banned] = LETTERS.encode_batch([word])
        for [one] in found:
            tokens = one.tokens.tolist()
            assert not any(tokens[place : place + len(banned)] == banned for place in range(len(tokens)))
        assert sum(len(one.tokens) < 40 for [one] in found) > 4  # they end


def test_a_large_lexicon_is_made_in_seconds() -> None:
    entries = [[4 + (number >> shift & 1) for shift in range(15)] for number in range(30_000)]
    begin = time.process_time()
    assert len(trie(entries).final) > 30_000
    assert len(trie(entries, [1]).final) > 30_000
    assert time.process_time() - begin < 20  # a set for each node and pruning took far longer


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
@pytest.mark.parametrize("mark", [".", "-", "(", "„Ja“"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_marks_are_banned_and_forced_wherever_they_touch_words(kind: str, mark: str, device: str | None) -> None:
    vocabulary = Tokenizer(kind)
    vocabulary.train(["um 3.50 Uhr - ab.", "x-y (a) b.c", ". („Ja“) (a), „Ja“a", "„a“"])
    size, generator = len(vocabulary), np.random.default_rng(1)
    table = np.log(generator.dirichlet(np.full(size, 0.3), size) + 1e-6).astype(np.float32)
    scores = table if device is None else torch.from_numpy(table)

    class Nothing(Value):
        pass

    def texts(**options: object) -> list[str]:
        config = GenerationConfig(max_new_tokens=12, **options)
        own = {"batch_size": 1, "specials": vocabulary.specials, "vocabulary": vocabulary, "device": device}
        [found] = search(lambda tokens, state: StepOutput(scores[tokens], state), Nothing(), config=config, **own)
        assert all(one.met for one in found)
        return vocabulary.decode_batch([one.tokens.tolist() for one in found])

    draws = {"do_sample": True, "num_return_sequences": 100, "seed": 1, "temperature": 2.0}
    banned = texts(bad_words=[mark], **draws)
    assert not [text for text in banned if mark in text]
    assert mark in texts(force_words=[mark], num_beams=8)[0]
    if len(mark) == 1:
        assert [text for text in texts(**draws) if mark in text]


def test_a_repetition_penalty_makes_scores_above_zero_smaller() -> None:
    [state] = constraints_of(GenerationConfig(repetition_penalty=4.0), Task(1, SPECIALS, arrays.NUMPY))
    found = state.update(np.array([4])).update(np.array([5])).allow(np.array([[-1.0, -1.0, -1.0, -1.0, 2.0, -2.0]]))
    assert found.tolist() == [[-1, -1, -1, -1, 0.5, -8]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog,Hund\nDog,Köter\n", r"line 2: the term 'Dog' already has another translation: keep one"),
        ('dog,"Hund\ncat,Katze\n', r"cannot be read \(unexpected end of data\)"),
    ],
)
def test_lists_of_terms_with_mistakes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "terms.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_terms(str(tmp_path / "terms.csv"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ein CAFE\u0301.", ["café"]),
        ("in New \n york!", ["new york"]),
        ("new yorkers", []),
        ("我在北京用C++。", ["北京", "c++"]),
        ("東京へ行く", ["東京"]),
        ("C++11, STRASSE", ["strasse"]),
    ],
)
def test_terms_are_found_in_any_form_and_script(text: str, found: list[str], tmp_path: Path) -> None:
    terms = "café,a\nNew  York,b\n北京,c\nC++,d\n東京,e\nStraße,f\n"
    (tmp_path / "terms.csv").write_text(unicodedata.normalize("NFD", terms), encoding="utf-8")
    assert read_terms(str(tmp_path / "terms.csv")).found(text) == found
