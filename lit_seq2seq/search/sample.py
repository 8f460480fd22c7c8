"""Sampling of outputs."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.search.constraints import keep_top_k, keep_top_p
from lit_seq2seq.search.greedy import Choice, follow
from lit_seq2seq.search.rules import Options, Rules
from lit_seq2seq.types import Hypothesis, S, StepFunction

BLOCK = 128
"""So many tokens of an output get their random numbers at once."""


@torch.no_grad()
def sample_search(
    step: StepFunction[S], state: S, *, return_attention: bool = False, **options: Unpack[Options]
) -> list[list[Hypothesis]]:
    """Draw `num_return_sequences` independent outputs per sentence, each token from the model's distribution.

    The distribution is first sharpened by `temperature`, then cut to `top_k`, then to `top_p`. The scores in the result
    do not show this: they are log-probabilities under the model itself, comparable with those of `beam_search`. The
    random numbers are drawn on the CPU for the whole batch, so that an output depends on the seed and on the sentence's
    place in the batch, but neither on its batch mates nor on the device.

    For the arguments see `search`. The same output may occur more than once in the result.
    """
    rules, config = Rules.create(**options), options["config"]
    choose = sampler(config, options["batch_size"], rules.prefix.device)
    return follow(step, state, choose, rules, outputs=config.num_return_sequences, return_attention=return_attention)


def sampler(config: GenerationConfig, batch_size: int, device: torch.device | str) -> Choice:
    """Return what chooses the tokens of one search at random.

    Args:
        config: the options.
        batch_size: number of sentences B.
        device: where the log-probabilities will be.
    """
    generator = None if config.seed is None else torch.Generator().manual_seed(config.seed)
    shape = (batch_size, config.num_return_sequences)
    uniform = torch.empty(*shape, 0, device=device)  # (B, K, T)
    limits = torch.finfo(torch.float32)
    temperature = min(max(config.temperature, limits.tiny), limits.max)
    steps = 0

    def choose(log_probs: Tensor, sentences: Tensor, positions: Tensor) -> Tensor:
        nonlocal steps, uniform
        if uniform.shape[2] == steps < config.max_new_tokens:
            more = torch.rand(*shape, min(BLOCK, config.max_new_tokens - steps), generator=generator)
            uniform = torch.cat([uniform, more.to(device)], dim=2)
        steps += 1
        logits = (log_probs - log_probs.amax(-1, keepdim=True)) / temperature  # (B, K, V)
        if config.top_k:
            logits = keep_top_k(logits, config.top_k)
        if config.top_p < 1:
            logits = keep_top_p(logits, config.top_p)
        return draw(logits.softmax(-1), uniform[sentences, :, positions.clamp(0, uniform.shape[2] - 1)])

    return choose


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Turn uniform random numbers into tokens by inversion: the first token whose cumulative probability exceeds them.

    Args:
        probabilities: `(..., V)` distributions.
        uniform: `(...)` numbers in [0, 1).

    Returns:
        `(...)` tokens; those of probability 0 are never drawn.

    Example:
        >>> draw(torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.0, 0.5]]), torch.tensor([0.4, 0.5]))
        tensor([0, 2])
    """
    cumulative = probabilities.cumsum(-1).masked_fill(probabilities == 0, 0)  # (..., V)
    threshold = uniform[..., None] * cumulative.amax(-1, keepdim=True)  # (..., 1)
    return (cumulative > threshold).byte().argmax(-1)
