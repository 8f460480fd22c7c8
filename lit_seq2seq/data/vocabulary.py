"""Tokenizers and other features learned from the training split, and kept for the next run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tokenizers
from datasets import Dataset
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.cache import cache_folder
from lit_seq2seq.data.rows import RowMapper, hidden_targets
from lit_seq2seq.data.sources import Split
from lit_seq2seq.features import Feature, MultiSource, Processor, Tokenizer
from lit_seq2seq.runtime.lines import counted
from lit_seq2seq.types import UserError

_VERSION = 3  # of the way features are trained: raise it when the same settings give another vocabulary
F = TypeVar("F", bound=Feature)
Side = Literal["source", "target"]


def learn_processor(
    train: Split,
    mapper: RowMapper,
    source: Feature | None,
    target: Tokenizer | None,
    *,
    shared: bool,
    prefix: str,
    rows: int,
    copy: bool = False,
) -> Processor:
    """Learn the features of both sides, or find them in the cache.

    Args:
        train: the training split.
        mapper: finds the sources and texts; resolved.
        source: settings of the source feature, or one that has learned; a tokenizer of 8,000 BPE units if `None`.
        target: the same for the target; as the source if `None` and that is a tokenizer.
        shared: whether both sides share one tokenizer.
        prefix: text put before every source.
        rows: greatest number of rows to learn from.
        copy: see `Processor`.

    Raises:
        UserError: if a shared vocabulary is asked for together with a target tokenizer, or a source that is not text.
    """
    if shared and target is not None:
        raise UserError("expected no target_tokenizer with shared_vocabulary, but it is set: unset one of them")
    source = Tokenizer() if source is None else source
    if isinstance(source, Tokenizer):
        target = source if target is None else target
    elif shared or prefix:
        setting = "shared_vocabulary" if shared else "source_prefix"
        raise UserError(f"expected no {setting} with a source_feature that is not text, but it is set: unset it")
    if shared and target is not None:
        both = _learn(train, mapper, target, ("source", "target"), prefix, rows)
        return Processor(both, both, prefix, copy)
    source = _learn_source(train, mapper, source, prefix, rows)
    target = _learn(train, mapper, Tokenizer() if target is None else target, ("target",), prefix, rows, source)
    return Processor(source, target, prefix, copy)


def fits(known: Processor, source: Feature | None, target: Tokenizer | None, prefix: str) -> bool:
    """Tell whether a trained processor may be what settings ask for; what is unset asks for nothing.

    Args:
        known: the processor.
        source: settings of the source feature.
        target: settings of the target tokenizer.
        prefix: text put before every source.
    """

    def alike(asked: Feature | None, there: Feature) -> bool:
        if asked is None or asked.is_trained:
            return asked is None or asked.identity() == there.identity()
        ignored = asked.random_settings
        mine, theirs = ({k: v for k, v in f.config.items() if k not in ignored} for f in (asked, there))
        return type(asked) is type(there) and mine == theirs

    return alike(source, known.source_feature) and alike(target, known.target) and prefix in ("", known.source_prefix)


def _learn_source(train: Split, mapper: RowMapper, source: Feature, prefix: str, rows: int) -> Feature:
    if not isinstance(source, MultiSource):
        return _learn(train, mapper, source, ("source",), prefix, rows)
    parts = source.features.items()
    return MultiSource({name: _learn(train, mapper.part(name), part, ("source",), "", rows) for name, part in parts})


def extend_processor(
    given: Processor, train: Split, mapper: RowMapper, target: Tokenizer | None, *, limit: int, rows: int
) -> Processor:
    """Fit a trained processor to new data.

    Args:
        given: the processor.
        train: the training split of the new data.
        mapper: finds the sources and texts; resolved.
        target: settings of another target tokenizer; the given one stays if `None`.
        limit: greatest number of symbols that a vocabulary may grow by.
        rows: greatest number of rows to learn from.
    """
    source = given.source_feature

    def grown(feature: F, *sides: Side) -> F:
        raw = _raw(train, mapper, sides, given.source_prefix, rows, feature.rows_at_once, source)
        longer = feature.extended(raw, limit) if limit else feature
        added = longer.symbols[len(feature.symbols) :]
        if added:
            shown = " ".join(added[:20]) + (" ..." if len(added) > 20 else "")
            rank_zero_info(f"{counted(len(added), 'new symbol')} of the {' and '.join(sides)} side: {shown}")
        return longer

    if given.shared and target is None:
        both = grown(given.target, "source", "target")
        return Processor(both, both, given.source_prefix, given.copy)
    if target is None:
        other = grown(given.target, "target")
    else:
        other = _learn(train, mapper, target, ("target",), "", rows, source)
    return Processor(grown(source, "source"), other, given.source_prefix, given.copy)


def _learn(
    train: Split,
    mapper: RowMapper,
    settings: F,
    sides: Sequence[Side],
    prefix: str,
    rows: int,
    source: Feature | None = None,
) -> F:
    if settings.is_trained:
        return settings
    cls, path = type(settings), None
    if isinstance(train, Dataset):
        config = {name: value for name, value in settings.config.items() if name not in settings.random_settings}
        state = (_VERSION, tokenizers.__version__, cls.__qualname__, train._fingerprint, mapper, config, tuple(sides))
        hidden = source.config if source is not None and source.hides else None
        path = cache_folder() / f"{Hasher.hash((*state, prefix, rows, hidden))}.feature.json"
        if path.is_file():
            learned: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict({**learned, "config": settings.config})
    feature = cls(**settings.config)
    total = min(len(train), rows) if isinstance(train, Dataset) else None
    rank_zero_info(f"learning the {' and '.join(sides)} side from the training data ({_brief(settings)})")
    feature.train(_raw(train, mapper, sides, prefix, rows, settings.rows_at_once, source or settings), total)
    if path is not None:
        _write(path, json.dumps(feature.to_dict(), ensure_ascii=False))
    return feature


def _brief(settings: Feature) -> str:
    return f"{type(settings).__name__} {settings.config.get('model', '')}".strip()


def _raw(
    train: Split, mapper: RowMapper, sides: Sequence[Side], prefix: str, rows: int, at_once: int, source: Feature
) -> Iterator[list[Any]]:
    names = mapper.roots if "source" in sides or source.hides else mapper.text_roots
    if isinstance(train, Dataset):
        train = train.select_columns([name for name in names if name in train.column_names])
        train = train if len(train) <= rows else train.select(range(0, len(train), -(-len(train) // rows)))
    else:
        train = train.take(rows)
    for batch in train.iter(at_once):
        if "source" in sides:
            yield [prefix + raw if prefix else raw for raw in mapper.sources(batch) if raw is not None]
        if "target" in sides:
            yield [text for texts in hidden_targets(batch, mapper, source) for text in texts]


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
