"""An exported model: raw inputs in, texts out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.features.feature import Array
from lit_seq2seq.files.lines import counted
from lit_seq2seq.files.untrusted import undamaged
from lit_seq2seq.live.policies import PolicyRoad
from lit_seq2seq.live.roads import Agreement, FrameRoad
from lit_seq2seq.live.streams import Live, Streams
from lit_seq2seq.reranking import Reranker, SlotCoverage, reranked
from lit_seq2seq.runtime.live import GraphDecoder, Pieces, PredictionGraphs
from lit_seq2seq.runtime.network import Decodable, Ensemble, Named, Network, Start
from lit_seq2seq.search import prefix_of
from lit_seq2seq.search.alignments import AlignmentSearch
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.settings import spec
from lit_seq2seq.types import Generated as Generated
from lit_seq2seq.types import Hypothesis, Padded, StepFunction, UserError


class Model:
    """An exported model with what reads its inputs and writes its outputs.

    `Model(".")(["Guten Morgen."])` gives for each input its outputs, best first.

    Args:
        folder: what `lit-seq2seq export` has written; several make an ensemble, which averages their probabilities.
        variant: `fp32`, `fp16` or `int8`.
        threads: number of threads; 0 lets onnxruntime choose.
        trust: modules of others that may be imported to read inputs or rank outputs; their code runs.

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
        trusted = (trust,) if isinstance(trust, str) else tuple(trust)
        networks = [Network(one, variant, threads, trusted) for one in folders]
        first = networks[0]
        for other in networks[1:]:
            if _vocabulary(other.folder) != _vocabulary(first.folder):
                raise UserError(
                    f"expected models of one vocabulary, but {other.folder} has another than {first.folder}: join runs "
                    "of one recipe on the same data"
                )
        self.network: Decodable = first if len(networks) == 1 else Ensemble(networks)
        self.folder, self.settings = first.folder, first.settings
        self._variant, self._threads = variant, threads
        self._opened: dict[str, Model] = {}
        self.processor = Processor.load(first.folder, trusted)
        with undamaged(f"the model in {self.folder}"):
            self.reranker = _reranker(self.settings["reranker"], trusted)

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
        if config.aligns:
            raise UserError(
                "details: times and emission need the model itself: use lit-seq2seq generate, or leave them out"
            )
        with undamaged(f"the model in {self.folder}"):
            return self._generate(given, batch_size, config)

    @property
    def vocabulary(self) -> Tokenizer:
        """The vocabulary of its outputs."""
        return self.processor.target

    @property
    def reads_sources(self) -> bool:
        """Whether it is no language model."""
        return not self.processor.source_feature.begins_output

    def begin(self, raw: Sequence[Any]) -> tuple[StepFunction[Any], Any]:
        """Begin to decode beside another model; see `lit_seq2seq.search.task.OtherModel`."""
        arrays = self.processor.encode(list(raw), [f"input {place}" for place in range(len(raw))])
        return self.network.step, self.network.start(self._named(arrays, raw)[1]).state

    def live(self, *, sampling_rate: int | None = None, agreement: int = 2, **options: Any) -> Live:
        """Begin to read one input in pieces, and to write its output while it is still coming; see `Live`.

        Args:
            sampling_rate: of the pieces in hertz, where they are samples; that of the model if `None`.
            agreement: for models that need their whole source, how many outputs have to agree on what is written.
            **options: see `GenerationConfig`.

        Raises:
            UserError: inputs have no pieces, or an unknown option.
        """
        return Live(self.streams(self.network.config.changed(options), agreement), sampling_rate)

    def streams(self, config: GenerationConfig, agreement: int = 2) -> Streams:
        """Begin to read several inputs in pieces, side by side; see `live`."""
        if (reranker := reranked(config, self.reranker)[0]) is not None:
            raise UserError(
                f"{type(reranker).__name__} chooses among whole outputs, but a stream writes while it reads: leave the "
                "reranker out, or give whole inputs"
            )
        if "prediction" not in self.network.live and config.policy is None:
            return Streams(Agreement(self.processor, config, self._write, agreement))
        if not self.network.live:
            raise UserError("policy: this model needs its whole source before it writes: set it to null")
        pieces, host = Pieces(self.folder, self._variant, self._threads), self.network.host(1, self._other)
        if "prediction" in self.network.live:
            given: Any = {"device": None, "vocabulary": self.vocabulary, "host": host}
            search = AlignmentSearch(PredictionGraphs(pieces), config, self.vocabulary.specials, **given)
            return Streams(FrameRoad(self.processor, config, pieces, search=search))
        assert isinstance(self.network, Network)
        feature = self.processor.source_feature
        empty = feature.collate([feature.nothing()[:0]])
        assert isinstance(empty, Padded)
        decoder = GraphDecoder(self.network, pieces, empty, self._search)
        return Streams(PolicyRoad(self.processor, config, pieces, decoder=decoder, device=None, host=host))

    def _search(self, start: Start, config: GenerationConfig) -> list[list[Hypothesis]]:
        """Search for outputs of sources that are encoded."""
        prefix = prefix_of(config, None, self.vocabulary, len(start.mask))
        return self.network.decode(start, config, prefix, other=self._other, vocabulary=self.vocabulary)

    def _write(self, source: Any, prefix: Array | None, config: GenerationConfig) -> list[list[Hypothesis]]:
        """Write outputs of whole sources for `Agreement`."""
        named = {name: np.asarray(values) for name, values in source.named().items()}
        return self.network.generate(named, config, prefix, vocabulary=self.vocabulary, other=self._other)

    def _other(self, name: str) -> Model:
        """Open another exported model."""
        if name not in self._opened:
            self._opened[name] = Model(name, self._variant, self._threads)
        return self._opened[name]

    def _named(self, arrays: Sequence[Array], raw: Sequence[Any]) -> tuple[Any, Named]:
        source = self.processor.collate(arrays, raw)
        return source, {name: np.asarray(values) for name, values in source.named().items()}

    def _generate(self, inputs: list[Any], batch_size: int, config: GenerationConfig) -> list[list[Generated]]:
        results = [[Generated("")] * config.num_return_sequences for _ in inputs]
        feature = self.processor.source_feature
        kept = [place for place, raw in enumerate(inputs) if not feature.is_missing(raw)]
        arrays = self.processor.encode([inputs[place] for place in kept], [f"input {place}" for place in kept])
        limit = self.settings["max_source_length"]
        if limit is not None and (longer := sum(feature.positions(array) > limit for array in arrays)):
            warnings.warn(f"{counted(longer, 'input')} cut to {limit} positions", stacklevel=3)
            arrays = [feature.truncate(array, limit) for array in arrays]
        order = sorted(range(len(kept)), key=lambda index: feature.positions(arrays[index]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            raw = [inputs[kept[index]] for index in batch]
            for index, found in zip(batch, self._batch([arrays[i] for i in batch], raw, config), strict=True):
                results[kept[index]] = found
        return results

    def _batch(self, arrays: list[Array], raw: list[Any], config: GenerationConfig) -> list[list[Generated]]:
        source, named = self._named(arrays, raw)
        reranker, wanted = reranked(config, self.reranker)
        restore = self.processor.source_feature.restore
        found = self.network.generate(named, wanted, vocabulary=self.vocabulary, raw=raw, other=self._other)
        results: list[list[Hypothesis]] = []
        for row, one in zip(self.processor.texts(found, source, raw, config.unknown), raw, strict=True):
            written = [replace(each, text=restore(each.text, one)) for each in row]
            best = written if reranker is None else reranker.order(written, one, config)
            results.append(list(best[: config.num_return_sequences]))
        return self.processor.outputs(results, source)


def _reranker(described: Mapping[str, Any] | None, trust: tuple[str, ...]) -> Reranker | None:
    """Build the reranker; early exports kept only the settings of a `SlotCoverage`."""
    if described is None or "class_path" not in described:
        return None if described is None else SlotCoverage(**described)
    make: Any = spec.build(described, trust, Callable[[], Reranker], saved=True)
    reranker: Reranker = make()
    return reranker


def _vocabulary(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in Processor.FILES if (folder / name).is_file()]
