"""How far outputs lag behind sources that are read while they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lit_seq2seq.metrics.sums import Sums
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.types import UserError

Delays = Sequence[float]
_ONE = 2**20  # lags are summed as multiples of its inverse, so that the order of outputs changes nothing


def average_lagging(delays: Delays, source_length: float, reference_length: int) -> float:
    """AL, how far an output lags behind one that keeps pace with its source (Ma et al. 2019, arXiv:1810.08398).

    `1 / tau * sum_{t=1}^tau (d_t - (t - 1) |x| / |y*|)`, tau the first unit that was written when all had been read.

    Args:
        delays: `(T,)` how much of the source had been read before each unit of the output, EOS left out; T >= 1.
        source_length: of the whole source, in the same unit, such as tokens or milliseconds; above 0.
        reference_length: number of units of the reference; at least 1.

    Example:
        >>> average_lagging([2, 3, 4, 4], source_length=4, reference_length=4)  # wait-2
        2.0
    """
    if delays[0] > source_length:
        return float(delays[0])
    read = (time for time, delay in enumerate(delays, start=1) if delay >= source_length)
    tau = next(read, len(delays))
    return sum(delay - time * source_length / reference_length for time, delay in enumerate(delays[:tau])) / tau


def length_adaptive_average_lagging(delays: Delays, source_length: float, reference_length: int) -> float:
    """LAAL, which long outputs do not lower (Papi et al. 2022, arXiv:2206.05807): AL, `|y*|` at least the output's.

    Example:
        >>> length_adaptive_average_lagging([2, 3, 4, 4], source_length=4, reference_length=1)
        2.0
    """
    return average_lagging(delays, source_length, max(len(delays), reference_length))


def differentiable_average_lagging(delays: Delays, source_length: float) -> float:
    """DAL, in which what was late once stays late (Cherry & Foster 2019, arXiv:1906.00048).

    `1 / |y| * sum_t (d'_t - (t - 1) |x| / |y|)` with `d'_1 = d_1` and `d'_t = max(d_t, d'_{t-1} + |x| / |y|)`.

    Example:
        >>> differentiable_average_lagging([1, 4, 4, 4], source_length=4)
        2.5
    """
    pace, late, total = source_length / len(delays), float("-inf"), 0.0
    for time, delay in enumerate(delays):
        late = max(delay, late + pace)
        total += late - time * pace
    return total / len(delays)


def average_proportion(delays: Delays, source_length: float, reference_length: int) -> float:
    """AP, `sum_t d_t / (|x| |y*|)`: how much of the source was read for a unit (Cho & Esipova 2016, arXiv:1606.02012).

    Example:
        >>> average_proportion([2, 3, 4, 4], source_length=4, reference_length=4)
        0.8125
    """
    return sum(delays) / (source_length * reference_length)


class Lag(Sums):
    """Means over outputs of AL, LAAL, DAL and AP, as OmniSTEval has them; empty outputs and sources are left out.

    Example:
        >>> lag = Lag()
        >>> lag.update([[2, 3, 4, 4], []], source_lengths=[4, 3], reference_lengths=[4, 2])
        >>> {name: value.item() for name, value in lag.compute().items()}
        {'al': 2.0, 'laal': 2.0, 'dal': 2.0, 'ap': 0.8125}
    """

    names = ("al", "laal", "dal", "ap")
    higher_is_better = False
    totals: Tensor
    outputs: Tensor

    @checked
    def __init__(self) -> None:
        super().__init__()
        self.keep("totals", [[0] * len(self.names)] * 2, "sum")
        self.keep("outputs", [0, 0], "sum")

    def update(
        self,
        delays: Sequence[Delays],
        source_lengths: Sequence[float],
        reference_lengths: Sequence[int],
        elapsed: Sequence[Delays] | None = None,
    ) -> None:
        """Add outputs; see `average_lagging` for what is given of each.

        Args:
            delays: of each output.
            source_lengths: of each.
            reference_lengths: of each; one of no units counts as one.
            elapsed: delays to which the time of computing is added.

        Raises:
            UserError: they differ in number.
        """
        for place, rows in enumerate([delays] if elapsed is None else [delays, elapsed]):
            if not len(rows) == len(delays) == len(source_lengths) == len(reference_lengths):
                raise UserError(
                    f"expected one source length, reference length and row of elapsed times for each of {len(delays)} "
                    "outputs, but there are more or fewer"
                )
            given = zip(rows, delays, source_lengths, reference_lengths, strict=True)
            for row, plain, source_length, reference_length in given:
                if len(row) != len(plain):
                    raise UserError(f"expected {len(plain)} elapsed times beside as many delays, but got {len(row)}")
                if len(row) and source_length > 0:
                    sums = [[0] * len(self.names) for _ in self.outputs]
                    sums[place] = [round(_ONE * value) for value in self._lags(row, source_length, reference_length)]
                    self.totals = self.totals + self.totals.new_tensor(sums)
                    self.outputs = self.outputs + self.outputs.new_tensor([place == 0, place == 1])

    @staticmethod
    def _lags(delays: Delays, source_length: float, reference_length: int) -> tuple[float, float, float, float]:
        reference_length = max(reference_length, 1)
        return (
            average_lagging(delays, source_length, reference_length),
            length_adaptive_average_lagging(delays, source_length, reference_length),
            differentiable_average_lagging(delays, source_length),
            average_proportion(delays, source_length, reference_length),
        )

    def compute(self) -> dict[str, Tensor]:
        """Return each mean by its name, with `_ca` behind it where computing counts; none of what was not given."""
        found: dict[str, Tensor] = {}
        for ending, totals, count in zip(("", "_ca"), self.totals.tolist(), self.outputs.tolist(), strict=True):
            if count:
                means = self.totals.float().new_tensor([total / (_ONE * count) for total in totals])
                found |= {f"{name}{ending}": mean for name, mean in zip(self.names, means, strict=True)}
        return found


def unit_delays(
    delays: Delays, written: Sequence[str], split: Callable[[str], Sequence[str]] = str.split
) -> list[float]:
    """Turn delays of tokens into those of words, or of characters: each has that of the token which completes it.

    Args:
        delays: `(T,)` of each token, EOS left out.
        written: `(T,)` the output up to and with each token.
        split: returns the units of a text: `str.split` its words, `list` its characters.

    Example:
        >>> unit_delays([1, 2, 4, 5], ["hel", "hello", "hello wor", "hello world"])
        [2, 5]
    """
    rows = [split(text) for text in written]
    units = rows[-1] if rows else []
    ends = (next(t for t, row in enumerate(rows) if row[:stop] == units[:stop]) for stop in range(1, len(units) + 1))
    return [delays[end] for end in ends]


def lag_row(
    prediction: str,
    delays: Delays,
    source_length: float,
    *,
    elapsed: Delays | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """Return what OmniSTEval reads of one output, a line of JSON: delays of its words, or of its characters.

    Args:
        prediction: the output.
        delays: of its units, in milliseconds or source tokens.
        source_length: in the same unit.
        elapsed: delays to which the time of computing is added, if it is known.
        reference: what it is compared with, unless a file has the references.

    Example:
        >>> lag_row("hello world", [2, 5], 5, elapsed=[2.5, 6])
        {'prediction': 'hello world', 'delays': [2, 5], 'elapsed': [2.5, 6], 'source_length': 5}
    """
    row = {"prediction": prediction, "delays": delays, "elapsed": elapsed, "source_length": source_length}
    return {name: value for name, value in {**row, "reference": reference}.items() if value is not None}
