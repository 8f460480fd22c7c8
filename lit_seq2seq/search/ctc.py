"""Search by connectionist temporal classification (CTC), alone or joined with a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Self

import torch
from torch import Tensor

from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.search.scores import length_divisor, normalize
from lit_seq2seq.types import Hypothesis, Padded, S, SpecialIds, StepFunction, StepOutput, Value

_LEAST = -1000.0
"""A log-probability as good as minus infinity, but such that sums of it can be subtracted."""


@dataclass(frozen=True)
class Prefixes(Value):
    """What CTC thinks of N = B * K beginnings g of outputs; implements `SearchState`.

    `label` and `blank` are the forward variables `log gamma_s^n(g)` and `log gamma_s^b(g)` of Watanabe et al. (2017,
    https://ieeexplore.ieee.org/document/8068205, algorithm 2): the log-probabilities that the positions up to s give
    exactly g and that the last of them is a symbol, or a blank. The recursion over s is linear, so that it is computed
    as a cumulative sum, over all positions at once; in double precision, for its terms are large.

    Attributes:
        frames: `(B, S, V)` probabilities at each position of a *source*, of nothing but the blank after its end.
        label: `(N, S)`.
        blank: `(N, S)`.
        last: `(N,)` last symbol of g, the blank where g is empty.
        log_prob: `(N,)` log-probability that an output begins with g.
        specials: ids of the special symbols; the blank is `specials.pad`.
    """

    frames: Tensor
    label: Tensor
    blank: Tensor
    last: Tensor
    log_prob: Tensor
    specials: SpecialIds

    @classmethod
    def start(cls, frames: Padded, specials: SpecialIds) -> Self:
        """Begin with one empty output per source, given log-probabilities `frames (B, S, V)`."""
        values = frames.values.double().exp()
        padding = torch.zeros_like(values[0, 0])  # (V,)
        padding[specials.pad] = 1
        values = values.where(frames.mask[..., None], padding)
        blank = values[..., specials.pad].log().cumsum(dim=1)  # (B, S)
        last = torch.full_like(frames.lengths, specials.pad)
        return cls(values, torch.full_like(blank, -torch.inf), blank, last, torch.zeros_like(blank[:, 0]), specials)

    def select(self, index: Tensor) -> Self:
        """Reorder the beginnings by `index (B', K')` and drop the sources that are missing from it."""
        flat, beams = index.flatten(), len(self.last) // len(self.frames)
        return replace(
            self,
            frames=self.frames if len(index) == len(self.frames) else self.frames[index[:, 0] // beams],
            label=self.label[flat],
            blank=self.blank[flat],
            last=self.last[flat],
            log_prob=self.log_prob[flat],
        )

    def extend(self, tokens: Tensor) -> Self:
        """Append one symbol to each beginning, `(N,)`; BOS leaves the empty ones as they are."""
        new, blanks = self._log_probs(tokens), self._log_probs(torch.full_like(tokens, self.specials.pad))  # (N, S)
        whole, ready = self._before()
        ready = ready.where((tokens == self.last)[:, None], whole)  # (N, S)
        label = _linear(ready, new)
        blank = _linear(_shifted(label, -torch.inf), blanks)
        log_prob = (ready + new).logsumexp(dim=1)
        kept = tokens == self.specials.bos
        return replace(
            self,
            label=self.label.where(kept[:, None], label),
            blank=self.blank.where(kept[:, None], blank),
            last=self.last.where(kept, tokens),
            log_prob=self.log_prob.where(kept, log_prob),
        )

    def continuations(self) -> Tensor:
        """Compute by how much the log-probability changes with each symbol that may come next, `(N, V)`.

        For EOS it is that of g being the whole output. Where CTC holds g impossible, as it can with a forced beginning,
        it tells nothing: all are 0.
        """
        whole, ready = self._before()  # (N, S)
        highest = whole.amax(dim=1, keepdim=True).clamp(min=torch.finfo(whole.dtype).min)  # (N, 1)
        weights = (whole - highest).exp().view(len(self.frames), -1, whole.shape[1])  # (B, K, S)
        begun = (weights @ self.frames).flatten(0, 1).log() + highest  # (N, V)
        again = (ready + self._log_probs(self.last)).logsumexp(dim=1, keepdim=True)  # (N, 1)
        begun = begun.scatter(1, self.last[:, None], again)
        begun[:, self.specials.pad] = -torch.inf
        begun[:, self.specials.eos] = torch.logaddexp(self.label[:, -1], self.blank[:, -1])
        change = (begun - self.log_prob[:, None]).clamp(max=0)
        return change.masked_fill((self.log_prob == -torch.inf)[:, None], 0)

    def _log_probs(self, symbols: Tensor) -> Tensor:
        """Look up the log-probabilities of one symbol per beginning, `(N,)`, at each position: `(N, S)`."""
        places = symbols.reshape(len(self.frames), 1, -1).expand(-1, self.frames.shape[1], -1)  # (B, S, K)
        return self.frames.gather(2, places).transpose(1, 2).flatten(0, 1).log()

    def _before(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities that exactly g lies before each position, and that a blank ends it: `(N, S)` each."""
        empty = torch.zeros_like(self.log_prob).masked_fill(self.last != self.specials.pad, -torch.inf)[:, None]
        blank = torch.cat([empty, self.blank[:, :-1]], dim=1)
        return torch.logaddexp(_shifted(self.label, -torch.inf), blank), blank


def _shifted(x: Tensor, first: float) -> Tensor:
    """Move `(N, S)` one position on."""
    return torch.cat([torch.full_like(x[:, :1], first), x[:, :-1]], dim=1)


def _linear(entering: Tensor, staying: Tensor) -> Tensor:
    """Solve `x_s = (x_{s-1} + exp(entering_s)) exp(staying_s)`, x_{-1} = 0, for `log x`, `(N, S)`."""
    finite = staying.clamp(min=_LEAST)
    total = finite.cumsum(dim=1)
    solved = total + torch.logcumsumexp(entering - (total - finite), dim=1)
    return solved.masked_fill(staying == -torch.inf, -torch.inf)


@dataclass(frozen=True)
class JointState(Value, Generic[S]):
    """State of a decoder, and what CTC thinks of the same hypotheses. Implements `SearchState`."""

    decoder: S
    prefixes: Prefixes

    def select(self, index: Tensor) -> Self:
        """Reorder the hypotheses of both by `index (B', K')`; see `SearchState`."""
        return replace(self, decoder=self.decoder.select(index), prefixes=self.prefixes.select(index))


def join_ctc(
    step: StepFunction[S], state: S, frames: Padded, specials: SpecialIds, *, weight: float
) -> tuple[StepFunction[JointState[S]], JointState[S]]:
    """Make a step function and first state whose scores are `weight CTC + (1 - weight) decoder`.

    The score of a hypothesis y is then `weight log p_ctc(y...) + (1 - weight) log p(y)` (Watanabe et al. 2017): while y
    is open its CTC part is the probability of all outputs that begin with y, in the end that of y alone.

    Args:
        step: of the decoder.
        state: of the decoder, before BOS, one hypothesis per source.
        frames: `(B, S, V)` CTC's log-probabilities at each position.
        specials: ids of the special symbols; padding is the blank.
        weight: above 0 and at most 1.

    Example:
        >>> table = torch.full((6, 6), 1 / 6).log()
        >>> class Nothing(Value):
        ...     pass
        >>> def step(tokens, state):
        ...     return StepOutput(table[tokens], state)
        >>> frames = Padded(torch.tensor([[[0.5, 0, 0, 0, 0.5, 0]]]).log(), torch.tensor([1]))
        >>> joint, state = join_ctc(step, Nothing(), frames, SpecialIds(), weight=1.0)
        >>> joint(torch.tensor([2]), state).log_probs.exp()[0, 3:5]  # the end, and the symbol 4
        tensor([0.5000, 0.5000])
    """

    def joint(tokens: Tensor, state: JointState[S]) -> StepOutput[JointState[S]]:
        output = step(tokens, state.decoder)
        prefixes = state.prefixes.extend(tokens)
        log_probs = weight * prefixes.continuations()
        if weight < 1:
            log_probs = log_probs + (1 - weight) * output.log_probs
        log_probs = log_probs.to(torch.promote_types(output.log_probs.dtype, torch.float32))
        return StepOutput(log_probs, JointState(output.state, prefixes), output.attention)

    return joint, JointState(state, Prefixes.start(frames, specials))


@torch.no_grad()
def best_path(frames: Padded, specials: SpecialIds, config: GenerationConfig) -> list[list[Hypothesis]]:
    """Take the most probable symbol or blank at each position, join repetitions and drop blanks; never BOS or EOS.

    The best path decoding of Graves et al. (2006, section 3.2): no decoder runs, and nothing is searched. The
    log-probability of a hypothesis is that of its path; a token's is that of its positions and the blanks before them,
    EOS's that of the blanks at the end.

    Args:
        frames: `(B, S, V)` CTC's log-probabilities at each position.
        specials: ids of the special symbols; padding is the blank.
        config: of its options, `max_new_tokens` and those of the score count.

    Returns:
        For each source a list of one hypothesis, with its tensors on the CPU.

    Example:
        >>> likely = torch.tensor([[4, 4, 0, 4, 5]])  # 0 is the blank
        >>> frames = Padded(torch.nn.functional.one_hot(likely, 6).double().log(), torch.tensor([5]))
        >>> best_path(frames, SpecialIds(), GenerationConfig())[0][0].tokens
        tensor([4, 4, 5])
    """
    never = [index for index in {specials.bos, specials.eos} if index != specials.pad]
    values = frames.values.index_fill(2, torch.tensor(never, dtype=torch.long, device=frames.values.device), -torch.inf)
    log_probs, path = values.max(dim=-1)  # (B, S)
    path = path.masked_fill(~frames.mask, specials.pad)
    labels = path != specials.pad
    begins = labels & (path != _shifted(path, specials.pad))
    tokens_before = begins.cumsum(dim=1) - labels.long()  # (B, S), place of the token that a position belongs to
    scores = torch.zeros(len(path), path.shape[1] + 1, dtype=log_probs.dtype, device=path.device)
    scores = scores.scatter_add(1, tokens_before, log_probs.masked_fill(~frames.mask, 0)).cpu()
    found = []
    for row, starts, token_scores in zip(path.cpu(), begins.cpu(), scores, strict=True):
        tokens = row[starts][: config.max_new_tokens]
        kept = token_scores[: min(int(starts.sum()) + 1, config.max_new_tokens)]
        length = torch.tensor([float(len(kept))], dtype=kept.dtype)
        divisor = length_divisor(length, config.length_normalization, config.length_penalty)
        total = kept.sum()
        found.append([Hypothesis(tokens, normalize(total, divisor).item(), total.item(), kept)])
    return found
