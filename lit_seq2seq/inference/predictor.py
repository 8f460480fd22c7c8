"""A trained model as a function from raw inputs to outputs: the pipeline, the command line and servers call this."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_seq2seq import arrays
from lit_seq2seq.features.feature import Array
from lit_seq2seq.files.weights import check_finite
from lit_seq2seq.inference.model import Seq2SeqModel, Trained, model_of
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.reranking import reranked
from lit_seq2seq.search import GenerationConfig, check_attention, check_scores
from lit_seq2seq.search.scores import score_of
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings import Dtype
from lit_seq2seq.types import Generated, Hypothesis, Padded, Sources, UserError

FIRST_CHUNK, CHUNK_GROWTH = 64, 4
SCORES = 2_000_000
"""Log-probabilities of a step, over all hypotheses and symbols, that a CPU can keep in its cache."""


def check_dtype(dtype: torch.dtype, kind: str) -> None:
    """Refuse what a kind of device cannot compute in."""
    if str(dtype).removeprefix("torch.") not in get_args(Dtype) or not computes_in(dtype, kind):
        raise UserError(f"device {kind} cannot compute in {dtype} here: leave dtype out")


class Predictor:
    """Turns raw inputs into outputs, in batches of similar length, keeping their order.

    Args:
        model: trained model.
        device: where to run.
        dtype: what matrix products are computed in, on a CPU and from the weights as they are now: `torch.float32`,
            also for `None`, `torch.bfloat16`, or `torch.int8`; see `lit_seq2seq.nn.kernels.packed.prepare`. On other
            devices `torch.bfloat16` or `torch.float16` run the network under autocast.
        max_tokens: size of a batch, in padded source positions.
        max_source_length: longer sources are cut; `None` for no limit, `auto` for 1,024 where the source is text.

    Attributes:
        fast: the model as it runs here.
        running: makes the context in which it runs.
    """

    def __init__(
        self,
        model: Seq2SeqModel | Trained,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        max_tokens: int = 8192,
        max_source_length: int | Literal["auto"] | None = "auto",
    ) -> None:
        model = model_of(model)
        reason = "choose cpu, cuda, cuda:1 or mps"
        try:
            place, reason = torch.device(device), ""
            self.model = model.eval().to(place)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {device} cannot be used here: {reason or str(error).splitlines()[0]}") from error
        for name, value in {"max_tokens": max_tokens, "max_source_length": max_source_length}.items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        model.warn_if_untrained()
        halves = dtype in (torch.float16, torch.bfloat16)
        check_finite(model.searched.state_dict(), "the model", dtype if halves else None)
        kind = self.model.device.type
        if dtype is not None:
            check_dtype(dtype, kind)
        self.running = partial(torch.autocast, kind, dtype, kind != "cpu" and dtype not in (None, torch.float32))
        self.fast = self.model.prepared(dtype or torch.float32) if kind == "cpu" else self.model
        self.dtype, self.max_tokens = dtype, max_tokens
        limit = model.processor.source_feature.input_limit
        self.max_source_length = limit if max_source_length == "auto" else max_source_length
        self.truncated = 0

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Leave out what is prepared for this CPU, and keep the classes of the model by their names.

        `datasets` pickles with dill, which takes torch's optimizers apart instead, and fails.
        """
        model = pickle.dumps(self.model)
        return _restored, (model, self.model.device, self.dtype, self.max_tokens, self.max_source_length)

    def stream(
        self, inputs: Iterable[Any], config: GenerationConfig | None = None, return_attention: bool = False
    ) -> Iterator[list[Generated]]:
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
    ) -> list[list[Generated]]:
        results: list[list[Generated]] = [[Generated("")] * config.num_return_sequences for _ in raw]
        feature = self.model.processor.source_feature
        kept = [index for index, value in enumerate(raw) if not feature.is_missing(value)]
        present = [raw[index] for index in kept]
        arrays = self._encode(present, [f"input {first + index}" for index in kept])
        sizes = [feature.positions(array) for array in arrays]
        order = sorted(range(len(kept)), key=sizes.__getitem__)
        for positions in self._batches(order, sizes, self.most(config)):
            batch = [present[position] for position in positions]
            source = self.model.processor.collate([arrays[position] for position in positions], batch)
            outputs = self._batch(source, batch, config, return_attention)
            for position, output in zip(positions, outputs, strict=True):
                results[kept[position]] = output
        return results

    def score(
        self, pairs: Iterable[tuple[Any, str]], config: GenerationConfig | None = None, return_attention: bool = False
    ) -> Iterator[Generated]:
        """Yield the scores of given targets, as if the model had written them, in the order of the pairs.

        The targets are read step by step, by what decodes: the score of what was generated is the score that it had.
        Scorers and CTC do not count.

        Args:
            pairs: sources and targets; of a language model prompts, with which the targets begin, or `None`.
            config: how scores depend on length and coverage; that of the model if `None`.
            return_attention: also give the attention weights.

        Raises:
            UserError: a source or a target cannot be read (the message counts pairs from 0), or it is asked whether
                targets meet the constraints, at which nothing looks here.
        """
        config = config or self.model.generation
        if "met" in config.details:
            raise UserError("details: met is known of what a search finds, not of given texts: leave it out")
        iterator, first = iter(pairs), 0
        while chunk := list(islice(iterator, FIRST_CHUNK * CHUNK_GROWTH**2)):
            yield from self._score(chunk, first, config, return_attention)
            first += len(chunk)

    def _score(
        self, pairs: list[tuple[Any, str]], first: int, config: GenerationConfig, return_attention: bool
    ) -> list[Generated]:
        processor, feature = self.model.processor, self.model.processor.source_feature
        raw, texts = [source for source, _ in pairs], [text for _, text in pairs]
        for place, (source, text) in enumerate(pairs, start=first):
            if feature.is_missing(source) or not isinstance(text, str):
                lacking = "source" if isinstance(text, str) else "target"
                raise UserError(f"pair {place} has no {lacking}: every target needs a source, which may be no blank")
        arrays = self._encode(raw, [f"pair {place}" for place in range(first, first + len(raw))])
        hidden = [feature.hide(text, source) for source, text in pairs]
        ids = processor.target.encode(hidden)
        sizes = [max(feature.positions(array), len(own)) for array, own in zip(arrays, ids, strict=True)]
        order = sorted(range(len(raw)), key=lambda place: (len(ids[place]), sizes[place]))
        results: list[Generated] = [Generated("")] * len(raw)
        for places in self._batches(order, sizes, self.most(GenerationConfig())):
            source = processor.collate([arrays[place] for place in places], [raw[place] for place in places])
            own = [ids[place] for place in places]
            if source.copies is not None:
                symbols = [source.extra(row) for row in range(len(places))]
                own = processor.copy_map.target([hidden[place] for place in places], own, symbols)
            target = processor.target.collate(own).to(self.model.device)
            found = self._forced(source, target, config, return_attention)
            written = [replace(one, text=texts[place]) for one, place in zip(found, places, strict=True)]
            for place, [one] in zip(places, processor.outputs([[one] for one in written], source), strict=True):
                results[place] = one
        return results

    @torch.inference_mode()
    def _forced(
        self, source: Padded | Sources, target: Padded, config: GenerationConfig, return_attention: bool
    ) -> list[Hypothesis]:
        """Read targets step by step."""
        network = self.fast.searched
        scores, looked = [], []
        with self.running():
            encoded = self.fast.encode(source.to(self.model.device))
            step, state, policy = network.step, network.start(encoded), config.policy
            if policy is not None:
                network.expect_early("generation.policy")
                task = Task(len(target.lengths), network.specials, arrays.on(self.model.device))
                step, state = policy.join(step, state, task)
            tokens = torch.full_like(target.lengths, network.specials.bos)
            for column in target.values.unbind(1):
                made = step(tokens, state)
                scores.append(made.log_probs.gather(1, column[:, None].long()).float())
                if return_attention or config.attends or config.coverage_penalty:
                    check_attention(made.attention, config)
                    looked += [] if made.attention is None else [made.attention.float()]
                tokens, state = column, made.state
        log_probs = torch.cat(scores, dim=1).masked_fill(~target.mask, 0)  # (B, T)
        attention = torch.stack(looked, dim=1) if looked else None  # (B, T, S)
        places = network.forced_align(encoded, target).tolist() if config.aligns else None
        given = [0] * len(target.lengths) if encoded.prefix is None else self._begun(target, encoded.prefix)
        rows = zip(target.values.cpu(), log_probs.cpu(), target.lengths.tolist(), given, strict=True)
        found = []
        for row, (ids, own, length, prompt) in enumerate(rows):
            own = own[:length].clone()
            own[:prompt] = 0
            weights = None if attention is None else attention[row, :length, : int(encoded.memory.lengths[row])].cpu()
            total = float(own.double().sum())
            score = score_of(total, length - prompt, weights, config)
            one = Hypothesis(ids[: length - 1], score, total, own, weights, regions=encoded.memory.regions(row))
            if policy is not None:
                one = self.fast.delayed(policy.delayed(one, int(encoded.memory.lengths[row])))
            if places is not None:
                one = self.fast.placed(one, places[row], int(encoded.memory.lengths[row]))
            found.append(one)
        check_scores(one.score for one in found)
        return found

    def _begun(self, target: Padded, prefix: Tensor) -> list[int]:
        """Count the symbols of the prompts with which targets begin."""
        pad, lengths = self.model.processor.target.specials.pad, []
        for own, ids in zip(target.values.tolist(), prefix.tolist(), strict=True):
            prompt = [index for index in ids if index != pad]
            if own[: len(prompt)] != prompt:
                said = self.model.processor.target.decode(own)
                raise UserError(f"the target {said!r:.80} does not begin with its prompt: give targets with prompts")
            lengths.append(len(prompt))
        return lengths

    def _batches(self, order: list[int], sizes: list[int], most: int) -> Iterator[list[int]]:
        """Cut a list of places into batches of at most `most` and of `max_tokens` padded positions."""
        start = 0
        while start < len(order):
            stop, longest = start + 1, sizes[order[start]]
            while stop < min(len(order), start + most):
                longest = max(longest, sizes[order[stop]])
                if (stop + 1 - start) * longest > self.max_tokens:
                    break
                stop += 1
            yield order[start:stop]
            start = stop

    def most(self, config: GenerationConfig) -> int:
        """Greatest number of sources in a batch: on a CPU such that the scores of a step stay in its cache."""
        if self.model.device.type != "cpu":
            return self.max_tokens
        wanted = reranked(config, self.model.reranker)[1]
        hypotheses = wanted.num_return_sequences if config.do_sample else config.num_beams
        return max(1, SCORES // (hypotheses * self.model.processor.target.size))

    def _encode(self, raw: list[Any], names: list[str]) -> list[Array]:
        feature = self.model.processor.source_feature
        arrays = self.model.processor.encode(raw, names)
        if self.max_source_length is None:
            return arrays
        self.truncated += sum(feature.positions(array) > self.max_source_length for array in arrays)
        return [feature.truncate(array, self.max_source_length) for array in arrays]

    def stream_text(self, raw: Any, config: GenerationConfig | None = None) -> Generator[str, None, bool]:
        """Yield the output of one input in pieces; see `Seq2SeqModel.stream`."""
        processor = self.model.processor
        if processor.source_feature.is_missing(raw):
            return True
        source = processor.collate(self._encode([raw], ["the input"]), [raw]).to(self.model.device)
        pieces = self.fast.stream(raw, config, source=source)
        while True:
            try:
                with self.running():  # not between pieces, which the caller's code is
                    piece = next(pieces)
            except StopIteration as end:
                return bool(end.value)
            yield piece

    @torch.inference_mode()
    def _batch(
        self, source: Padded | Sources, raw: list[Any], config: GenerationConfig, return_attention: bool
    ) -> list[list[Generated]]:
        with self.running():
            found = self.fast.write(source.to(self.model.device), raw, config, return_attention)
        return self.model.processor.outputs(found, source)


def _restored(
    model: bytes, device: torch.device, dtype: torch.dtype | None, max_tokens: int, max_source_length: int | None
) -> Predictor:
    """Rebuild a `Predictor`; one of several processes, such as those of `Dataset.map`, computes in one thread.

    Threads of OpenMP do not survive a fork: a process that was forked waits for them for ever.
    """
    multiprocess = sys.modules.get("multiprocess", multiprocessing)  # that of `datasets`
    if any(module.parent_process() is not None for module in (multiprocessing, multiprocess)):
        torch.set_num_threads(1)
    return Predictor(pickle.loads(model), device, dtype, max_tokens=max_tokens, max_source_length=max_source_length)
