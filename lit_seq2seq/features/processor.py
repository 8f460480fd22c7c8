"""Both sides of a task: what the model reads and what it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from lit_seq2seq.features.copying import CopyMap
from lit_seq2seq.features.feature import Array, Feature, build_feature, describe_feature, encode_named
from lit_seq2seq.features.text import whole
from lit_seq2seq.features.tokenizer import Tokenizer
from lit_seq2seq.files.untrusted import check_settings, read_json, undamaged
from lit_seq2seq.settings import spec
from lit_seq2seq.types import CopySource, Generated, Hypothesis, Padded, Shared, Source, Sources, UserError


class Processor:
    """The source feature and the target tokenizer of one model.

    Args:
        source: what turns raw inputs into arrays; the very same object as `target` for a shared vocabulary.
        target: the tokenizer of the outputs.
        source_prefix: text put before every source, such as `"translate: "`.
        copy: give sources as `CopySource`, for a model that copies from them.

    Raises:
        UserError: there is nothing to copy because sources are not text.
    """

    FILES: ClassVar[tuple[str, ...]] = (
        "processor.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "source_tokenizer.json",
        "target_tokenizer.json",
    )
    """What `save` may write."""

    def __init__(self, source: Feature, target: Tokenizer, source_prefix: str = "", copy: bool = False) -> None:
        self.source_feature = source.beside(target)
        self.target = target
        self.source_prefix = source_prefix
        self.copy = copy
        if source_prefix and not isinstance(source, Tokenizer):
            raise UserError(
                f"expected no source_prefix with {type(source).__name__}, which reads no text, but it is set"
            )
        if copy and not isinstance(source, Tokenizer):
            raise UserError(
                f"expected text sources to copy from, got {type(source).__name__}: use an output that does not"
            )

    @property
    def shared(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source_feature is self.target

    def source(self, raw: Sequence[Any], max_length: int | None = None) -> Padded | Sources:
        """Turn raw inputs into the padded batch of tensors that the encoder reads.

        Args:
            raw: one raw value per example.
            max_length: longer inputs are cut to so many positions.
        """
        arrays = self.encode(raw, [f"input {place}" for place in range(len(raw))])
        if max_length is not None:
            arrays = [self.source_feature.truncate(array, max_length) for array in arrays]
        return self.collate(arrays, raw).to("cpu")

    def encode(self, raw: Sequence[Any], names: Sequence[str]) -> list[Array]:
        """Turn raw inputs, the prefix before each, into arrays; one that cannot be read is told by its name."""
        return encode_named(lambda values: self.source_feature.encode(self.prefixed(values)), raw, names)

    def collate(self, arrays: Sequence[Array], raw: Sequence[Any]) -> Padded | Sources:
        """Pad encoded sources into one batch, of arrays of NumPy.

        Args:
            arrays: the encoded sources, possibly cut.
            raw: what they were encoded from.
        """
        padded = self.source_feature.collate(arrays)
        if not self.copy or isinstance(padded, Sources):
            return padded
        ids, symbols = self.copy_map.source(self.prefixed(raw), arrays)
        return CopySource(padded.values, padded.lengths, self.target.collate(ids).values, tuple(symbols))

    @cached_property
    def copy_map(self) -> CopyMap:
        """What names source symbols by target ids."""
        assert isinstance(self.source_feature, Tokenizer)
        return CopyMap(self.source_feature, self.target)

    def texts(
        self,
        found: Sequence[Sequence[Hypothesis]],
        source: Source | None = None,
        raw: Sequence[Any] = (),
        unknown: Callable[[str], str] | None = None,
    ) -> list[list[Hypothesis]]:
        """Say what the outputs of a batch are.

        Args:
            found: the outputs of each source.
            source: which names the symbols that the vocabulary lacks; without it they are unknown.
            raw: the raw input of each source, for `unknown`.
            unknown: what is written for an unknown symbol that attends most to some source word.
        """
        if unknown is not None and not raw:
            raise UserError("replace_unknown=True looks at the raw inputs: give raw to generate, or lists of inputs")
        size, unk = len(self.target), self.target.specials.unk
        ids, extra = [], []
        for row, own in enumerate(found):
            symbols = () if source is None else source.extra(row)
            for one in own:
                own_ids = [index if index < size + len(symbols) else unk for index in one.tokens.tolist()]
                known = symbols
                if unknown is not None and unk in own_ids:
                    words = self.source_feature.pieces(self.prefixed([raw[row]])[0])
                    best = _attended(one, len(words))
                    own_ids = [
                        size + len(symbols) + best[place] if index == unk and place in best else index
                        for place, index in enumerate(own_ids)
                    ]
                    known = (*symbols, *map(unknown, words))
                ids.append(own_ids)
                extra.append(known)
        texts = iter(self.target.decode_batch(ids, extra))
        return [[replace(one, text=next(texts)) for one in own] for own in found]

    def outputs(self, found: Sequence[Sequence[Hypothesis]], source: Source) -> list[list[Generated]]:
        """Tell what is known of the outputs of each source of a batch, best first."""
        if isinstance(source, Shared):
            own, rows = source.distinct, source.index.tolist()
            return [[self._output(one, own, row) for one in some] for row, some in zip(rows, found, strict=True)]
        return [[self._output(one, source, row) for one in own] for row, own in enumerate(found)]

    def _output(self, one: Hypothesis, source: Padded | Sources, row: int) -> Generated:
        extra, copies, target = source.extra(row), source.copies, self.target
        length = int(source.lengths[row])
        if copies is None:
            sources = self.source_feature.labels(source, row)
        else:
            sources = target.tokens(copies.ids[row, :length].tolist(), extra)
        ended = len(one.token_scores) > len(one.tokens)
        marks = {*self.source_feature.marks, *target.marks}
        return Generated(
            one.text,
            one.score,
            tuple(target.tokens(one.tokens.tolist() + [target.specials.eos] * ended, extra)),
            tuple(one.token_scores.tolist()),
            tuple(sources),
            one.attention,
            one.regions,
            aligned(one, [name in marks for name in sources]),
            one.met,
            () if one.delays is None else tuple(min(delay, length) for delay in one.delays.tolist()),
            length,
            tuple(self.times(one, length)),
            one.emission,
        )

    def times(self, one: Hypothesis, length: int) -> list[float]:
        """Tell when each symbol of an output is written: milliseconds, or positions of a source of `length`."""
        places = [] if one.written is None else [min(place, length) for place in one.written.tolist()]
        times = [self.source_feature.time(place, length) for place in places]
        return [place if time is None else time for place, time in zip(places, times, strict=True)]

    def prefixed(self, raw: Sequence[Any]) -> Sequence[Any]:
        """Put the source prefix before each raw input."""
        return [self.source_prefix + whole(value) for value in raw] if self.source_prefix else raw

    def to_dict(self) -> dict[str, Any]:
        """Describe the processor by plain JSON values; `source` is `None` for a shared vocabulary."""
        return {
            "source_prefix": self.source_prefix,
            "copy": self.copy,
            "source": None if self.shared else _describe(self.source_feature),
            "target": self.target.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], trust: tuple[str, ...] = ()) -> Self:
        """Build the processor that `to_dict` described.

        Args:
            values: plain values; a source without `class_path` is a tokenizer.
            trust: packages, beyond this one and torch, whose classes may be named as the source feature.

        Raises:
            UserError: the source is of a class that is not trusted, not there or not a feature.
        """
        with undamaged("the processor"):
            spec.check_values(cls, {"source_prefix": values["source_prefix"], "copy": values.get("copy", False)})
            check_settings({"source_prefix": values["source_prefix"]}, "the processor")
            target = Tokenizer.from_dict(values["target"])
            source = target if values["source"] is None else _build(values["source"], trust)
            return cls(source, target, values["source_prefix"], values.get("copy", False))

    def identity(self) -> dict[str, Any]:
        """Describe what two processors must share to give a model the same inputs and outputs."""
        return {
            "source_prefix": self.source_prefix,
            "copy": self.copy,
            "source": None if self.shared else self.source_feature.identity(),
            "target": self.target.identity(),
        }

    def kept_by(self, other: Processor) -> tuple[int, int]:
        """Count the symbols of either side that have the same ids in `other`: all of a side, or none.

        Where the source has no symbols, it is its size that is kept.

        Raises:
            UserError: the sources are read in different ways.
        """
        mine, theirs = self.source_feature, other.source_feature
        if not (mine.symbols and theirs.symbols) and mine.identity() != theirs.identity():
            raise UserError(
                "the data reads its source in another way than the model: give the source_feature it was trained with"
            )
        size = mine.size if isinstance(mine.size, int) else sum(mine.size.values())
        source = _kept(mine, theirs) if mine.symbols else size
        return source, _kept(self.target, other.target)

    def grows_into(self, other: Processor) -> bool:
        """Tell whether `other` has all symbols of both sides, with the same ids, and perhaps more."""
        if (self.copy, self.source_prefix, self.shared) != (other.copy, other.source_prefix, other.shared):
            return False
        return self.kept_by(other) == (self.source_feature.size, self.target.size)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `processor.json` and a `tokenizer.json` for each vocabulary; `transformers` reads a single one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = self.to_dict()
        for side, name in _files(values).items():
            tokenizer = values[side].pop("tokenizer")
            (folder / name).write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")
            if name == "tokenizer.json":
                config = json.dumps(self.target.transformers_config(), ensure_ascii=False, indent=2)
                (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
        (folder / "processor.json").write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], trust: tuple[str, ...] = ()) -> Self:
        """Read what `save` wrote; see `from_dict`.

        Raises:
            UserError: if a file is missing or damaged, or names a class that is not trusted.
        """
        folder = Path(folder)
        values = read_json(folder / "processor.json")
        with undamaged(f"the processor in {folder}"):
            for side, name in _files(values).items():
                values[side]["tokenizer"] = read_json(folder / name)
        return cls.from_dict(values, trust)


def aligned(hypothesis: Hypothesis, special: Sequence[bool] = ()) -> tuple[tuple[int, int], ...]:
    """Pair each output symbol but EOS with the source position that it attends to most; nothing without attention.

    Args:
        hypothesis: the output.
        special: which source positions do not count, such as that of EOS; none if empty.
    """
    if hypothesis.attention is None:
        return ()
    weights = np.array(hypothesis.attention.tolist()).reshape(len(hypothesis.token_scores), -1)  # (T, S)
    weights = weights[: len(hypothesis.tokens)]
    if len(special) == weights.shape[1]:
        weights = np.where(special, -1, weights)
    return tuple((int(row.argmax()), place) for place, row in enumerate(weights) if row.max(initial=-1) >= 0)


def _attended(hypothesis: Hypothesis, words: int) -> dict[int, int]:
    """Return for output symbols which of the first `words` source positions they attend to most."""
    assert hypothesis.attention is not None  # search refuses what has none
    special = [words <= place for place in range(hypothesis.attention.shape[1])]
    return {output: source for source, output in aligned(hypothesis, special)}


def _kept(old: Feature, new: Feature) -> int:
    names = old.symbols
    return len(names) if new.symbols[: len(names)] == names else 0


def _files(values: dict[str, Any]) -> dict[str, str]:
    """Name the file of each side's vocabulary."""
    if values["source"] is None or "class_path" in values["source"]:
        return {"target": "tokenizer.json"}
    return {side: f"{side}_tokenizer.json" for side in ("source", "target")}


def _describe(feature: Feature) -> dict[str, Any]:
    return feature.to_dict() if type(feature) is Tokenizer else describe_feature(feature)


def _build(values: dict[str, Any], trust: tuple[str, ...]) -> Feature:
    return build_feature(values, trust) if "class_path" in values else Tokenizer.from_dict(values)
