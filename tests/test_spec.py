import inspect
import json
from functools import partial

import pytest
import torch
from torch import nn

import lit_seq2seq.nn
from lit_seq2seq import LitSeq2Seq, load_recipe
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.nn import (
    AdditiveAttention,
    ConditionalGRUDecoder,
    DenseBridge,
    InputFeedingDecoder,
    MultiHeadAttention,
    ParallelDecoder,
    TextEncoder,
)
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.settings.spec import build, describe
from lit_seq2seq.types import UserError
from tests.tiny import Trained

CLASSES = [cls for cls in vars(lit_seq2seq.nn).values() if isinstance(cls, type) and issubclass(cls, nn.Module)]
CLASSES = [cls for cls in CLASSES if not inspect.isabstract(cls)]
ATTENTIONS = [
    cls
    for cls in CLASSES
    if issubclass(cls, lit_seq2seq.nn.Attention) and cls is not lit_seq2seq.nn.HierarchicalAttention
]
BRIDGES = [cls for cls in CLASSES if issubclass(cls, lit_seq2seq.nn.Bridge)]
DECODERS = [ParallelDecoder, InputFeedingDecoder, ConditionalGRUDecoder]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_comes_back(cls: type) -> None:
    description = json.loads(json.dumps(describe(cls)))
    assert description["class_path"] == f"lit_seq2seq.nn.{cls.__name__}"
    assert build(description).func is cls


def test_nested_factories_come_back() -> None:
    decoder = partial(
        ParallelDecoder,
        hidden_size=8,
        dropout=0.25,
        attention=partial(MultiHeadAttention, num_heads=2),
        bridge=partial(DenseBridge, activation="tanh"),
    )
    described = describe(decoder)
    assert described["init_args"]["attention"]["init_args"] == {"num_heads": 2}
    factory = build(json.loads(json.dumps(described)))
    assert describe(factory) == described
    assert factory.keywords["attention"].func is MultiHeadAttention
    assert factory.keywords["bridge"].keywords == {"activation": "tanh"}


def test_values_and_records_become_plain() -> None:
    assert describe({"a": (1, 2.5), "b": [None, True, "x"]}) == {"a": [1, 2.5], "b": [None, True, "x"]}
    assert describe(GenerationConfig(num_beams=3))["num_beams"] == 3
    assert build([1, {"x": None}]) == [1, {"x": None}]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (lambda size: None, "cannot be saved with a model"),
        (nn.Linear(1, 1), "cannot be saved with a model"),
        (json.dumps, "cannot be saved with a model"),
        (object(), "encoder: expected a class or functools.partial that makes Encoder, got <object"),
    ],
    ids=["lambda", "module", "function", "object"],
)
def test_what_cannot_be_saved_is_refused_at_once(value: object, match: str) -> None:
    with pytest.raises(UserError, match=match):
        LitSeq2Seq(encoder=value)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("os.system", r"outside the trusted packages: .*trust=\('os',\)"),
        ("subprocess.Popen", "outside the trusted packages"),
        ("lit_seq2seqx.nn.TextEncoder", "outside the trusted packages"),
        ("builtins.eval", "outside the trusted packages"),
        ("lit_seq2seq.features.tokenizer.Path", "names pathlib.*outside the trusted packages"),
        ("lit_seq2seq.settings.spec.partial", "names lit_seq2seq.settings.spec.partial, which is no part of a model"),
        ("lit_seq2seq.nn.TextEncodr", "there is no class lit_seq2seq.nn.TextEncodr"),
        ("lit_seq2seq.nn.nothing.Nothing", "there is no class"),
        ("lit_seq2seq.cli.Seq2SeqCLI", "which is no part of a model"),
        ("torch.nn.functional.relu", "is not a class"),
    ],
)
def test_untrusted_and_unknown_classes_are_refused(path: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        build({"encoder": [{"class_path": path, "init_args": {}}]})


def test_trust_opens_a_package() -> None:
    assert build({"class_path": "collections.Counter"}, trust=("collections",)).func.__name__ == "Counter"


def shapes(model: LitSeq2Seq) -> dict[str, torch.Size]:
    tokenizer = Tokenizer("char")
    tokenizer.train(["abc"])
    model.attach(Processor(tokenizer, tokenizer))
    return {name: tensor.shape for name, tensor in model.net.state_dict().items()}


CASES = [
    *((InputFeedingDecoder, attention, DenseBridge) for attention in ATTENTIONS),
    *((ParallelDecoder, AdditiveAttention, bridge) for bridge in BRIDGES),
    (ConditionalGRUDecoder, AdditiveAttention, DenseBridge),
]


@pytest.mark.parametrize(("decoder", "attention", "bridge"), CASES, ids=lambda cls: cls.__name__)
def test_what_the_command_line_builds_comes_back(
    trained: Trained, decoder: type, attention: type, bridge: type
) -> None:
    names = {cls: f"lit_seq2seq.nn.{cls.__name__}" for cls in (decoder, attention, bridge)}
    arguments = {"embedding_dim": 8, "hidden_size": 8, "attention": names[attention], "bridge": names[bridge]}
    chosen = json.dumps({"class_path": names[decoder], "init_args": arguments})
    encoder = ["--model.encoder.init_args.hidden_size=8", "--model.encoder.init_args.bidirectional=false"]
    model = load_recipe(trained.recipe, ["--model.decoder", chosen, *encoder]).model
    described = json.loads(json.dumps(dict(model.hparams)))
    assert build(described["decoder"]).func is decoder
    assert build(described["decoder"]).keywords["attention"].func is attention
    assert build(described["decoder"]).keywords["bridge"].func is bridge
    again = LitSeq2Seq(**build(described))
    assert dict(again.hparams) == dict(model.hparams)
    assert shapes(again) == shapes(model)
    assert again.model.generation == model.model.generation
    assert isinstance(again.model.make_network.keywords["encoder"], partial)
    assert again.model.make_network.keywords["encoder"].func is TextEncoder
