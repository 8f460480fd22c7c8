"""One output, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.search.candidates import located
from lit_seq2seq.search.ctc import best_path, join_ctc
from lit_seq2seq.search.greedy import follow_stepwise, most_probable
from lit_seq2seq.search.rules import Rules
from lit_seq2seq.search.sample import sampler
from lit_seq2seq.types import Padded, S, SpecialIds, StepFunction, UserError


@torch.no_grad()
def stream(
    step: StepFunction[S],
    state: S,
    *,
    specials: SpecialIds,
    config: GenerationConfig,
    prefix: Tensor | None = None,
    source_mask: Tensor | None = None,
    frames: Padded | None = None,
    candidates: Padded | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[int]:
    """Yield the tokens of one sentence's output as soon as each is chosen, greedily or by sampling, without EOS.

    For the arguments see `search`; `state` is that of a single hypothesis.

    Raises:
        UserError: the options ask for several beams or outputs, of which none is known before the end.
    """
    for name in ("num_beams", "num_return_sequences"):
        if getattr(config, name) > 1:
            raise UserError(f"{name}={getattr(config, name)}: must be 1 to stream tokens, which are final at once")
    if config.ctc_weight:
        if frames is None:
            raise UserError(f"ctc_weight={config.ctc_weight}: needs a model with CTC; set it to 0")
        if config.best_path and prefix is None:
            [[found]] = best_path(frames, specials, config)
            yield from found.tokens.tolist()
            return
        joined = join_ctc(step, state, frames, specials, weight=config.ctc_weight)
        config = replace(config, ctc_weight=0.0)
        yield from stream(
            *joined, specials=specials, config=config, prefix=prefix, source_mask=source_mask, device=device
        )
        return
    if candidates is not None:
        specials, prefix = located(candidates, specials, prefix)
    rules = Rules.create(1, config, specials, prefix, source_mask=source_mask, device=device)
    choose = sampler(config, 1, device) if config.do_sample else most_probable
    for tokens in follow_stepwise(step, state, choose, rules, outputs=1):
        token = int(tokens)
        if token != specials.eos:
            yield token if candidates is None else int(candidates.values[0, token])
