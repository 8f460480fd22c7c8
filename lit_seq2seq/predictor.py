"""A trained model as a function from raw inputs to outputs: the pipeline, the command line and servers call this."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from lit_seq2seq.features import Feature
from lit_seq2seq.features.feature import Array, encode_named
from lit_seq2seq.hub import Loading
from lit_seq2seq.module import LitSeq2Seq
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import GenerationConfig, stream
from lit_seq2seq.types import CopySource, Padded, Sources, UserError


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
    "automatic-speech-recognition": Results("text", listed=False),
    "image-to-text": Results("generated_text", each_listed=True),
}
FIRST_CHUNK, CHUNK_GROWTH = 64, 4
_UNFINISHED = "\ufffd"  # what a character shows as while some of its bytes are missing


@dataclass(frozen=True)
class Output:
    """One output text.

    Attributes:
        text: the text.
        score: what hypotheses are ranked by; 0 for an empty input.
        tokens: display form of each output symbol, EOS last where it was produced.
        token_scores: log-probability of each.
        source_tokens: display form of each source symbol; empty for a source that has none.
        attention: `(T, S)` weights of each output symbol over the encoder's positions; `None` unless asked for.
        regions: of several sources how many of these positions each has, in their order.
    """

    text: str
    score: float = 0.0
    tokens: tuple[str, ...] = ()
    token_scores: tuple[float, ...] = ()
    source_tokens: tuple[str, ...] = ()
    attention: Tensor | None = None
    regions: Mapping[str, int] = field(default_factory=dict)


class Predictor:
    """Turns raw inputs into outputs, in batches of similar length, keeping their order.

    Args:
        model: trained model.
        device: where to run.
        dtype: `torch.bfloat16` runs the network under autocast; `None` leaves it as it is.
        max_tokens: size of a batch, in padded source positions.
        max_source_length: longer sources are cut; `None` for no limit, `auto` for 1,024 where the source is text.

    Example:
        >>> from functools import partial
        >>> from lit_seq2seq.features import Processor, Tokenizer
        >>> from lit_seq2seq.nn import ParallelDecoder, TextEncoder
        >>> tokenizer = Tokenizer(model="char")
        >>> tokenizer.train(["abc"])
        >>> small = dict(embedding_dim=4, hidden_size=6)
        >>> model = LitSeq2Seq(partial(TextEncoder, **small), partial(ParallelDecoder, **small))
        >>> model.attach(Processor(tokenizer, tokenizer))
        >>> outputs = list(Predictor(model).stream(["ab", "", "cab"]))
        >>> len(outputs), outputs[1][0].text
        (3, '')
    """

    def __init__(
        self,
        model: LitSeq2Seq,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        max_tokens: int = 8192,
        max_source_length: int | Literal["auto"] | None = "auto",
    ) -> None:
        try:
            self.model = model.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
        if dtype is not None and not computes_in(dtype, self.model.device.type):
            raise UserError(f"this device has no kernels for {dtype}: leave dtype (--bf16) out")
        self.dtype = dtype
        self.max_tokens = max_tokens
        limit = model.processor.source_feature.input_limit
        self.max_source_length = limit if max_source_length == "auto" else max_source_length
        self.truncated = 0

    def stream(
        self, inputs: Iterable[Any], config: GenerationConfig | None = None, return_attention: bool = False
    ) -> Iterator[list[Output]]:
        """Yield the n-best outputs of each input, in the order of the inputs.

        Inputs are read in chunks that start small, so that the first output comes soon, and grow, so that batches
        become even. A missing input, such as a blank text, yields empty texts.

        Args:
            inputs: whatever the source feature of the model accepts: texts, paths, arrays, ...
            config: options of search; those of the model if `None`.
            return_attention: also give the attention weights.

        Raises:
            UserError: an input cannot be read; the message counts inputs from 0.
        """
        config = config or self.model.generation
        iterator, size, position = iter(inputs), FIRST_CHUNK, 0
        while chunk := list(islice(iterator, size)):
            yield from self._chunk(chunk, position, config, return_attention)
            position += len(chunk)
            size = min(2 * size, CHUNK_GROWTH * max(self.model.processor.source_feature.rows_at_once, FIRST_CHUNK // 2))

    def _chunk(
        self, raw: list[Any], first: int, config: GenerationConfig, return_attention: bool
    ) -> list[list[Output]]:
        results: list[list[Output]] = [[Output("")] * config.num_return_sequences for _ in raw]
        feature = self.model.processor.source_feature
        kept = [index for index, value in enumerate(raw) if not feature.is_missing(value)]
        present = [raw[index] for index in kept]
        arrays = self._encode(present, [f"input {first + index}" for index in kept])
        sizes = [feature.positions(array) for array in arrays]
        order = sorted(range(len(kept)), key=sizes.__getitem__)
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * sizes[order[stop]] <= self.max_tokens:
                stop += 1
            positions = order[start:stop]
            batch = [present[position] for position in positions]
            source = self.model.processor.collate([arrays[position] for position in positions], batch)
            outputs = self._batch(source, batch, config, return_attention)
            for position, output in zip(positions, outputs, strict=True):
                results[kept[position]] = output
            start = stop
        return results

    def _encode(self, raw: list[Any], names: list[str]) -> list[Array]:
        feature = self.model.processor.source_feature
        arrays = encode_named(feature, self.model.processor.prefixed(raw), names)
        if self.max_source_length is None:
            return arrays
        self.truncated += sum(feature.positions(array) > self.max_source_length for array in arrays)
        return [feature.truncate(array, self.max_source_length) for array in arrays]

    @torch.inference_mode()
    def stream_text(self, raw: Any, config: GenerationConfig | None = None) -> Iterator[str]:
        """Yield the output of one input in pieces, as it is found: greedily or by sampling.

        A piece is given as soon as no later token can change it; joined, the pieces are the text of `stream`. A
        reranker has no part in it.

        Args:
            raw: what the source feature of the model accepts.
            config: options of search; those of the model if `None`.

        Raises:
            UserError: the input cannot be read, or the options ask for several beams or outputs.
        """
        processor, network = self.model.processor, self.model.net
        if processor.source_feature.is_missing(raw):
            return
        source = processor.collate(self._encode([raw], ["the input"]), [raw]).to(self.model.device)
        with torch.autocast(self.model.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            config, encoded = config or self.model.generation, self.model.encode(source)
            tokens = stream(
                network.step,
                network.start(encoded),
                specials=network.specials,
                config=config,
                source_mask=encoded.memory.mask,
                frames=network.frames(encoded) if config.ctc_weight else None,
                device=self.model.device,
            )
            ids: list[int] = []
            before = shown = ""
            for token in tokens:
                ids.append(token)
                text = processor.source_feature.restore(processor.target.decode(ids, source.extra(0)), raw)
                certain = _common(before, text).rstrip(_UNFINISHED)
                if len(certain) > len(shown):
                    yield certain[len(shown) :]
                    shown = certain
                before = text
        if before[len(shown) :]:
            yield before[len(shown) :]

    @torch.inference_mode()
    def _batch(
        self, source: Padded | Sources, raw: list[Any], config: GenerationConfig, return_attention: bool
    ) -> list[list[Output]]:
        device = self.model.device
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
            found = self.model.write(source.to(device), raw, config, return_attention)
        target, feature = self.model.processor.target, self.model.processor.source_feature
        outputs = []
        for place, row in enumerate(found):
            own = source.extra(place)
            if isinstance(source, CopySource):
                sources = target.tokens(source.ids[place, : int(source.lengths[place])].tolist(), own)
            else:
                sources = feature.labels(source, place)
            finished = []
            for hypothesis in row:
                ended = len(hypothesis.token_scores) > len(hypothesis.tokens)
                pieces = target.tokens(hypothesis.tokens.tolist() + [target.specials.eos] * ended, own)
                finished.append(
                    Output(
                        hypothesis.text,
                        hypothesis.score,
                        tuple(pieces),
                        tuple(hypothesis.token_scores.tolist()),
                        tuple(sources),
                        None if hypothesis.attention is None else hypothesis.attention.float().cpu(),
                        hypothesis.regions,
                    )
                )
            outputs.append(finished)
        return outputs


class Pipeline:
    """A task's function with the inputs and results of transformers 4's pipelines.

    Args:
        task: which task; decides the key of the results.
        predictor: what does the work.

    Example:
        >>> import inspect
        >>> list(inspect.signature(Pipeline.__call__).parameters)[:2]
        ['self', 'inputs']
    """

    def __init__(self, task: str, predictor: Predictor) -> None:
        self.task = task
        self.results = _results(task)
        self.predictor = predictor

    @property
    def model(self) -> LitSeq2Seq:
        """The model."""
        return self.predictor.model

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Generate.

        Args:
            inputs: one input that the model's source feature accepts (a text, the path of a recording, ...), or a list,
                generator or dataset column of them.
            **options: fields of `GenerationConfig`, such as `num_beams=5`.

        Returns:
            For one input or a list a list with a `{"translation_text": ...}` (or the task's key) per input, or per
            input a list of them when `num_return_sequences` is above 1; for any other iterable an iterator of the same.
            As in transformers 4, one recording gives a single mapping, and each of several images a list.

        Raises:
            UserError: an input that the model cannot read, or an unknown option.
        """
        config = override(self.model.generation, options)
        several = config.num_return_sequences > 1
        feature = self.model.processor.source_feature
        if feature.accepts(inputs):
            found = self._format(next(self.predictor.stream([inputs], config)))
            return found if several or self.results.listed else found[0]
        listed = several or self.results.each_listed
        results = map(self._format, self.predictor.stream(_checked(inputs, feature), config))
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
        config = override(self.model.generation, {"num_beams": 1, "num_return_sequences": 1, **options})
        if not feature.accepts(raw):
            raise UserError(f"the input is of type {type(raw).__name__}, expected {feature.input_kind}")
        return self.predictor.stream_text(raw, config)

    def _format(self, outputs: list[Output]) -> list[dict[str, str]]:
        return [{self.results.key: output.text} for output in outputs]


Name = str | os.PathLike[str]


def load_model(model: Name | LitSeq2Seq | Sequence[Name | LitSeq2Seq], **options: Unpack[Loading]) -> LitSeq2Seq:
    """Load a model, or several as an ensemble.

    Args:
        model: folder, hub id, or a model in memory; or a list of these.
        **options: see `LitSeq2Seq.from_pretrained`.

    Raises:
        UserError: no such model, or models of different vocabularies.
    """
    if isinstance(model, LitSeq2Seq):
        return model
    if isinstance(model, str | os.PathLike):
        return LitSeq2Seq.from_pretrained(model, **options)
    models = [load_model(item, **options) for item in model]
    return models[0] if len(models) == 1 else LitSeq2Seq.ensemble(models)


def pipeline(
    task: str,
    model: Name | LitSeq2Seq | Sequence[Name | LitSeq2Seq],
    device: str | torch.device | int = "cpu",
    dtype: torch.dtype | None = None,
    **options: Unpack[Loading],
) -> Pipeline:
    """Load a model as a function, as transformers 4 did for these tasks.

    Args:
        task: `translation`, `summarization`, `text2text-generation`, `automatic-speech-recognition` or
            `image-to-text`; decides the form of the results.
        model: folder, hub id, or a model in memory; a list of these decides together, as an ensemble.
        device: where to run; an integer means that GPU.
        dtype: `torch.bfloat16` for reduced precision.
        **options: `revision`, `token`, `trust` and so on; see `LitSeq2Seq.from_pretrained`.

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


def override(config: GenerationConfig, options: dict[str, Any]) -> GenerationConfig:
    """Return `config` with some options changed.

    Raises:
        UserError: there is no such option.
    """
    known = [field.name for field in fields(GenerationConfig)]
    for name in options:
        if name not in known:
            raise UserError(f"there is no generation option {name!r}: choose among {', '.join(known)}")
    return replace(config, **options)


def _results(task: str) -> Results:
    if task not in RESULTS:
        raise UserError(f"there is no task {task!r}: choose one of {', '.join(RESULTS)}")
    return RESULTS[task]


def _common(first: str, second: str) -> str:
    """Return the beginning that two texts share."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))]


def _checked(inputs: object, feature: Feature) -> Iterator[Any]:
    if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes | Mapping):
        raise UserError(f"the input is of type {type(inputs).__name__}, expected {feature.input_kind}, or a list")
    return (_accepted(raw, position, feature) for position, raw in enumerate(inputs))


def _accepted(raw: object, position: int, feature: Feature) -> object:
    if not feature.accepts(raw):
        raise UserError(f"input {position} is of type {type(raw).__name__}, expected {feature.input_kind}")
    return raw
