"""Tokenizers and other features learned from the training split, and kept for the next run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import tokenizers
from datasets import Dataset
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.cache import cache_folder, code_of
from lit_seq2seq.data.rows import RowMapper, hidden_targets
from lit_seq2seq.data.sources import Split
from lit_seq2seq.features import Feature, MultiSource, Processor, Tokenizer
from lit_seq2seq.files.lines import counted
from lit_seq2seq.types import UserError

_VERSION = 3  # of the way features are trained: raise it when the same settings give another vocabulary
F = TypeVar("F", bound=Feature)
Side = Literal["source", "target"]


@dataclass(frozen=True)
class Learner:
    """Learns features from a training split, or finds them in the cache.

    Args:
        train: the training split.
        mapper: finds the sources and texts; resolved.
        rows: greatest number of rows to learn from.
        prefix: text put before every source.
    """

    train: Split
    mapper: RowMapper
    rows: int
    prefix: str = ""

    def processor(self, source: Feature | None, target: Tokenizer | None, shared: bool, copy: bool) -> Processor:
        """Learn the features of both sides.

        Args:
            source: settings of the source feature, or one that has learned; a tokenizer of 8,000 BPE units if `None`.
            target: the same for the target; as the source if `None` and that is a tokenizer.
            shared: whether both sides share one tokenizer.
            copy: see `Processor`.

        Raises:
            UserError: if a shared vocabulary is asked for together with a target tokenizer, or a source that is not
                text.
        """
        if shared and target is not None:
            raise UserError("expected no target_tokenizer with shared_vocabulary, but it is set: unset one of them")
        source = Tokenizer() if source is None else source
        if isinstance(source, Tokenizer):
            target = source if target is None else target
        elif shared or self.prefix:
            setting = "shared_vocabulary" if shared else "source_prefix"
            raise UserError(f"expected no {setting} with a source_feature that is not text, but it is set: unset it")
        if shared and target is not None:
            both = self._learn(target, ("source", "target"))
            return Processor(both, both, self.prefix, copy)
        if isinstance(source, MultiSource):
            learners = {name: replace(self, mapper=self.mapper.part(name)) for name in source.features}
            source = MultiSource({name: learners[name]._learn(f, ("source",)) for name, f in source.features.items()})
        else:
            source = self._learn(source, ("source",))
        target = self._learn(Tokenizer() if target is None else target, ("target",), source)
        return Processor(source, target, self.prefix, copy)

    def extended(self, given: Processor, target: Tokenizer | None, limit: int) -> Processor:
        """Fit a trained processor to new data, by at most `limit` symbols a side, or with another target tokenizer."""
        source = given.source_feature

        def grown(feature: F, *sides: Side) -> F:
            longer = feature.extended(self._raw(sides, feature.rows_at_once, source), limit) if limit else feature
            added = longer.symbols[len(feature.symbols) :]
            if added:
                shown = " ".join(added[:20]) + (" ..." if len(added) > 20 else "")
                rank_zero_info(f"{counted(len(added), 'new symbol')} of the {' and '.join(sides)} side: {shown}")
            return longer

        if given.shared and target is None:
            both = grown(given.target, "source", "target")
            return Processor(both, both, self.prefix, given.copy)
        other = grown(given.target, "target") if target is None else self._learn(target, ("target",), source)
        return Processor(grown(source, "source"), other, self.prefix, given.copy)

    def _learn(self, settings: F, sides: Sequence[Side], source: Feature | None = None) -> F:
        if settings.is_trained:
            return settings
        cls, path, train = type(settings), None, self.train
        if isinstance(train, Dataset):
            config = {name: value for name, value in settings.config.items() if name not in settings.random_settings}
            hidden = source.config if source is not None and source.hides else None
            state = (
                _VERSION,
                tokenizers.__version__,
                cls.__qualname__,
                code_of(cls),
                train._fingerprint,
                self.mapper,
                config,
            )
            key = Hasher.hash((*state, tuple(sides), self.prefix, self.rows, hidden))
            path = cache_folder() / f"{key}.feature.json"
            if path.is_file():
                learned: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return cls.from_dict({**learned, "config": settings.config})
        feature = cls(**settings.config)
        total = min(len(train), self.rows) if isinstance(train, Dataset) else None
        told = f"{cls.__name__} {settings.config.get('model', '')}".strip()
        rank_zero_info(f"learning the {' and '.join(sides)} side from the training data ({told})")
        feature.train(self._raw(sides, settings.rows_at_once, source or settings), total)
        if path is not None:
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(feature.to_dict(), ensure_ascii=False), encoding="utf-8")
            partial.replace(path)
        return feature

    def _raw(self, sides: Sequence[Side], at_once: int, source: Feature) -> Iterator[list[Any]]:
        train, names = self.train, self.mapper.roots if "source" in sides or source.hides else self.mapper.text_roots
        if isinstance(train, Dataset):
            train = train.select_columns([name for name in names if name in train.column_names])
            if (step := -(-len(train) // self.rows)) > 1:
                train = train.select(range(0, len(train), step))
        else:
            train = train.take(self.rows)
        for batch in train.iter(at_once):
            if "source" in sides:
                sources = [raw for raw in self.mapper.sources(batch) if raw is not None]
                yield [self.prefix + raw for raw in sources] if self.prefix else sources
            if "target" in sides:
                yield [text for texts in hidden_targets(batch, self.mapper, source) for text in texts]


def fits(known: Processor, source: Feature | None, target: Tokenizer | None, prefix: str) -> bool:
    """Tell whether a trained processor may be what settings ask for; what is unset asks for nothing."""

    def alike(asked: Feature | None, there: Feature) -> bool:
        if asked is None or asked.is_trained:
            return asked is None or asked.identity() == there.identity()
        ignored = asked.random_settings
        mine, theirs = ({k: v for k, v in f.config.items() if k not in ignored} for f in (asked, there))
        return type(asked) is type(there) and mine == theirs

    return alike(source, known.source_feature) and alike(target, known.target) and prefix in ("", known.source_prefix)
