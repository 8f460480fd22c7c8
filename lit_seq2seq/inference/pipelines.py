"""`pipeline`: a trained model as a function, with the inputs and results of transformers 4's pipelines."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import torch

from lit_seq2seq.features import Feature
from lit_seq2seq.files.paths import Loading
from lit_seq2seq.inference.live import Live, LiveStreams
from lit_seq2seq.inference.model import EnsembleModel, Seq2SeqModel, Trained, model_of
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.types import Generated, UserError


class Results(NamedTuple):
    """The form in which transformers 4 returns the results of a task.

    Attributes:
        key: of the text.
        listed: whether a single input gives a list.
        each_listed: whether each of several inputs gives a list.
    """

    key: str
    listed: bool = True
    each_listed: bool = False


RESULTS: dict[str, Results] = {
    "translation": Results("translation_text"),
    "summarization": Results("summary_text"),
    "text2text-generation": Results("generated_text"),
    "text-generation": Results("generated_text", each_listed=True),
    "automatic-speech-recognition": Results("text", listed=False),
    "image-to-text": Results("generated_text", each_listed=True),
}


class Pipeline:
    """A task's function with the inputs and results of transformers 4's pipelines.

    Args:
        task: which task; decides the key of the results.
        predictor: what does the work.
    """

    def __init__(self, task: str, predictor: Predictor) -> None:
        self.task = task
        self.results = _results(task)
        self.predictor = predictor

    @property
    def model(self) -> Seq2SeqModel:
        """The model."""
        return self.predictor.model

    @checked
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Generate.

        Args:
            inputs: one input that the model's source feature accepts (a text, the path of a recording, ...), or a list,
                generator or dataset column of them.
            **options: fields of `GenerationConfig`, such as `num_beams=5`; `details` adds keys to the mappings.

        Returns:
            For one input or a list a list with a `{"translation_text": ...}` (or the task's key) per input, or per
            input a list of them when `num_return_sequences` is above 1; for any other iterable an iterator of the same.
            As in transformers 4, one recording gives a single mapping, and each of several images or prompts a list.

        Raises:
            UserError: an input that the model cannot read, or an unknown option.
        """
        config = self.model.generation.changed(options)
        several = config.num_return_sequences > 1
        feature = self.model.processor.source_feature
        if feature.accepts(inputs):
            found = self._format(next(self.predictor.stream([inputs], config)), config)
            return found if several or self.results.listed else found[0]
        listed = several or self.results.each_listed
        results = (self._format(one, config) for one in self.predictor.stream(_checked(inputs, feature), config))
        shaped = (found if listed else found[0] for found in results)
        return list(shaped) if isinstance(inputs, Sequence) or hasattr(inputs, "__len__") else shaped

    def stream(self, raw: Any, **options: Any) -> Iterator[str]:
        """Yield the output of one input in pieces, as it is found; see `Predictor.stream_text`.

        Args:
            raw: one input.
            **options: fields of `GenerationConfig`; greedy search unless `do_sample` is set.

        Raises:
            UserError: see `__call__`, or several beams are asked for.
        """
        feature = self.model.processor.source_feature
        config = self.model.generation.quick(1).changed(options)
        if not feature.accepts(raw):
            raise UserError(f"the input is of type {type(raw).__name__}, expected {feature.input_kind}")
        return self.predictor.stream_text(raw, config)

    def live(self, *, sampling_rate: int | None = None, agreement: int = 2, **options: Any) -> Live:
        """Begin to read one input in pieces, and to write its output while it is still coming; see `Live`.

        Args:
            sampling_rate: of the pieces in hertz, where they are samples; that of the model if `None`.
            agreement: for models that need their whole source, how many outputs have to agree on what is written.
            **options: fields of `GenerationConfig`.

        Raises:
            UserError: inputs have no pieces, or an unknown option.
        """
        streams = LiveStreams(self.predictor, self.model.generation.changed(options), agreement)
        return Live(streams, sampling_rate)

    def score(self, pairs: Iterable[tuple[Any, str]], **options: Any) -> list[dict[str, Any]]:
        """Score given targets, as if the model had written them; see `Predictor.score`.

        Args:
            pairs: sources and targets.
            **options: fields of `GenerationConfig`, of which `details` and those of length and coverage matter.

        Returns:
            Per pair a mapping of the text (under the task's key), `score` and `log_prob`, with the details.
        """
        config = self.model.generation.changed(options)
        found = list(self.predictor.score(pairs, config))
        told = [one.told(("score", *config.details)) | {"log_prob": math.fsum(one.token_scores)} for one in found]
        return [{self.results.key: one.pop("text"), **one} for one in told]

    def _format(self, outputs: list[Generated], config: GenerationConfig) -> list[dict[str, Any]]:
        told = [output.told(config.details) for output in outputs]
        return [{self.results.key: one.pop("text"), **one} for one in told]


Name = str | os.PathLike[str]
Given = Name | Seq2SeqModel | Trained


def load_model(model: Given | Sequence[Given], **options: Unpack[Loading]) -> Seq2SeqModel:
    """Load a model, or several as an ensemble.

    Args:
        model: folder, hub id, or a model in memory; or a list of these.
        **options: see `Seq2SeqModel.from_pretrained`.

    Raises:
        UserError: no such model, or models of different vocabularies.
    """
    if isinstance(model, str | os.PathLike):
        return Seq2SeqModel.from_pretrained(model, **options)
    if isinstance(model, Sequence):
        models = [load_model(item, **options) for item in model]
        return models[0] if len(models) == 1 else EnsembleModel(models)
    return model_of(model)


@checked
def pipeline(
    task: str,
    model: Given | Sequence[Given],
    device: str | torch.device | int = "cpu",
    dtype: torch.dtype | None = None,
    **options: Unpack[Loading],
) -> Pipeline:
    """Load a model as a function, as transformers 4 did for these tasks.

    Args:
        task: `translation`, `summarization`, `text2text-generation`, `text-generation`,
            `automatic-speech-recognition` or `image-to-text`; decides the form of the results.
        model: folder, hub id, or a model in memory; a list of these decides together, as an ensemble.
        device: where to run; an integer means that GPU.
        dtype: `torch.bfloat16`, or on a CPU `torch.int8`, for speed; see `Predictor`.
        **options: `revision`, `token`, `trust` and so on; see `Seq2SeqModel.from_pretrained`.

    Returns:
        The function: `pipeline("translation", model="runs/demo/model")("Guten Morgen.")`.

    Raises:
        UserError: no such task or model.
    """
    _results(task)
    loaded = load_model(model, **options)
    if isinstance(device, int):
        device = f"cuda:{device}" if device >= 0 else "cpu"
    return Pipeline(task, Predictor(loaded, device, dtype))


def _results(task: str) -> Results:
    if task not in RESULTS:
        raise UserError(f"there is no task {task!r}: choose one of {', '.join(RESULTS)}")
    return RESULTS[task]


def _checked(inputs: object, feature: Feature) -> Iterator[Any]:
    if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes | Mapping):
        raise UserError(f"the input is of type {type(inputs).__name__}, expected {feature.input_kind}, or a list")
    return (_accepted(raw, position, feature) for position, raw in enumerate(inputs))


def _accepted(raw: object, position: int, feature: Feature) -> object:
    if not feature.accepts(raw):
        raise UserError(f"input {position} is of type {type(raw).__name__}, expected {feature.input_kind}")
    return raw
