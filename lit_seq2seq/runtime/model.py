"""An exported model: raw inputs in, texts out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from .copying import CopyMap
from .errors import UserError
from .inputs import load_reader
from .readers import Array, Named, Text
from .search import Hypothesis, Options, State, Step, beam_search
from .text import SpecialIds

SETTINGS = "export.json"
_LEAST = 1e-30  # probability of copying that counts as none


class Output(NamedTuple):
    """One output: its text, and what outputs are ranked by (0 for an empty input)."""

    text: str
    score: float


class Session:
    """A graph of onnxruntime, whose tensors go by name.

    Args:
        path: the ONNX file.
        threads: number of threads; 0 lets onnxruntime choose.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, values: State) -> State:
        """Compute all outputs; values that the graph does not read are left aside."""
        found = self._session.run(None, {name: values[name] for name in self.inputs})
        return dict(zip(self._outputs, found, strict=True))


class Network:
    """Encoder and decoder of an exported model, with its search.

    Args:
        folder: what `lit-seq2seq export` has written.
        variant: `fp32`, `fp16` or `int8`.
        threads: number of threads; 0 lets onnxruntime choose.

    Raises:
        UserError: there is no such model or variant.
    """

    def __init__(self, folder: str | os.PathLike[str], variant: str = "fp32", threads: int = 0) -> None:
        self.folder = Path(folder)
        if not (self.folder / SETTINGS).is_file():
            raise UserError(
                f"there is no exported model in {self.folder}: run lit-seq2seq export --model DIR --output DIR"
            )
        self.settings = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        if variant not in self.settings["variants"]:
            known = ", ".join(self.settings["variants"])
            raise UserError(f"there is no variant {variant!r} of the model in {self.folder}: choose one of {known}")
        self.encoder = Session(self.folder / f"encoder.{variant}.onnx", threads)
        self.decoder = Session(self.folder / f"decoder.{variant}.onnx", threads)
        self.specials = {side: SpecialIds(**ids) for side, ids in self.settings["specials"].items()}
        self.options = Options(**self.settings["generation"])

    def start(self, source: Named) -> tuple[State, Array]:
        """Encode sources.

        Args:
            source: `source (B, S, ...)` and `lengths (B,)`; of several sources `source.NAME` and `lengths.NAME` each.
                For a model that copies also `copy_ids (B, S)`, target ids of the source's symbols.

        Returns:
            The decoder's first state, and which positions of the memory are real, `(B, S')`.
        """
        found = self._encode(source)
        state = {name: found[name] for name in self.decoder.inputs if name != "tokens"}
        if "copy_ids" in source:
            copy_ids = source["copy_ids"]
            beyond = max(int(copy_ids.max()) + 1 - self.settings["target_size"], 0)
            # of the second only the width matters
            state |= {"memory.copy_ids": copy_ids, "memory.copy_extra": np.zeros((len(copy_ids), beyond), bool)}
        return state, found["mask"]

    def _encode(self, source: Named) -> State:
        return self.encoder(source)

    def step(self, tokens: Array, state: State) -> Step:
        """Read `tokens (B, K)`; the step function of `beam_search`."""
        found = self.decoder({**state, "tokens": tokens})
        after = {name: found.get(f"next.{name}", value) for name, value in state.items()}
        log_probs = found["log_probs"]
        if "memory.copy_ids" in state:
            log_probs = mix(log_probs, found["log_copy"], found["copy_weights"], state)
        return Step(log_probs, found.get("attention"), after)

    def generate(self, source: Named, options: Options | None = None) -> list[list[Hypothesis]]:
        """Search for the best outputs.

        Args:
            source: see `start`.
            options: options of search; those of the model if `None`.
        """
        state, mask = self.start(source)
        return beam_search(self.step, state, mask, self.specials["target"], options or self.options)


def mix(log_probs: Array, log_copy: Array, weights: Array, state: State) -> Array:
    """Spread the weights of copying over the symbols of the source: `(B, K, V + extra)`.

    Args:
        log_probs: `(B, K, V)` of generating.
        log_copy: `(B, K, 1)` log-probability of copying.
        weights: `(B, K, S)` what share of it goes to each source position.
        state: holds `memory.copy_ids (B, S)` and, as its width, the number of symbols beyond V.
    """
    ids = state["memory.copy_ids"]
    same = (ids[:, :, None] == ids[:, None]).astype(np.float32)  # (B, S, S)
    log_copied = log_copy + np.log(np.maximum(weights @ same, _LEAST))  # (B, K, S)
    more = np.full((*log_probs.shape[:2], state["memory.copy_extra"].shape[1]), -np.inf, np.float32)
    mixed = np.concatenate([log_probs, more], axis=2)
    everywhere = np.broadcast_to(ids[:, None], weights.shape)
    generated = np.take_along_axis(mixed, everywhere, axis=2)
    np.put_along_axis(mixed, everywhere, np.logaddexp(generated, log_copied), axis=2)
    return mixed


class Model(Network):
    """An exported model with what reads its inputs and writes its outputs; for the arguments see `Network`.

    `Model(".")(["Guten Morgen."])` gives for each input its outputs, best first.
    """

    def __init__(self, folder: str | os.PathLike[str], variant: str = "fp32", threads: int = 0) -> None:
        super().__init__(folder, variant, threads)
        self.reader, self.target = load_reader(self.folder, self.specials)
        self.copy_map = None
        if self.settings["copy"]:
            assert isinstance(self.reader, Text)
            self.copy_map = CopyMap(self.reader.vocabulary, self.target)

    def __call__(self, inputs: Sequence[Any], batch_size: int = 32, **options: Any) -> list[list[Output]]:
        """Generate.

        Args:
            inputs: texts, records, recordings or images, as the model's features read them.
            batch_size: number of inputs of similar length that go through the network together.
            **options: see `Options`.

        Raises:
            UserError: an input cannot be read, or there is no such option.
        """
        chosen = self._options(options)
        results = [[Output("", 0.0)] * chosen.num_return_sequences for _ in inputs]
        kept = [place for place, raw in enumerate(inputs) if not self.reader.is_missing(raw)]
        arrays = self.reader.encode([inputs[place] for place in kept])
        limit = self.settings["max_source_length"]
        if limit is not None:
            arrays = [self.reader.truncate(array, limit) for array in arrays]
        order = sorted(range(len(kept)), key=lambda index: self.reader.positions(arrays[index]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            raw = [inputs[kept[index]] for index in batch]
            for index, found in zip(batch, self._batch([arrays[i] for i in batch], raw, chosen), strict=True):
                results[kept[index]] = found
        return results

    def _batch(self, arrays: list[Array], raw: list[Any], options: Options) -> list[list[Output]]:
        source = self.reader.collate(arrays)
        extra: list[tuple[str, ...]] = [()] * len(arrays)
        if self.copy_map is not None:
            assert isinstance(self.reader, Text)
            found, extra = self.copy_map.source([self.reader.prefix + text for text in raw], arrays)
            source["copy_ids"] = np.full(source["source"].shape, self.specials["target"].pad, np.int64)
            for row, ids in zip(source["copy_ids"], found, strict=True):
                row[: len(ids)] = ids
        hypotheses = self.generate(source, options)
        return [
            [Output(self.reader.restore(self.target.decode(one.tokens, own), text), one.score) for one in row]
            for row, own, text in zip(hypotheses, extra, raw, strict=True)
        ]

    def _options(self, options: dict[str, Any]) -> Options:
        known = [field.name for field in dataclasses.fields(Options)]
        for name in options:
            if name not in known:
                raise UserError(f"there is no option {name!r} here: choose among {', '.join(known)}")
        return dataclasses.replace(self.options, **options)
