"""What a model answers, and what may be asked of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi import HTTPException

from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.serve.schema import GenerateRequest, RequestLimits, request_of
from lit_seq2seq.types import Generated, Returning, UserError

_log = logging.getLogger(__name__)


class Work(NamedTuple):
    """What a request asks for."""

    raw: Any
    config: GenerationConfig


class Service:
    """What a model answers, and what may be asked of it."""

    def __init__(self, predictor: Predictor, limits: RequestLimits) -> None:
        self.predictor, self.limits = predictor, limits
        self.request = request_of(predictor.model.processor.source_feature)

    def work(self, asked: GenerateRequest, alone: bool = False) -> Work:
        """Return what a request asks for; see `config`.

        Raises:
            HTTPException: the input is too long.
        """
        size, most = asked.size(), self.limits.max_length
        if size > most:
            raise HTTPException(413, f"the input has a length of {size}: must be at most {most}")
        return Work(asked.raw(), self.config(asked, alone))

    def config(self, asked: GenerateRequest, alone: bool = False) -> GenerationConfig:
        """Join the options of a request with those of the model, whose own lengths are cut to what is allowed here.

        Raises:
            UserError: the options do not fit together, or go beyond the limits.
            HTTPException: texts among them are too long.
        """
        limits, own = self.limits, self.predictor.model.generation
        lengths = {name: getattr(own, name) for name in ("max_new_tokens", "min_new_tokens")}
        own = replace(own, **{name: min(length, limits.max_new_tokens) for name, length in lengths.items()})
        config = (own.quick(1) if alone else own).changed(asked.options())
        texts = len(config.prefix) + sum(map(len, (*config.bad_words, *config.force_words)))
        if texts > limits.max_length:
            raise HTTPException(
                413, f"prefix, bad_words and force_words have {texts} characters: at most {limits.max_length}"
            )
        most = {"num_beams": limits.max_beams, "num_return_sequences": limits.max_beams}
        for name, value in {**most, "max_new_tokens": limits.max_new_tokens}.items():
            if name in asked.options() and getattr(config, name) > value:
                raise UserError(f"{name}={getattr(config, name)}: must be at most {value} here")
        return config

    def generate(self, batch: list[Work]) -> list[list[Generated] | Exception]:
        """Answer a batch, together what has the same options; what cannot be read fails alone.

        What is drawn by a seed is drawn alone, as the random numbers of an output depend on its place in the batch.
        """
        results: list[list[Generated] | Exception] = [[]] * len(batch)
        groups: list[tuple[GenerationConfig, list[int]]] = []
        for place, (_, config) in enumerate(batch):
            seeded = config.do_sample and config.seed is not None
            known = next((places for one, places in groups if one == config and not seeded), None)
            if known is None:
                groups.append((config, [place]))
            else:
                known.append(place)
        for config, places in groups:
            for place, found in zip(places, self._together([batch[p].raw for p in places], config), strict=True):
                results[place] = found
        return results

    def _together(self, raw: list[Any], config: GenerationConfig) -> list[list[Generated] | Exception]:
        try:
            return list(self.predictor.stream(raw, config))
        except Exception as error:
            if len(raw) == 1:
                return [error]
            return [found for one in raw for found in self._together([one], config)]

    def stream_work(self, asked: GenerateRequest) -> Work:
        """Search greedily unless the request says otherwise.

        Raises:
            UserError: the request asks for several beams or outputs.
        """
        work = self.work(asked, alone=True)
        for name in ("num_beams", "num_return_sequences"):
            if getattr(work.config, name) > 1:
                raise UserError(f"{name}={getattr(work.config, name)}: must be 1 to stream, use /predict")
        return work

    def pieces(self, work: Work) -> Iterator[dict[str, Any]]:
        """Generate piece by piece, within the time allowed: `{"text": ...}`, at last `{"done": True}` or an error."""
        started, pieces = time.monotonic(), Returning(self.predictor.stream_text(work.raw, work.config))
        try:
            for piece in pieces:
                yield {"text": piece}
                if time.monotonic() - started > self.limits.timeout:
                    raise UserError(f"the output took more than {self.limits.timeout:g} seconds")
            yield {"done": True} if pieces.value else {"done": True, "met": False}
        except UserError as error:
            yield {"error": str(error)}
        except Exception:
            _log.exception("a stream failed")
            yield {"error": "the server failed: its log says why"}
