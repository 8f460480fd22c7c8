"""One output, token by token."""

from __future__ import annotations

from collections.abc import Generator
from typing import Unpack

from lit_seq2seq import arrays
from lit_seq2seq.search.best_path import alone
from lit_seq2seq.search.candidates import among
from lit_seq2seq.search.greedy import Paths, follow_stepwise, most_probable
from lit_seq2seq.search.rules import Options, begin
from lit_seq2seq.search.sample import sampler
from lit_seq2seq.types import S, StepFunction, UserError


def stream(step: StepFunction[S], state: S, **options: Unpack[Options]) -> Generator[int, None, bool]:
    """Yield the tokens of one output as soon as each is chosen, without EOS; return whether it meets the constraints.

    They are chosen greedily or by sampling. For the arguments see `search`; `state` is that of a single hypothesis.

    Raises:
        UserError: the options ask for several beams or outputs, which are not known before the end.
    """
    config, candidates, xp = options["config"], options.get("candidates"), arrays.on(options.get("device", "cpu"))
    for name in ("num_beams", "num_return_sequences"):
        if getattr(config, name) > 1:
            raise UserError(f"{name}={getattr(config, name)}: must be 1 to stream tokens, which are final at once")
    with xp.quiet():
        options["batch_size"] = 1
        options = among(options)
        found = alone(options)
        step, state, rules, constraints = begin(step, state, **options)
        choose = sampler(config, 1, xp) if config.do_sample else most_probable
        steps = follow_stepwise(step, state, choose, Paths.start(rules, constraints, outputs=1))
    if found is not None:
        yield from found[0][0].tokens.tolist()
        return True
    while True:
        try:
            with xp.quiet():  # not between tokens, which the caller's code is
                tokens = next(steps)
        except StopIteration as end:
            met: bool = end.value[0][0].met
            config.check_outputs(empty=False, unmet=int(not met))
            return met
        token = int(tokens[0, 0])
        if token != rules.specials.eos:
            yield token if candidates is None else int(candidates.values[0, token])
