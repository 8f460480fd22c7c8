"""Tokenizers learned from the training split, and kept for the next run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import tokenizers
from datasets import Dataset
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info

from lit_seq2seq.data.encoding import cache_folder
from lit_seq2seq.data.rows import RowMapper
from lit_seq2seq.data.sources import Split
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.types import UserError

_VERSION = 1  # of the way tokenizers are trained: raise it when the same settings give another vocabulary
Side = Literal["source", "target"]


def learn_processor(
    train: Split,
    mapper: RowMapper,
    source: Tokenizer | None,
    target: Tokenizer | None,
    shared: bool,
    prefix: str,
    rows: int,
) -> Processor:
    """Learn the tokenizers of both sides, or find them in the cache.

    Args:
        train: the training split.
        mapper: finds the texts; resolved.
        source: settings of the source tokenizer, or one with a vocabulary; 8,000 BPE units if `None`.
        target: the same for the target; as the source if `None`.
        shared: whether both sides share one tokenizer.
        prefix: text put before every source.
        rows: greatest number of rows to learn from.

    Raises:
        UserError: if a shared vocabulary is asked for together with a target tokenizer.
    """
    if shared and target is not None:
        raise UserError("expected no target_tokenizer with shared_vocabulary, but it is set: unset one of them")
    source = Tokenizer() if source is None else source
    if shared:
        both = _learn(train, mapper, source, ("source", "target"), prefix, rows)
        return Processor(both, both, prefix)
    return Processor(
        _learn(train, mapper, source, ("source",), prefix, rows),
        _learn(train, mapper, source if target is None else target, ("target",), prefix, rows),
        prefix,
    )


def _learn(
    train: Split, mapper: RowMapper, settings: Tokenizer, sides: Sequence[Side], prefix: str, rows: int
) -> Tokenizer:
    if settings.is_trained:
        return settings
    path = None
    if isinstance(train, Dataset):
        config = {name: value for name, value in settings.config.items() if name != "dropout"}
        state = (_VERSION, tokenizers.__version__, train._fingerprint, mapper, config, tuple(sides), prefix, rows)
        path = cache_folder() / f"{Hasher.hash(state)}.tokenizer.json"
        if path.is_file():
            return Tokenizer.from_json(path.read_text(encoding="utf-8"), **settings.config)
    tokenizer = Tokenizer(**settings.config)
    total = min(len(train), rows) if isinstance(train, Dataset) else None
    rank_zero_info(f"learning the {' and '.join(sides)} vocabulary ({settings.config['model']})")
    tokenizer.train(_texts(train, mapper, sides, prefix, rows), total)
    if path is not None:
        _write(path, tokenizer.to_json())
    return tokenizer


def _texts(train: Split, mapper: RowMapper, sides: Sequence[Side], prefix: str, rows: int) -> Iterator[list[str]]:
    if isinstance(train, Dataset):
        train = train.select_columns([name for name in mapper.roots if name in train.column_names])
        train = train if len(train) <= rows else train.select(range(0, len(train), -(-len(train) // rows)))
    else:
        train = train.take(rows)
    for batch in train.iter(1000):
        if "source" in sides:
            yield [prefix + text for text in mapper.sources(batch) if text]
        if "target" in sides:
            yield [text for texts in mapper.targets(batch) for text in texts]


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
