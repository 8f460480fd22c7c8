"""An exported model: raw inputs in, texts out."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_seq2seq.files.lines import counted
from lit_seq2seq.files.untrusted import undamaged
from lit_seq2seq.runtime.copying import CopyMap
from lit_seq2seq.runtime.inputs import load_reader
from lit_seq2seq.runtime.network import Decodable, Ensemble, Network
from lit_seq2seq.runtime.readers import Array, Text, encode_named
from lit_seq2seq.runtime.slots import Slots
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.types import UserError

_VOCABULARY = ("processor.json", "tokenizer.json", "source_tokenizer.json", "target_tokenizer.json")


class Generated(NamedTuple):
    """One output: its text, and what outputs are ranked by (0 for an empty input)."""

    text: str
    score: float


class Model:
    """An exported model with what reads its inputs and writes its outputs.

    `Model(".")(["Guten Morgen."])` gives for each input its outputs, best first.

    Args:
        folder: what `lit-seq2seq export` has written; several make an ensemble, which averages their probabilities.
        variant: `fp32`, `fp16` or `int8`.
        threads: number of threads; 0 lets onnxruntime choose.
        trust: modules of others that may be imported to read the inputs, so that their code runs.

    Raises:
        UserError: there is no such model or variant, or several have not one vocabulary.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        variant: str = "fp32",
        threads: int = 0,
        trust: str | Sequence[str] = (),
    ) -> None:
        folders = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
        if not folders or threads < 0:
            raise UserError(f"expected a folder, and threads of at least 0, but got {folder!r:.80} and {threads}")
        networks = [Network(one, variant, threads) for one in folders]
        first = networks[0]
        for other in networks[1:]:
            if _vocabulary(other.folder) != _vocabulary(first.folder):
                raise UserError(
                    f"expected models of one vocabulary, but {other.folder} has another than {first.folder}: join runs "
                    "of one recipe on the same data"
                )
        self.network: Decodable = first if len(networks) == 1 else Ensemble(networks)
        self.folder, self.settings = first.folder, first.settings
        self.reader, self.target = load_reader(
            first.folder, first.vocabularies, (trust,) if isinstance(trust, str) else trust
        )
        with undamaged(f"the model in {self.folder}"):
            self.copy_map = None
            if self.settings["copy"]:
                assert isinstance(self.reader, Text)
                self.copy_map = CopyMap(self.reader.vocabulary, self.target)
            reranker = self.settings["reranker"]
            self.slots = None if reranker is None else Slots(reranker["slots"], reranker["values"])

    def __call__(self, inputs: Iterable[Any], batch_size: int = 32, **options: Any) -> list[list[Generated]]:
        """Generate.

        Args:
            inputs: texts, records, recordings, images or mappings of several, as the model's features read them; what
                has more positions than the model reads is cut, with a warning.
            batch_size: number of inputs of similar length that go through the network together.
            **options: see `GenerationConfig`.

        Raises:
            UserError: an input cannot be read (the message counts inputs from 0), there is no such option, or the
                files of the model are damaged.
        """
        if isinstance(inputs, str | bytes | Mapping) or batch_size < 1:
            raise UserError(
                f"expected a list of inputs, and a batch_size of at least 1, but got {type(inputs).__name__} and "
                f"{batch_size}: put a single input in a list"
            )
        config, given = self.network.config.changed(options), list(inputs)
        with undamaged(f"the model in {self.folder}"):
            return self._generate(given, batch_size, config)

    def _generate(self, inputs: list[Any], batch_size: int, config: GenerationConfig) -> list[list[Generated]]:
        results = [[Generated("", 0.0)] * config.num_return_sequences for _ in inputs]
        kept = [place for place, raw in enumerate(inputs) if not self.reader.is_missing(raw)]
        names = [f"input {place}" for place in kept]
        arrays = encode_named(self.reader.encode, [inputs[place] for place in kept], names)
        limit = self.settings["max_source_length"]
        if limit is not None and (longer := sum(self.reader.positions(array) > limit for array in arrays)):
            warnings.warn(f"{counted(longer, 'input')} cut to {limit} positions", stacklevel=3)
            arrays = [self.reader.truncate(array, limit) for array in arrays]
        order = sorted(range(len(kept)), key=lambda index: self.reader.positions(arrays[index]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            raw = [inputs[kept[index]] for index in batch]
            for index, found in zip(batch, self._batch([arrays[i] for i in batch], raw, config), strict=True):
                results[kept[index]] = found
        return results

    def _batch(self, arrays: list[Array], raw: list[Any], config: GenerationConfig) -> list[list[Generated]]:
        source = self.reader.collate(arrays)
        extra: list[tuple[str, ...]] = [()] * len(arrays)
        if self.copy_map is not None:
            assert isinstance(self.reader, Text)
            found, extra = self.copy_map.source([self.reader.prefix + text for text in raw], arrays)
            source["copy_ids"] = np.full(source["source"].shape, self.network.specials.pad, np.int64)
            for row, ids in zip(source["copy_ids"], found, strict=True):
                row[: len(ids)] = ids
        slots = self.slots if config.num_beams > 1 else None
        wanted = config if slots is None else dataclasses.replace(config, num_return_sequences=config.num_beams)
        hypotheses = self.network.generate(source, wanted)
        written = [
            [
                Generated(self.reader.restore(self.target.decode(one.tokens.tolist(), own), text), one.score)
                for one in row
            ]
            for row, own, text in zip(hypotheses, extra, raw, strict=True)
        ]
        if slots is None:
            return written
        ranked = [self._ranked(row, slots, text) for row, text in zip(written, raw, strict=True)]
        return [row[: config.num_return_sequences] for row in ranked]

    def _ranked(self, outputs: list[Generated], slots: Slots, raw: Any) -> list[Generated]:
        """Order the outputs of a record as `lit_seq2seq.reranking.SlotCoverage` does."""
        weight = self.settings["reranker"]["weight"]
        judged = [one._replace(score=one.score - weight * slots.errors(one.text, raw)) for one in outputs]
        return sorted(judged, key=lambda one: -one.score)


def _vocabulary(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in _VOCABULARY if (folder / name).is_file()]
