"""Terms of the loss that look at attention weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_seq2seq.nn.translations import Translations, pair_of
from lit_seq2seq.types import AlignedTarget, Batch, Padded, UserError

_ROWS_AT_ONCE = 256
_LEAST = 1e-6  # attention that counts as none: its logarithm stays finite, and has a gradient that pulls it up


class AttentionLoss(nn.Module):
    """Base of the terms that are added to the loss for what attention does over a whole target.

    A term overrides `forward`, or `of` where it has to know more than which places are real.

    Attributes:
        step: optimizer steps of the run so far; training keeps it.

    Example:
        >>> class Peaked(AttentionLoss):
        ...     def forward(self, weights, target_mask, source_mask=None):
        ...         return ((1 - weights.amax(dim=-1)) * target_mask).sum()
        >>> Peaked()(torch.tensor([[[0.75, 0.25]]]), torch.tensor([[True]]))
        tensor(0.2500)
    """

    step = 0

    def begin(self, model: Any, data: Any) -> None:
        """Get ready for training, as `Objective.begin` does; called in each run, when the model is on its device.

        Raises:
            UserError: the model or the data does not fit.
        """

    def prepare(self, batch: Batch) -> Batch:
        """Add to a training batch what the term has to know, such as where the symbols of its targets come from."""
        return batch

    def of(self, weights: Tensor, target: Padded, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term for a target of a prepared batch; by `forward`, unless a term overrides it."""
        found: Tensor = self(weights, target.mask, source_mask)
        return found

    def forward(self, weights: Tensor, target_mask: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term.

        Args:
            weights: `(B, T, S)` attention weights; zeros are no sign of padding.
            target_mask: `(B, T)` booleans, true at real target tokens.
            source_mask: `(B, S)` booleans, true at real source positions; `None` if all are real.

        Returns:
            A scalar, summed over tokens as the loss is.
        """
        raise NotImplementedError


class CoverageLoss(AttentionLoss):
    """Penalty on looking again where attention has been: `sum_t sum_i min(a_ti, c_ti)`, `c_t = sum_{t' < t} a_t'`.

    See et al. 2017, eq. 10, 12 and 13. It works with every attention; together with `AdditiveAttention(coverage=True)`
    the attention knows where it has been.

    Args:
        weight: factor of the term, >= 0; the paper's is 1.

    Example:
        >>> weights = torch.tensor([[[1.0, 0.0], [0.75, 0.25]]])
        >>> CoverageLoss()(weights, torch.tensor([[True, True]]))
        tensor(0.7500)
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight of CoverageLoss must be at least 0, got {weight}")
        self.weight = weight

    def forward(self, weights: Tensor, target_mask: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term; see `AttentionLoss.forward`."""
        weights = weights.float() if source_mask is None else weights.float() * source_mask[:, None]
        coverage = weights.cumsum(dim=1) - weights  # (B, T, S)
        repeated = torch.minimum(weights, coverage).sum(dim=-1)  # (B, T)
        return self.weight * (repeated * target_mask).sum()


class DoublyStochasticLoss(AttentionLoss):
    """Push attention to look at every place about once: `weight * sum_i (1 - sum_t a_ti)^2`.

    Xu et al. 2015, eq. 14 (https://arxiv.org/abs/1502.03044), over the real positions i of the source.

    Args:
        weight: factor of the term, >= 0; the paper's is 1.

    Example:
        >>> weights = torch.tensor([[[1.0, 0.25, 0.0], [0.5, 0.5, 0.0]]])
        >>> source = torch.tensor([[True, True, False]])  # the last position is padding
        >>> DoublyStochasticLoss()(weights, torch.tensor([[True, True]]), source)
        tensor(0.3125)
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight of DoublyStochasticLoss must be at least 0, got {weight}")
        self.weight = weight

    def forward(self, weights: Tensor, target_mask: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term; see `AttentionLoss.forward`."""
        looked = (weights.float() * target_mask[:, :, None]).sum(dim=1)  # (B, S)
        missing = (1 - looked).square()  # (B, S)
        if source_mask is not None:
            missing = missing.masked_fill(~source_mask, 0)
        return self.weight * missing.sum()


class GuidedAlignment(AttentionLoss):
    """Pull attention to where a word aligner looks: `-weight sum_ts A_ts log a_ts`.

    Chen et al. (2016, https://arxiv.org/abs/1607.01628, equation 9). Each row of A, the alignment of a target symbol to
    the source symbols, sums to one, or to zero if it is unknown. A comes from `data.columns.alignment`, if that is set.
    Otherwise IBM Model 1 (Brown et al. 1993), with a prior for the diagonal as in fast_align (Dyer et al. 2013), learns
    it from the training split at the start of each run. The term helps attention to find its way when data are few.
    Later it can hold attention back, so let the weight fall.

    Args:
        weight: of the term in the first step, >= 0.
        steps: optimizer steps over which the weight falls linearly to 0; `None` keeps it constant.
        tension: strength of the prior for the diagonal, >= 0; 0 for languages that order words very differently.
    """

    def __init__(self, weight: float = 0.5, steps: int | None = None, tension: float = 4.0) -> None:
        super().__init__()
        for name, value, least in (("weight", weight, 0), ("tension", tension, 0), ("steps", steps, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} of GuidedAlignment must be at least {least}, got {value}")
        self.first_weight, self.steps, self.tension = weight, steps, tension
        self._translations: Translations | None = None

    @property
    def weight(self) -> float:
        """Weight of the term in the present step."""
        return self.first_weight * (1.0 if self.steps is None else max(0.0, 1 - self.step / self.steps))

    def begin(self, model: Any, data: Any) -> None:
        """Learn alignments from the training split, unless it has its own."""
        feature, size = model.processor.source_feature, model.processor.target.size
        if not isinstance(feature.size, int) or not feature.symbols:
            raise UserError(
                f"GuidedAlignment needs a source of symbols, which {type(feature).__name__} does not read: leave it "
                "out of model.attention_losses"
            )
        self._translations = None
        if getattr(data, "has_alignments", False):
            return
        if getattr(data, "streaming", True):
            raise UserError(
                "GuidedAlignment learns from a Seq2SeqDataModule that does not stream its data: set data.streaming to "
                "false, or name a column of alignments by data.columns.alignment"
            )
        pairs = [self._pair(batch, size) for batch in data.in_order("train", _ROWS_AT_ONCE)]
        found = Translations.estimate(pairs, (feature.size, size + 1))
        self._translations = found.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def _pair(self, batch: Batch, size: int) -> tuple[Padded, Padded]:
        """Return source and target with one number, `size`, for all symbols that are copied from beyond those."""
        source, target = pair_of(batch)
        return source, replace(target, values=target.values.clamp(max=size))

    def prepare(self, batch: Batch) -> Batch:
        """Add the alignments that have been learnt, where the batch has none."""
        if self._translations is None or not self.weight:
            return batch
        self._translations = self._translations.to(batch.rows.device)
        alignment = self._translations.align(*self._pair(batch, self._translations.size - 1), self.tension)
        assert batch.target is not None
        return replace(batch, target=AlignedTarget(batch.target.values, batch.target.lengths, alignment))

    def of(self, weights: Tensor, target: Padded, source_mask: Tensor | None = None) -> Tensor:
        """Compute the term for a target of a prepared batch."""
        if not self.weight:
            return weights.new_zeros(())
        assert isinstance(target, AlignedTarget)
        if (places := weights.shape[-1]) != (symbols := target.alignment.shape[-1]):
            raise UserError(
                f"GuidedAlignment needs an encoder that gives each of {symbols} symbols a place, but it has {places}"
            )
        alignment = target.alignment.float()
        alignment = alignment / alignment.sum(dim=-1, keepdim=True).clamp(min=_LEAST)
        return -self.weight * (alignment * (weights.float() + _LEAST).log()).sum()
