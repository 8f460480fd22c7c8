"""Wrong arguments of what users call are `UserError`s that name them, and plain names stand for classes."""

import importlib
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe, pipeline
from lit_seq2seq.callbacks import PredictionWriter
from lit_seq2seq.features import LogMel, MultiSource, Tokenizer
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import BLEU
from lit_seq2seq.nn import (
    AdditiveAttention,
    CoverageLoss,
    DotAttention,
    EncoderShape,
    InputFeedingDecoder,
    ParallelDecoder,
    TextEncoder,
)
from lit_seq2seq.reranking import MinimumBayesRisk, SlotCoverage
from lit_seq2seq.schedules import OneCycle
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.settings.spec import build
from lit_seq2seq.types import UserError
from tests.tiny import make_data, make_model, rows

PACKAGES = ("nn", "features", "metrics", "callbacks", "search", "training.objectives")
JUNK = [
    "no such thing",
    -3,
    2.5,
    math.nan,
    math.inf,
    True,
    None,
    b"bytes",
    [object()],
    {"no": "such"},
    object(),
    int,
    lambda: None,
]


def public_classes() -> dict[str, type]:
    found = {"LitSeq2Seq": LitSeq2Seq}
    for package in PACKAGES:
        module = importlib.import_module(f"lit_seq2seq.{package}")
        found |= {name: getattr(module, name) for name in module.__all__ if isinstance(getattr(module, name), type)}
    return found


@pytest.mark.parametrize("name", public_classes())
def test_no_argument_of_a_constructor_raises_a_raw_error(name: str) -> None:
    cls = public_classes()[name]
    if inspect.isabstract(cls) or "__init__" not in vars(cls) or issubclass(cls, tuple):
        return
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = {one.name for one in named if one.default is one.empty}
    calls: list[dict[str, Any]] = [{"no_such_argument": 1}, {}]
    calls += [{**dict.fromkeys(needed, junk), one.name: junk} for one in named for junk in JUNK]
    for arguments in calls:
        try:
            cls(**arguments)
        except (UserError, ValueError, RuntimeError, MisconfigurationException):
            continue


NAMES: list[tuple[Callable[[], Any], Any]] = [
    (lambda: LitSeq2Seq(optimizer="adam").make_optimizer, torch.optim.Adam),
    (lambda: LitSeq2Seq(optimizer="torch.optim.RMSprop").make_optimizer, torch.optim.RMSprop),
    (lambda: LitSeq2Seq(lr_scheduler="onecycle").make_scheduler, OneCycle),
    (lambda: LitSeq2Seq(lr_scheduler="one_cycle").make_scheduler, OneCycle),
    (lambda: LitSeq2Seq(encoder="text").model.make_network.keywords["encoder"], TextEncoder),
    (lambda: LitSeq2Seq(decoder="InputFeeding").model.make_network.keywords["decoder"], InputFeedingDecoder),
    (lambda: [type(one) for one in LitSeq2Seq(metrics=["bleu"]).scores.metrics], [BLEU]),
    (lambda: type(ParallelDecoder(9, TextEncoder(9).shape, attention="dot").attention), DotAttention),
    (lambda: TextEncoder(9, cell="GRU").shape.others, ()),
    (lambda: Tokenizer("Word").config["model"], "word"),
    (lambda: Seq2SeqDataModule(rows(), source_tokenizer="char").source.config["model"], "char"),
    (lambda: type(Seq2SeqDataModule(rows(), source_feature="LogMel").source), LogMel),
]


@pytest.mark.parametrize(("make", "expected"), NAMES, ids=[str(number) for number in range(len(NAMES))])
def test_plain_names_stand_for_what_they_name(make: Callable[[], Any], expected: object) -> None:
    assert make() == expected


def test_names_inside_a_partial_are_classes_in_the_description() -> None:
    model = LitSeq2Seq(decoder=partial(ParallelDecoder, attention="additive", bridge="mean"), optimizer="adamw")
    assert build(model.hparams["decoder"]).keywords["attention"].func is AdditiveAttention
    assert dict(LitSeq2Seq(**build(dict(model.hparams))).hparams) == dict(model.hparams)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: LitSeq2Seq(optimizer="adamx"), "there is no Optimizer called 'adamx': choose among .* did you mean"),
    (lambda: LitSeq2Seq(metrics="bleu"), "metrics: expected a list, each item a class or"),
    (lambda: LitSeq2Seq(metrics=[BLEU()]), "metrics: expected a class or functools.partial that makes TextMetric"),
    (
        lambda: LitSeq2Seq(encoder=partial(TextEncoder, hiden_size=3)),
        "no argument hiden_size - did you mean hidden_s",
    ),
    (lambda: LitSeq2Seq(encoder=BLEU), "encoder: expected a class or functools.partial that makes Encoder"),
    (lambda: LitSeq2Seq(labl_smoothing=0.1), "labl_smoothing.* did you mean label_smoothing"),
    (lambda: LitSeq2Seq(generation={"beams": 2}), "no argument beams - did you mean num_beams"),
    (lambda: SlotCoverage(math.nan), "SlotCoverage: weight: expected a number, got nan"),
    (lambda: MinimumBayesRisk(BLEU, sharpness=math.nan), "MinimumBayesRisk: sharpness: expected a number, got nan"),
    (lambda: CoverageLoss(math.nan), "CoverageLoss: weight: expected a number, got nan"),
    (lambda: GenerationConfig(beams=2), "beams.*did you mean num_beams"),
    (
        lambda: Seq2SeqDataModule(rows(), source_tokenizer="wrd"),
        "source_tokenizer: expected Tokenizer or one of 'word'",
    ),
    (lambda: Seq2SeqDataModule(rows(), batch_size="8"), "Batches: size: expected an integer or None, got '8'"),
    (lambda: Seq2SeqDataModule(), "missing a required argument: 'dataset'"),
    (lambda: MultiSource({"a": "word"}), "there is no Feature called 'word'"),
    (lambda: ParallelDecoder(9, 3), "encoder: expected EncoderShape, got 3"),
    (lambda: load_recipe(3), "path: expected a text or Path, got 3"),
    (lambda: load_recipe("x.yaml", "--trainer.max_epochs 3"), "overrides: expected a list, each item a text or None"),
    (lambda: pipeline("translation"), "missing a required argument: 'model'"),
    (lambda: pipeline("translation", 3), "model: expected a text"),
    (lambda: LitSeq2Seq.from_pretrained(None), "name: expected a text"),
    (lambda: make_model().attach(3), "processor: expected Processor, got 3"),
    (lambda: make_model().generate(["a"], num_beams=3), r"did you mean config=GenerationConfig\(num_beams=...\)\?"),
    (lambda: make_model()(["a"]), "missing a required argument: 'target'"),
    (lambda: make_model().encode("abc"), "source: expected Padded or Sources or Shared or a list, got 'abc'"),
    (
        lambda: LitSeq2Seq.from_pretrained(".", trust=True),
        "trust: expected a text or a list, .* got True",
    ),
    (
        lambda: LitSeq2Seq.from_pretrained(".", revison="v1"),
        r"no argument 'revison' - did you mean revision\?",
    ),
    (lambda: pipeline("translation", ".", trusted=["a"]), "pipeline: there is no argument 'trusted' - did you mean tr"),
    (lambda: pipeline("translation", ".", revision=3), "pipeline: revision: expected a text or None, got 3"),
    (lambda: Predictor(make_model(), max_tokens=0), "max_tokens=0: must be at least 1"),
    (lambda: Predictor(make_model(), max_source_length=-3), "max_source_length=-3: must be at least 1"),
    (lambda: Seq2SeqDataModule(rows(), num_workers=-1), "expected batches.num_workers to be at least 0, but it is -1"),
]


@pytest.mark.parametrize(("call", "match"), MISTAKES, ids=[str(number) for number in range(len(MISTAKES))])
def test_a_wrong_argument_is_named(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        call()


@pytest.fixture(scope="module")
def model() -> LitSeq2Seq:
    data, model = make_data(source_tokenizer="word"), make_model()
    data.setup("fit")
    model.attach(data.processor)
    return model.eval()


def test_raw_inputs_are_encoded_as_the_processor_does(model: LitSeq2Seq) -> None:
    raw = ["eins zwei", "drei"]
    encoded, expected = model.encode(raw), model.encode(model.processor.source(raw))
    assert torch.equal(encoded.memory.values, expected.memory.values)
    texts = [found[0].text for found in model.generate(raw)]
    assert texts == [found[0].text for found in model.model.write(model.processor.source(raw), raw)]


@pytest.mark.parametrize("wrong", ["eins", 3, None, [], [3], ["eins", None], torch.zeros(2, 2), {"a": "b"}])
def test_what_cannot_be_encoded_is_named(model: LitSeq2Seq, wrong: Any) -> None:
    for call in (model.encode, model.generate):
        with pytest.raises(UserError, match=r"expected|has no argument"):
            call(wrong)


@pytest.mark.parametrize("wrong", [{"config": 3}, {"config": {"beams": 3}}, {"prefix": [1]}, {"no_such": 1}])
def test_options_of_decoding_are_checked(model: LitSeq2Seq, wrong: dict[str, Any]) -> None:
    encoded = model.encode(["eins"])
    with pytest.raises(UserError):
        model.decode(encoded, **wrong)
    with pytest.raises(UserError):
        model.decode("eins")


@checked
def everything(
    number: float = 0,
    counts: list[int] | None = None,
    sizes: tuple[int, int] = (1, 1),
    table: dict[str, float] | None = None,
    mode: Literal["fast", "slow"] = "fast",
    shape: EncoderShape | None = None,
) -> tuple[Any, ...]:
    return number, counts, sizes, table, mode, shape


def test_values_that_fit_come_through_as_they_are() -> None:
    counts, table = [1, 2], {"a": 1}
    given = everything(1, counts, (3, 4), table, "SLOW")
    assert given == (1, counts, (3, 4), table, "slow", None)
    assert given[1] is counts
    assert given[3] is table


@pytest.mark.parametrize(
    "wrong",
    [
        *({"number": "1"}, {"number": True}, {"counts": [1, "2"]}, {"counts": 3}, {"sizes": (1, 2, 3)}, {"sizes": 3}),
        *({"table": {"a": "b"}}, {"table": {1: 2}}, {"mode": "medium"}, {"shape": 3}, {"shape": {"no_such": 3}}),
    ],
)
def test_values_that_do_not_fit_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"everything: {next(iter(wrong))}: "):
        everything(**wrong)


def test_a_path_does_where_a_text_is_expected(tmp_path):
    assert PredictionWriter(tmp_path / "out.txt").path == tmp_path / "out.txt"


def test_what_has_to_be_given_by_name_is_named() -> None:
    with pytest.raises(UserError, match=r"Tokenizer: too many positional arguments: give normalization, .* by name"):
        Tokenizer("word", 8000, 2, True, "nfkc")
