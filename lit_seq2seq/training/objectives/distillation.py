"""Learning from the distributions of trained models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.inference.pipelines import load_model
from lit_seq2seq.nn import EncoderDecoder
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.search.options import Range, expect
from lit_seq2seq.settings import spec
from lit_seq2seq.training.objectives.base import Loss
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.training.objectives.rdrop import LEAST, divergence
from lit_seq2seq.types import Padded, Source, UserError


class Distillation(CrossEntropy):
    """Cross-entropy with the targets and, symbol by symbol, with what a teacher would write in each place of them.

    `(1 - weight) CE + weight temperature^2 sum_t KL(p_t, q_t)`, where p are the probabilities of the teacher and q
    those of the model, both with their scores divided by the temperature (Hinton et al. 2015), as Kim and Rush (2016,
    https://aclanthology.org/D16-1139, section 3.1) do for each word. Several teachers are joined to an ensemble. They
    have the vocabulary of the model: give their folder as `data.processor`.

    Args:
        teachers: folder or hub id of a trained model, or a list of them.
        weight: share of the teacher, from 0 to 1.
        temperature: above 0; greater ones show more of what the teacher finds improbable.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        teachers: str | Sequence[str],
        weight: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(label_smoothing)
        self.teachers, self.weight, self.temperature = teachers, weight, temperature
        expect(self, "weight", Range(0, 1))
        expect(self, "temperature", Range(above=0))
        self._teacher: list[Seq2SeqModel] = []  # no part of this module: its weights are neither learnt nor saved

    def begin(self, model: Seq2SeqModel, data: LightningDataModule | None) -> None:
        """Load the teachers."""
        if self.weight == 1:
            self.expect_no_more(model.net, "set its weight below 1")
        teacher = load_model(self.teachers, trust=spec.trust_of(dict(model.description)))
        if teacher.processor.identity() != model.processor.identity():
            raise UserError(
                "the teacher has another vocabulary than the model: set data.processor to the teacher's folder, and "
                "leave out the settings of tokenizers and features"
            )
        learning = next(model.net.parameters())
        self._teacher = [teacher.to(learning.device, learning.dtype).eval().requires_grad_(False)]

    def of(self, network: EncoderDecoder, source: Source, target: Padded) -> Loss:
        """Compute the loss of targets that end with EOS."""
        encoded = network.encode(source)
        output = self.read(network, encoded, target)
        loss = self.join(network, encoded, output, target)
        with torch.no_grad():
            taught = self._log_probs(self._teacher[0](source, target))
        apart = divergence(taught, self._log_probs(network.output.scores(output, encoded.copies)))  # (B, T)
        distance = self.temperature**2 * (apart * target.mask).sum()
        return loss._replace(total=(1 - self.weight) * loss.total + self.weight * distance)

    def _log_probs(self, scores: Tensor) -> Tensor:
        return (wide(scores) / self.temperature).log_softmax(dim=-1).clamp(min=LEAST)
