"""What is common to objectives that look at whole outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.features.feature import Array
from lit_seq2seq.inference.model import Seq2SeqModel, factory
from lit_seq2seq.metrics import BLEU, TextMetric
from lit_seq2seq.metrics.scores import by_line
from lit_seq2seq.nn import EncoderDecoder
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.search.options import Range, expect
from lit_seq2seq.search.reranker import Reranker
from lit_seq2seq.training.objectives.base import Loss
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.types import Batch, Encoded, Hypothesis, Padded, UserError, Value

MetricFactory = Callable[[], TextMetric]


class AsFound(Reranker):
    """Keeps the outputs of search as they are: samples must not pass through the reranker of the model."""

    def judge(self, text: str, source: Any) -> float:
        """Return 0."""
        return 0.0

    def candidates(self, config: GenerationConfig) -> int:
        """Count 1: there is nothing to choose."""
        return 1


@dataclass(frozen=True)
class Outputs(Value):
    """Some outputs for each source of a batch, in the order of the sources.

    Attributes:
        rows: `(N,)` place of the source in the batch.
        target: `(N, T)` ids, with EOS where it was produced.
        rewards: `(N,)` score of each by itself, 1 for a perfect one; an error rate counts from there downwards.
    """

    rows: Tensor
    target: Padded
    rewards: Tensor

    def log_probs(self, network: EncoderDecoder, encoded: Encoded) -> Tensor:
        """Compute the log-probability of each output, `(N,)`, with gradient."""
        return network.likelihoods(encoded.select(self.rows), self.target).sum(dim=1)


class Rewarded(CrossEntropy, ABC):
    """Base of objectives that search for outputs and judge them by a metric.

    The loss of a sentence is `(1 - cross_entropy) risk + cross_entropy nll`, where `nll` is what `CrossEntropy`
    minimises, summed over the target; both as in Edunov et al. (2018, https://aclanthology.org/N18-1033, section 4.2).
    An optimizer step follows the mean over sentences.

    Args:
        metric: makes the metric; each output is scored by itself, see `TextMetric.each`.
        cross_entropy: share of cross-entropy, from 0 to 1.

    Raises:
        UserError: a number is out of its range, or the metric does not say whether more is better.
    """

    needs_references = True

    def __init__(self, label_smoothing: float = 0.0, metric: MetricFactory = BLEU, cross_entropy: float = 0.3) -> None:
        super().__init__(label_smoothing)
        self.cross_entropy = cross_entropy
        expect(self, "cross_entropy", Range(0, 1))
        self.metric: TextMetric = factory(metric, MetricFactory)()
        if getattr(self.metric, "higher_is_better", None) is None:
            name = type(self.metric).__name__
            raise UserError(f"{name} does not say whether more is better: give its class higher_is_better")

    def begin(self, model: Seq2SeqModel, data: LightningDataModule | None) -> None:
        """Let the metric learn from the training references, if it has to."""
        if model.processor.source_feature.begins_output:
            raise UserError(
                f"{type(self).__name__} compares outputs with references, but without a source there are none: leave "
                "model.objective out"
            )
        if not self.cross_entropy:
            self.expect_no_more(model.net, "set its cross_entropy above 0")
        if self.metric.needs_corpus and isinstance(data, Seq2SeqDataModule):
            form = self._form(model)
            self.metric.learn([form(text) for text in row] for row in data.references("train"))

    def forward(self, model: Seq2SeqModel, batch: Batch) -> Loss:
        """Compute the loss of a batch with targets and references."""
        assert batch.target is not None
        if len(batch.references) != len(batch):
            raise UserError(
                f"{type(self).__name__} needs training batches with references, and these have none: use a "
                "Seq2SeqDataModule"
            )
        network, target = model.net, batch.target
        encoded = network.encode(batch.source)
        risk = (1 - self.cross_entropy) * self.risk(model, batch, encoded).sum()
        sentences = target.lengths.new_tensor(len(batch))
        if not self.cross_entropy:
            return Loss(risk, network.nll(batch.source, target), sentences)
        likely = self.join(network, encoded, self.read(network, encoded, target), target)
        return Loss(risk + self.cross_entropy * likely.total, likely.nll, sentences)

    @abstractmethod
    def risk(self, model: Seq2SeqModel, batch: Batch, encoded: Encoded) -> Tensor:
        """Compute what is minimised beside cross-entropy, for each source `(B,)`."""

    def search(self, model: Seq2SeqModel, batch: Batch, **options: Any) -> list[list[Hypothesis]]:
        """Find outputs as a trained model does, without dropout; see `GenerationConfig` for the options."""
        config = GenerationConfig(max_new_tokens=model.generation.max_new_tokens, reranker=AsFound(), **options)
        with torch.no_grad(), evaluating(model):
            return model.write(batch.source, batch.texts, config, check=False)

    def targets(self, model: Seq2SeqModel, batch: Batch) -> list[Hypothesis]:
        """Return the targets of a batch as outputs."""
        assert batch.target is not None
        processor, lengths = model.processor, batch.target.lengths.tolist()
        eos = processor.target.specials.eos
        rows = [row[:length] for row, length in zip(batch.target.values.tolist(), lengths, strict=True)]
        ids = [row[:-1] if row[-1:] == [eos] else row for row in rows]
        extra = [batch.source.extra(place) for place in range(len(batch))]
        texts = map(processor.source_feature.restore, processor.target.decode_batch(ids, extra), batch.texts)
        return [
            Hypothesis(torch.tensor(own), 0.0, 0.0, torch.zeros(length), text=text)
            for own, length, text in zip(ids, lengths, texts, strict=True)
        ]

    def judge(self, model: Seq2SeqModel, batch: Batch, found: Sequence[Sequence[Hypothesis]]) -> Outputs:
        """Score outputs."""
        form = self._form(model)
        rows = [place for place, own in enumerate(found) for _ in own]
        flat = [one for own in found for one in own]
        scores = self.metric.each(
            [form(one.text) for one in flat],
            [[form(text) for text in batch.references[row]] for row in rows],
            [batch.texts[row] for row in rows],
        )
        rewards = [score / 100 if self.metric.higher_is_better else 1 - score / 100 for score in scores]
        target, device = model.processor.target, batch.rows.device
        ids = target.collate([_with_end(one, target.specials.eos) for one in flat]).to(device)
        return Outputs(
            torch.tensor(rows, device=device), ids, torch.tensor(rewards, dtype=torch.float32, device=device)
        )

    def _form(self, model: Seq2SeqModel) -> Callable[[str], str]:
        form = model.processor.target.form
        return partial(by_line, form) if self.metric.keeps_lines else form


def _with_end(hypothesis: Hypothesis, eos: int) -> Array:
    """Return the ids of an output, with EOS if it was produced."""
    ended = len(hypothesis.token_scores) > len(hypothesis.tokens)
    return np.array([*hypothesis.tokens.tolist(), *[eos] * ended], np.int64)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while, whatever modes its parts are in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
