"""A class that is named, in YAML or on the command line, has its own defaults, not those of the one it replaces."""

import importlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from lit_seq2seq import LitSeq2Seq, Seq2SeqDataModule, load_recipe
from lit_seq2seq.cli.fit import Seq2SeqCLI
from lit_seq2seq.features import Feature, Processor, Tokenizer
from lit_seq2seq.metrics import TextMetric
from lit_seq2seq.nn import AdditiveAttention, ParallelDecoder
from lit_seq2seq.nn.attention import Attention
from lit_seq2seq.nn.attention_losses import AttentionLoss
from lit_seq2seq.nn.auxiliary import Auxiliary
from lit_seq2seq.nn.bridges import Bridge
from lit_seq2seq.nn.decoders import Decoder
from lit_seq2seq.nn.encoders import Encoder
from lit_seq2seq.nn.output import Output
from lit_seq2seq.reranking import Reranker
from lit_seq2seq.settings.parsing import Parser
from lit_seq2seq.training import Objective
from lit_seq2seq.types import UserError
from tests.tiny import SIZES, Trained, make_model

OWN_FILE = """
    from lit_seq2seq.nn import TextEncoder

    class SmallEncoder(TextEncoder):
        def __init__(
            self, vocab_size: int, embedding_dim: int = 64, hidden_size: int = 64, dropout: float = 0.3
        ) -> None:
            super().__init__(vocab_size, embedding_dim, hidden_size, dropout=dropout)
    """


@pytest.fixture
def small_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_encoders.py").write_text(textwrap.dedent(OWN_FILE))
    monkeypatch.syspath_prepend(tmp_path)
    return "own_encoders.SmallEncoder"


@pytest.fixture(scope="module")
def parser() -> Parser:
    parser = Parser()
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(LitSeq2Seq, "model")
    parser.add_lightning_class_args(Seq2SeqDataModule, "data")
    return parser


def parts_of(base: type) -> Iterable[type]:
    """Yield the classes that can be named in a place for `base`."""
    for cls in base.__subclasses__():
        public = not cls.__name__.startswith("_") and cls.__module__.split(".")[0] in ("torch", "lit_seq2seq")
        if public and not inspect.isabstract(cls):
            yield cls
        yield from parts_of(cls)


def own_defaults(cls: type) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


def plain(value: Any) -> Any:
    """Make what a parser and what a signature holds comparable."""
    if isinstance(value, Namespace) and "class_path" in value:
        module, _, name = value.class_path.rpartition(".")
        return getattr(importlib.import_module(module), name)
    return list(value) if isinstance(value, tuple) else value


SLOTS = {
    "encoder": Encoder,
    "decoder": Decoder,
    "output": Output,
    "auxiliary": Auxiliary,
    "objective": Objective,
    "optimizer": torch.optim.Optimizer,
    "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "reranker": Reranker,
}
INSIDE = {"attention": Attention, "bridge": Bridge}
LISTS = {"metrics": TextMetric, "attention_losses": AttentionLoss}
NEEDED: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 3},
    "ExponentialLR": {"gamma": 0.5},
    "VisionBackbone": {"name": "x"},
    "Distillation": {"teachers": "x"},
    "MultiSourceEncoder": {"encoders": {"a": "lit_seq2seq.nn.TextEncoder"}},
}


def named(cls: type) -> dict[str, Any]:
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": NEEDED.get(cls.__name__, {})}


def check(found: Namespace, cls: type) -> None:
    """Check that what was not written is what the signature says."""
    assert plain(found) is cls
    written, arguments = NEEDED.get(cls.__name__, {}), found.get("init_args") or Namespace()
    for name, value in own_defaults(cls).items():
        if name in arguments and name not in written:
            assert plain(arguments[name]) == plain(value), (cls, name)


def each(parser: Parser, base: type, around: Callable[[Any], dict[str, Any]]) -> Iterator[tuple[Namespace, type]]:
    """Parse settings with each class in a place, but those that need arguments without a simple value."""
    for cls in parts_of(base):
        try:
            yield parser.parse_object({"data": {"dataset": "x"}, **around(named(cls))}), cls
        except UserError as error:
            if "give it in init_args" not in str(error):
                raise


@pytest.mark.parametrize("slot", SLOTS)
def test_each_class_has_its_own_defaults_in_each_place(parser: Parser, slot: str) -> None:
    found = list(each(parser, SLOTS[slot], lambda part: {"model": {slot: part}}))
    for config, cls in found:
        check(config.model[slot], cls)
    assert len(found) > 0


@pytest.mark.parametrize("decoder", ["ParallelDecoder", "InputFeedingDecoder", "ConditionalGRUDecoder"])
@pytest.mark.parametrize("slot", INSIDE)
def test_each_class_has_its_own_defaults_inside_another(parser: Parser, slot: str, decoder: str) -> None:
    def around(part: Any) -> dict[str, Any]:
        return {"model": {"decoder": {"class_path": f"lit_seq2seq.nn.{decoder}", "init_args": {slot: part}}}}

    found = list(each(parser, INSIDE[slot], around))
    for config, cls in found:
        check(config.model.decoder.init_args[slot], cls)
    assert len(found) > 3


@pytest.mark.parametrize("slot", LISTS)
def test_each_class_has_its_own_defaults_in_a_list(parser: Parser, slot: str) -> None:
    found = list(each(parser, LISTS[slot], lambda part: {"model": {slot: [part]}}))
    for config, cls in found:
        check(config.model[slot][0], cls)
    assert len(found) > 1


def test_each_feature_has_its_own_defaults(parser: Parser) -> None:
    around = lambda part: {"data": {"dataset": "x", "source_feature": part}}  # noqa: E731
    found = list(each(parser, Feature, around))
    for config, cls in found:
        check(config.data.source_feature, cls)
    assert len(found) > 3


OVER = [
    ("", ["--model.optimizer", "torch.optim.AdamW"], {"lr": 0.001, "weight_decay": 0.01}),
    ("", ["--model.optimizer=AdamW", "--model.optimizer.lr=0.2"], {"lr": 0.2, "weight_decay": 0.01}),
    ("optimizer: torch.optim.AdamW", [], {"lr": 0.001, "weight_decay": 0.01}),
    ("optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.2}}", [], {"lr": 0.2, "weight_decay": 0.01}),
    ("optimizer: {class_path: torch.optim.AdamW, init_args: {weight_decay: 0.0}}", [], {"weight_decay": 0.0}),
    ("optimizer: torch.optim.Adadelta", [], {"lr": 1.0, "rho": 0.9, "eps": 1e-6}),
    ("optimizer: torch.optim.RMSprop", [], {"lr": 0.01, "alpha": 0.99}),
    (  # what is written stays where the other class takes it, though it is the default of the first one
        "optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.3, weight_decay: 0.0, eps: 1.0e-8}}",
        ["--model.optimizer=torch.optim.Adadelta"],
        {"lr": 0.3, "weight_decay": 0.0, "eps": 1e-8, "rho": 0.9},
    ),
    (
        "optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.3}}",
        ["--model.optimizer", json.dumps({"class_path": "torch.optim.AdamW", "init_args": {"eps": 0.1}})],
        {"lr": 0.3, "eps": 0.1, "weight_decay": 0.01},
    ),
]


@pytest.mark.parametrize(("recipe", "arguments", "expected"), OVER)
def test_a_class_over_another_keeps_what_was_written(
    parser: Parser, tmp_path: Path, recipe: str, arguments: list[str], expected: dict[str, Any]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{{recipe}}}\n")
    found = parser.parse_args(["--config", str(path), "--data.dataset=x", *arguments]).model.optimizer.init_args
    assert {name: found[name] for name in expected} == expected


WEIGHTED = {"class_path": "lit_seq2seq.nn.CoverageLoss", "init_args": {"weight": 3.0}}
LOWERED = {"class_path": "lit_seq2seq.metrics.BLEU", "init_args": {"lowercase": True}}
LISTS_OVER = [
    (["--model.metrics", "[lit_seq2seq.metrics.ChrF]"], [("ChrF", False)]),
    (["--model.metrics=[BLEU]"], [("BLEU", False)]),
    (["--model.metrics=[ExactMatch, BLEU]"], [("ExactMatch", False), ("BLEU", False)]),
    (["--model.metrics+=ChrF"], [("BLEU", True), ("ChrF", False)]),
    (["--model.metrics.smooth_method=floor"], [("BLEU", True)]),
]


@pytest.mark.parametrize(("arguments", "expected"), LISTS_OVER)
def test_a_list_over_another_takes_nothing_of_its_classes(
    parser: Parser, tmp_path: Path, arguments: list[str], expected: list[tuple[str, bool]]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": {"metrics": [LOWERED]}}))
    found = parser.parse_args(["--config", str(path), "--data.dataset=x", *arguments]).model.metrics
    assert [(plain(one).__name__, one.init_args.lowercase) for one in found] == expected


def test_a_mapping_over_another_keeps_what_was_written_under_the_same_name(
    parser: Parser, tmp_path: Path, small_encoder: str
) -> None:
    written = {"class_path": "lit_seq2seq.nn.TextEncoder", "init_args": {"hidden_size": 24}}
    encoders = {"a": written, "b": "lit_seq2seq.nn.TextEncoder", "c": written}
    encoder = {"class_path": "lit_seq2seq.nn.MultiSourceEncoder", "init_args": {"encoders": encoders}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": {"encoder": encoder}}))
    whole = ["--model.encoder.encoders", json.dumps({"a": small_encoder, "b": small_encoder})]
    found = parser.parse_args(["--config", str(path), "--data.dataset=x", *whole]).model.encoder.init_args.encoders
    defaults = {"embedding_dim": 64, "hidden_size": 64, "dropout": 0.3}
    arguments = {name: one.init_args.as_dict() for name, one in found.items()}
    assert arguments == {"a": {**defaults, "hidden_size": 24}, "b": defaults}


def test_a_list_in_a_second_file_takes_nothing_of_the_first(parser: Parser, tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump({"model": {"attention_losses": [WEIGHTED]}}))
    second.write_text("model: {attention_losses: [DoublyStochasticLoss]}")
    found = parser.parse_args(["--config", str(first), "--config", str(second), "--data.dataset=x"])
    assert found.model.attention_losses[0].init_args.weight == 1.0


def test_a_second_file_names_another_class(parser: Parser, tmp_path: Path) -> None:
    recipes = {
        "first.yaml": {"model": {"decoder": {"class_path": "InputFeedingDecoder", "init_args": {"hidden_size": 32}}}},
        "second.yaml": {"model": {"decoder": "ConditionalGRUDecoder"}},
    }
    for name, recipe in recipes.items():
        (tmp_path / name).write_text(yaml.safe_dump(recipe))
    files = [argument for name in recipes for argument in ("--config", str(tmp_path / name))]
    found = parser.parse_args([*files, "--data.dataset=x"]).model.decoder.init_args
    assert (found.hidden_size, found.combine, found.bridge.class_path) == (32, "deep", "lit_seq2seq.nn.MeanBridge")


def test_a_recipe_trains_with_what_its_optimizer_says(trained: Trained) -> None:
    recipe = load_recipe(trained.recipe, ["--model.optimizer=torch.optim.AdamW"])
    recipe.trainer.fit(recipe.model, recipe.datamodule)
    assert recipe.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.01


def test_fine_tuning_names_another_class(trained: Trained, tmp_path: Path, small_encoder: str) -> None:
    path = tmp_path / "finetune.yaml"
    start = {"data": {"dataset": str(trained.recipe.parent)}, "model": {"init_from": str(trained.model)}}
    path.write_text(yaml.safe_dump(start))
    same = load_recipe(path, ["--model.encoder.dropout=0.5", "--model.metrics=[BLEU,ChrF]"]).config.model
    assert (same.encoder.init_args.hidden_size, same.encoder.init_args.dropout) == (12, 0.5)
    assert (same.decoder.init_args.hidden_size, [plain(one).__name__ for one in same.metrics]) == (12, ["BLEU", "ChrF"])
    own = load_recipe(path, ["--model.encoder", small_encoder, "--model.decoder=ConditionalGRUDecoder"]).config.model
    assert own.encoder.init_args.as_dict() == {"embedding_dim": 64, "hidden_size": 64, "dropout": 0.3}
    assert (own.decoder.init_args.combine, own.decoder.init_args.hidden_size) == ("deep", 512)


def test_fine_tuning_keeps_nothing_of_the_part_inside_that_is_replaced(trained: Trained, tmp_path: Path) -> None:
    model = make_model(
        decoder=partial(ParallelDecoder, **SIZES, attention=partial(AdditiveAttention, attention_size=7))
    )
    tokenizer = Tokenizer("word")
    tokenizer.train(["one two"])
    model.attach(Processor(tokenizer, tokenizer))
    model.save_pretrained(tmp_path / "start")
    chosen = ["--model.init_from", str(tmp_path / "start"), "--data.dataset=x"]
    kept = Seq2SeqCLI([*chosen, "--model.decoder.dropout=0.5"], run=False).config.model.decoder.init_args
    assert (kept.attention.init_args.attention_size, kept.hidden_size, kept.dropout) == (7, SIZES["hidden_size"], 0.5)
    location = ["--model.decoder.init_args.attention=lit_seq2seq.nn.LocationAwareAttention"]
    other = Seq2SeqCLI([*chosen, *location], run=False).config.model.decoder.init_args
    assert (other.attention.init_args.attention_size, other.hidden_size) == (None, SIZES["hidden_size"])


def test_settings_that_differ_from_the_defaults_are_few(parser: Parser) -> None:
    config = parser.parse_object({"data": {"dataset": "x"}, "model": {"optimizer": {"init_args": {"lr": 0.1}}}})
    written = yaml.safe_load(parser.dump(config, skip_default=True))
    assert written == {
        "data": {"dataset": "x"},
        "model": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}},
    }
