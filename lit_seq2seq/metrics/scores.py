"""`Scores`: everything that one pass over an evaluation split measures."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import SumMetric

from lit_seq2seq.features.text import UNKNOWN, one_form
from lit_seq2seq.metrics.base import TextMetric
from lit_seq2seq.metrics.emission import EmissionLag, Emissions
from lit_seq2seq.metrics.lag import Delays, Lag
from lit_seq2seq.metrics.scripts import lacks_spaces
from lit_seq2seq.metrics.sums import TokenAverage
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.types import Batch, UserError

_LAGS = (*Lag.names, *Emissions.names, *EmissionLag.names)


class Scores(nn.Module):
    """Loss, perplexity and corpus metrics of a split, from sums over its batches on all processes.

    Outputs that were written while their sources were read have the scores of `Lag`, too, those of transducers the ones
    of `Emissions`, and of `EmissionLag` where it is known when targets end.

    Outputs and references are compared in one form, so that what looks alike is alike: see `Tokenizer.form`. Where that
    changes any text of the split, each score is there as `NAME_raw` too, of the texts as they are.

    Args:
        metrics: of texts. Where several have one name, what their signatures differ in is added to it, such as
            `bleu_lc` and `bleu_mixed`.

    Attributes:
        names: under which the scores of the metrics are logged.
        signatures: of each score, by its name.
        rows: number of outputs of the last pass.
        unknown_share: of the outputs of the last pass, how many hold a symbol that is unknown to the vocabulary.
        worst: for each metric how many times in a row it has been as bad as it can be.

    Raises:
        UserError: if a metric has no name, or two of one name do not differ.

    Example:
        >>> import torch
        >>> from lit_seq2seq.metrics import ExactMatch, Scores
        >>> from lit_seq2seq.types import Batch, Padded
        >>> ids = Padded(torch.tensor([[1]]), torch.tensor([1]))
        >>> batch = Batch(ids, ids, rows=torch.tensor([0]), references=(("a  b ",),), texts=("A",))
        >>> scores = Scores([ExactMatch()])
        >>> scores.update(torch.tensor(3.0), torch.tensor(2), ["a b"], batch)
        >>> {name: round(score.item(), 2) for name, score in scores.compute().items()}
        {'loss': 1.5, 'ppl': 4.48, 'exact_match': 100.0, 'exact_match_raw': 0.0}
    """

    @checked
    def __init__(self, metrics: Iterable[TextMetric] = ()) -> None:
        super().__init__()
        self.nll = TokenAverage()
        self.metrics = nn.ModuleList(metrics)
        self.names = _names(list(self._metrics()))
        self.signatures: dict[str, str] = {}
        self.raw: nn.ModuleList | None = None  # the metrics of the texts as they are, once a text has changed
        self.changed, self.unknown, self.per_character = TokenAverage(), TokenAverage(), TokenAverage()
        self.segments, self.lag = SumMetric(), Lag()
        self.emissions, self.emission_lag = Emissions(), EmissionLag()
        self.rows, self.unknown_share = 0, 0.0
        self.worst: Counter[str] = Counter()

    @property
    def modes(self) -> dict[str, str]:
        """Whether more (`max`) or less (`min`) is better, by name of the score; of metrics that say it."""
        known = {name: metric.higher_is_better for name, metric in zip(self.names, self._metrics(), strict=True)}
        modes = {name: "max" if up else "min" for name, up in known.items() if up is not None}
        plain = dict.fromkeys(("loss", "ppl", "bpc", *Lag.names, *EmissionLag.names), "min")
        return {**plain, **modes, **{f"{name}_raw": mode for name, mode in modes.items()}}

    def _metrics(self, raw: bool = False) -> Iterator[TextMetric]:
        yield from self.raw or () if raw else self.metrics  # type: ignore[misc]

    def update(
        self,
        nll: Tensor,
        tokens: Tensor | int,
        hypotheses: Sequence[str],
        batch: Batch,
        *,
        form: Callable[[str], str] = one_form,
        lag: tuple[Sequence[Delays], Sequence[float], Sequence[int]] = ((), (), ()),
        emissions: Sequence[Mapping[str, float]] = (),
        emission_lags: Sequence[Sequence[float]] = (),
    ) -> None:
        """Add a batch.

        Args:
            nll: scalar, the negative log-likelihood of its targets, summed over their tokens.
            tokens: scalar, the number of these.
            hypotheses: one output per example.
            batch: with the references and, where a metric needs them, the texts of the sources.
            form: brings outputs and references into one form.
            lag: of outputs that were written while their sources were read, what `Lag.update` asks for.
            emissions: of outputs of a transducer what `Emissions.update` asks for.
            emission_lags: where it is known when targets end, what `EmissionLag.update` asks for.
        """
        self.nll.update(nll, tokens)
        self.lag.update(*lag)
        self.emissions.update(emissions)
        self.emission_lag.update(emission_lags)
        self.segments.update(len(hypotheses))
        outputs = [form(text) for text in hypotheses]
        references = [[form(text) for text in row] for row in batch.references]
        pairs = zip(zip(outputs, references, strict=True), zip(hypotheses, batch.references, strict=True), strict=True)
        changed = sum((one, [*row]) != (other, [*raw]) for (one, row), (other, raw) in pairs)
        self.changed.update(self.nll.total.new_tensor(changed), len(outputs))
        self.unknown.update(self.nll.total.new_tensor(sum(UNKNOWN in text for text in outputs)), len(outputs))
        if changed and self.raw is None:
            self.raw = copy.deepcopy(self.metrics).train()
        if self.raw is not None:
            for metric in self._metrics(raw=True):
                metric.update(hypotheses, batch.references, batch.texts)
        for metric in self._metrics():
            if metric.keeps_lines:
                lines = [[by_line(form, text) for text in row] for row in batch.references]
                metric.update([by_line(form, text) for text in hypotheses], lines, batch.texts)
            else:
                metric.update(outputs, references, batch.texts)

    def measure(self, nll: Tensor, tokens: Tensor, texts: Sequence[str], *, signature: str) -> None:
        """Add a batch of texts that are outputs for nothing: perplexity and bits per character measure them.

        Args:
            nll: see `update`.
            tokens: see `update`.
            texts: those that end in the batch; of each its characters count, and its end as one.
            signature: what the scores depend on.
        """
        self.nll.update(nll, tokens)
        self.per_character.update(nll, sum(len(text) + 1 for text in texts))
        self.segments.update(len(texts))
        self.signatures |= {"ppl": f"per:token|{signature}", "bpc": f"per:character|{signature}"}

    def compute(self) -> dict[str, Tensor]:
        """Return each score by its name, and remember the signatures of the metrics; collective over processes."""
        nll = self.nll.compute()
        scores = {"loss": nll, "ppl": nll.exp()}
        self.rows = int(self.segments.compute())
        if self.per_character.update_called:
            return scores | {"bpc": self.per_character.compute() / math.log(2)}
        scores |= self.lag.compute() | self.emissions.compute() | self.emission_lag.compute()
        changed, self.unknown_share = bool(self.changed.compute() > 0), float(self.unknown.compute())
        if changed and self.raw is None:  # no text of this process has
            self.raw = copy.deepcopy(self.metrics).train()
        for name, metric in zip(self.names, self._metrics(), strict=True):
            scores[name] = metric.compute()
            self.signatures[name] = metric.signature() + ("|text:one-form" if changed else "")
            self.worst[name] = self.worst[name] + 1 if is_worst(metric, scores[name]) else 0
        if changed:
            for name, metric in zip(self.names, self._metrics(raw=True), strict=True):
                scores[f"{name}_raw"] = metric.compute()
                self.signatures[f"{name}_raw"] = metric.signature()
        return scores

    def try_on(self, references: Sequence[str], sources: Sequence[str]) -> None:
        """Warn of metrics that cannot measure texts like these: right outputs would have the worst score, too."""
        for name, metric in zip(self.names, self._metrics(), strict=True):
            perfect = copy.deepcopy(metric)
            perfect.reset()
            perfect.sync_on_compute = False
            perfect.update(references, [[text] for text in references], sources)
            if metric.splits_at_spaces and lacks_spaces(references):
                rank_zero_warn(
                    f"{name} splits texts at spaces, which the references are written without: its score means little; "
                    "use CER, ChrF, or BLEU without tokenize"
                )
            elif len(set(references)) > 1 and (
                is_worst(metric, score := perfect.compute()) or float(score) < metric.perfect / 2
            ):
                rank_zero_warn(
                    f"{name} would be {float(score):.1f} even if all outputs were right: it does not fit these texts; "
                    "use another metric, such as ChrF or ExactMatch"
                )

    def reset(self) -> None:
        """Forget all batches."""
        self.raw = None
        lags = (self.lag, self.emissions, self.emission_lag)
        for metric in (
            self.nll,
            self.segments,
            *lags,
            self.changed,
            self.unknown,
            self.per_character,
            *self._metrics(),
        ):
            metric.reset()


def is_worst(metric: TextMetric, score: Tensor | float) -> bool:
    """Tell whether a score is as bad as it can be: 0, or 100 and more for an error rate."""
    if metric.higher_is_better is None:  # torchmetrics' default
        return False
    return float(score) <= 0 if metric.higher_is_better else float(score) >= 100


def by_line(form: Callable[[str], str], text: str) -> str:
    """Bring each line of a text into a form."""
    return "\n".join(map(form, text.split("\n")))


def _names(metrics: Sequence[TextMetric]) -> list[str]:
    """Name each metric; several of one name by what their signatures differ in, too."""
    names = [_name(metric) for metric in metrics]
    shared = {name for name, count in Counter(names).items() if count > 1}
    for name in shared:
        places = [place for place, other in enumerate(names) if other == name]
        for place, suffix in zip(places, _differences([metrics[place].signature() for place in places]), strict=True):
            names[place] += suffix
    scores = Counter([*names, *(f"{name}_raw" for name in names), "loss", "ppl", "bpc", *_LAGS])
    if doubled := next((name for name, count in scores.items() if count > 1), None):
        raise UserError(f"several scores would be called {doubled}: leave out a metric, or give its class another name")
    return names


def _name(metric: TextMetric) -> str:
    if not isinstance(metric, TextMetric):
        raise UserError(
            f"expected a TextMetric among the metrics, but got {type(metric).__name__}: use a subclass of it"
        )
    if not isinstance(getattr(metric, "name", None), str):
        raise UserError(f"{type(metric).__name__} has no name: give its class one, such as name = 'my_score'")
    if not metric.name or re.search(r"[/\\{}:]", metric.name):
        raise UserError(
            f"{metric.name!r} is no name for {type(metric).__name__}: it becomes part of the names of files"
        )
    return metric.name


def _differences(signatures: Sequence[str]) -> list[str]:
    """Return what each signature does not share with all others: `_lc` for `case:lc`, `_nw2` for `nw:2`."""
    rows = [signature.split("|") for signature in signatures]
    own = [[part for part in row if not all(part in other for other in rows)] for row in rows]
    fields = [[part for part in row if ":" in part] or row for row in own]
    return ["".join(f"_{_short(*part.rpartition(':')[::2])}" for part in row) for row in fields]


def _short(key: str, value: str) -> str:
    value = re.sub(r"\W", "", value)
    return value if value[:1].isalpha() or "tok" in key else f"{key}{value}"
