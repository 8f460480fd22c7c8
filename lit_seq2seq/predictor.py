"""A trained model as a function from raw inputs to outputs: the pipeline, the command line and servers call this."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from lit_seq2seq.module import LitSeq2Seq
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Padded, UserError

Task = Literal["translation", "summarization", "text2text-generation"]
RESULT_KEYS: dict[str, str] = {
    "translation": "translation_text",
    "summarization": "summary_text",
    "text2text-generation": "generated_text",
}
FIRST_CHUNK, LARGEST_CHUNK = 64, 4096


@dataclass(frozen=True)
class Output:
    """One output text.

    Attributes:
        text: the text.
        score: what hypotheses are ranked by; 0 for an empty input.
        tokens: display form of each output symbol, EOS last where it was produced.
        token_scores: log-probability of each.
        source_tokens: display form of each source symbol.
        attention: `(T, S)` weights of each output symbol over the source symbols; `None` unless asked for.
    """

    text: str
    score: float = 0.0
    tokens: tuple[str, ...] = ()
    token_scores: tuple[float, ...] = ()
    source_tokens: tuple[str, ...] = ()
    attention: Tensor | None = None


class Predictor:
    """Turns raw inputs into outputs, in batches of similar length, keeping their order.

    Args:
        model: trained model.
        device: where to run.
        dtype: `torch.bfloat16` runs the network under autocast; `None` leaves it as it is.
        max_tokens: size of a batch, in padded source symbols.
        max_source_length: longer sources are cut; `None` for no limit.

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
        max_source_length: int | None = 1024,
    ) -> None:
        try:
            self.model = model.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from error
        if dtype is not None and not computes_in(dtype, self.model.device.type):
            raise UserError(f"this device has no kernels for {dtype}: leave dtype (--bf16) out")
        self.dtype = dtype
        self.max_tokens = max_tokens
        self.max_source_length = max_source_length
        self.truncated = 0

    def stream(
        self, inputs: Iterable[str], config: GenerationConfig | None = None, return_attention: bool = False
    ) -> Iterator[list[Output]]:
        """Yield the n-best outputs of each input, in the order of the inputs.

        Inputs are read in chunks that start small, so that the first output comes soon, and grow, so that batches
        become even. An input without any symbols yields empty texts.
        """
        config = config or self.model.generation
        iterator, size = iter(inputs), FIRST_CHUNK
        while chunk := list(islice(iterator, size)):
            yield from self._chunk(chunk, config, return_attention)
            size = min(2 * size, LARGEST_CHUNK)

    def _chunk(self, raw: list[str], config: GenerationConfig, return_attention: bool) -> list[list[Output]]:
        results: list[list[Output]] = [[Output("")] * config.num_return_sequences for _ in raw]
        feature = self.model.processor.source_feature
        kept = [index for index, text in enumerate(raw) if text.strip()]
        arrays = feature.encode(self.model.processor.prefixed([raw[index] for index in kept]))
        if self.max_source_length is not None:
            self.truncated += sum(len(array) > self.max_source_length for array in arrays)
            arrays = [feature.truncate(array, self.max_source_length) for array in arrays]
        order = sorted(range(len(kept)), key=lambda position: len(arrays[position]))
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(arrays[order[stop]]) <= self.max_tokens:
                stop += 1
            positions = order[start:stop]
            outputs = self._batch(feature.collate([arrays[p] for p in positions]), config, return_attention)
            for position, output in zip(positions, outputs, strict=True):
                results[kept[position]] = output
            start = stop
        return results

    @torch.inference_mode()
    def _batch(self, source: Padded, config: GenerationConfig, return_attention: bool) -> list[list[Output]]:
        device = self.model.device
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
            found = self.model.generate(source.to(device), config, return_attention=return_attention)
        target, feature = self.model.processor.target, self.model.processor.source_feature
        texts = iter(target.decode_batch([h.tokens.tolist() for row in found for h in row]))
        outputs = []
        for row, (values, length) in zip(found, zip(source.values, source.lengths.tolist(), strict=True), strict=True):
            sources = tuple(feature.tokens(values[:length].tolist())) if hasattr(feature, "tokens") else ()
            finished = []
            for hypothesis in row:
                ended = len(hypothesis.token_scores) > len(hypothesis.tokens)
                pieces = target.tokens(hypothesis.tokens.tolist() + [target.specials.eos] * ended)
                finished.append(
                    Output(
                        next(texts),
                        hypothesis.score,
                        tuple(pieces),
                        tuple(hypothesis.token_scores.tolist()),
                        sources,
                        None if hypothesis.attention is None else hypothesis.attention[:, :length].float().cpu(),
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
        if task not in RESULT_KEYS:
            raise UserError(f"there is no task {task!r}: choose one of {', '.join(RESULT_KEYS)}")
        self.task = task
        self.predictor = predictor

    @property
    def model(self) -> LitSeq2Seq:
        """The model."""
        return self.predictor.model

    def __call__(self, inputs: str | Iterable[str], **options: Any) -> Any:
        """Generate.

        Args:
            inputs: a text, or a list, generator or dataset column of texts.
            **options: fields of `GenerationConfig`, such as `num_beams=5`.

        Returns:
            For one text or a list a list with a `{"translation_text": ...}` (or the task's key) per text, or per text a
            list of them when `num_return_sequences` is above 1; for any other iterable an iterator of the same.

        Raises:
            UserError: an input that is not text, or an unknown option.
        """
        config = override(self.model.generation, options)
        if isinstance(inputs, str):
            return self._format(next(self.predictor.stream([inputs], config)))
        results = self.predictor.stream(_checked(inputs), config)
        single = config.num_return_sequences == 1
        shaped = (self._format(outputs)[0] if single else self._format(outputs) for outputs in results)
        return list(shaped) if isinstance(inputs, Sequence) or hasattr(inputs, "__len__") else shaped

    def _format(self, outputs: list[Output]) -> list[dict[str, str]]:
        return [{RESULT_KEYS[self.task]: output.text} for output in outputs]


def pipeline(
    task: str,
    model: str | os.PathLike[str] | LitSeq2Seq,
    device: str | torch.device | int = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Pipeline:
    """Load a model as a function, as transformers 4 did for these tasks.

    Args:
        task: `translation`, `summarization` or `text2text-generation`.
        model: folder, hub id, or a model in memory.
        device: where to run; an integer means that GPU.
        dtype: `torch.bfloat16` for reduced precision.
        revision: branch, tag or commit on the hub.
        token: access token for private repositories.

    Returns:
        The function: `pipeline("translation", model="runs/demo/model")("Guten Morgen.")`.

    Raises:
        UserError: no such task or model.
    """
    if task not in RESULT_KEYS:
        raise UserError(f"there is no task {task!r}: choose one of {', '.join(RESULT_KEYS)}")
    loaded = model if isinstance(model, LitSeq2Seq) else LitSeq2Seq.from_pretrained(model, revision, token)
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


def _checked(inputs: Iterable[Any]) -> Iterator[str]:
    for position, text in enumerate(inputs):
        if not isinstance(text, str):
            raise UserError(f"input {position} is of type {type(text).__name__}, expected a text")
        yield text
