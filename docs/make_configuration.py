"""Write the chapters of configuration.md, the reference of every setting, from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import DocstringStyle, parse

from lit_seq2seq import (
    LitSeq2Seq,
    Seq2SeqDataModule,
    callbacks,
    features,
    metrics,
    nn,
    reranking,
    schedules,
    search,
    training,
)
from lit_seq2seq.data import Batches, Columns, JoinedRecordings, Limits, SplitSettings, synthetic
from lit_seq2seq.features import Tokenizer
from lit_seq2seq.nn.decoders.base import Combination
from lit_seq2seq.search import GenerationConfig

PAGE = Path(__file__).parent / "configuration.md"
COMBINE = "The choices of `combine`: " + " ".join((parse(Combination.__doc__ or "").long_description or "").split())


def kinds(module: types.ModuleType, base: type) -> list[type]:
    """Return the concrete public classes of a module that derive from `base`, in the order of their names there."""
    found = [cls for name, cls in vars(module).items() if inspect.isclass(cls) and not name.startswith("_")]
    return [cls for cls in found if issubclass(cls, base) and cls is not base and not inspect.isabstract(cls)]


def page() -> str:
    """Return the text of the page."""
    watching = {
        "checkpoint": callbacks.Checkpoint,
        "samples": callbacks.SampleOutputs,
        "progress": callbacks.Seq2SeqProgressBar,
        "guard": callbacks.NonFiniteLoss,
        "predictions": callbacks.PredictionWriter,
    }
    sources = [cls for cls in kinds(features, features.Feature) if cls is not Tokenizer]
    parts = [
        PAGE.read_text(encoding="utf-8").split("\n\n## data")[0],
        "## data",
        table(Seq2SeqDataModule),
        "Recipes of 0.1 named some of these settings otherwise, such as `data.batch_size` for `data.batches.size`. "
        "Those names are still read, in YAML files, on the command line and in Python.",
        *group("Columns", "`data.columns`.", [Columns]),
        *group("Splits", "`data.splits`.", [SplitSettings]),
        *group("Limits", "`data.limits`.", [Limits]),
        *group("Batches", "`data.batches`.", [Batches]),
        *group("Sources that are not text", "`data.source_feature`.", sources),
        *group("SpecAugment", "`spec_augment` of speech features.", [features.SpecAugment]),
        *group("Tokenizer", "`data.source_tokenizer` and `data.target_tokenizer`.", [Tokenizer]),
        *group("Built-in data", "`data.dataset`.", kinds(synthetic, synthetic.BuiltinDataset)),
        *group("Joined recordings", "`data.dataset`.", [JoinedRecordings]),
        "## model",
        table(LitSeq2Seq),
        *group("Encoders", "`model.encoder`.", kinds(nn, nn.Encoder), given=1),
        *group(
            "Cells",
            "`cell` of encoders and decoders: a class, or `lstm`, `gru`, `rnn_tanh` or `rnn_relu` for short. Those "
            "with layer norm run step by step.",
            kinds(nn, nn.Cell),
            given=2,
        ),
        *group("Decoders", f"`model.decoder`. {COMBINE}", kinds(nn, nn.Decoder), given=2),
        *group("Attentions", "`model.decoder.init_args.attention`.", kinds(nn, nn.Attention), given=2),
        *group("Output layers", "`model.output`.", kinds(nn, nn.Output), given=3),
        *group("Attention losses", "`model.attention_losses`, a list.", kinds(nn, nn.AttentionLoss)),
        *group("Auxiliary predictions", "`model.auxiliary`.", kinds(nn, nn.Auxiliary), given=3),
        *group("Second passes", "`model.second_pass`.", [nn.SecondPass], given=2),
        *group("Objectives", "`model.objective`.", kinds(training, training.Objective), given=1),
        *group("Bridges", "`model.decoder.init_args.bridge`.", kinds(nn, nn.Bridge), given=2),
        *group("Search", "`model.generation`; also options of `generate` and of pipelines.", [GenerationConfig]),
        *group(
            "Constraints",
            "`model.generation.constraints`, a list; also `--constraints` of `generate`. Some have an option of their "
            "own, such as `bad_words`.",
            kinds(search, search.Constraint),
        ),
        *group(
            "Scorers",
            "`model.generation.scorers`, a list; also `--scorers` of `generate`.",
            kinds(search, search.Scorer),
        ),
        *group("Policies", "`model.generation.policy`; also `--policy` of `generate`.", kinds(search, search.Policy)),
        *group("Metrics", "`model.metrics`, a list.", kinds(metrics, metrics.TextMetric)),
        *group("Rerankers", "`model.reranker`.", kinds(reranking, reranking.Reranker)),
        *group("Schedules", "`model.lr_scheduler`.", [schedules.InverseSquareRoot, schedules.OneCycle], given=1),
        *(text for name, cls in watching.items() for text in (f"## {name}", table(cls))),
        "## trainer",
        "The arguments of Lightning's [Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html). "
        "Each run gets a folder of its own, `version_0`, `version_1` and so on, in `default_root_dir` (`runs` if "
        "unset); unless `logger` is set, CSV and TensorBoard logs go there too. `callbacks` takes a list; beyond "
        "Lightning's own callbacks there is:",
        table(callbacks.EMA),
        table(callbacks.GradualUnfreezing),
    ]
    return "\n\n".join(parts) + "\n"


def group(title: str, where: str, classes: list[type], given: int = 0) -> list[str]:
    """Return a heading, where the classes may stand, and a table for each."""
    return [f"### {title}", f"For {where}", *(table(cls, given) for cls in classes)]


def table(cls: type, given: int = 0) -> str:
    """Return the name, the meaning and the arguments of a class, but for the first `given`."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    lines = [f"**`{public_path(cls)}`**: {parse(cls.__doc__ or '', DocstringStyle.GOOGLE).short_description}"]
    arguments = list(inspect.signature(cls).parameters.values())[given:]
    if arguments:
        lines += ["", "| setting | type | default | meaning |", "|---|---|---|---|"]
    for argument in arguments:
        cells = (
            f"`{argument.name}`",
            kind(hints.get(argument.name, argument.annotation)),
            default(argument),
            meaning(cls, argument.name),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def public_path(cls: type) -> str:
    """Return the shortest `class_path` that names the class."""
    parts = cls.__module__.split(".")
    packages = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    package = next(name for name in packages if getattr(importlib.import_module(name), cls.__name__, None) is cls)
    return f"{package}.{cls.__name__}"


def meaning(cls: type, name: str) -> str:
    """Return what the docstring says of an argument, and of the class it refers to."""
    bases = [base for base in reversed(cls.__mro__) if base.__module__.startswith("lit_seq2seq.")]
    texts = [cls.__init__.__doc__, *(base.__doc__ for base in bases)]  # type: ignore[misc]
    found = {p.arg_name: p.description for text in texts for p in parse(text or "", DocstringStyle.GOOGLE).params}
    text = " ".join((found.get(name) or "").split())
    _, see, referred = text.partition("see `")
    other = getattr(nn, referred.split("`")[0], None) if see else None
    return text if other is None else text.replace(f"see `{other.__name__}`", meaning(other, name).rstrip("."), 1)


def default(argument: inspect.Parameter) -> str:
    """Return a default as YAML has it."""
    value: Any = argument.default
    if value is argument.empty:
        return "required"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "see Search" if isinstance(value, GenerationConfig) else f"see {argument.name.capitalize()}"
    return f"`{public_path(value) if isinstance(value, type) else json.dumps(value)}`"


def kind(hint: Any) -> str:
    """Return a type as a reader of YAML knows it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(part) for part in arguments))
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is Callable:
        return f"class of {kind(arguments[-1])}"
    if origin is not None:
        parts = [kind(part) for part in arguments if part is not ...]
        return f"{'dict' if issubclass(origin, Mapping) else 'list'} of {' to '.join(parts)}"
    return "null" if hint is type(None) else str(hint.__name__)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
