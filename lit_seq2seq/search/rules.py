"""What holds for each sentence of a batch under search: its forced prefix, its limits and its scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Required, Self, TypedDict

import torch
from torch import Tensor

from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.search.constraints import block_repeated_ngrams
from lit_seq2seq.search.scores import best_reachable, coverage_score, length_divisor, normalize
from lit_seq2seq.types import S, SpecialIds, StepOutput, UserError, Value


class Options(TypedDict, total=False):
    """What the algorithms of search need to know; see `search`."""

    batch_size: Required[int]
    specials: Required[SpecialIds]
    config: Required[GenerationConfig]
    prefix: Tensor | None
    source_mask: Tensor | None
    device: torch.device | str


@dataclass(frozen=True)
class Rules(Value):
    """The options of a search, spread over the sentences of the batch; shrinks with it by `select`.

    `time` below counts decoding steps from 0, the step that reads BOS, including those of the prefix.

    Attributes:
        prefix: `(B, P)` forced first tokens, padded at the end.
        prefix_lengths: `(B,)` their number.
        source_mask: `(B, S)` true at real source positions, or `None` if all are.
        config: the options.
        specials: ids of the special symbols.
    """

    prefix: Tensor
    prefix_lengths: Tensor
    source_mask: Tensor | None
    config: GenerationConfig
    specials: SpecialIds

    @classmethod
    def create(
        cls,
        batch_size: int,
        config: GenerationConfig,
        specials: SpecialIds,
        prefix: Tensor | None = None,
        *,
        source_mask: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Check the prefix and put everything on `device`."""
        if prefix is None:
            prefix = torch.zeros(batch_size, 0, dtype=torch.long)
        given = check_prefix(prefix, batch_size, specials)
        mask = None if source_mask is None else source_mask.to(device)
        return cls(prefix.to(device, torch.long), given.sum(1).to(device), mask, config, specials)

    @property
    def max_time(self) -> int:
        """Number of decoding steps after which every sentence is finished."""
        return self.prefix.shape[1] + self.config.max_new_tokens

    def constrain(self, output: StepOutput[S], paths: Tensor, time: int) -> Tensor:
        """Compute the log-probabilities under which the next token is chosen.

        Padding and BOS are banned, repeated n-grams and a too early EOS if so configured; a forced token has
        log-probability 0 (it is given) and everything else is banned beside it. The rest is not renormalised. A
        hypothesis that no token may follow ends there: it gets EOS with log-probability 0.

        Args:
            output: of the model, with log-probabilities `(N, V)`, N = B * K; not changed unless they are `fresh`.
            paths: `(B, K, T)` tokens of the hypotheses so far.
            time: the decoding step.

        Returns:
            `(N, V)` in at least single precision.
        """
        config, specials, beams = self.config, self.specials, paths.shape[1]
        dtype = torch.promote_types(output.log_probs.dtype, torch.float32)
        log_probs = output.log_probs.to(dtype, copy=not output.fresh)
        ending = log_probs[:, specials.eos].clone()  # (N,); padding or BOS may be the same symbol
        log_probs[:, specials.pad] = -torch.inf
        log_probs[:, specials.bos] = -torch.inf
        if config.no_repeat_ngram_size:
            block_repeated_ngrams(log_probs, paths.flatten(0, 1), config.no_repeat_ngram_size, specials.pad)
        if config.min_new_tokens:
            too_early = (time - self.prefix_lengths < config.min_new_tokens).repeat_interleave(beams)  # (N,)
            ending = ending.masked_fill(too_early, -torch.inf)
        log_probs[:, specials.eos] = ending
        if time < self.prefix.shape[1]:
            forced = self.prefix[:, time].repeat_interleave(beams)[:, None]  # (N, 1)
            certain = torch.full_like(log_probs, -torch.inf).scatter_(1, forced, 0)  # (N, V)
            log_probs = certain.where(forced != specials.pad, log_probs)
        dead_end = log_probs.amax(1) == -torch.inf  # (N,)
        log_probs[:, specials.eos].masked_fill_(dead_end, 0)
        return log_probs

    def ends(self, tokens: Tensor, time: int) -> Tensor:
        """Tell which hypotheses end with the token produced at `time`: by EOS or by their length; `(B, K)` both."""
        at_limit = time + 1 - self.prefix_lengths >= self.config.max_new_tokens  # (B,)
        return (tokens == self.specials.eos) | at_limit[:, None]

    def score(self, log_probs: Tensor, time: int, coverage: Tensor | None) -> Tensor:
        """Rank hypotheses that end at `time`.

        Args:
            log_probs: `(B, K)` their log-probabilities.
            time: the step that produced their last token.
            coverage: `(B, K, S)` attention weights summed over their tokens; `None` without coverage penalty.

        Returns:
            `(B, K)` scores, higher is better.
        """
        config = self.config
        divisor = length_divisor(
            self._lengths(time, log_probs.dtype), config.length_normalization, config.length_penalty
        )
        scores = normalize(log_probs, divisor[:, None])
        if coverage is None:
            return scores
        mask = None if self.source_mask is None else self.source_mask[:, None]  # (B, 1, S)
        return scores + coverage_score(coverage, mask, config.coverage_penalty)

    def best_reachable(self, log_probs: Tensor, time: int) -> Tensor:
        """Bound the score of any end after `time` of hypotheses with `log_probs`, `(B,)`."""
        config = self.config
        longest = torch.full_like(log_probs, config.max_new_tokens)
        lengths = self._lengths(time + 1, log_probs.dtype)
        return best_reachable(log_probs, lengths, longest, config.length_normalization, penalty=config.length_penalty)

    def add_coverage(self, coverage: Tensor | None, attention: Tensor | None, beams: int) -> Tensor | None:
        """Add one step's attention `(B * K, S)` to `coverage (B, K, S)`, if there is a coverage penalty."""
        if not self.config.coverage_penalty:
            return None
        if attention is None:
            value = self.config.coverage_penalty
            raise UserError(f"coverage_penalty={value}: needs a model with attention; set coverage_penalty to 0")
        attention = attention.to(torch.promote_types(attention.dtype, torch.float32)).reshape(
            -1, beams, attention.shape[1]
        )  # (B, K, S)
        return attention if coverage is None else coverage + attention

    def _lengths(self, time: int, dtype: torch.dtype) -> Tensor:
        """Number of generated tokens, prefix excluded, of hypotheses that end at `time`, `(B,)`."""
        return (time + 1 - self.prefix_lengths).clamp(min=1).to(dtype)


def check_prefix(prefix: Tensor, batch_size: int, specials: SpecialIds) -> Tensor:
    """Check the tokens with which outputs must begin; return which of them are not padding, `(B, P)`.

    Raises:
        UserError: there is not a row for each sentence, or it has padding before a token, BOS or EOS.
    """
    if prefix.dim() != 2 or prefix.shape[0] != batch_size:
        raise UserError(f"prefix has shape {tuple(prefix.shape)}: must be ({batch_size}, P), one row per sentence")
    if prefix.numel() and (prefix.is_floating_point() or (prefix < 0).any()):
        raise UserError("prefix has numbers that are no ids: give whole numbers from 0")
    given = prefix != specials.pad
    if (given[:, 1:] & ~given[:, :-1]).any():
        raise UserError("prefix has padding before a token: pad shorter prefixes at the end")
    if (given & ((prefix == specials.bos) | (prefix == specials.eos))).any():
        raise UserError("prefix has a BOS or EOS id: give only the tokens between them")
    return given
