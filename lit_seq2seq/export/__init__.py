"""Trained models to ONNX, checked and timed against what they come from: `lit-seq2seq export`."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jsonargparse import ArgumentParser

from lit_seq2seq.files.paths import expect_own, local_path
from lit_seq2seq.files.weights import check_finite
from lit_seq2seq.inference.model import Seq2SeqModel, Trained, model_of
from lit_seq2seq.nn import Encoder, EncoderDecoder
from lit_seq2seq.reranking import reranked
from lit_seq2seq.search.carried import CARRIED, place_of
from lit_seq2seq.settings import spec
from lit_seq2seq.settings.options import add_loading, loading_of
from lit_seq2seq.types import Padded, Part, Sources, UserError, install

Variant = Literal["fp32", "fp16", "int8"]
ROOMS = (
    "__init__.py",
    "arrays",
    "features",
    "files",
    "live",
    "metrics",
    "reranking.py",
    "runtime",
    "search",
    "settings",
    "shortlist.py",
    "types.py",
)
"""The parts of this package that run exported models, copied beside each."""
LEFT = (
    "arrays/tensors.py",
    "files/weights.py",
    "files/remote.py",
    "metrics/emission.py",
    "metrics/lag.py",
    "metrics/scores.py",
    "metrics/sums.py",
    "settings/options.py",
    "settings/parsing.py",
)
"""Files in these that exported models never use."""


def export_model(
    model: Seq2SeqModel | Trained,
    output: str | os.PathLike[str],
    variants: Sequence[Variant] = get_args(Variant),
    programs: bool = False,
) -> str:
    """Write a model as ONNX graphs, with a runner that needs NumPy, onnxruntime and tokenizers alone.

    The folder gets `encoder.*.onnx`, `decoder.*.onnx` (one step) and `output.*.onnx` for each variant, the processor's
    files, the package `runtime`, and a README with sizes, speeds and the greatest difference from the model itself.

    Args:
        model: a trained model.
        output: folder, made if needed.
        variants: `fp32`; `fp16` with weights kept in 16 bits; `int8` with matrices kept and multiplied in 8.
        programs: also write `encoder.pt2`, `decoder.pt2` and `output.pt2` for `torch.export.load`.

    Returns:
        The table of the README.

    Raises:
        UserError: packages are missing, or the model is of a kind that cannot be exported.
    """
    model, folder = model_of(model), local_path(output, "--output")
    expect_own(folder, ("README.md", "runtime"), (folder / "export.json").exists)
    network = _network(model)
    from lit_seq2seq.export.report import LENGTH, measure, random_source, table

    for part in network.encoder.modules():
        if part is not network.encoder and isinstance(part, Encoder) and part.alone:
            raise UserError(
                f"{type(part).__name__} beside other sources cannot be exported: use lit-seq2seq generate or serve"
            )
    live = write_graphs(network, random_source(model.processor, 3, LENGTH), folder, variants, programs=programs)
    _write_settings(model, folder, variants, live)
    found = table(measure(model, folder, variants))
    text = _README.format(table=found, variant=variants[0], left_out=left_out(model))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return found


def export_sherpa(model: Seq2SeqModel | Trained, output: str | os.PathLike[str]) -> None:
    """Write a transducer for sherpa-onnx: `encoder.onnx`, `decoder.onnx`, `joiner.onnx` and `tokens.txt`.

    Args:
        model: a trained model that reads `SherpaLogMel` and writes before its source has ended.
        output: folder, made if needed.

    Raises:
        UserError: packages are missing, or the model is of another kind.
    """
    model, folder = model_of(model), local_path(output, "--output")
    expect_own(folder, ("encoder.onnx", "tokens.txt"), (folder / "tokens.txt").exists)
    network = _network(model)
    from lit_seq2seq.export.sherpa import write_sherpa

    write_sherpa(network, model.processor, folder)


def _network(model: Seq2SeqModel) -> EncoderDecoder:
    """Return the network that is exported, if it can be."""
    _require_packages()
    network = model.eval().searched
    if not isinstance(network, EncoderDecoder):
        raise UserError(
            f"expected one encoder-decoder to export, got {type(network).__name__}: export its models one by one, and "
            "give their folders to the runtime together"
        )
    model.warn_if_untrained()
    if any(one.dtype in (torch.float16, torch.bfloat16) for one in network.parameters()):
        raise UserError("the model is in 16 bits, and graphs are made from 32: call model.float() first")
    check_finite(model.net.state_dict(), "the model")
    return network


def write_graphs(
    network: EncoderDecoder,
    source: Padded | Sources,
    folder: Path,
    variants: Sequence[Variant] = ("fp32",),
    *,
    programs: bool = False,
) -> list[str]:
    """Write the graphs of a network.

    Args:
        network: the network, in evaluation mode.
        source: an example of at least two sources, with several positions.
        folder: made if needed.
        variants: see `export_model`.
        programs: see `export_model`.

    Returns:
        Names of the graphs that there are of a model that can write while it reads, beside those of every model.

    Raises:
        UserError: torch cannot trace it.
    """
    from lit_seq2seq.export.graphs import Graph, trace
    from lit_seq2seq.export.onnx import halve, quantize, quietly, to_onnx
    from lit_seq2seq.export.pieces import begins, trace_pieces
    from lit_seq2seq.runtime.network import BEGINS, PARTS

    def write(found: dict[str, Graph]) -> dict[str, Graph]:
        for name, graph in found.items():
            to_onnx(graph, folder / f"{name}.fp32.onnx")
        return found

    folder.mkdir(parents=True, exist_ok=True)
    _forget_live(folder)
    who, live = f"{type(network.encoder).__name__} and {type(network.decoder).__name__}", list[str]()
    try:
        with quietly():
            traced = dict(zip(PARTS, trace(network, source), strict=True))
        graphs = write(traced)
    except OSError:
        raise
    except Exception as error:  # torch has no common one
        raise UserError(
            f"a model with {who} cannot be exported ({_reason(error)}): use lit-seq2seq generate or serve"
        ) from error
    if writes_early(network):
        assert isinstance(source, Padded)
        try:
            with quietly():
                pieces = trace_pieces(network, source)
            write(pieces)
            np.savez(folder / BEGINS, **begins(network))
            graphs, live = graphs | pieces, list(pieces)
        except OSError:
            raise
        except Exception as error:  # the rest works
            _forget_live(folder)
            warnings.warn(f"the runtime cannot write while it reads with {who} ({_reason(error)})", stacklevel=2)
    for name, graph in graphs.items():
        full = folder / f"{name}.fp32.onnx"
        for variant, make in (("fp16", halve), ("int8", quantize)):
            if variant in variants:
                make(full, folder / f"{name}.{variant}.onnx")
        if "fp32" not in variants:
            full.unlink()
        if programs:
            torch.export.save(graph.program, folder / f"{name}.pt2")
    return live


def _forget_live(folder: Path) -> None:
    """Remove what an export has written for models that write while they read."""
    from lit_seq2seq.export.pieces import PARTS
    from lit_seq2seq.runtime.network import BEGINS

    for old in [folder / BEGINS, *(path for part in PARTS for path in folder.glob(f"{part}.*"))]:
        old.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"


def _require_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"exporting needs {', '.join(missing)}: {install('export')}")


def _write_settings(model: Seq2SeqModel, folder: Path, variants: Sequence[Variant], live: list[str]) -> None:
    from lit_seq2seq.export.graphs import blind
    from lit_seq2seq.export.report import LENGTH, random_source
    from lit_seq2seq.runtime.network import BLIND, FORMAT, SHORTLIST, digest_of

    processor = model.processor
    processor.save(folder)
    (folder / SHORTLIST).unlink(missing_ok=True)
    np.savez(folder / BLIND, **blind(model.net, random_source(processor, 1, LENGTH)))
    if tables := _shortlist(model):
        np.savez(folder / SHORTLIST, **tables)
    reranker, generation = describe_reranker(model), _carry(model, folder, variants)
    settings = {
        "format": FORMAT,
        "variants": list(variants),
        "generation": generation,
        "reranker": reranker,
        "specials": {"target": asdict(processor.target.specials)},
        "target_size": len(processor.target),
        "alone": model.net.encoder.alone,
        "shortest": model.net.encoder.shortest,
        "reach": reach_of(model.net),
        "live": live,
        "max_source_length": processor.source_feature.input_limit,
        "shortlist": digest_of(folder / SHORTLIST) if tables else None,
    }
    (folder / "export.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _copy_runtime(folder / "runtime")
    own = {"processor": processor.to_dict(), "reranker": reranker, "generation": generation}
    for module in dict.fromkeys(_own_modules(own)):
        if "." not in module:  # packages have to be installed
            shutil.copy(str(importlib.import_module(module).__file__), folder / f"{module}.py")


def writes_early(network: EncoderDecoder) -> bool:
    """Tell whether a network can write before its source has ended."""
    try:
        network.expect_early("")
    except UserError:
        return False
    return True


def reach_of(network: EncoderDecoder) -> list[int] | None:
    """Describe `Network.needed`: of the first position, and how much more of each other; `None` where it cannot be."""
    if not writes_early(network):
        return None
    first, step = network.needed(1), network.needed(2) - network.needed(1)
    linear = all(network.needed(1 + count) == first + step * count for count in range(100))
    return [first, step] if linear else None


def _carry(model: Seq2SeqModel, folder: Path, variants: Sequence[Variant]) -> Any:
    """Copy the files and export the models that the options of search name; describe the options."""

    def carry(name: str, kind: str) -> str:
        place = place_of(name, len(list((folder / CARRIED).iterdir())))
        if kind == "file":
            shutil.copyfile(name, folder / place)
        else:
            export_model(Seq2SeqModel.from_pretrained(name), folder / place, variants)
            shutil.rmtree(folder / place / "runtime")  # that of the model itself serves
        return place

    shutil.rmtree(folder / CARRIED, ignore_errors=True)
    (folder / CARRIED).mkdir()
    generation = model.generation
    if generation.reranker is not None and generation.reranker.passes:
        generation = replace(generation, reranker=None)
    described = spec.describe(generation.moved(carry))
    if not any((folder / CARRIED).iterdir()):
        (folder / CARRIED).rmdir()
    return described


def _copy_runtime(folder: Path) -> None:
    """Copy the parts of this package that run exported models, with a launcher."""
    package, ignored = Path(__file__).parent.parent, shutil.ignore_patterns("__pycache__")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(package / "export" / "runner", folder, ignore=ignored)
    (folder / "VERSION").write_text(version("lit_seq2seq"), encoding="utf-8")
    (folder / "lit_seq2seq").mkdir()
    for room in ROOMS:
        copy = shutil.copy if (package / room).is_file() else partial(shutil.copytree, ignore=ignored)
        copy(package / room, folder / "lit_seq2seq" / room)
    for file in LEFT:
        (folder / "lit_seq2seq" / file).unlink()


def _own_modules(described: object) -> list[str]:
    """Name the user's own modules that a model needs to read inputs, and to write and rank outputs."""
    if isinstance(described, list):
        return [module for part in described for module in _own_modules(part)]
    if not isinstance(described, Mapping):
        return []
    inner = [module for part in described.values() for module in _own_modules(part)]
    module = str(described.get("class_path", "")).rpartition(".")[0]
    return inner if module.split(".")[0] in ("", "lit_seq2seq") else [*inner, module]


def describe_reranker(model: Seq2SeqModel) -> Mapping[str, Any] | None:
    """Describe the reranker of a model; `None` for one that nothing describes, in place of the recipe's."""
    own = model.reranker
    if own is not None and own.passes:
        return None
    described: Any = spec.describe(own) if isinstance(own, Part) else model.description.get("reranker")
    return described if described and described["class_path"] == spec.public_name(type(own)) else None


def _shortlist(model: Seq2SeqModel) -> dict[str, Any]:
    """Return the arrays of a model's shortlist, and of the output layer that scores it; nothing without one."""
    shortlist, weights = model.shortlist, model.net.output.tables
    if shortlist is None or not weights:
        return {}
    tables = {"frequent": shortlist.frequent, "translations": shortlist.translations}
    return tables | {name: weight.detach().float().cpu().numpy() for name, weight in weights.items()}


def left_out(model: Seq2SeqModel) -> str:
    """Say which parts of a model's search the runtime leaves out; empty if none."""
    notes = []
    reranker, _ = reranked(model.generation, model.reranker)
    if reranker is not None and reranker.passes:
        notes.append("The runtime has the first pass alone: outputs are not rescored.")
    elif model.reranker is not None and describe_reranker(model) is None:
        name = type(model.reranker).__name__
        notes.append(
            f"{name} is not the reranker of the model's recipe: the runtime leaves outputs in their order, which may "
            "differ from the model's."
        )
    if model.shortlist is not None and not _shortlist(model):
        notes.append(f"The runtime has no shortlist for {type(model.net.output).__name__}: it scores all symbols.")
    return " ".join(notes)


_README = """\
# An exported lit_seq2seq model

Needs `pip install numpy onnxruntime tokenizers` (and `soundfile soxr` for recordings, `pillow` for images, `sacrebleu`
to rerank by BLEU or chrF), no torch.
In this folder:

```bash
echo "an input" | python -m runtime --variant {variant}
```

```python
from runtime.model import Model

model = Model(".", variant="{variant}")
outputs = model(["an input"], num_beams=4)  # per input a list of outputs, best first
print(outputs[0][0].text, outputs[0][0].score)
```

`encoder`, `decoder` (one step) and `output` (scores of symbols) are ONNX graphs for any number of inputs, positions and
hypotheses. {left_out}

Against the model that was exported, on random inputs, greedily, 20 symbols each, on as many threads as torch used:

{table}
"""


def command(parser: ArgumentParser, arguments: list[str]) -> None:
    """Write a model as ONNX graphs and a runner without torch: `lit-seq2seq export`."""
    parser.add_argument("--model", type=str, required=True, help="model folder or hub id")
    parser.add_argument("--output", type=str, required=True, help="folder to write")
    parser.add_argument("--variants", type=list[Variant], default=list(get_args(Variant)), help="which to write")
    parser.add_argument("--format", type=Literal["runtime", "sherpa-onnx"], default="runtime", help="for which runner")
    parser.add_argument("--programs", type=bool, default=False, help="also write .pt2 files for torch.export.load")
    add_loading(parser)
    options = parser.parse_args(arguments)
    model = Seq2SeqModel.from_pretrained(options.model, **loading_of(options))
    if options.format == "sherpa-onnx":
        export_sherpa(model, options.output)
        print(f"written to {options.output}: encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt")
        return
    print(export_model(model, options.output, options.variants, options.programs))
    if note := left_out(model):
        print(f"note: {note}")
    print(f"written to {options.output}: see its README.md")
