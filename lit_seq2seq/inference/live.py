"""Models in torch that write while they read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.inference.roads import road_of
from lit_seq2seq.live.streams import LONGEST, Streams
from lit_seq2seq.live.streams import Live as Live
from lit_seq2seq.live.streams import Stream as Stream
from lit_seq2seq.search import GenerationConfig


class LiveStreams(Streams):
    """Inputs that come in pieces, side by side, and what a model writes of each as it comes; any thread may use them.

    Args:
        predictor: the model.
        config: options of generation; those of the model if `None`.
        agreement: for models that need their whole source, how many outputs have to agree; see `Agreement`.
        longest: see `Streams`.

    Raises:
        UserError: the model has no such streams with these options.
    """

    def __init__(
        self,
        predictor: Predictor,
        config: GenerationConfig | None = None,
        agreement: int = 2,
        *,
        longest: int = LONGEST,
    ) -> None:
        model = predictor.fast

        @contextmanager
        def running() -> Iterator[None]:
            with torch.inference_mode(), predictor.running():
                yield

        super().__init__(road_of(model, model.generation if config is None else config, agreement), running, longest)
