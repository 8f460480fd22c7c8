"""Vocabularies that grow: symbols of new data follow those that are there, which keep their ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import tokenizers
from tokenizers.trainers import Trainer

from lit_seq2seq.features.schemes import SCHEMES
from lit_seq2seq.types import UserError

_KINDS = {"WordLevel": "word", "BPE": "bpe", "Unigram": "unigram"}


def extend_vocabulary(
    text: str, raw: Iterable[str | list[str]], limit: int, least: int = 1, *, kind: str | None = None
) -> str:
    """Add symbols that are learned from new texts to a `tokenizer.json`.

    A vocabulary of the same kind, with the same normalisation and splitting, is learned from the new texts. Those of
    its symbols that are not there yet are appended: the most frequent words or characters; of BPE the characters, then
    the merges in the order in which they were learned, which come after all merges there are; of a unigram model the
    pieces with their scores. Words and characters of the old vocabulary are split as before; subwords of old text may
    be joined further.

    Args:
        text: the `tokenizer.json`.
        raw: the new texts, or lists of them.
        limit: greatest number of symbols to add.
        least: symbols seen less often are not added.
        kind: one of the kinds of `Tokenizer`, for one of our own.

    Returns:
        The longer `tokenizer.json`.

    Raises:
        UserError: a kind of tokenizer that cannot grow.
    """
    known, learner = json.loads(text), tokenizers.Tokenizer.from_str(text)
    model, size = known["model"], learner.get_vocab_size()
    if model["type"] not in _KINDS or (model["type"] == "Unigram" and len(model["vocab"]) != size):
        raise UserError(
            f"a vocabulary of this kind ({model['type']}) cannot be extended: set data.extend_vocabulary to 0"
        )
    trainer: Callable[[int, int, list[str]], Trainer] = SCHEMES[kind or _KINDS[model["type"]]].trainer
    learner.train_from_iterator(
        raw, trainer(size + limit, least, [token["content"] for token in known["added_tokens"]])
    )
    _APPEND[model["type"]](model, json.loads(learner.to_str())["model"], size, limit)
    return json.dumps(known, ensure_ascii=False)


def _append_words(model: dict[str, Any], learned: dict[str, Any], size: int, limit: int) -> None:
    vocabulary = model["vocab"]
    new = [token for token in sorted(learned["vocab"], key=learned["vocab"].get) if token not in vocabulary]
    vocabulary.update({token: size + index for index, token in enumerate(new[:limit])})


def _append_merges(model: dict[str, Any], learned: dict[str, Any], size: int, limit: int) -> None:
    _append_words(model, learned, size, limit)
    there = {tuple(pair) for pair in model["merges"]}
    model["merges"] += [
        pair
        for pair in learned["merges"]
        if tuple(pair) not in there and all(part in model["vocab"] for part in (*pair, "".join(pair)))
    ]


def _append_pieces(model: dict[str, Any], learned: dict[str, Any], size: int, limit: int) -> None:
    there = {piece for piece, _ in model["vocab"]}
    model["vocab"] += [entry for entry in learned["vocab"] if entry[0] not in there][:limit]


_APPEND = {"WordLevel": _append_words, "BPE": _append_merges, "Unigram": _append_pieces}
