import copy
import importlib.util
import itertools
import math
import pickle
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sacrebleu
import torch
import torchmetrics.functional.text as reference_scores
from torch import distributed, multiprocessing

from lit_seq2seq.metrics import (
    BLEU,
    BLEU1,
    BLEU2,
    BLEU3,
    CER,
    PER,
    WER,
    ChrF,
    CIDErD,
    Distinct1,
    Distinct2,
    ExactMatch,
    Scores,
    SequenceErrorRate,
    TextMetric,
    TokenAverage,
    edit_distance,
)
from lit_seq2seq.types import Batch, Padded, UserError

WORDS = ["a", "A", "man", "Man", "sleeps", ".", "the", "über-cool,", "dog's", "don't", "12.5", "天気", "(yes)", "!"]
METRICS: list[Callable[[], TextMetric]] = [
    *(BLEU, BLEU1, BLEU2, BLEU3, ChrF, CIDErD, ExactMatch, SequenceErrorRate, WER, PER, CER, Distinct1, Distinct2)
]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, 5, 9, 14])))


def corpus(seed: int, size: int = 60, most_references: int = 4) -> tuple[list[str], list[list[str]]]:
    """Outputs near their first reference, with empty strings and a varying number of references."""
    rng = random.Random(seed)
    hypotheses, references = [], []
    for _ in range(size):
        rows = [sentence(rng) for _ in range(rng.randint(1, most_references))]
        hypotheses.append(rng.choice([rows[0], rows[0][:-3], rows[0] + " the", sentence(rng), ""]))
        references.append(rows)
    return hypotheses, references


def in_columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacreBLEU's shape: one list per reference number, None where a segment has fewer."""
    return [list(column) for column in itertools.zip_longest(*references)]


def score(metric: TextMetric, hypotheses: Sequence[str], references: Sequence[Sequence[str]], batch: int) -> float:
    for start in range(0, len(hypotheses), batch):
        metric.update(hypotheses[start : start + batch], references[start : start + batch])
    return metric.compute().item()


@pytest.mark.parametrize("batch", [1, 7, 60])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        (BLEU, sacrebleu.BLEU),
        (lambda: BLEU(lowercase=True), lambda: sacrebleu.BLEU(lowercase=True)),
        (lambda: BLEU(tokenize="intl"), lambda: sacrebleu.BLEU(tokenize="intl")),
        (lambda: BLEU(tokenize="char", smooth_method="floor"), lambda: sacrebleu.BLEU(False, False, "char", "floor")),
        (lambda: BLEU(tokenize="none", smooth_method="none"), lambda: sacrebleu.BLEU(False, True, "none", "none")),
        (ChrF, sacrebleu.CHRF),
        (lambda: ChrF(word_order=2, lowercase=True), lambda: sacrebleu.CHRF(word_order=2, lowercase=True)),
    ],
)
def test_equals_sacrebleu(metric, theirs, seed, batch):
    hypotheses, references = corpus(seed)
    expected = theirs()
    result = expected.corpus_score(hypotheses, in_columns(references))
    ours = metric()
    assert score(ours, hypotheses, references, batch) == pytest.approx(result.score, rel=1e-6)
    assert result.score > 5
    assert ours.signature() == f"{result.name}|{expected.get_signature()}"


@pytest.mark.parametrize(("metric", "order"), [(BLEU1, 1), (BLEU2, 2), (BLEU3, 3)])
def test_lower_orders_equal_sacrebleu_and_torchmetrics(metric, order):
    hypotheses, references = corpus(2)
    ours = metric(tokenize="none", smooth_method="none")
    expected = sacrebleu.BLEU(force=True, tokenize="none", smooth_method="none", max_ngram_order=order)
    result = expected.corpus_score(hypotheses, in_columns(references)).score
    assert score(ours, hypotheses, references, 7) == pytest.approx(result, rel=1e-6)
    theirs = reference_scores.bleu_score(hypotheses, references, n_gram=order).item()
    assert result == pytest.approx(100 * theirs, rel=1e-5)
    assert ours.signature().startswith(f"order:{order}|BLEU|nrefs:var|case:mixed|eff:no|tok:none|smooth:none|")


@pytest.mark.parametrize(("seed", "expected"), [(0, 167.13805318743242), (1, 237.0738392036266)])
@pytest.mark.parametrize("batch", [1, 7, 60])
def test_cider_equals_the_toolkit_of_coco(seed, expected, batch):
    """The figures are those of `CiderScorer` in pycocoevalcap 1.2 for the same corpus, times 100."""
    hypotheses, references = corpus(seed)
    cider = CIDErD(lowercase=False, tokenize="none")
    assert score(cider, hypotheses, references, batch) == pytest.approx(expected, rel=1e-6)
    assert cider.signature() == "CIDEr-D|case:mixed|tok:none|df:references|n:4|sigma:6"


def test_cider_by_hand():
    """Two words of one segment each, no pair of them: only n = 1 counts, with the weight log 2 for each word."""
    cider = CIDErD()
    cider.update(["Cat.", "dog dog"], [["cat", "the bird"], ["dog"]])
    first = (1 + 0) / 2  # of the two references the first agrees, the other has another length: one pair, no match
    second = 1 * math.exp(-1 / 72) / 2  # min(2, 1) * 1 / (2 * 1), and one pair more than the reference
    assert cider.compute().item() == pytest.approx(1000 * (first + second) / 4 / 2, rel=1e-6)


def test_sentence_scores_equal_sacrebleu():
    """With its smoothing, and without the orders that a sentence is too short for."""
    outputs = ["the cat sat on the mat", "a dog", "the", "nothing in common", ""]
    references = [["the cat is on the mat", "a cat sat"], ["a dog"], ["a"], ["the dog"], ["the dog"]]
    for metric, theirs in ((BLEU(), sacrebleu.sentence_bleu), (ChrF(), sacrebleu.sentence_chrf)):
        expected = [theirs(output, row).score for output, row in zip(outputs, references, strict=True)]
        assert metric.each(outputs, references) == pytest.approx(expected)
        assert not metric.counts.any()


def test_sentence_scores_of_cider_go_by_the_frequencies_of_a_corpus():
    corpus, cider = [["a dog runs", "the dog runs"], ["two men sit"], ["a cat sits here"]], CIDErD()
    outputs = ["a dog runs here", "two men", "a cat sits"]
    cider.update(outputs, corpus)
    together = cider.each(outputs, corpus)
    assert math.fsum(together) / 3 == pytest.approx(cider.compute().item(), rel=1e-6)
    cider.learn(corpus)
    assert [cider.each([output], [row])[0] for output, row in zip(outputs, corpus, strict=True)] == together


def test_signature_counts_references():
    bleu = BLEU()
    assert "nrefs:?" in bleu.signature()
    bleu.update(["a"], [["a", "b"]])
    assert "nrefs:2|" in bleu.signature()
    bleu.update(["a"], [["a"]])
    assert "nrefs:var|" in bleu.signature()


@pytest.mark.parametrize("metric", METRICS)
def test_empty_corpus_and_empty_outputs(metric):
    empty = metric()
    empty.update([], [])
    assert empty.compute() == 0
    silent = metric()
    silent.update(["", ""], [["a b c d"], ["e f g h"]])
    assert silent.compute() == (0 if silent.higher_is_better else 100)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric not in (CIDErD, Distinct1, Distinct2)])
def test_perfect_output_scores_best(metric):
    perfect = metric()
    perfect.update(["a man sleeps on the sofa"] * 2, [["a man sleeps on the sofa"], ["x", "a man sleeps on the sofa"]])
    assert perfect.compute().item() == pytest.approx(100 if perfect.higher_is_better else 0)


@pytest.mark.parametrize("metric", METRICS)
def test_reset_copy_and_pickle(metric):
    hypotheses, references = corpus(3)
    original = metric()
    expected = score(original, hypotheses, references, 10)
    assert copy.deepcopy(original).compute() == expected
    assert pickle.loads(pickle.dumps(original)).compute() == expected
    original.reset()
    assert score(original, hypotheses, references, 60) == expected


@pytest.mark.parametrize(("metric", "order"), [(Distinct1, 1), (Distinct2, 2)])
@pytest.mark.parametrize("batch", [1, 7, 60])
def test_distinct_n_grams_are_those_of_the_whole_corpus(metric, order, batch):
    hypotheses, references = corpus(5)
    rows = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in hypotheses]
    grams = [tuple(row[start : start + order]) for row in rows for start in range(len(row) - order + 1)]
    expected = 100 * len(set(grams)) / len(grams)
    assert score(metric(), hypotheses, references, batch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(WER, "word_error_rate"), (PER, "word_error_rate"), (CER, "char_error_rate")]
)
def test_error_rates_equal_torchmetrics(ours, theirs):
    hypotheses, references = corpus(5, most_references=1)
    expected = getattr(reference_scores, theirs)(hypotheses, [row[0] for row in references])
    assert score(ours(), hypotheses, references, 7) == pytest.approx(100 * expected.item(), rel=1e-5)


def test_edit_distance_equals_torchmetrics():
    hypotheses, references = corpus(6, most_references=1)
    texts = [row[0] for row in references]
    expected = reference_scores.edit_distance(hypotheses, texts, reduction="none").tolist()
    assert [edit_distance(left, right) for left, right in zip(hypotheses, texts, strict=True)] == expected


def test_error_rate_takes_the_best_reference():
    wer = WER(lowercase=True)
    wer.update(["The cat"], [["a dog barks", "the cat"]])
    assert wer.compute() == 0
    assert wer.signature() == "WER|case:lc"


@pytest.mark.parametrize(("lowercase", "expected"), [(False, 50.0), (True, 100.0)])
def test_exact_match_case(lowercase, expected):
    match = ExactMatch(lowercase=lowercase)
    match.update(["Ein Haus", "zwei"], [["ein haus"], ["drei", "zwei"]])
    assert match.compute() == expected


def test_sequence_error_rate_is_what_exact_match_leaves():
    hypotheses, references = corpus(9)
    wrong, right = (score(make(), hypotheses, references, 7) for make in (SequenceErrorRate, ExactMatch))
    assert 0 < wrong < 100
    assert wrong == pytest.approx(100 - right, rel=1e-6)
    assert SequenceErrorRate(lowercase=True).signature() == "SequenceErrorRate|case:lc"


def test_phone_error_rate_by_hand():
    per = PER()
    per.update(["ʃ a", "ɑ̃ d", ""], [["ʃ a t"], ["ɑ̃ d"], ["o"]])  # one deletion of 3, none of 2, one deletion of 1
    assert per.compute().item() == pytest.approx(100 * 2 / 6)


def test_names_are_unique_keys():
    assert [metric().name for metric in METRICS] == [
        *("bleu", "bleu1", "bleu2", "bleu3", "chrf", "cider"),
        "exact_match",
        "sequence_error_rate",
        "wer",
        "per",
        "cer",
        *("distinct1", "distinct2"),
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_refuses_unequal_lengths(metric):
    with pytest.raises(UserError, match="references for each of 2 hypotheses, but got 1"):
        metric().update(["a", "b"], [["a"]])


@pytest.mark.parametrize("row", [[], "a bare string"])
def test_refuses_rows_without_a_list_of_references(row):
    with pytest.raises(UserError, match=r"item 1 is .*: wrap a single reference in a list"):
        BLEU().update(["a", "b"], [["a"], row])


def test_missing_tokenizer_package():
    if importlib.util.find_spec("MeCab"):
        pytest.skip("the package is installed")
    with pytest.raises(UserError, match=r'pip install "sacrebleu\[ja\]" or choose tokenize: char'):
        BLEU(tokenize="ja-mecab")


@pytest.mark.parametrize("batch", [1, 13, 4000])
def test_token_average_is_exact_whatever_the_batching(batch):
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(4000, generator=generator) * 1000
    tokens = torch.randint(1, 50, (4000,), generator=generator)
    average = TokenAverage()
    for start in range(0, 4000, batch):
        average.update(nll[start : start + batch].double().sum(), tokens[start : start + batch].sum())
    expected = nll.double().sum() / tokens.sum()
    assert average.compute().item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_token_average_keeps_small_terms_and_shows_nan():
    average = TokenAverage()
    average.update(torch.tensor(2.0**25), 1)
    for _ in range(100):
        average.update(torch.tensor(1.0), 1)
    assert average.compute().item() == pytest.approx((2**25 + 100) / 101, rel=1e-7)
    average.update(torch.tensor(float("nan")), 1)
    assert average.compute().isnan()
    assert TokenAverage().compute() == 0


def _work(rank: int, folder: str) -> None:
    """One of two processes that score every second segment."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    hypotheses, references = corpus(8)
    average = TokenAverage()
    average.update(torch.tensor(3.0 + rank), 1 + rank)
    results = {"average": average.compute().item()}
    for metric in METRICS:
        part = metric()
        results[part.name] = score(part, hypotheses[rank::2], references[rank::2], 10)
    texts = ["a  b", "c", "d"] if rank else ["a b", "c", "e"]  # only one process has a text that is in another form
    ids = Padded(torch.ones(3, 1, dtype=torch.long), torch.ones(3, dtype=torch.long))
    scores = Scores([ExactMatch(), CIDErD()])
    batch = Batch(ids, ids, torch.arange(3), tuple((text,) for text in texts))
    scores.update(torch.tensor(1.0), 1, ["a b", "c", "d"], batch)
    results |= {f"together {name}": value.item() for name, value in scores.compute().items()}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path):
    multiprocessing.start_processes(_work, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    hypotheses, references = corpus(8)
    expected = {metric.name: score(metric, hypotheses, references, 10) for metric in (make() for make in METRICS)}
    expected["average"] = pytest.approx(7 / 3)
    outputs, references = ["a b", "c", "d"] * 2, [["a b"], ["c"], ["e"], ["a  b"], ["c"], ["d"]]
    cider = CIDErD()
    cider.update(outputs, references)
    both = {"loss": 1.0, "ppl": pytest.approx(math.e), "exact_match": 500 / 6, "exact_match_raw": 400 / 6}
    both |= {"cider": cider.compute().item(), "cider_raw": cider.compute().item()}
    expected |= {f"together {name}": pytest.approx(value) for name, value in both.items()}
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == expected
