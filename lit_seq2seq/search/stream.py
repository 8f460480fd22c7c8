"""One output, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.best_path import best_path
from lit_seq2seq.search.candidates import located
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.greedy import Paths, follow_stepwise, most_probable
from lit_seq2seq.search.rules import Options, begin, prefix_of
from lit_seq2seq.search.sample import sampler
from lit_seq2seq.search.task import Host, OutputVocabulary
from lit_seq2seq.types import Padded, S, SpecialIds, StepFunction, UserError


def stream(
    step: StepFunction[S],
    state: S,
    *,
    specials: SpecialIds,
    config: GenerationConfig,
    prefix: Array | None = None,
    source_mask: Array | None = None,
    frames: Padded | None = None,
    candidates: Padded | None = None,
    device: Any = "cpu",
    vocabulary: OutputVocabulary | None = None,
    raw: Sequence[Any] = (),
    host: Host | None = None,
) -> Iterator[int]:
    """Yield the tokens of one sentence's output as soon as each is chosen, greedily or by sampling, without EOS.

    For the arguments see `search`; `state` is that of a single hypothesis.

    Raises:
        UserError: the options ask for several beams or outputs, of which none is known before the end.
    """
    for name in ("num_beams", "num_return_sequences"):
        if getattr(config, name) > 1:
            raise UserError(f"{name}={getattr(config, name)}: must be 1 to stream tokens, which are final at once")
    xp, prefix = arrays.on(device), prefix_of(config, prefix, vocabulary, 1)
    if frames is not None and config.best_path and prefix is None:
        with xp.quiet():
            [[found]] = best_path(frames, specials, config)
        yield from found.tokens.tolist()
        return
    if candidates is not None:
        specials, prefix = located(candidates, specials, prefix)
    with xp.quiet():
        options: Options = {
            "batch_size": 1,
            "specials": specials,
            "config": config,
            "prefix": prefix,
            "source_mask": source_mask,
            "device": device,
            "vocabulary": vocabulary,
            "raw": raw,
            "host": host,
            "frames": frames,
        }
        step, state, rules, constraints = begin(step, state, **options)
        choose = sampler(config, 1, xp) if config.do_sample else most_probable
        steps = follow_stepwise(step, state, choose, Paths.start(rules, constraints, outputs=1))
    while True:
        with xp.quiet():  # not between tokens, which the caller's code is
            tokens = next(steps, None)
        if tokens is None:
            return
        token = int(tokens[0, 0])
        if token != specials.eos:
            yield token if candidates is None else int(candidates.values[0, token])
