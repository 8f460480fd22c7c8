"""What is compared with what: one form for outputs and references, scripts without spaces, names of metrics."""

import copy
import pickle
import random
import warnings
from dataclasses import replace
from functools import partial

import pytest
import sacrebleu
import tokenizers
import torch
from datasets import Dataset, DatasetDict
from lightning.pytorch.callbacks import EarlyStopping

from lit_seq2seq.callbacks import ExactMatchByLength
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.metrics import (
    BLEU,
    CER,
    PER,
    ROUGE1,
    WER,
    ChrF,
    CIDErD,
    Distinct1,
    EmissionLag,
    ExactMatch,
    Lag,
    ROUGELsum,
    Scores,
    SequenceErrorRate,
    TextMetric,
)
from lit_seq2seq.types import Batch, Padded, UserError
from tests.tiny import make_data, make_model, make_trainer

CHINESE = ["今天天气很好,我们去公园。", "他昨天买了三本新书。", "这只猫在桌子下面睡觉。", "火车八点半从北京出发。"]
JAPANESE = [
    "今日はとても天気がいいです。",
    "彼は昨日本を三冊買いました。",
    "猫が机の下で寝ています。",
    "列車は東京を出ます。",
]
THAI = ["วันนี้อากาศดีมาก", "เขาซื้อหนังสือสามเล่มเมื่อวาน", "แมวนอนอยู่ใต้โต๊ะ", "รถไฟออกตอนแปดโมง"]
KHMER = ["ថ្ងៃនេះអាកាសធាតុល្អណាស់", "គាត់បានទិញសៀវភៅបីក្បាល", "ឆ្មាដេកនៅក្រោមតុ", "រថភ្លើងចេញម៉ោងប្រាំបី"]
LAO = ["ມື້ນີ້ອາກາດດີຫຼາຍ", "ລາວຊື້ປຶ້ມສາມຫົວ", "ແມວນອນຢູ່ກ້ອງໂຕະ", "ລົດໄຟອອກແປດໂມງ"]
BURMESE = ["ဒီနေ့ရာသီဥတုကောင်းတယ်", "သူမနေ့ကစာအုပ်သုံးအုပ်ဝယ်တယ်", "ကြောင်ကစားပွဲအောက်မှာအိပ်တယ်", "ရထားကရှစ်နာရီထွက်တယ်"]
KOREAN = [
    "오늘 날씨가 아주 좋습니다.",
    "그는 어제 책을 세 권 샀습니다.",
    "고양이가 책상 밑에서 잡니다.",
    "기차는 여덟 시에 떠납니다.",
]
RUSSIAN = [
    "Сегодня очень хорошая погода.",
    "Вчера он купил три новые книги.",
    "Кошка спит под столом.",
    "Поезд уходит в восемь.",
]


def damaged(texts, seed=0):
    """Each text with one character changed, as a good model would write."""
    rng = random.Random(seed)
    places = [rng.randrange(len(text) // 2) for text in texts]
    return [text[:place] + text[place + 1] + text[place + 1 :] for text, place in zip(texts, places, strict=True)]


def batch_of(references, texts=()):
    ids = Padded(torch.ones(len(references), 1, dtype=torch.long), torch.ones(len(references), dtype=torch.long))
    return Batch(ids, ids, torch.arange(len(references)), tuple(map(tuple, references)), tuple(texts))


def scored(metrics, outputs, references, tokenizer=None, size=2):
    scores = Scores(metrics)
    form = {} if tokenizer is None else {"form": tokenizer.form}
    for start in range(0, len(outputs), size):
        rows = [[text] if isinstance(text, str) else text for text in references[start : start + size]]
        scores.update(torch.tensor(1.0), 1, outputs[start : start + size], batch_of(rows), **form)
    return {name: value.item() for name, value in scores.compute().items()}, scores


# -------------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize(
    ("texts", "tokenize"),
    [
        *((texts, "char") for texts in (JAPANESE, THAI, KHMER, LAO, BURMESE)),
        (CHINESE, "zh"),
        ([*CHINESE, "OK", "2020", "Python 3"], "zh"),
        (KOREAN, "13a"),
        (RUSSIAN, "13a"),
        (["The film 英雄 was a success.", "A good film, all in all.", "It was shown twice."], "13a"),
    ],
    ids=["ja", "th", "km", "lo", "my", "zh", "zh with Latin", "ko", "ru", "en with a word of zh"],
)
@pytest.mark.parametrize("size", [1, 3])
def test_bleu_splits_as_the_script_of_the_references_asks(texts, tokenize, size):
    outputs = damaged(texts) if len(texts) < 5 else [*damaged(texts[:4]), *texts[4:]]
    expected = sacrebleu.BLEU(tokenize=tokenize)
    bleu = BLEU()
    for start in range(0, len(texts), size):
        bleu.update(outputs[start : start + size], [[text] for text in texts[start : start + size]])
    assert bleu.compute().item() == pytest.approx(expected.corpus_score(outputs, [texts]).score, rel=1e-6)
    assert bleu.compute() > 5
    assert bleu.signature() == f"BLEU|{expected.get_signature()}"


def test_mecab_is_preferred_where_it_is_installed(monkeypatch):
    found = []
    real = sacrebleu.BLEU
    monkeypatch.setattr("lit_seq2seq.metrics.overlap._is_installed", lambda name: True)
    monkeypatch.setattr(
        "sacrebleu.BLEU",
        lambda *a, tokenize, **k: found.append(tokenize) or real(*a, tokenize="char", **k),
    )
    bleu = BLEU()
    assert found == ["13a", "zh", "ja-mecab", "ko-mecab", "char"]
    for texts, name in ((JAPANESE, "ja-mecab"), (KOREAN, "ko-mecab"), (THAI, "char"), (CHINESE, "zh")):
        bleu.reset()
        bleu.update(texts, [[text] for text in texts])
        assert bleu._choose(bleu.counts.tolist())[0] is bleu.scorers[found.index(name)]


class NoCopy:
    def __reduce__(self):
        raise TypeError("cannot pickle 'SwigPyObject' object")  # as MeCab's tagger does


def test_a_scorer_that_cannot_be_copied_is_made_anew():
    bleu = BLEU(lowercase=True)
    for scorer in bleu.scorers:
        scorer.tagger = NoCopy()
    bleu.update(damaged(RUSSIAN), [[text] for text in RUSSIAN])
    for other in (copy.deepcopy(bleu), pickle.loads(pickle.dumps(bleu))):
        assert other.compute() == bleu.compute()
        assert other.signature() == bleu.signature()


def test_a_tokenizer_that_is_asked_for_is_used():
    bleu = BLEU(tokenize="13a")
    bleu.update(damaged(CHINESE), [[text] for text in CHINESE])
    assert bleu.compute() == 0
    with pytest.raises(UserError, match=r"BLEU: tokenize: expected one of '13a', 'none', .*, got 'thai'"):
        BLEU(tokenize="thai")


@pytest.mark.parametrize("texts", [CHINESE, JAPANESE, THAI, KHMER])
@pytest.mark.parametrize("metric", [lambda: BLEU(tokenize="13a"), WER, CIDErD, Distinct1, ROUGE1])
def test_a_metric_that_splits_at_spaces_warns_of_texts_without(metric, texts):
    with pytest.warns(UserWarning, match="splits texts at spaces, which the references are written without") as caught:
        Scores([metric()]).try_on(texts, texts)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


@pytest.mark.parametrize("metric", [BLEU, ChrF, CER, ExactMatch])
def test_a_metric_that_fits_does_not_warn(metric):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for texts in (CHINESE, JAPANESE, THAI, KOREAN, RUSSIAN):
            Scores([metric()]).try_on(texts, texts)


@pytest.mark.parametrize(
    ("metric", "texts"),
    [
        (BLEU, ["house", "garden", "tree"]),
        (ROUGE1, RUSSIAN),
        (ROUGE1, KOREAN),
        (lambda: BLEU(tokenize="none"), ["a b", "c d", "e f"]),
    ],
    ids=["bleu of words", "rouge of Cyrillic", "rouge of Hangul", "bleu of two words"],
)
def test_a_metric_that_cannot_move_warns(metric, texts):
    with pytest.warns(UserWarning, match="would be 0.0 even if all outputs were right") as caught:
        Scores([metric()]).try_on(texts, texts)
    assert len(caught) == 1


def test_a_metric_that_sees_little_of_the_texts_warns():
    texts = ["В 1995 году он родился", "Он ушёл домой", "Мы пошли гулять в парк"]
    with pytest.warns(UserWarning, match="rouge1 would be 33.3 even if all outputs were right"):
        Scores([ROUGE1()]).try_on(texts, texts)


@pytest.mark.parametrize("score", [0.0, 100.0])
def test_a_metric_that_does_not_say_which_way_is_better_is_not_judged(score):
    class Own(ExactMatch):
        name = "own"
        higher_is_better = None  # torchmetrics' default, which a class of the user's own has

        def _score(self, counts):
            return score

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scores([Own()]).try_on(["a", "b"], ["a", "b"])
    assert set(Scores([Own()]).modes) == {"loss", "ppl", "bpc", *Lag.names, *EmissionLag.names}


# -------------------------------------------------------------------------------------------------- one form


DECOMPOSED = "caf" + "e" + chr(0x301)


@pytest.mark.parametrize(
    "written",
    [
        DECOMPOSED + " noir",
        "café noir ",
        "café  noir",
        "café\u00a0noir",
        " café\tnoir\r",
        "café\u2028noir",
        "\u2003café noir\u3000",
    ],
)
@pytest.mark.parametrize("tokenizer", [Tokenizer("word"), Tokenizer("char"), Tokenizer("bpe", 60), Tokenizer("byte")])
def test_what_looks_alike_is_alike(tokenizer, written):
    tokenizer.train([written, "autre"])
    (ids,) = tokenizer.encode_batch([written])
    metrics = [ExactMatch(), SequenceErrorRate(), CER(), WER(), BLEU(tokenize="none")]
    found, scores = scored(metrics, [tokenizer.decode(ids), "a b c d e"], [written, "a b c d e"], tokenizer)
    assert [found[name] for name in ("exact_match", "sequence_error_rate", "cer", "wer", "bleu")] == [100, 0, 0, 0, 100]
    assert found["exact_match_raw"] == (100 if tokenizer.decode(ids) == written else 50)
    assert scores.signatures["exact_match"] == "ExactMatch|case:mixed|text:one-form"
    assert scores.signatures["exact_match_raw"] == "ExactMatch|case:mixed"


@pytest.mark.parametrize(
    ("tokenizer", "written"),
    [
        (Tokenizer("word", normalization="nfkc"), "ﬁve ２"),
        (Tokenizer("word", normalization="nfd"), "café"),
        (Tokenizer("word", normalization="nfkd"), "한ﬁ"),
        (Tokenizer("word", pretokenized=True), "a dog ￭."),
        (Tokenizer("word", pretokenized=True), "( ￭a￭ dog ￭ ￭."),
        (Tokenizer("word", pretokenized=True), "ʃ  j ɛ̃ "),
        (Tokenizer("bpe", 60, pretokenized=True), " a dog  barks"),
        (Tokenizer("char"), "two  spaces "),
        (Tokenizer("bpe", 60), "under▁score"),
        (Tokenizer("word"), "a ￭ b"),
    ],
)
def test_every_target_can_be_reached(tokenizer, written):
    """What decoding gives back of a target is that target, whatever the tokenizer makes of it on the way."""
    tokenizer.train([written])
    output = tokenizer.decode(tokenizer.encode_batch([written])[0])
    assert tokenizer.form(output) == tokenizer.form(written)
    restored = Tokenizer.from_dict(tokenizer.to_dict())
    assert restored.form(written) == tokenizer.form(written)


def test_case_is_left_to_the_metric():
    tokenizer = Tokenizer("word", lowercase=True)
    tokenizer.train(["A Dog"])
    assert tokenizer.form("A  Dog.") == "A Dog."
    found, _ = scored([ExactMatch(), ExactMatch(lowercase=True)], ["a dog"], ["A  Dog"], tokenizer)
    assert (found["exact_match_mixed"], found["exact_match_lc"]) == (0, 100)


def test_a_tokenizer_from_a_file_is_reached_too(tmp_path):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "don": 4, "'": 5, "t": 6}, unk_token="[UNK]"
        )
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(file=str(tmp_path / "tokenizer.json"))
    output = tokenizer.decode(tokenizer.encode_batch(["don't"])[0])
    found, _ = scored([ExactMatch()], [output, "x [UNK]"], ["don't", "x y"], tokenizer)
    assert found == {**found, "exact_match": 50, "exact_match_raw": 0}
    assert tokenizer.form("x [UNK]") == "x ⁇"


def test_texts_in_one_form_already_have_one_score():
    found, scores = scored([ExactMatch(), BLEU()], ["a b c d e", "x"], ["a b c d e", "y"])
    assert set(found) == {"loss", "ppl", "exact_match", "bleu"}
    assert "one-form" not in "".join(scores.signatures.values())


@pytest.mark.parametrize("place", [0, 5, 9])
def test_the_raw_score_is_that_of_all_texts(place):
    """From whichever batch on texts differ in form; also of metrics that keep the texts."""
    references = [f"a man number {n} walks on" for n in range(10)]
    outputs = [text if n % 3 else text[:-3] for n, text in enumerate(references)]
    references[place] = references[place].replace(" ", "  ")
    metrics = [ExactMatch(), CIDErD(), Distinct1(), CER()]
    found, scores = scored(metrics, outputs, references)
    for metric in (ExactMatch(), CIDErD(), Distinct1(), CER()):
        metric.update(outputs, [[text] for text in references])
        assert found[f"{metric.name}_raw"] == pytest.approx(metric.compute().item())
    scores.reset()
    scores.update(torch.tensor(1.0), 1, ["a"], batch_of([["a"]]))
    assert "cer_raw" not in scores.compute()


def test_rouge_lsum_keeps_its_lines():
    rows = [["dogs bark \nat  night"], ["birds sing\nall day"]]
    found, _ = scored([ROUGELsum()], ["at night\ndogs bark", "birds sing all day"], rows)
    expected = ROUGELsum()
    expected.update(["at night\ndogs bark", "birds sing all day"], [["dogs bark\nat night"], ["birds sing\nall day"]])
    assert found["rougeLsum"] == pytest.approx(expected.compute().item())


# -------------------------------------------------------------------------------------------------- unknown symbols


@pytest.mark.parametrize(
    "tokenizer",
    [Tokenizer("word"), Tokenizer("word", normalization="nfkc"), Tokenizer("bpe", 40), Tokenizer("char")],
)
def test_an_unknown_symbol_counts_as_one(tokenizer):
    tokenizer.train(["the old man sat on a chair in the sun"])
    references = ["the old man sat on a 凳 in the sun", "the old man sat on a chair in the sun"]
    outputs = [tokenizer.decode(ids) for ids in tokenizer.encode_batch(references)]
    assert "<unk>" in outputs[0]
    found, scores = scored([BLEU(), WER(), CER()], outputs, references, tokenizer)
    assert scores.unknown_share == 0.5
    expected = sacrebleu.corpus_bleu([outputs[0].replace("<unk>", "X"), outputs[1]], [references]).score
    assert found["bleu"] == pytest.approx(expected)
    assert found["bleu_raw"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [references]).score)
    assert found["bleu"] > found["bleu_raw"]
    assert found["wer"] == pytest.approx(5)
    assert found["cer"] == pytest.approx(100 / sum(map(len, references)))


# -------------------------------------------------------------------------------------------------- names


class Length(TextMetric):
    name = "length"
    higher_is_better = True

    def __init__(self, unit="chars"):
        super().__init__(1)
        self.unit = unit

    def signature(self):
        return f"Length of {self.unit}"

    def _count(self, hypothesis, references):
        return [len(hypothesis) if self.unit == "chars" else len(hypothesis.split())]

    def _score(self, counts):
        return counts[0]


class Nameless(Length):
    name = None


class Loss(Length):
    name = "loss"


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ([BLEU(tokenize="zh"), BLEU()], ["bleu_zh", "bleu_auto"]),
        ([BLEU(tokenize="zh"), BLEU(tokenize="13a")], ["bleu_zh", "bleu_13a"]),
        ([BLEU(lowercase=True), ChrF(), BLEU(lowercase=False)], ["bleu_lc", "chrf", "bleu_mixed"]),
        ([ChrF(), ChrF(word_order=2)], ["chrf_nw0", "chrf_nw2"]),
        ([ExactMatch(), ExactMatch(lowercase=True)], ["exact_match_mixed", "exact_match_lc"]),
        ([WER(lowercase=True), WER(), CER()], ["wer_lc", "wer_mixed", "cer"]),
        ([ROUGE1(stem=False), ROUGE1()], ["rouge1_no", "rouge1_yes"]),
        ([Length(), Length("words")], ["length_Lengthofchars", "length_Lengthofwords"]),
    ],
)
def test_metrics_of_one_name_are_told_apart(metrics, names):
    found, scores = scored(metrics, ["A b c d e", "x"], ["a b c d e", "y"])
    assert scores.names == names
    assert set(found) == {"loss", "ppl", *names}
    for name, metric in zip(names, metrics, strict=True):
        assert found[name] == pytest.approx(metric.compute().item())


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([BLEU(), BLEU()], "several scores would be called bleu.*: leave out a metric, or give its class another name"),
        ([PER(), PER()], "several scores would be called per"),
        ([Loss()], "several scores would be called loss"),
        ([Nameless()], "Nameless has no name: give its class one"),
        ([torch.nn.Identity()], "metrics: expected TextMetric, got Identity"),
    ],
)
def test_metrics_that_cannot_be_told_apart_are_refused(metrics, message):
    with pytest.raises(UserError, match=message):
        Scores(metrics)


# -------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", ["", "my/score", "f{1}"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(UserError, match="is no name for Own: it becomes part of the names of files"):
        Scores([type("Own", (ExactMatch,), {"name": name})()])


def test_a_run_compares_in_one_form_and_logs_both(tmp_path):
    """Targets with double spaces and an unknown word: a model that knows the pairs by heart is right, and told so."""
    rows = {"source": ["eins zwei", "drei", "vier fünf", "zwei"], "target": ["one two", "three", "four <unk>", "two"]}
    doubled = {**rows, "target": [f"{text.replace(' ', '  ')} " for text in rows["target"]]}
    splits = DatasetDict({name: Dataset.from_dict(doubled if name == "test" else rows) for name in ("train", "test")})
    model, lengths = make_model(optimizer=partial(torch.optim.Adam, lr=0.05)), ExactMatchByLength()
    tokenizer = Tokenizer("word", pretokenized=True)
    data, trainer = make_data(splits, target_tokenizer=tokenizer, validation_size=0), make_trainer(tmp_path, lengths)
    trainer.fit_loop.max_epochs = 20
    trainer.fit(model, datamodule=data)
    with pytest.warns(UserWarning, match="25 % of the outputs hold unknown symbols, each of which scores as one wrong"):
        found = trainer.test(model, datamodule=data, verbose=False)[0]
    assert found["test_exact_match"] == 100
    assert found["test_exact_match_raw"] == 0
    assert model.model.signatures["bleu"].endswith("|text:one-form")
    assert [percentage for *_, percentage in lengths.rows] == [100, 100]


def test_a_raw_score_is_never_that_of_an_earlier_epoch(tmp_path, monkeypatch):
    """Only the outputs of the first epoch have double spaces, and what the trainer knows goes into the card."""
    rows = Dataset.from_dict({"source": ["eins zwei"] * 4, "target": ["one two"] * 4})
    model, trainer = make_model(), make_trainer(tmp_path, max_epochs=2)
    write = model.model.write

    def spaced(*args, **options):
        text = "one  two" if trainer.current_epoch == 0 else "one two"
        return [[replace(best, text=text)] for best, *_ in write(*args, **options)]

    monkeypatch.setattr(model.model, "write", spaced)
    trainer.fit(model, datamodule=make_data(DatasetDict(train=rows, validation=rows), test_size=0))
    assert trainer.callback_metrics["val_exact_match"] == trainer.callback_metrics["val_exact_match_raw"] == 100


def test_scores_that_come_with_the_sanity_check_leave_no_module_in_evaluation_mode(tmp_path):
    rows = Dataset.from_dict({"source": ["eins zwei"] * 4, "target": ["one  two"] * 4})
    trainer = make_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*in eval mode.*")
        trainer.fit(make_model(), datamodule=make_data(DatasetDict(train=rows, validation=rows), test_size=0))
    assert "val_exact_match_raw" in trainer.callback_metrics


def test_a_monitor_that_does_not_move_is_told_once(tmp_path):
    texts = [" ".join(text) for text in ("ab", "cd", "ef", "gh")]
    rows = Dataset.from_dict({"source": texts, "target": texts})
    model = make_model(metrics=[BLEU, ExactMatch])
    stop = EarlyStopping("val_bleu", mode="max", patience=20)
    trainer = make_trainer(tmp_path, stop, max_epochs=5, num_sanity_val_steps=2)
    with warnings.catch_warnings(record=True) as caught:
        trainer.fit(model, datamodule=make_data(DatasetDict(train=rows, validation=rows), test_size=0))
    lines = [str(one.message) for one in caught]
    assert sum("bleu would be 0.0 even if all outputs were right" in line for line in lines) == 1
    assert sum("val_bleu was as bad as it can be in 3 validations in a row" in line for line in lines) == 1
