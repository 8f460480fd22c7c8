"""Attention that learns from word alignments."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.inference.lexicon import Translations, pair_of
from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.training.objectives.base import Loss
from lit_seq2seq.training.objectives.cross_entropy import CrossEntropy
from lit_seq2seq.types import Batch, UserError

_ROWS_AT_ONCE = 256
_LEAST = 1e-6  # attention that counts as none: its logarithm stays finite, and has a gradient that pulls it up


class GuidedAlignment(CrossEntropy):
    """Cross-entropy, and attention pulled to where a statistical aligner looks: `-weight sum_ts A_ts log a_ts`.

    Chen et al. (2016, https://arxiv.org/abs/1607.01628, equation 9). The alignment A of each target symbol to the
    symbols of the source is that of IBM Model 1 (Brown et al. 1993), learnt from the training split when a run begins,
    with a prior for the diagonal as in fast_align (Dyer et al. 2013). It helps attention to find its way early, which
    few data alone may not do; later it may hold it back, so that the weight can fall.

    Args:
        weight: of the term, >= 0, in the first step.
        steps: optimizer steps over which the weight falls to 0, by the same amount in each; `None` keeps it as it is.
        tension: of the prior, >= 0: the more, the more probable are places that are as far from the beginning as the
            target symbol is in its sequence; 0 for word order that is free.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        weight: float = 0.5,
        steps: int | None = None,
        tension: float = 4.0,
    ) -> None:
        super().__init__(label_smoothing)
        for name, value, least in (("weight", weight, 0), ("tension", tension, 0), ("steps", steps, 1)):
            if value is not None and value < least:
                raise UserError(f"{name} of GuidedAlignment must be at least {least}, got {value}")
        self.first_weight, self.steps, self.tension = weight, steps, tension
        self._translations: Translations | None = None

    @property
    def weight(self) -> float:
        """Weight of the term in the present step."""
        return self.first_weight * (1.0 if self.steps is None else max(0.0, 1 - self.step / self.steps))

    def begin(self, model: Seq2SeqModel, data: LightningDataModule | None) -> None:
        """Learn alignments from the training split."""
        feature, target = model.processor.source_feature, model.processor.target
        attends = model.net.decoder.attention_module is not None
        if not isinstance(feature.size, int) or not feature.symbols or model.net.copies or not attends:
            raise UserError(
                "GuidedAlignment needs a source of symbols, an output that copies none, and a decoder with attention"
            )
        if not isinstance(data, Seq2SeqDataModule) or data.streaming:
            raise UserError("GuidedAlignment learns from a Seq2SeqDataModule that does not stream its data")
        pairs = [pair_of(batch) for batch in data.in_order("train", _ROWS_AT_ONCE)]
        found = Translations.estimate(pairs, (feature.size, target.size))
        self._translations = found.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def forward(self, model: Seq2SeqModel, batch: Batch) -> Loss:
        """Compute the loss of a batch with targets."""
        if not self.weight:
            return super().forward(model, batch)
        source, target = pair_of(batch)
        encoded = model.net.encode(batch.source)
        output = self.read(model.net, encoded, target)
        loss = self.join(model.net, encoded, output, target)
        assert output.attention is not None
        assert self._translations is not None
        if output.attention.shape[-1] != source.values.shape[1]:
            raise UserError(
                f"GuidedAlignment needs an encoder that gives each of {source.values.shape[1]} symbols a place, but it "
                f"has {output.attention.shape[-1]}"
            )
        self._translations = self._translations.to(target.values.device)
        wanted = self._translations.align(source, target, self.tension)  # (B, T, S)
        missed = -(wanted * (output.attention.float() + _LEAST).log()).sum()
        return loss._replace(total=loss.total + self.weight * missed)
