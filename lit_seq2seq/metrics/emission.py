"""When outputs are written: how a transducer spends its frames, and how far it is behind what has been said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from math import isnan, nan

import torch
from torch import Tensor

from lit_seq2seq.metrics.sums import Sums
from lit_seq2seq.settings.arguments import checked


def emission_lags(
    output: Sequence[int], times: Sequence[float], target: Sequence[int], ends: Sequence[float]
) -> list[float]:
    """Measure by how much each symbol of a target is written after its end, in the unit of the times.

    Outputs are compared with targets as `difflib` does.

    Args:
        output: `(T,)` symbols of an output.
        times: `(T,)` when each is written.
        target: `(U,)` symbols of the target.
        ends: `(U,)` when each of them ends; NaN for those that do not count.

    Returns:
        For each symbol that counts its lag, or NaN where the output lacks it.

    Example:
        >>> emission_lags([5, 6, 8], [300, 420, 600], [5, 7, 8], [250, 400, 560])
        [50, nan, 40]
    """
    lags = [nan] * len(target)
    for a, b, size in SequenceMatcher(None, output, target, autojunk=False).get_matching_blocks():
        for place in range(size):
            lags[b + place] = times[a + place] - ends[b + place]
    return [lag for lag, end in zip(lags, ends, strict=True) if not isnan(end)]


class Emissions(Sums):
    """How a transducer spends its frames on the outputs of a split; see `lit_seq2seq.search.alignments.emission`.

    Example:
        >>> from lit_seq2seq.search.alignments import emission
        >>> emissions = Emissions()
        >>> emissions.update([emission([2, 2, 5], 8), emission([], 2)])
        >>> {name: round(value.item(), 2) for name, value in emissions.compute().items()}
        {'blank_share': 0.8, 'symbols_per_frame': 0.3, 'longest_blank': 2.0, 'most_per_frame': 2.0}
    """

    names = ("blank_share", "symbols_per_frame", "longest_blank", "most_per_frame")
    totals: Tensor
    most: Tensor

    @checked
    def __init__(self) -> None:
        super().__init__()
        self.keep("totals", [0, 0, 0], "sum")
        self.keep("most", [0, 0], "max")

    def update(self, outputs: Sequence[Mapping[str, float]]) -> None:
        """Add the counts of outputs."""
        for one in outputs:
            totals = [one[name] for name in ("frames", "blank_frames", "symbols")]
            self.totals = self.totals + self.totals.new_tensor(totals)
            self.most = self.most.maximum(self.most.new_tensor([one["longest_blank"], one["most_per_frame"]]))

    def compute(self) -> dict[str, Tensor]:
        """Return the shares over all frames, and the greatest counts; nothing where there are no frames."""
        frames, blank, symbols = self.totals
        shares = [blank / frames, symbols / frames]
        return dict(zip(self.names, [*shares, *self.most.float()], strict=True)) if frames else {}


class EmissionLag(Sums):
    """How much later than their ends symbols are written: mean, median and 90th percentile, those first and last.

    Symbols that an output lacks are left out; see `emission_lags`.

    Example:
        >>> lag = EmissionLag()
        >>> lag.update([[50.0, float("nan"), 40.0], [80.0]])
        >>> [round(value.item()) for value in lag.compute().values()]
        [57, 50, 74, 65, 60]
    """

    names = tuple(f"emission_lag{ending}" for ending in ("", "_median", "_p90", "_first", "_last"))
    higher_is_better = False
    every: list[Tensor]
    first: list[Tensor]
    last: list[Tensor]

    @checked
    def __init__(self) -> None:
        super().__init__()
        for name in ("every", "first", "last"):
            self.keep(name, [], "cat")

    def update(self, rows: Sequence[Sequence[float]]) -> None:
        """Add the lags of outputs, NaN for symbols that they lack."""
        rows = [row for row in rows if len(row)]
        for kept, lags in (
            (self.every, [lag for row in rows for lag in row]),
            (self.first, [row[0] for row in rows]),
            (self.last, [row[-1] for row in rows]),
        ):
            kept.append(torch.tensor([lag for lag in lags if not isnan(lag)], device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return each number by its name; nothing where there are no lags."""
        every, first, last = (
            torch.cat(kept) if isinstance(kept, list) and kept else torch.as_tensor(kept)
            for kept in (self.every, self.first, self.last)
        )
        if not len(every):
            return {}
        found = (every.mean(), every.quantile(0.5), every.quantile(0.9), first.mean(), last.mean())
        return {name: value for name, value in zip(self.names, found, strict=True) if not value.isnan()}
